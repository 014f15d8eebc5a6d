package iscsi

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"yester/iscsi/pdu"
)

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
	whole bool  // fail without any of the bytes before
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
		if f.whole {
			n = 0
		}
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
		"whole":       {&faulty{size: 1 << 20, bad: 100 * 512, whole: true}, 100},
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

// TestNothingTaken: an initiator that asks for more than sockets hold, takes
// nothing and says nothing more.
func TestNothingTaken(t *testing.T) {
	s, addr := newTest(t, Options{Limits: Limits{PingInterval: 100 * time.Millisecond, PingTimeout: 200 * time.Millisecond}}, LUN{ID: 1, Reader: make(memory, 64<<20)})
	c := connect(t, addr, loginSpec{})
	for i := range uint64(60) {
		c.start(1, rw16(0x88, i*2048, 2048), 1<<20, nil)
	}
	sessions(t, s, 0)
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
