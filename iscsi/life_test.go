package iscsi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// TestPing: a silent initiator is asked, and dropped when it doesn't answer.
func TestPing(t *testing.T) {
	s, addr := newTest(t, Options{Limits: Limits{PingInterval: 100 * time.Millisecond, PingTimeout: time.Second}})
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

// observer is Metrics and a Prefetcher.
type observer struct {
	memory
	mu         sync.Mutex
	logins     []uint16
	reads      int64
	prefetched [2]int64
}

func (o *observer) Login(status uint16) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.logins = append(o.logins, status)
}

func (o *observer) Command(op, status byte, n int64, _ time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if op == 0x88 && status == 0 {
		o.reads += n
	}
}

func (o *observer) Prefetch(ranges []block.Range) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, g := range ranges {
		o.prefetched = [2]int64{g.Off, g.Len}
	}
	return true
}

// TestObserved: metrics, status and PRE-FETCH reach those who want them.
func TestObserved(t *testing.T) {
	o := &observer{memory: make(memory, 1<<20)}
	s, addr := newTest(t, Options{Metrics: o}, LUN{ID: 1, Reader: o})
	dial(t, addr).login(loginSpec{target: "iqn.2026-11.yester:nobody"})
	c := connect(t, addr, loginSpec{})
	c.read(0, 100)
	if r := c.do(1, rw16(0x90, 8, 64), 0, nil); r.status != 0 {
		t.Errorf("PRE-FETCH: %+v", r)
	}
	st := s.Status()
	if len(st.Targets) != 1 || len(st.Sessions) != 1 || st.Sessions[0].BytesRead != 51200 || st.Sessions[0].Initiator != testInitiator || st.Sessions[0].Target != testTarget {
		t.Errorf("status: %+v", st)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.logins) != 2 || o.logins[0] != pdu.LoginNotFound || o.logins[1] != 0 {
		t.Errorf("logins: %#x", o.logins)
	}
	if o.reads != 51200 || o.prefetched != [2]int64{8 * 512, 64 * 512} {
		t.Errorf("%d bytes read, prefetched %v", o.reads, o.prefetched)
	}
}

// TestNAA: the same restore point has the same name everywhere, others another.
func TestNAA(t *testing.T) {
	a := NAA("iqn.2026-11.yester:web01:t1", 0)
	if a != NAA("iqn.2026-11.yester:web01:t1", 0) || a[0]>>4 != 3 {
		t.Errorf("%x", a)
	}
	if a == NAA("iqn.2026-11.yester:web01:t1", 1) || a == NAA("iqn.2026-11.yester:web01:t2", 0) {
		t.Error("two units share a name")
	}
	_, addr := newTest(t, Options{})
	c := connect(t, addr, loginSpec{})
	r := c.do(1, []byte{0x12, 1, 0x83, 0, 255, 0}, 255, nil)
	if n := NAA(testTarget, 1); len(r.data) < 16 || !bytes.Equal(r.data[8:16], n[:]) {
		t.Errorf("device identification %x", r.data)
	}
}
