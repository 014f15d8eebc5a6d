package iscsi

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"yester/iscsi/pdu"
)

const (
	testTarget    = "iqn.2026-11.yester:test"
	testInitiator = "iqn.2026-11.yester:initiator"
)

// client is a small initiator for tests: one command at a time unless a test
// sends by itself.
type client struct {
	t      testing.TB
	nc     net.Conn
	r      *pdu.Reader
	isid   [6]byte
	tsih   uint16
	itt    uint32
	cmdSN  uint32
	statSN uint32
	hd, dd bool
	keys   map[string]string // what the target has said during login
}

// loginSpec says how a client logs in.
type loginSpec struct {
	initiator, target string
	discovery         bool
	isid              byte
	tsih              uint16
	user, secret      string
	mutual            string // the target's secret, when it has to prove itself
	algorithms        string // CHAP_A
	reflect           bool   // send the target's own challenge back
	digests           string
	keys              [][2]string // operational keys
	cmdSN             uint32
}

// loginFailure is a login that the target refused.
type loginFailure uint16

func (e loginFailure) Error() string { return fmt.Sprintf("login status %#04x", uint16(e)) }

func dial(t testing.TB, addr string) *client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(60 * time.Second))
	return &client{t: t, nc: nc, r: pdu.NewReader(nc, 1<<24-1), keys: map[string]string{}}
}

func (c *client) write(h *pdu.Header, data []byte) {
	c.nc.Write(pdu.Append(nil, h, data, c.hd, c.dd))
}

func (c *client) next() (h pdu.Header, data []byte, err error) {
	if _, err = c.r.Next(&h); err != nil {
		return h, nil, err
	}
	data = make([]byte, h.DataLen())
	err = c.r.Data(data)
	return h, data, err
}

func (c *client) loginPDU(csg, nsg byte, transit bool, data []byte) (pdu.Header, map[string]string, error) {
	var h pdu.Header
	h.SetOp(pdu.OpLoginReq)
	h.SetImmediate()
	f := csg<<2 | nsg
	if transit {
		f |= pdu.FlagTransit
	} else {
		f &^= 3
	}
	h.SetFlags(f)
	h.SetISID(c.isid)
	h.SetTSIH(c.tsih)
	h.SetITT(1)
	h.SetCmdSN(c.cmdSN)
	h.SetExpStatSN(c.statSN)
	c.write(&h, data)
	var text []byte
	for {
		r, d, err := c.next()
		if err != nil {
			return r, nil, err
		}
		if r.Op() != pdu.OpLoginResp {
			return r, nil, fmt.Errorf("%v instead of a login response", r.Op())
		}
		c.statSN = r.StatSN() + 1
		if r.ISID() != c.isid {
			return r, nil, errors.New("ISID not echoed")
		}
		if s := r.LoginStatus(); s != 0 {
			return r, nil, loginFailure(s)
		}
		text = append(text, d...)
		if r.Flags()&pdu.FlagContinue == 0 {
			m := map[string]string{}
			pairs, err := pdu.ParseText(text)
			for _, p := range pairs {
				m[p.Key] = p.Value
				c.keys[p.Key] = p.Value
			}
			return r, m, err
		}
		h.SetFlags(csg << 2)
		c.write(&h, nil)
	}
}

func text(kv ...string) (out []byte) {
	for i := 0; i+1 < len(kv); i += 2 {
		out = pdu.AppendPair(out, kv[i], kv[i+1])
	}
	return out
}

func (c *client) login(s loginSpec) error {
	if s.initiator == "" {
		s.initiator = testInitiator
	}
	if s.target == "" {
		s.target = testTarget
	}
	c.isid = [6]byte{0x80, 0, 0, 0, 0, s.isid}
	c.tsih = s.tsih
	c.cmdSN = s.cmdSN
	first := text("InitiatorName", s.initiator, "SessionType", "Normal", "TargetName", s.target)
	if s.discovery {
		first = text("InitiatorName", s.initiator, "SessionType", "Discovery")
	}
	stage := byte(pdu.StageOperational)
	if s.user != "" {
		if s.algorithms == "" {
			s.algorithms = "7,5"
		}
		_, m, err := c.loginPDU(0, 1, false, append(first, text("AuthMethod", "CHAP,None")...))
		if err != nil {
			return err
		}
		if m["AuthMethod"] != "CHAP" {
			return fmt.Errorf("AuthMethod=%s", m["AuthMethod"])
		}
		if _, m, err = c.loginPDU(0, 1, false, text("CHAP_A", s.algorithms)); err != nil {
			return err
		}
		var x chap
		for _, a := range chapAlgorithms {
			if strconv.Itoa(a.id) == m["CHAP_A"] {
				x.hash = a.make
			}
		}
		id, _ := strconv.Atoi(m["CHAP_I"])
		challenge, err := pdu.ParseBinary(m["CHAP_C"], maxChallenge)
		if err != nil {
			return err
		}
		reply := text("CHAP_N", s.user, "CHAP_R", pdu.FormatBinary(x.response(byte(id), s.secret, challenge)))
		mine := make([]byte, 24)
		rand.Read(mine)
		if s.reflect {
			mine = challenge
		}
		if s.mutual != "" || s.reflect {
			reply = append(reply, text("CHAP_I", "77", "CHAP_C", pdu.FormatBinary(mine))...)
		}
		r, m, err := c.loginPDU(0, 1, true, reply)
		if err != nil {
			return err
		}
		if s.mutual != "" {
			got, err := pdu.ParseBinary(m["CHAP_R"], 64)
			if err != nil || !bytes.Equal(got, x.response(77, s.mutual, mine)) {
				return errors.New("target failed to prove itself")
			}
		}
		if r.Flags()&pdu.FlagTransit == 0 {
			return errors.New("no transit after CHAP")
		}
		first = nil
		stage = pdu.StageOperational
	}
	op := first
	if s.digests != "" {
		op = append(op, text("HeaderDigest", s.digests, "DataDigest", s.digests)...)
	}
	for _, kv := range s.keys {
		op = append(op, text(kv[0], kv[1])...)
	}
	r, m, err := c.loginPDU(stage, pdu.StageFull, true, op)
	if err != nil {
		return err
	}
	if r.Flags()&pdu.FlagTransit == 0 {
		return errors.New("no transit to the full feature phase")
	}
	c.tsih = r.TSIH()
	c.hd, c.dd = m["HeaderDigest"] == "CRC32C", m["DataDigest"] == "CRC32C"
	c.r.HeaderDigest, c.r.DataDigest = c.hd, c.dd
	return nil
}

// connect dials and logs in, or fails the test. The attention that every new
// session has is collected.
func connect(t testing.TB, addr string, s loginSpec) *client {
	t.Helper()
	c := dial(t, addr)
	if err := c.login(s); err != nil {
		t.Fatalf("login: %v", err)
	}
	if !s.discovery {
		for lun := range uint16(8) {
			c.do(lun, []byte{0}, 0, nil)
		}
	}
	return c
}

// result is what came of a command.
type result struct {
	status   byte
	sense    []byte
	data     []byte
	flags    byte
	residual uint32
}

// key returns sense key and ASC<<8|ASCQ.
func (r result) key() (byte, uint16) {
	if len(r.sense) < 8 {
		return 0, 0
	}
	if r.sense[0]&0x7f == 0x72 {
		return r.sense[1], binary.BigEndian.Uint16(r.sense[2:])
	}
	return r.sense[2] & 15, binary.BigEndian.Uint16(r.sense[12:])
}

// info returns the information field, if it is valid.
func (r result) info() (uint64, bool) {
	if r.sense[0]&0x7f == 0x72 {
		return binary.BigEndian.Uint64(r.sense[12:]), r.sense[10] == 0x80
	}
	return uint64(binary.BigEndian.Uint32(r.sense[3:])), r.sense[0]&0x80 != 0
}

// start sends a command and returns its tag.
func (c *client) start(lun uint16, cdb []byte, edtl int, out []byte) uint32 {
	c.itt++
	var h pdu.Header
	h.SetOp(pdu.OpCommand)
	f := byte(pdu.FlagFinal | 1)
	if out != nil {
		f |= pdu.CommandWrite
		edtl = len(out)
	} else if edtl > 0 {
		f |= pdu.CommandRead
	}
	h.SetFlags(f)
	h.SetLUN(uint64(lun) << 48)
	h.SetITT(c.itt)
	h.SetEDTL(uint32(edtl))
	h.SetCmdSN(c.cmdSN)
	h.SetExpStatSN(c.statSN)
	c.cmdSN++
	copy(h.CDB(), cdb)
	c.write(&h, nil)
	return c.itt
}

// finish collects the answer of tag, answering R2Ts with out.
func (c *client) finish(tag uint32, out []byte) (result, error) {
	var r result
	next := uint32(0)
	for {
		h, d, err := c.next()
		if err != nil {
			return r, err
		}
		switch h.Op() {
		case pdu.OpNopIn:
			if h.TTT() != pdu.NoTag {
				var o pdu.Header
				o.SetOp(pdu.OpNopOut)
				o.SetImmediate()
				o.SetFlags(pdu.FlagFinal)
				o.SetITT(pdu.NoTag)
				o.SetTTT(h.TTT())
				o.SetCmdSN(c.cmdSN)
				c.write(&o, nil)
			}
			continue
		case pdu.OpAsync:
			continue
		}
		if h.ITT() != tag {
			return r, fmt.Errorf("%v for tag %d, waiting for %d", h.Op(), h.ITT(), tag)
		}
		switch h.Op() {
		case pdu.OpDataIn:
			if h.DataSN() != next || int(h.BufferOffset()) != len(r.data) {
				return r, fmt.Errorf("Data-In %d at %d, want %d at %d", h.DataSN(), h.BufferOffset(), next, len(r.data))
			}
			next++
			r.data = append(r.data, d...)
			if h.Flags()&pdu.DataStatus == 0 {
				continue
			}
			r.status = h.Status()
		case pdu.OpR2T:
			off, n := h.BufferOffset(), h.Residual()
			const step = 8192
			for sn := uint32(0); n > 0; sn++ {
				var o pdu.Header
				k := min(n, step)
				o.SetOp(pdu.OpDataOut)
				if k == n {
					o.SetFlags(pdu.FlagFinal)
				}
				o.SetITT(tag)
				o.SetTTT(h.TTT())
				o.SetDataSN(sn)
				o.SetBufferOffset(off)
				c.write(&o, out[off:off+k])
				off, n = off+k, n-k
			}
			continue
		case pdu.OpResponse:
			r.status = h.Status()
			if len(d) > 2 {
				r.sense = d[2:]
			}
		default:
			return r, fmt.Errorf("unexpected %v", h.Op())
		}
		if h.StatSN() != c.statSN {
			return r, fmt.Errorf("StatSN %d, want %d", h.StatSN(), c.statSN)
		}
		c.statSN++
		r.flags, r.residual = h.Flags(), h.Residual()
		return r, nil
	}
}

// do carries out one command.
func (c *client) do(lun uint16, cdb []byte, edtl int, out []byte) result {
	c.t.Helper()
	r, err := c.finish(c.start(lun, cdb, edtl, out), out)
	if err != nil {
		c.t.Fatalf("command %#x: %v", cdb[0], err)
	}
	return r
}

func rw16(op byte, lba uint64, blocks uint32) []byte {
	cdb := make([]byte, 16)
	cdb[0] = op
	binary.BigEndian.PutUint64(cdb[2:], lba)
	binary.BigEndian.PutUint32(cdb[10:], blocks)
	return cdb
}

// read reads blocks of 512 bytes of LUN 1.
func (c *client) read(lba uint64, blocks uint32) result {
	c.t.Helper()
	return c.do(1, rw16(0x88, lba, blocks), int(blocks)*512, nil)
}

// logout logs out and waits for the end of the connection.
func (c *client) logout() error {
	var h pdu.Header
	h.SetOp(pdu.OpLogoutReq)
	h.SetImmediate()
	h.SetFlags(pdu.FlagFinal)
	h.SetITT(0x1000)
	h.SetCmdSN(c.cmdSN)
	c.write(&h, nil)
	for {
		r, _, err := c.next()
		if err != nil {
			return err
		}
		if r.Op() == pdu.OpLogoutResp {
			if r.Response() != 0 {
				return fmt.Errorf("logout response %d", r.Response())
			}
			_, _, err := c.next()
			if err == nil {
				return errors.New("connection open after logout")
			}
			return nil
		}
	}
}
