package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// needTools skips a test whose tools are missing; in CI it fails.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// iscsiChain makes a chain of three dated states of a disk, the last of which is
// held back, and returns the folder, the hashes of the disks by point, and a
// function that moves the last state in.
func iscsiChain(t *testing.T) (dir string, sums map[string]string, appear func()) {
	t.Helper()
	needTools(t, "qemu-img", "qemu-io", "iscsi-ls", "iscsi-inq")
	f := &fixture{t: t, work: t.TempDir()}
	dir = filepath.Join(t.TempDir(), "web01")
	sums = make(map[string]string)
	disk := make([]byte, 24*mib)
	random := rand.NewChaCha8([32]byte{1})
	var states []string
	for i := range 3 {
		for _, at := range []int{mib, 5*mib + 512*i, 20 * mib} {
			random.Read(disk[at : at+mib])
		}
		path := filepath.Join(f.work, fmt.Sprint("state", i))
		if err := os.WriteFile(path, disk, 0o644); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(disk)
		sums[fmt.Sprintf("2006-11-%dT02-30-00Z", 18+i)] = hex.EncodeToString(sum[:])
		states = append(states, fmt.Sprintf("%s@2006-11-%dT02:30:00Z", path, 18+i))
	}
	f.mkchain(dir, "web01", states...)
	last := filepath.Join(dir, "web01-20061120T023000Z.avhd")
	held := filepath.Join(f.work, "held")
	move := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(last, held)
	return dir, sums, func() { move(held, last) }
}

// target is a `yester iscsi` process.
type target struct {
	iscsiService
	t   *testing.T
	cmd *exec.Cmd

	mu  sync.Mutex
	log strings.Builder
}

func (p *target) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// startTarget starts `yester iscsi` on a free port and reads what it says.
func startTarget(t *testing.T, args ...string) *target {
	t.Helper()
	p := &target{t: t, cmd: exec.Command("yester", append([]string{"iscsi", "--json", "--listen", "127.0.0.1:0"}, args...)...)}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		for s := bufio.NewScanner(stderr); s.Scan(); {
			p.mu.Lock()
			p.log.WriteString(s.Text() + "\n")
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Signal(syscall.SIGTERM)
			<-logged
			if err := p.cmd.Wait(); err != nil {
				t.Errorf("SIGTERM ends it with %v", err)
			}
		}
		if t.Failed() {
			t.Log(p.logged())
		}
	})
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.iscsiService)
	}
	if err != nil {
		<-logged
		p.cmd.Wait()
		t.Fatalf("%v: %s\n%s", err, line, p.logged())
	}
	return p
}

func (p *target) url(i int) string { return "iscsi://" + p.Portal + "/" + p.Targets[i].IQN + "/0" }

// stats returns what `yester status` knows of it.
func (p *target) stats() (s iscsiStats) {
	p.t.Helper()
	out, err := exec.Command("yester", "status", "--json").Output()
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range bytes.Lines(out) {
		var row struct {
			Kind  string
			PID   int
			Where string
			Stats json.RawMessage
		}
		if err := json.Unmarshal(line, &row); err != nil {
			p.t.Fatal(err)
		}
		if row.PID == p.cmd.Process.Pid {
			if row.Kind != "iscsi" || row.Where != p.Portal {
				p.t.Errorf("status: %s", line)
			}
			if err := json.Unmarshal(row.Stats, &s); err != nil {
				p.t.Fatal(err)
			}
			return s
		}
	}
	p.t.Fatalf("not in status:\n%s", out)
	return s
}

// initiator runs a tool that logs in, with variables of its environment.
func initiator(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil && bytes.Contains(out, []byte("Unknown protocol")) {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s", out)
		}
		t.Skip("QEMU without iSCSI (Debian: qemu-block-extra)")
	}
	return string(out), err
}

// diskSum copies a unit by QEMU and returns the SHA-256 of the copy.
func diskSum(t *testing.T, env []string, url string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "copy")
	if out, err := initiator(t, env, "qemu-img", "convert", "-f", "raw", "-O", "raw", url, raw); err != nil {
		t.Fatalf("convert: %v\n%s", err, out)
	}
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func secretFile(t *testing.T, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestISCSIAuthentication reads a dated state of a VHD chain with QEMU's initiator
// by CHAP, and logs in with libiscsi's by mutual CHAP.
func TestISCSIAuthentication(t *testing.T) {
	dir, sums, appear := iscsiChain(t)
	appear()
	before := hashTree(t, dir)
	const secret, mutual = "wonderland-1234", "looking-glass-9"
	p := startTarget(t, dir, "--at", "2006-11-19T02-30-00Z",
		"--chap-user", "alice", "--chap-secret-file", secretFile(t, secret),
		"--mutual-user", "yester", "--mutual-secret-file", secretFile(t, mutual))
	if len(p.Targets) != 1 || p.Targets[0].IQN != "iqn.2026-11.yester:web01:2006-11-19t02-30-00z" || len(p.Targets[0].LUNs) != 1 ||
		p.Targets[0].LUNs[0].Size != 24*mib || p.ChapUser != "alice" || p.MutualUser != "yester" {
		t.Errorf("%+v", p.iscsiService)
	}
	chap := []string{"LIBISCSI_CHAP_USERNAME=alice", "LIBISCSI_CHAP_PASSWORD=" + secret}
	want := sums["2006-11-19T02-30-00Z"]
	if got := diskSum(t, chap, p.url(0)); got != want {
		t.Errorf("the disk has %s, not %s", got, want)
	}
	// QEMU doesn't ask the target to prove itself; libiscsi's own tools do.
	both := append(chap, "LIBISCSI_CHAP_TARGET_USERNAME=yester", "LIBISCSI_CHAP_TARGET_PASSWORD="+mutual)
	if out, err := initiator(t, both, "iscsi-inq", p.url(0)); err != nil || !strings.Contains(out, "YESTER") {
		t.Errorf("mutual CHAP: %v\n%s", err, out)
	}
	s := p.stats()
	if s.Targets != 1 || s.Open != 1 || s.Reads == 0 || s.Bytes < 3*mib || s.Errors != 0 || s.Refused != 0 || s.Last.IsZero() {
		t.Errorf("%+v", s)
	}
	for name, env := range map[string][]string{
		"no secret":            nil,
		"wrong secret":         {"LIBISCSI_CHAP_USERNAME=alice", "LIBISCSI_CHAP_PASSWORD=wonderland-1235"},
		"wrong user":           {"LIBISCSI_CHAP_USERNAME=bob", "LIBISCSI_CHAP_PASSWORD=" + secret},
		"wrong mutual secret":  append(chap, "LIBISCSI_CHAP_TARGET_USERNAME=yester", "LIBISCSI_CHAP_TARGET_PASSWORD=looking-glass-8"),
		"the secret reflected": append(chap, "LIBISCSI_CHAP_TARGET_USERNAME=alice", "LIBISCSI_CHAP_TARGET_PASSWORD="+secret),
	} {
		if out, err := initiator(t, env, "iscsi-inq", p.url(0)); err == nil {
			t.Errorf("%s: %s", name, out)
		}
	}
	wrong := []string{"LIBISCSI_CHAP_USERNAME=alice", "LIBISCSI_CHAP_PASSWORD=wonderland-1235"}
	if out, err := initiator(t, wrong, "qemu-img", "convert", "-f", "raw", "-O", "raw", p.url(0), filepath.Join(t.TempDir(), "copy")); err == nil {
		t.Errorf("QEMU with a wrong secret: %s", out)
	}
	if out, err := initiator(t, nil, "iscsi-ls", "iscsi://"+p.Portal+"/"); err == nil || strings.Contains(out, "web01") {
		t.Errorf("discovery without a secret: %s", out)
	}
	if s := p.stats(); s.Refused < 4 || len(s.Sessions) != 0 {
		t.Errorf("%+v", s)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{p.logged(), string(cmdline)} {
		if strings.Contains(where, secret) || strings.Contains(where, mutual) {
			t.Errorf("a secret is in %s", where)
		}
	}
	if !strings.Contains(p.logged(), "login refused") {
		t.Error("refused logins aren't logged")
	}
	if hashTree(t, dir) != before {
		t.Error("the source was changed")
	}
}

// TestISCSIWithSessions looks at the status while QEMU has a session, and ends the
// process under it.
func TestISCSIWithSessions(t *testing.T) {
	dir, _, _ := iscsiChain(t)
	p := startTarget(t, dir)
	q := exec.Command("qemu-io", "-r", "-f", "raw", p.url(0))
	in, err := q.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := q.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); q.Wait() }()
	fmt.Fprintln(in, "read 1M 1M")
	for s := bufio.NewScanner(out); s.Scan() && !strings.Contains(s.Text(), "ops"); {
	}
	st := p.stats()
	if len(st.Sessions) != 1 || st.Sessions[0].Initiator == "" || st.Sessions[0].Target != p.Targets[0].IQN ||
		st.Sessions[0].BytesRead < mib || st.Sessions[0].From.String() != "127.0.0.1" {
		t.Errorf("%+v", st)
	}
	table, err := exec.Command("yester", "status").CombinedOutput()
	if err != nil || !bytes.Contains(table, []byte("PORTAL ")) || !bytes.Contains(table, []byte(p.Portal)) ||
		!bytes.Contains(table, []byte("INITIATOR ")) || !bytes.Contains(table, []byte(p.Targets[0].IQN)) {
		t.Errorf("%v\n%s", err, table)
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("SIGTERM ends it with %v", err)
	}
	if table, err := exec.Command("yester", "status", "--json").Output(); err != nil || bytes.Contains(table, []byte(p.Portal)) {
		t.Errorf("%v: left in the status:\n%s", err, table)
	}
}

// TestISCSIOverlay writes, with and without a scratch layer.
func TestISCSIOverlay(t *testing.T) {
	dir, sums, _ := iscsiChain(t)
	before := hashTree(t, dir)
	scratch := t.TempDir()
	t.Setenv("TMPDIR", scratch)
	p := startTarget(t, dir, "--overlay", "8M")
	write := []string{"-f", "raw", "-c", "write -P 0x5a 1M 64k", "-c", "flush", "-c", "read -P 0x5a 1M 64k"}
	if out, err := initiator(t, nil, "qemu-io", append(write, p.url(0))...); err != nil || strings.Contains(out, "failed") {
		t.Errorf("%v\n%s", err, out)
	}
	if got, want := diskSum(t, nil, p.url(0)), sums[p.Targets[0].Point]; got != want {
		t.Errorf("after logout the disk has %s, not %s", got, want)
	}
	if st := p.stats(); st.Written != 64<<10 {
		t.Errorf("%d bytes written", st.Written)
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) != 0 {
		t.Errorf("%v: scratch left: %v", err, left)
	}
	// Past its limit a write fails, and nothing is lost silently.
	if out, err := initiator(t, nil, "qemu-io", "-f", "raw", "-c", "write -P 1 0 12M", p.url(0)); err == nil && !strings.Contains(out, "failed") {
		t.Errorf("a write beyond --overlay: %s", out)
	}
	r := startTarget(t, dir)
	if out, err := initiator(t, nil, "qemu-io", append(write, r.url(0))...); err == nil && !strings.Contains(out, "failed") {
		t.Errorf("a write without --overlay: %s", out)
	}
	if hashTree(t, dir) != before {
		t.Error("the source was changed")
	}
	cmd := exec.Command("yester", "iscsi", dir, "--overlay", "8M", "--listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 2 || !bytes.Contains(out, []byte("in the source")) {
		t.Errorf("scratch files in the source: %v\n%s", err, out)
	}
}

// TestISCSIAllPoints follows points that appear, change and go.
func TestISCSIAllPoints(t *testing.T) {
	dir, sums, appear := iscsiChain(t)
	p := startTarget(t, dir, "--all-points")
	if len(p.Targets) != 2 {
		t.Fatalf("%+v", p.Targets)
	}
	if st := p.stats(); st.Targets != 2 || st.Open != 0 {
		t.Errorf("points are open before somebody reads them: %+v", st)
	}
	// A listing may be a second old, and older where listing takes long.
	await := func(what string, there func(out string) bool) {
		t.Helper()
		var out string
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			var err error
			if out, err = initiator(t, nil, "iscsi-ls", "iscsi://"+p.Portal+"/"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if there(out) {
				return
			}
		}
		t.Errorf("%s: %s", what, out)
	}
	const third = "iqn.2026-11.yester:web01:2006-11-20t02-30-00z"
	two := func(out string) bool { return strings.Count(out, "Target:") == 2 && !strings.Contains(out, third) }
	three := func(out string) bool { return strings.Count(out, "Target:") == 3 && strings.Contains(out, third) }
	await("at first", two)
	if got := diskSum(t, nil, p.url(0)); got != sums["2006-11-18T02-30-00Z"] {
		t.Error("the first point's disk differs")
	}
	if st := p.stats(); st.Open != 1 {
		t.Errorf("%+v", st)
	}
	appear()
	await("after a point has appeared", three)
	if got := diskSum(t, nil, "iscsi://"+p.Portal+"/"+third+"/0"); got != sums["2006-11-20T02-30-00Z"] {
		t.Error("the disk of the point that appeared differs")
	}
	// The same bytes in a file that was written to are another point under the name
	// of the old one.
	last := filepath.Join(dir, "web01-20061120T023000Z.avhd")
	if err := os.Chtimes(last, time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	await("after a point has changed", func(out string) bool { return three(out) && strings.Contains(p.logged(), "point has changed") })
	if got := diskSum(t, nil, "iscsi://"+p.Portal+"/"+third+"/0"); got != sums["2006-11-20T02-30-00Z"] {
		t.Error("the disk of the point that changed differs")
	}
	if err := os.Remove(last); err != nil {
		t.Fatal(err)
	}
	await("after a point has gone", two)
}

// TestISCSIDamaged: what can't be read is an error for the initiator.
func TestISCSIDamaged(t *testing.T) {
	dir, _, _ := iscsiChain(t)
	p := startTarget(t, dir, "--all-points")
	base := filepath.Join(dir, "web01-20061118T023000Z.vhd")
	fi, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	// In place and with the old time, so that the listing doesn't notice.
	if err := os.Truncate(base, fi.Size()/2); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(base, time.Time{}, fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	out, err := initiator(t, nil, "qemu-img", "convert", "-f", "raw", "-O", "raw", p.url(0), filepath.Join(t.TempDir(), "copy"))
	if err == nil {
		t.Errorf("converted: %s", out)
	}
}

// TestISCSIWrittenUnderneath writes to an image in place while QEMU has a session:
// what it reads from then on is an error, not the new bytes, even where the old
// ones were read before.
func TestISCSIWrittenUnderneath(t *testing.T) {
	dir, _, _ := iscsiChain(t)
	p := startTarget(t, dir, "--at", "2006-11-18T02-30-00Z")
	q := exec.Command("qemu-io", "-r", "-f", "raw", p.url(0))
	in, err := q.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := q.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	q.Stderr = q.Stdout
	if err := q.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); q.Wait() }()
	lines := bufio.NewScanner(stdout)
	read := func(what string) string { // the line that says how it went
		fmt.Fprintln(in, "read", what)
		for lines.Scan() {
			if l := lines.Text(); strings.Contains(l, "failed") || strings.Contains(l, "bytes at offset") {
				return l
			}
		}
		return "qemu-io has ended"
	}
	for _, what := range []string{"1M 4k", "1M 4k", "1M 256k", "1M 256k"} {
		if l := read(what); strings.Contains(l, "failed") {
			t.Fatal(l)
		}
	}
	base := filepath.Join(dir, "web01-20061118T023000Z.vhd")
	f, err := os.OpenFile(base, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt([]byte{0x55}, fi.Size()-513) // the last byte before the footer
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"1M 4k", "1M 256k"} {
		if l := read(what); !strings.Contains(l, "failed") {
			t.Errorf("read %s: %s", what, l)
		}
	}
	if st := p.stats(); st.Errors == 0 {
		t.Errorf("%+v", st)
	}
}

// TestISCSIAllowed: initiators and addresses that aren't allowed see nothing.
func TestISCSIAllowed(t *testing.T) {
	dir, _, _ := iscsiChain(t)
	p := startTarget(t, dir, "--allow-initiator", "iqn.2026-11.test:a", "--allow-initiator", "iqn.2026-11.test:b", "--allow-net", "127.0.0.0/8")
	for name, allowed := range map[string]bool{"iqn.2026-11.test:a": true, "iqn.2026-11.test:b": true, "iqn.2026-11.test:c": false} {
		for tool, where := range map[string]string{"iscsi-inq": p.url(0), "iscsi-ls": "iscsi://" + p.Portal + "/"} {
			if out, err := initiator(t, nil, tool, "-i", name, where); (err == nil) != allowed || strings.Contains(out, "Target:") && !allowed {
				t.Errorf("%s as %s: %v\n%s", tool, name, err, out)
			}
		}
	}
	q := startTarget(t, dir, "--allow-net", "192.0.2.0/24", "--allow-net", "192.0.2.255")
	if out, err := initiator(t, nil, "iscsi-inq", q.url(0)); err == nil {
		t.Errorf("from another network: %s", out)
	}
}

// TestISCSIEnds: the process ends by itself, in order.
func TestISCSIEnds(t *testing.T) {
	dir, _, _ := iscsiChain(t)
	for _, flag := range []string{"--expire", "--idle-timeout"} {
		p := startTarget(t, dir, flag, "300ms")
		if (flag == "--expire") == p.Expires.IsZero() {
			t.Errorf("%s: expires %v", flag, p.Expires)
		}
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%s ends it with %v", flag, err)
		}
	}
}
