package iscsi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"yester/internal/block"
	"yester/iscsi/pdu"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1, 2, 3}).Read(b)
	return b
}

// pieces is a Reader whose extents are of all kinds: plain, in a file, holes.
type pieces struct {
	data []byte
	file *os.File // holds data, shifted by shift
	size int64
}

const (
	pieceLen = 96 << 10
	shift    = 512
)

func (p *pieces) Size() int64 { return p.size }

func (p *pieces) kind(off int64) int { return int(off/pieceLen) % 4 }

func (p *pieces) ReadAt(b []byte, off int64) (int, error) {
	n, err := block.CheckRead(off, len(b), p.size)
	copy(b[:n], p.data[off:])
	return n, err
}

func (p *pieces) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	n = min(n, pieceLen-off%pieceLen)
	switch p.kind(off) {
	case 0:
		return block.Extent{Len: n, Zero: true}, nil
	case 1:
		return block.Extent{Len: n}, nil
	}
	return block.Extent{Len: n, File: p.file, Off: off + shift}, nil
}

func newPieces(t testing.TB, size int) *pieces {
	p := &pieces{data: randomBytes(size), size: int64(size)}
	for off := int64(0); off < p.size; off++ {
		if p.kind(off) == 0 {
			p.data[off] = 0
		}
	}
	name := filepath.Join(t.TempDir(), "pieces")
	if err := os.WriteFile(name, append(make([]byte, shift), p.data...), 0o600); err != nil {
		t.Fatal(err)
	}
	p.file = openFile(t, name).f
	return p
}

// TestReads compares whole and random reads over every way a byte can take.
func TestReads(t *testing.T) {
	const size = 9<<20 + 512
	data := randomBytes(size)
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	mixed := newPieces(t, size)
	readers := map[string]struct {
		r    block.Reader
		want []byte
	}{
		"plain": {memory(data), data}, "file": {openFile(t, name), data}, "mixed": {mixed, mixed.data},
	}
	for kind, rd := range readers {
		for _, splice := range []bool{false, true} {
			for _, digests := range []string{"", "CRC32C"} {
				for _, segment := range []string{"262144", "8192", "1048576", "513"} {
					t.Run(fmt.Sprintf("%s/splice=%v/%s/%s", kind, splice, digests, segment), func(t *testing.T) {
						s := New(Options{})
						s.spliceLocal = splice
						if err := s.AddTarget(testTarget, LUN{ID: 1, Reader: rd.r}); err != nil {
							t.Fatal(err)
						}
						c := connect(t, serve(t, s), loginSpec{digests: digests, keys: [][2]string{{"MaxRecvDataSegmentLength", segment}, {"MaxBurstLength", "262144"}}})
						h := sha256.New()
						const step = 4096
						for lba := uint64(0); lba < size/512; lba += step {
							n := min(step, size/512-lba)
							r := c.read(lba, uint32(n))
							if r.status != 0 || r.flags&6 != 0 {
								t.Fatalf("LBA %d: status %#x, flags %#x", lba, r.status, r.flags)
							}
							h.Write(r.data)
						}
						if want := sha256.Sum256(rd.want); !bytes.Equal(h.Sum(nil), want[:]) {
							t.Fatal("whole read differs")
						}
						for range 30 {
							lba := rand.Uint64N(size / 512)
							n := 1 + rand.Uint64N(min(600, size/512-lba))
							if r := c.read(lba, uint32(n)); !bytes.Equal(r.data, rd.want[lba*512:(lba+n)*512]) {
								t.Fatalf("%d blocks at %d differ", n, lba)
							}
						}
						// Shorter and longer buffers than the command's transfer.
						r := c.do(1, rw16(0x88, 3, 4), 1001, nil)
						if !bytes.Equal(r.data, rd.want[3*512:3*512+1001]) || r.flags&pdu.FlagOverflow == 0 || r.residual != 4*512-1001 {
							t.Errorf("overflow: %d bytes, flags %#x, residual %d", len(r.data), r.flags, r.residual)
						}
						r = c.do(1, rw16(0x88, 3, 4), 10000, nil)
						if !bytes.Equal(r.data, rd.want[3*512:7*512]) || r.flags&pdu.FlagUnderflow == 0 || r.residual != 10000-4*512 {
							t.Errorf("underflow: %d bytes, flags %#x, residual %d", len(r.data), r.flags, r.residual)
						}
					})
				}
			}
		}
	}
}

// sessions waits until there are n of them: a session leaves the registers a
// moment after its connection is closed.
func sessions(t *testing.T, s *Server, n int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); len(s.Sessions()) != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%d sessions, want %d", len(s.Sessions()), n)
			return
		}
	}
}

// faulty fails, stalls or panics where it is told to.
type faulty struct {
	size  int64
	bad   int64 // first bad byte; -1: none
	short bool  // fail with a short read and no error
	panic bool
	stall chan struct{} // reads wait until it is closed, when not nil
	reads atomic.Int64
}

func (f *faulty) Size() int64 { return f.size }

func (f *faulty) ReadAt(p []byte, off int64) (int, error) {
	f.reads.Add(1)
	if f.panic {
		panic("reader is broken")
	}
	if f.stall != nil {
		<-f.stall
	}
	if f.bad >= 0 && off+int64(len(p)) > f.bad {
		n := max(0, f.bad-off)
		if f.short {
			return int(n), nil
		}
		return int(n), errors.New("no such sector")
	}
	return len(p), nil
}

// TestReadErrors: an error of the backend is sense with the right block, never
// data, and harms nobody else.
func TestReadErrors(t *testing.T) {
	const tib = 1 << 40
	for name, c := range map[string]struct {
		f   *faulty
		lba uint64
	}{
		"error":       {&faulty{size: 1 << 20, bad: 100*512 + 7}, 100},
		"short":       {&faulty{size: 1 << 20, bad: 100 * 512, short: true}, 100},
		"past 2 TiB":  {&faulty{size: 5 * tib, bad: 3*tib + 512*9}, 3*tib/512 + 9},
		"first block": {&faulty{size: 1 << 20, bad: 0}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			good := randomBytes(64 << 10)
			_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: c.f}, LUN{ID: 2, Reader: memory(good)})
			x := connect(t, addr, loginSpec{})
			start := uint64(0)
			if c.lba > 20 {
				start = c.lba - 20
			}
			r := x.read(start, 64)
			key, asc := r.key()
			if r.status != 2 || key != 3 || asc != 0x1100 {
				t.Fatalf("status %#x, sense %x", r.status, r.sense)
			}
			if lba, ok := r.info(); !ok || lba != c.lba {
				t.Errorf("information %d (%v), want %d", lba, ok, c.lba)
			}
			if uint64(len(r.data)) > (c.lba-start)*512 {
				t.Errorf("%d bytes of data", len(r.data))
			}
			if r := x.do(2, rw16(0x88, 1, 2), 1024, nil); !bytes.Equal(r.data, good[512:1536]) {
				t.Error("the other unit suffered")
			}
			// VERIFY finds the same.
			if k, a := x.do(1, rw16(0x8f, start, 64), 0, nil).key(); k != 3 || a != 0x1100 {
				t.Errorf("VERIFY: %#x/%#x", k, a)
			}
		})
	}
}

// TestTruncated: a file that shrinks underneath.
func TestTruncated(t *testing.T) {
	for _, splice := range []bool{false, true} {
		name := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(name, randomBytes(2<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		s := New(Options{Logger: testLogger(t)})
		s.spliceLocal = splice
		if err := s.AddTarget(testTarget, LUN{ID: 1, Reader: openFile(t, name)}); err != nil {
			t.Fatal(err)
		}
		c := connect(t, serve(t, s), loginSpec{})
		if r := c.read(0, 4096); r.status != 0 {
			t.Fatal(r)
		}
		if err := os.Truncate(name, 1<<20); err != nil {
			t.Fatal(err)
		}
		for _, n := range []uint32{8, 1024} {
			r := c.read(2048-4, n)
			if lba, ok := r.info(); r.status != 2 || !ok || lba != 2048 {
				t.Errorf("splice %v, %d blocks: status %#x, LBA %d", splice, n, r.status, lba)
			}
		}
		if r := c.read(0, 2048); r.status != 0 {
			t.Error("what is left can't be read")
		}
	}
}

// TestStall: while reads wait, pings are answered, other units work, and an
// aborted read sends nothing more.
func TestStall(t *testing.T) {
	f := &faulty{size: 1 << 20, bad: -1, stall: make(chan struct{})}
	_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: f}, LUN{ID: 2, Reader: memory(randomBytes(64 << 10))})
	c := connect(t, addr, loginSpec{})
	stuck := c.start(1, rw16(0x88, 0, 8), 4096, nil)
	other := c.start(1, rw16(0x88, 8, 8), 4096, nil)
	payload := []byte("are you there?")
	var nop pdu.Header
	nop.SetOp(pdu.OpNopOut)
	nop.SetFlags(pdu.FlagFinal)
	nop.SetITT(0x77)
	nop.SetTTT(pdu.NoTag)
	nop.SetCmdSN(c.cmdSN) // not immediate: takes its turn
	c.cmdSN++
	c.write(&nop, payload)
	h, d, err := c.next()
	if err != nil || h.Op() != pdu.OpNopIn || h.ITT() != 0x77 || !bytes.Equal(d, payload) {
		t.Fatalf("NOP-In: %v %v %q", err, h.Op(), d)
	}
	c.statSN++
	if r := c.do(2, rw16(0x88, 0, 8), 4096, nil); len(r.data) != 4096 {
		t.Error("the other unit suffered")
	}
	abort := func(tag uint32) byte {
		var h pdu.Header
		h.SetOp(pdu.OpTaskReq)
		h.SetImmediate()
		h.SetFlags(pdu.FlagFinal | pdu.TaskAbort)
		h.SetLUN(1 << 48)
		h.SetITT(0x99)
		h.SetTTT(tag)
		h.SetCmdSN(c.cmdSN)
		c.write(&h, nil)
		r, _, err := c.next()
		if err != nil || r.Op() != pdu.OpTaskResp {
			t.Fatalf("task response: %v %v", err, r.Op())
		}
		c.statSN++
		return r.Response()
	}
	if r := abort(stuck); r != pdu.TaskDone {
		t.Errorf("abort: %d", r)
	}
	if r := abort(stuck); r != pdu.TaskNotFound {
		t.Errorf("second abort: %d", r)
	}
	close(f.stall)
	if r, err := c.finish(other, nil); err != nil || len(r.data) != 4096 {
		t.Errorf("the read that wasn't aborted: %d bytes, %v", len(r.data), err)
	}
	if r := c.read(0, 1); r.status != 0 {
		t.Error("session is out of step")
	}
}

// TestPanic: a reader that panics ends the session that used it.
func TestPanic(t *testing.T) {
	s, addr := newTest(t, Options{Logger: New(Options{}).log}, LUN{ID: 1, Reader: &faulty{size: 1 << 20, bad: -1, panic: true}}, LUN{ID: 2, Reader: make(memory, 1<<20)})
	bystander := connect(t, addr, loginSpec{isid: 2})
	c := connect(t, addr, loginSpec{isid: 1})
	tag := c.start(1, rw16(0x88, 0, 8), 4096, nil)
	if r, err := c.finish(tag, nil); err == nil {
		t.Errorf("answered: %+v", r)
	}
	if r := bystander.do(2, rw16(0x88, 0, 8), 4096, nil); len(r.data) != 4096 {
		t.Error("another session suffered")
	}
	sessions(t, s, 1)
}

// TestWritesAreRefused: every opcode of the write class answers 07/2700, stays in
// step, and nothing changes.
func TestWritesAreRefused(t *testing.T) {
	data := randomBytes(1 << 20)
	_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: memory(data)})
	c := connect(t, addr, loginSpec{})
	want := sha256.Sum256(data)
	for _, op := range []byte{0x04, 0x07, 0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e, 0x41, 0x93, 0x42, 0x89, 0x8b, 0x9c, 0x3b, 0x3f, 0x48, 0x50, 0x51} {
		for _, out := range [][]byte{nil, make([]byte, 4096)} {
			cdb := make([]byte, 16)
			cdb[0] = op
			for i := 2; i < 9; i++ {
				cdb[i] = 0xff // far beyond the end: the refusal comes first
			}
			r := c.do(1, cdb, 0, out)
			if k, a := r.key(); k != 7 || a != 0x2700 {
				t.Errorf("%#x: sense %#x/%#x", op, k, a)
			}
			if out != nil && (r.flags&pdu.FlagUnderflow == 0 || r.residual != 4096) {
				t.Errorf("%#x: flags %#x, residual %d", op, r.flags, r.residual)
			}
		}
	}
	for _, sa := range []byte{0x0b, 0x0c, 0x0d, 0x0e} {
		cdb := make([]byte, 16)
		cdb[0], cdb[9] = 0x7f, sa
		if k, a := c.do(1, cdb, 0, nil).key(); k != 7 || a != 0x2700 {
			t.Errorf("0x7f/%#x: sense %#x/%#x", sa, k, a)
		}
	}
	if sha256.Sum256(data) != want {
		t.Error("the medium changed")
	}
}

// TestOverlay: writes are seen by the session, survive a lost connection, and are
// gone after a logout; the medium doesn't change.
func TestOverlay(t *testing.T) {
	data := randomBytes(1 << 20)
	want := sha256.Sum256(data)
	s, addr := newTest(t, Options{}, LUN{ID: 1, Reader: memory(data), Overlay: &Overlay{Dir: t.TempDir(), Size: 256 << 10}})
	c := connect(t, addr, loginSpec{digests: "CRC32C"})
	block := bytes.Repeat([]byte("written!"), 3*512/8)
	if r := c.do(1, rw16(0x8a, 7, 3), 0, block); r.status != 0 {
		t.Fatalf("write: %+v", r)
	}
	model := bytes.Clone(data)
	copy(model[7*512:], block)
	if r := c.read(0, 64); !bytes.Equal(r.data, model[:64*512]) {
		t.Error("the write isn't seen")
	}
	if r := connect(t, addr, loginSpec{isid: 5}).read(7, 3); !bytes.Equal(r.data, data[7*512:10*512]) {
		t.Error("another session sees it")
	}
	if st := s.Sessions(); len(st) == 0 || st[0].OverlayBytes+st[len(st)-1].OverlayBytes == 0 {
		t.Errorf("status: %+v", st)
	}
	c.nc.Close()
	c = connect(t, addr, loginSpec{})
	if r := c.read(0, 64); !bytes.Equal(r.data, model[:64*512]) {
		t.Error("the write was lost with the connection")
	}
	// More than fits.
	big := make([]byte, 512<<10)
	if k, a := c.do(1, rw16(0x8a, 0, uint32(len(big)/512)), 0, randomBytes(len(big))).key(); k != 7 || a != 0x2707 {
		t.Errorf("full: sense %#x/%#x", k, a)
	}
	if err := c.logout(); err != nil {
		t.Fatal(err)
	}
	c = connect(t, addr, loginSpec{})
	if r := c.read(0, 2048); !bytes.Equal(r.data, data) {
		t.Error("scratch outlived a logout")
	}
	if sha256.Sum256(data) != want {
		t.Error("the medium changed")
	}
}

// TestImmediateData: data that came with the command, and the rest by R2T.
func TestImmediateData(t *testing.T) {
	_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: make(memory, 1<<20), Overlay: &Overlay{Size: 1 << 20}})
	c := connect(t, addr, loginSpec{})
	out := randomBytes(300 << 10)
	c.itt++
	var h pdu.Header
	h.SetOp(pdu.OpCommand)
	h.SetFlags(pdu.FlagFinal | pdu.CommandWrite)
	h.SetLUN(1 << 48)
	h.SetITT(c.itt)
	h.SetEDTL(uint32(len(out)))
	h.SetCmdSN(c.cmdSN)
	c.cmdSN++
	copy(h.CDB(), rw16(0x8a, 16, uint32(len(out)/512)))
	c.write(&h, out[:4100])
	if r, err := c.finish(c.itt, out); err != nil || r.status != 0 {
		t.Fatal(r, err)
	}
	if r := c.read(16, uint32(len(out)/512)); !bytes.Equal(r.data, out) {
		t.Error("what was written isn't read")
	}
}

// TestCommandOrder: numbers wrap, what comes early waits, what lies outside the
// window is ignored.
func TestCommandOrder(t *testing.T) {
	data := randomBytes(1 << 20)
	_, addr := newTest(t, Options{Limits: Limits{Commands: 8}}, LUN{ID: 1, Reader: memory(data)})
	c := connect(t, addr, loginSpec{cmdSN: 0xfffffff0})
	for i := range uint64(40) { // over the wrap
		if r := c.read(i, 1); !bytes.Equal(r.data, data[i*512:(i+1)*512]) {
			t.Fatalf("read %d", i)
		}
	}
	first := c.cmdSN
	c.cmdSN = first + 1
	late := c.start(1, rw16(0x88, 1, 1), 512, nil)
	c.cmdSN = first + 100 // beyond the window
	c.start(1, rw16(0x88, 2, 1), 512, nil)
	c.cmdSN = first - 1 // before it
	c.start(1, rw16(0x88, 3, 1), 512, nil)
	c.cmdSN = first
	now := c.start(1, rw16(0x88, 4, 1), 512, nil)
	// Both run now; a worker may finish one after the other, the tags tell.
	got := map[uint32][]byte{}
	for range 2 {
		h, d, err := c.next()
		if err != nil || h.Op() != pdu.OpDataIn {
			t.Fatal(err, h.Op())
		}
		c.statSN++
		got[h.ITT()] = d
	}
	if !bytes.Equal(got[now], data[4*512:5*512]) || !bytes.Equal(got[late], data[512:1024]) {
		t.Error("wrong data for a command out of order")
	}
	c.cmdSN = first + 2
	if r := c.read(5, 1); !bytes.Equal(r.data, data[5*512:6*512]) {
		t.Error("out of step afterwards")
	}
}

// TestPing: a silent initiator is asked, and dropped when it doesn't answer.
func TestPing(t *testing.T) {
	s, addr := newTest(t, Options{Limits: Limits{PingInterval: 100 * time.Millisecond, PingTimeout: 200 * time.Millisecond}})
	c := connect(t, addr, loginSpec{})
	pings := 0
	for range 3 {
		h, _, err := c.next()
		if err != nil || h.Op() != pdu.OpNopIn || h.ITT() != pdu.NoTag || h.TTT() == pdu.NoTag {
			t.Fatal(err, h.Op())
		}
		pings++
		var o pdu.Header
		o.SetOp(pdu.OpNopOut)
		o.SetImmediate()
		o.SetFlags(pdu.FlagFinal)
		o.SetITT(pdu.NoTag)
		o.SetTTT(h.TTT())
		o.SetCmdSN(c.cmdSN)
		c.write(&o, nil)
	}
	if h, _, err := c.next(); err != nil || h.Op() != pdu.OpNopIn {
		t.Fatal(err, h.Op())
	}
	if _, _, err := c.next(); err == nil {
		t.Error("a silent initiator is kept")
	}
	sessions(t, s, 0)
}

// TestIdle: a session without commands is asked to log out, then dropped.
func TestIdle(t *testing.T) {
	_, addr := newTest(t, Options{IdleTimeout: 100 * time.Millisecond})
	c := connect(t, addr, loginSpec{})
	h, _, err := c.next()
	if err != nil || h.Op() != pdu.OpAsync || h.AsyncEvent() != pdu.AsyncLogout {
		t.Fatal(err, h.Op())
	}
	c.statSN++
	if err := c.logout(); err != nil {
		t.Error(err)
	}
}

// TestRemoveTarget: initiators are asked to leave, and once it returns the reader
// isn't used any more.
func TestRemoveTarget(t *testing.T) {
	f := &faulty{size: 1 << 20, bad: -1, stall: make(chan struct{})}
	s, addr := newTest(t, Options{}, LUN{ID: 1, Reader: f})
	c := connect(t, addr, loginSpec{})
	c.start(1, rw16(0x88, 0, 8), 4096, nil)
	for f.reads.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		done <- s.RemoveTarget(ctx, testTarget)
	}()
	h, _, err := c.next()
	if err != nil || h.Op() != pdu.OpAsync || h.AsyncEvent() != pdu.AsyncLogout {
		t.Fatal(err, h.Op())
	}
	if err := dial(t, addr).login(loginSpec{isid: 3}); err == nil {
		t.Error("login to a target that is being removed")
	}
	if _, _, err := c.next(); err == nil {
		t.Error("connection outlives the target")
	}
	select {
	case <-done:
		t.Error("returned while a read runs")
	case <-time.After(300 * time.Millisecond):
	}
	close(f.stall)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.RemoveTarget(context.Background(), testTarget); !errors.Is(err, ErrNoTarget) {
		t.Error(err)
	}
	// The name can be used again.
	if err := s.AddTarget(testTarget, LUN{ID: 1, Reader: make(memory, 4096)}); err != nil {
		t.Error(err)
	}
	connect(t, addr, loginSpec{})
}

// TestLUNs: addressing, wrong units, REPORT LUNS without a LUN 0.
func TestLUNs(t *testing.T) {
	_, addr := newTest(t, Options{}, LUN{ID: 3, Reader: make(memory, 8192)}, LUN{ID: 300, Reader: make(memory, 4096), BlockSize: 4096})
	c := connect(t, addr, loginSpec{})
	report := []byte{0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
	for _, lun := range []uint16{0, 3, 77} {
		r := c.do(lun, report, 256, nil)
		if len(r.data) != 24 || binary.BigEndian.Uint32(r.data) != 16 || r.data[9] != 3 || binary.BigEndian.Uint16(r.data[16:]) != 0x4000|300 {
			t.Errorf("REPORT LUNS at %d: %x", lun, r.data)
		}
	}
	inquiry := []byte{0x12, 0, 0, 0, 96, 0}
	if r := c.do(77, inquiry, 96, nil); r.status != 0 || r.data[0] != 0x7f {
		t.Errorf("INQUIRY of no unit: %x", r.data)
	}
	if r := c.do(0, inquiry, 96, nil); r.status != 0 || r.data[0]>>5 != 1 {
		t.Errorf("INQUIRY of LUN 0: %x", r.data)
	}
	if k, a := c.do(77, []byte{0}, 0, nil).key(); k != 5 || a != 0x2500 {
		t.Errorf("TEST UNIT READY of no unit: %#x/%#x", k, a)
	}
	c.do(0x4000|300, []byte{0}, 0, nil) // its attention
	if r := c.do(0x4000|300, []byte{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, 32, nil); r.status != 0 || binary.BigEndian.Uint32(r.data[8:]) != 4096 {
		t.Errorf("READ CAPACITY(16) in flat space: %+v", r)
	}
}

// TestBackpressure: an initiator that sends and never takes costs a bounded
// amount and is dropped.
func TestBackpressure(t *testing.T) {
	s, addr := newTest(t, Options{Limits: Limits{PingInterval: 100 * time.Millisecond, PingTimeout: 200 * time.Millisecond}}, LUN{ID: 1, Reader: make(memory, 8<<20)})
	c := connect(t, addr, loginSpec{})
	c.nc.SetDeadline(time.Now().Add(5 * time.Second))
	payload := make([]byte, 8192)
	var h pdu.Header
	h.SetOp(pdu.OpNopOut)
	h.SetImmediate()
	h.SetFlags(pdu.FlagFinal)
	h.SetITT(3)
	h.SetTTT(pdu.NoTag)
	h.SetCmdSN(c.cmdSN)
	p := pdu.Append(nil, &h, payload, false, false)
	sent := 0
	for {
		n, err := c.nc.Write(p)
		sent += n
		if err != nil {
			break
		}
	}
	sessions(t, s, 0)
	t.Logf("took %d bytes", sent)
}

// TestConcurrency: logins, reads, aborts, removals, status, all at once; for the
// race detector above all.
func TestConcurrency(t *testing.T) {
	s := New(Options{Limits: Limits{ConnectionsPerAddr: 1000, Pending: 1000}})
	data := randomBytes(4 << 20)
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	file := openFile(t, name)
	add := func(i int) string {
		n := fmt.Sprintf("iqn.2026-11.yester:c%d", i)
		s.AddTarget(n, LUN{ID: 1, Reader: file}, LUN{ID: 2, Reader: memory(data), Overlay: &Overlay{Size: 1 << 20}})
		return n
	}
	for i := range 4 {
		add(i)
	}
	addr := serve(t, s)
	stop := time.Now().Add(3 * time.Second)
	var logins, reads atomic.Int64
	var wg sync.WaitGroup
	for w := range 24 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(w), 9))
			for time.Now().Before(stop) {
				nc, err := net.Dial("tcp", addr)
				if err != nil {
					continue
				}
				nc.SetDeadline(time.Now().Add(10 * time.Second))
				c := &client{t: t, nc: nc, r: pdu.NewReader(nc, 1<<24-1), keys: map[string]string{}}
				target := fmt.Sprintf("iqn.2026-11.yester:c%d", rng.IntN(4))
				if err := c.login(loginSpec{target: target, isid: byte(rng.IntN(16))}); err != nil {
					nc.Close()
					continue
				}
				logins.Add(1)
				for range rng.IntN(20) {
					lun := uint16(1 + rng.IntN(2))
					lba := rng.Uint64N(8000)
					if rng.IntN(4) == 0 && lun == 2 {
						out := data[:4096]
						if _, err := c.finish(c.start(2, rw16(0x8a, lba, 8), 0, out), out); err != nil {
							break
						}
						continue
					}
					r, err := c.finish(c.start(lun, rw16(0x88, lba, 64), 64*512, nil), nil)
					if err != nil {
						break
					}
					if lun == 1 && r.status == 0 && !bytes.Equal(r.data, data[lba*512:(lba+64)*512]) {
						t.Error("wrong data")
					}
					reads.Add(1)
				}
				if rng.IntN(2) == 0 {
					c.logout()
				}
				nc.Close()
			}
		}()
	}
	for i := 0; time.Now().Before(stop); i++ {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		n := fmt.Sprintf("iqn.2026-11.yester:c%d", i%4)
		if err := s.RemoveTarget(ctx, n); err != nil {
			t.Errorf("remove: %v", err)
		}
		cancel()
		add(i % 4)
		s.Status()
		time.Sleep(50 * time.Millisecond)
	}
	wg.Wait()
	if logins.Load() < 50 || reads.Load() < 50 {
		t.Errorf("only %d logins, %d reads", logins.Load(), reads.Load())
	}
	t.Logf("%d logins, %d reads", logins.Load(), reads.Load())
}

// TestParallelReads: as many reads run at once as the initiator has outstanding.
func TestParallelReads(t *testing.T) {
	f := &faulty{size: 64 << 20, bad: -1, stall: make(chan struct{})}
	_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: f})
	c := connect(t, addr, loginSpec{})
	for i := range uint64(32) {
		c.start(1, rw16(0x88, i*8, 8), 4096, nil)
	}
	for end := time.Now().Add(5 * time.Second); f.reads.Load() < 32; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of 32 reads run at once", f.reads.Load())
		}
	}
	close(f.stall)
	for range 32 {
		if h, d, err := c.next(); err != nil || h.Op() != pdu.OpDataIn || len(d) != 4096 {
			t.Fatal(err, h.Op(), len(d))
		}
	}
}

// TestDigestErrors: a damaged header ends the connection, damaged data the command.
func TestDigestErrors(t *testing.T) {
	_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: make(memory, 1<<20), Overlay: &Overlay{Size: 1 << 20}})
	c := connect(t, addr, loginSpec{digests: "CRC32C"})
	var h pdu.Header
	h.SetOp(pdu.OpCommand)
	h.SetFlags(pdu.FlagFinal | pdu.CommandWrite)
	h.SetLUN(1 << 48)
	h.SetITT(900)
	h.SetEDTL(512)
	h.SetCmdSN(c.cmdSN)
	c.cmdSN++
	copy(h.CDB(), rw16(0x8a, 0, 1))
	p := pdu.Append(nil, &h, make([]byte, 512), true, true)
	p[len(p)-1] ^= 1
	c.nc.Write(p)
	r, err := c.finish(900, nil)
	if k, a := r.key(); err != nil || k != 0xb || a != 0x4705 {
		t.Fatalf("%v, sense %x", err, r.sense)
	}
	if r := c.read(0, 1); !bytes.Equal(r.data, make([]byte, 512)) {
		t.Error("damaged data was written")
	}
	h.SetCmdSN(c.cmdSN)
	p = pdu.Append(nil, &h, nil, true, true)
	p[20] ^= 1
	c.nc.Write(p)
	if _, _, err := c.next(); err == nil {
		t.Error("a damaged header was accepted")
	} else if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Log(err)
	}
}

// TestMapped: GET LBA STATUS shows the holes.
func TestMapped(t *testing.T) {
	p := newPieces(t, 1<<20)
	_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: p})
	c := connect(t, addr, loginSpec{})
	cdb := make([]byte, 16)
	cdb[0], cdb[1] = 0x9e, 0x12
	binary.BigEndian.PutUint32(cdb[10:], 4096)
	r := c.do(1, cdb, 4096, nil)
	at := uint64(0)
	for d := r.data[8:]; len(d) >= 16; d = d[16:] {
		lba, n, kind := binary.BigEndian.Uint64(d), uint64(binary.BigEndian.Uint32(d[8:])), d[12]
		if lba != at {
			t.Fatalf("descriptor at %d, want %d", lba, at)
		}
		for b := lba; b < lba+n; b++ {
			if hole := p.kind(int64(b*512)) == 0; hole != (kind == 1) {
				t.Fatalf("block %d: kind %d", b, kind)
			}
		}
		at += n
	}
	if at != 2048 {
		t.Errorf("descriptors end at %d", at)
	}
}
