package iscsi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"yester/iscsi/pdu"
)

// memory is a block.Reader in memory.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }
func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return copy(p, m[off:]), nil
}

func newTest(t testing.TB, o Options, luns ...LUN) (*Server, string) {
	t.Helper()
	if o.Logger == nil {
		o.Logger = testLogger(t)
	}
	s := New(o)
	if len(luns) == 0 {
		luns = []LUN{{ID: 1, Reader: make(memory, 1<<20)}}
	}
	if err := s.AddTarget(testTarget, luns...); err != nil {
		t.Fatal(err)
	}
	return s, serve(t, s)
}

func TestLoginKeys(t *testing.T) {
	_, addr := newTest(t, Options{})
	c := dial(t, addr)
	if err := c.login(loginSpec{keys: [][2]string{
		{"InitialR2T", "No"}, {"ImmediateData", "Yes"}, {"MaxConnections", "8"}, {"ErrorRecoveryLevel", "2"},
		{"MaxBurstLength", "16776192"}, {"FirstBurstLength", "262144"}, {"MaxOutstandingR2T", "0x10"},
		{"DataPDUInOrder", "No"}, {"DefaultTime2Wait", "0"}, {"DefaultTime2Retain", "20"}, {"IFMarker", "Yes"},
		{"X-org.example.thing", "1"}, {"Made-Up", "x"}, {"HeaderDigest", "CRC32C,None"}, {"DataDigest", "Frobnicate"},
		{"MaxRecvDataSegmentLength", "65536"}, {"DataSequenceInOrder", "perhaps"},
	}}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"InitialR2T": "Yes", "ImmediateData": "Yes", "MaxConnections": "1", "ErrorRecoveryLevel": "0",
		"MaxBurstLength": "1048576", "FirstBurstLength": "65536", "MaxOutstandingR2T": "1", "DataPDUInOrder": "Yes",
		"DefaultTime2Wait": "2", "DefaultTime2Retain": "0", "IFMarker": "No", "X-org.example.thing": "NotUnderstood",
		"Made-Up": "NotUnderstood", "HeaderDigest": "CRC32C", "DataDigest": "Reject", "TargetPortalGroupTag": "1",
		"MaxRecvDataSegmentLength": strconv.Itoa(ownSegment), "DataSequenceInOrder": "Reject",
	}
	for k, v := range want {
		if c.keys[k] != v {
			t.Errorf("%s=%q, want %q", k, c.keys[k], v)
		}
	}
	if c.tsih == 0 {
		t.Error("TSIH 0")
	}
	if _, ok := c.keys["InitiatorName"]; ok {
		t.Error("a declaration was answered")
	}
}

// TestLoginContinued sends the text in pieces, and makes the target do so.
func TestLoginContinued(t *testing.T) {
	_, addr := newTest(t, Options{})
	c := dial(t, addr)
	c.isid = [6]byte{0x80, 0, 0, 0, 0, 9}
	all := text("InitiatorName", testInitiator, "TargetName", testTarget, "SessionType", "Normal")
	for i := range 120 {
		all = append(all, text(fmt.Sprintf("X-%s-%03d", strings.Repeat("long", 14), i), "v")...)
	}
	var h pdu.Header
	h.SetOp(pdu.OpLoginReq)
	h.SetImmediate()
	h.SetISID(c.isid)
	h.SetITT(1)
	for len(all) > 1000 {
		h.SetFlags(pdu.FlagContinue | pdu.StageOperational<<2)
		c.write(&h, all[:1000])
		all = all[1000:]
		r, d, err := c.next()
		if err != nil || len(d) != 0 || r.Flags() != pdu.StageOperational<<2 {
			t.Fatalf("continued: %v, %d bytes, flags %#x", err, len(d), r.Flags())
		}
		c.statSN = r.StatSN() + 1
	}
	r, m, err := c.loginPDU(pdu.StageOperational, pdu.StageFull, true, all)
	if err != nil || r.Flags()&pdu.FlagTransit == 0 {
		t.Fatal(err, r.Flags())
	}
	if n := len(m); n < 120 {
		t.Errorf("%d answers", n)
	}
}

func TestLoginRefused(t *testing.T) {
	_, addr := newTest(t, Options{ACL: ACL{Initiators: []string{testInitiator}}})
	status := func(f func(c *client) error, want uint16) {
		t.Helper()
		err := f(dial(t, addr))
		var got loginFailure
		if !errors.As(err, &got) || uint16(got) != want {
			t.Errorf("%v, want %#04x", err, want)
		}
	}
	spec := func(s loginSpec) func(c *client) error { return func(c *client) error { return c.login(s) } }
	status(spec(loginSpec{target: "iqn.2026-11.yester:other"}), pdu.LoginNotFound)
	status(spec(loginSpec{initiator: "iqn.2026-11.yester:someone"}), pdu.LoginForbidden)
	status(spec(loginSpec{initiator: "no name"}), pdu.LoginInitiatorError)
	status(spec(loginSpec{tsih: 77}), pdu.LoginNoSession)
	raw := func(data []byte, csg, nsg byte, transit bool) func(c *client) error {
		return func(c *client) error {
			_, _, err := c.loginPDU(csg, nsg, transit, data)
			return err
		}
	}
	status(raw(text("TargetName", testTarget), 1, 3, true), pdu.LoginMissingParameter)
	status(raw(text("InitiatorName", testInitiator), 1, 3, true), pdu.LoginMissingParameter)
	status(raw(text("InitiatorName", testInitiator, "SessionType", "Odd"), 1, 3, true), pdu.LoginBadSessionType)
	status(raw([]byte("nonsense\x00"), 1, 3, true), pdu.LoginInitiatorError)
	status(raw(text("InitiatorName", "iqn.a", "InitiatorName", "iqn.b"), 1, 3, true), pdu.LoginInitiatorError)
	status(raw(nil, 3, 3, true), pdu.LoginInitiatorError)
	status(raw(nil, 1, 2, true), pdu.LoginInitiatorError)
	status(raw(text("InitiatorName", testInitiator, "TargetName", testTarget, "AuthMethod", "SRP"), 0, 1, false), pdu.LoginAuthFailed)
	status(func(c *client) error {
		var h pdu.Header
		h.SetOp(pdu.OpLoginReq)
		h[2], h[3] = 5, 5 // versions
		h.SetFlags(pdu.StageOperational << 2)
		c.write(&h, nil)
		r, _, err := c.next()
		if err != nil {
			return err
		}
		return loginFailure(r.LoginStatus())
	}, pdu.LoginBadVersion)
	status(func(c *client) error { // changes its ISID half-way
		if _, _, err := c.loginPDU(0, 1, false, text("InitiatorName", testInitiator, "TargetName", testTarget, "AuthMethod", "None")); err != nil {
			return err
		}
		c.isid[5]++
		_, _, err := c.loginPDU(1, 3, true, nil)
		return err
	}, pdu.LoginInvalidRequest)
}

// TestBeforeLogin: whoever doesn't log in gets not a single byte.
func TestBeforeLogin(t *testing.T) {
	_, addr := newTest(t, Options{Limits: Limits{LoginTimeout: 300 * time.Millisecond}})
	var nop, text, huge pdu.Header
	nop.SetOp(pdu.OpNopOut)
	text.SetOp(pdu.OpTextReq)
	huge.SetOp(pdu.OpLoginReq)
	huge.SetDataLen(pdu.MaxDataLen)
	for name, b := range map[string][]byte{
		"nop": nop[:], "text": text[:], "huge": huge[:], "http": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n" + strings.Repeat(" ", 48)), "silence": nil,
	} {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.Write(b)
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := nc.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: got an answer", name)
		} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%s: connection stays open", name)
		}
	}
}

var chapUser = User{Name: "alice", Secret: "wonderland-1865", MutualName: "target", MutualSecret: "looking-glass-71"}

func TestCHAP(t *testing.T) {
	bob := User{Name: "bob", Secret: "builder-secret-1", Targets: []string{"iqn.2026-11.yester:elsewhere"}}
	_, addr := newTest(t, Options{Auth: Auth{Users: []User{chapUser, bob}}, Limits: Limits{FailedLogins: 1000}})
	ok := loginSpec{user: "alice", secret: chapUser.Secret}
	for _, a := range []string{"5", "6", "7", "8", "99,8,5", "0x5"} {
		s := ok
		s.algorithms, s.mutual = a, chapUser.MutualSecret
		c := dial(t, addr)
		if err := c.login(s); err != nil {
			t.Errorf("algorithm %s: %v", a, err)
		}
	}
	if c := dial(t, addr); c.login(loginSpec{user: "alice", secret: chapUser.Secret, algorithms: "5,6,7,8"}) != nil || c.keys["CHAP_A"] != "8" {
		t.Errorf("picked algorithm %s of all", c.keys["CHAP_A"])
	}
	bad := map[string]loginSpec{
		"wrong secret": {user: "alice", secret: "not-wonderland"},
		"unknown user": {user: "mallory", secret: chapUser.Secret},
		"reflected":    {user: "alice", secret: chapUser.Secret, reflect: true},
		"no CHAP":      {},
		"md4 only":     {user: "alice", secret: chapUser.Secret, algorithms: "4"},
		"bob's mutual": {user: "bob", secret: bob.Secret, mutual: "none-configured"},
		"discovery":    {discovery: true},
	}
	for name, s := range bad {
		var got loginFailure
		if err := dial(t, addr).login(s); !errors.As(err, &got) || uint16(got) != pdu.LoginAuthFailed {
			t.Errorf("%s: %v", name, err)
		}
	}
	var got loginFailure
	if err := dial(t, addr).login(loginSpec{user: "bob", secret: bob.Secret}); !errors.As(err, &got) || uint16(got) != pdu.LoginForbidden {
		t.Errorf("bob: %v", err)
	}
	// Keys out of sequence: an answer before any challenge.
	c := dial(t, addr)
	_, _, err := c.loginPDU(0, 1, true, text("InitiatorName", testInitiator, "TargetName", testTarget, "AuthMethod", "CHAP", "CHAP_N", "alice", "CHAP_R", "0x00"))
	if !errors.As(err, &got) || uint16(got) != pdu.LoginAuthFailed {
		t.Errorf("out of sequence: %v", err)
	}
	// Straight to the full feature phase from the security stage.
	c = dial(t, addr)
	r, _, err := c.loginPDU(0, 3, true, text("InitiatorName", testInitiator, "TargetName", testTarget, "AuthMethod", "CHAP"))
	if err == nil && r.Flags()&pdu.FlagTransit != 0 {
		t.Error("let in without an answer")
	}
}

func TestAuthConfig(t *testing.T) {
	for name, a := range map[string]Auth{
		"short":       {Users: []User{{Name: "a", Secret: "short"}}},
		"nameless":    {Users: []User{{Secret: "long-enough-secret"}}},
		"twice":       {Users: []User{{Name: "a", Secret: "long-enough-secret"}, {Name: "a", Secret: "long-enough-secret"}}},
		"half mutual": {Users: []User{{Name: "a", Secret: "long-enough-secret", MutualName: "t"}}},
		"same secret": {Users: []User{{Name: "a", Secret: "long-enough-secret", MutualName: "t", MutualSecret: "long-enough-secret"}}},
	} {
		if (Options{Auth: a}).Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCheckListen(t *testing.T) {
	any4 := &net.TCPAddr{IP: net.IPv4zero, Port: 3260}
	for _, c := range []struct {
		addr net.Addr
		o    Options
		ok   bool
	}{
		{any4, Options{}, false},
		{&net.TCPAddr{Port: 3260}, Options{}, false},
		{&net.TCPAddr{IP: net.IPv6loopback}, Options{}, true},
		{&net.TCPAddr{IP: net.IPv4(127, 1, 2, 3)}, Options{}, true},
		{any4, Options{Insecure: true}, true},
		{any4, Options{Auth: Auth{Users: []User{chapUser}}}, true},
	} {
		if err := CheckListen(c.addr, c.o); (err == nil) != c.ok {
			t.Errorf("%v %+v: %v", c.addr, c.o, err)
		}
	}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := New(Options{}).Serve(l); !errors.Is(err, ErrNotLoopback) {
		t.Errorf("Serve: %v", err)
	}
}

func TestFailedLoginsAreLimited(t *testing.T) {
	_, addr := newTest(t, Options{Auth: Auth{Users: []User{chapUser}}, Limits: Limits{FailedLogins: 3, FailureWindow: 2 * time.Second}})
	for range 3 {
		dial(t, addr).login(loginSpec{user: "alice", secret: "not-wonderland"})
	}
	good := loginSpec{user: "alice", secret: chapUser.Secret}
	if err := dial(t, addr).login(good); err == nil {
		t.Error("admitted after three failures")
	}
	time.Sleep(2100 * time.Millisecond)
	if err := dial(t, addr).login(good); err != nil {
		t.Errorf("after the window: %v", err)
	}
}

func TestAddressLimits(t *testing.T) {
	_, addr := newTest(t, Options{Limits: Limits{ConnectionsPerAddr: 3}})
	for i := range 3 {
		connect(t, addr, loginSpec{isid: byte(i)})
	}
	if err := dial(t, addr).login(loginSpec{isid: 9}); err == nil {
		t.Error("a fourth connection was admitted")
	}
	_, addr = newTest(t, Options{ACL: ACL{Nets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}})
	if err := dial(t, addr).login(loginSpec{}); err == nil {
		t.Error("address outside the ACL was admitted")
	}
}

func (c *client) sendTargets(which string) (string, error) {
	var h pdu.Header
	h.SetOp(pdu.OpTextReq)
	h.SetImmediate()
	h.SetFlags(pdu.FlagFinal)
	h.SetITT(5)
	h.SetTTT(pdu.NoTag)
	h.SetCmdSN(c.cmdSN)
	c.write(&h, text("SendTargets", which))
	var all []byte
	for {
		r, d, err := c.next()
		if err != nil {
			return "", err
		}
		c.statSN = r.StatSN() + 1
		all = append(all, d...)
		if r.Flags()&pdu.FlagFinal != 0 {
			return strings.TrimRight(strings.ReplaceAll(string(all), "\x00", " "), " "), nil
		}
		h.SetTTT(r.TTT())
		c.write(&h, nil)
	}
}

func TestDiscovery(t *testing.T) {
	s, addr := newTest(t, Options{})
	c := connect(t, addr, loginSpec{discovery: true})
	one := "TargetName=" + testTarget + " TargetAddress=" + addr + ",1"
	for which, want := range map[string]string{"All": one, testTarget: one, "iqn.2026-11.no:such": ""} {
		if got, err := c.sendTargets(which); err != nil || got != want {
			t.Errorf("SendTargets=%s: %q, %v", which, got, err)
		}
	}
	n := connect(t, addr, loginSpec{})
	for which, want := range map[string]string{"": one, testTarget: one, "All": "SendTargets=Reject"} {
		if got, err := n.sendTargets(which); err != nil || got != want {
			t.Errorf("normal session, SendTargets=%s: %q, %v", which, got, err)
		}
	}
	// So many that the answer needs several PDUs.
	for i := range 300 {
		if err := s.AddTarget(fmt.Sprintf("iqn.2026-11.yester:many-%03d", i), LUN{ID: 0, Reader: make(memory, 4096)}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.sendTargets("All")
	if err != nil || strings.Count(got, "TargetName=") != 301 || !strings.HasSuffix(got, addr+",1") {
		t.Errorf("many: %d targets, %v", strings.Count(got, "TargetName="), err)
	}
	// A SCSI command has no place in a discovery session.
	c.start(1, []byte{0}, 0, nil)
	if h, _, err := c.next(); err != nil || h.Op() != pdu.OpReject {
		t.Errorf("command in a discovery session: %v, %v", h.Op(), err)
	}
}

func TestDiscoveryAccess(t *testing.T) {
	other := "iqn.2026-11.yester:other"
	bob := User{Name: "bob", Secret: "builder-secret-1", Targets: []string{other}}
	s, addr := newTest(t, Options{Auth: Auth{Users: []User{chapUser, bob}}})
	if err := s.AddTarget(other, LUN{ID: 1, Reader: make(memory, 4096)}); err != nil {
		t.Fatal(err)
	}
	c := connect(t, addr, loginSpec{discovery: true, user: "bob", secret: bob.Secret})
	if got, err := c.sendTargets("All"); err != nil || strings.Contains(got, testTarget) || !strings.Contains(got, other) {
		t.Errorf("bob sees %q, %v", got, err)
	}
	_, addr = newTest(t, Options{Auth: Auth{Users: []User{chapUser}, OpenDiscovery: true}})
	if got, err := connect(t, addr, loginSpec{discovery: true}).sendTargets("All"); err != nil || got == "" {
		t.Errorf("open discovery: %q, %v", got, err)
	}
}

func TestDiscoveryIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6")
	}
	s := New(Options{})
	if err := s.AddTarget(testTarget, LUN{ID: 1, Reader: make(memory, 4096)}); err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	defer s.Shutdown(context.Background())
	c := connect(t, l.Addr().String(), loginSpec{discovery: true})
	got, err := c.sendTargets("All")
	if want := "TargetAddress=[::1]:" + strconv.Itoa(l.Addr().(*net.TCPAddr).Port) + ",1"; err != nil || !strings.Contains(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	c.logout()
}

// TestReinstatement: a login with the same ISID ends the old session, another
// ISID doesn't.
func TestReinstatement(t *testing.T) {
	s, addr := newTest(t, Options{})
	a := connect(t, addr, loginSpec{isid: 1})
	b := connect(t, addr, loginSpec{isid: 2})
	again := connect(t, addr, loginSpec{isid: 1})
	if _, _, err := a.next(); err == nil {
		t.Error("the old session lives")
	}
	if r := b.read(0, 1); r.status != 0 {
		t.Error("the other session suffered")
	}
	// With the handle of the session that there is.
	third := connect(t, addr, loginSpec{isid: 1, tsih: again.tsih})
	if third.tsih != again.tsih {
		t.Errorf("TSIH %#x became %#x", again.tsih, third.tsih)
	}
	if n := len(s.Sessions()); n != 2 {
		t.Errorf("%d sessions", n)
	}
}

// TestManyLogins: nothing is left of sessions that are over. YESTER_LOGINS sets
// how many there are.
func TestManyLogins(t *testing.T) {
	n := 2000
	if v, err := strconv.Atoi(os.Getenv("YESTER_LOGINS")); err == nil {
		n = v
	}
	s, addr := newTest(t, Options{Logger: New(Options{}).log})
	round := func(k int) {
		for range k {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			c := &client{t: t, nc: nc, r: pdu.NewReader(nc, 1<<20), keys: map[string]string{}}
			if err := c.login(loginSpec{}); err != nil {
				t.Fatal(err)
			}
			if err := c.logout(); err != nil {
				t.Fatal(err)
			}
			nc.Close()
		}
	}
	measure := func() (heap uint64, goroutines int) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, runtime.NumGoroutine()
	}
	round(100)
	heap, gs := measure()
	round(n)
	heap2, gs2 := measure()
	if heap2 > heap+4<<20 || gs2 > gs+10 {
		t.Errorf("after %d logins: heap %d → %d bytes, %d → %d goroutines", n, heap, heap2, gs, gs2)
	}
	time.Sleep(20 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns)+len(s.sessions)+len(s.handles) != 0 {
		t.Errorf("left over: %d connections, %d sessions, %d handles", len(s.conns), len(s.sessions), len(s.handles))
	}
}
