package store

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// clock is a time that tests set.
type clock struct{ sec atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.sec.Store(time.Now().Unix())
	return c
}

func (c *clock) now() time.Time { return time.Unix(c.sec.Load(), 0) }

func (c *clock) pass(s *Store, sec int64) {
	c.sec.Add(sec)
	s.tick()
}

func present(o *Object) (all []int64) {
	for n := range o.All() {
		all = append(all, n)
	}
	return all
}

func TestEvictionOrder(t *testing.T) {
	c := newClock()
	s := open(t, tempDir(t), Options{clock: c.now, Budget: 1 << 30})
	a, b := object(t, s, "a", 32*blk, blk), object(t, s, "b", 32*blk, blk)
	for n := range int64(4) { // ages: a0 b0 a1 b1 …
		put(t, a, n)
		c.pass(s, 1)
		put(t, b, n)
		c.pass(s, 1)
	}
	sp, err := s.Spool(t.Context(), "spool", spoolOf("spool"))
	if err != nil {
		t.Fatal(err)
	}
	sp.Close()
	c.pass(s, 10)
	put(t, b, 20)
	check(t, a, 0) // now the newest
	s.Sync()
	for _, step := range []struct {
		need  int64
		a, b  []int64
		spool bool
	}{
		{blk, []int64{0, 1, 2, 3}, []int64{1, 2, 3, 20}, true},
		{3 * blk, []int64{0, 3}, []int64{2, 3, 20}, true},
		{3 * blk, []int64{0}, []int64{20}, true},
		{blk, []int64{0}, []int64{20}, false}, // whole
		{2 * blk, nil, nil, false},
	} {
		if freed, err := s.reclaim(t.Context(), step.need, choice{}); err != nil || freed < step.need {
			t.Fatalf("freed %d of %d: %v", freed, step.need, err)
		}
		sp := &spool{s: s, name: hashName(spoolPrefix, "spool")}
		found, _ := sp.find(t.Context(), "spool")
		if found {
			_ = sp.file.Close()
			old := time.Unix(c.sec.Load()-5, 0) // find has just used it
			if err := os.Chtimes(filepath.Join(s.dir.Name(), sp.name+dataSuffix), old, old); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(present(a), step.a) || !slices.Equal(present(b), step.b) || found != step.spool {
			t.Fatalf("after %d KiB: a %v, b %v, spool %v; want %+v", step.need>>10, present(a), present(b), found, step)
		}
	}
}

// TestPins has blocks in use, here and in another store, while all is pruned.
func TestPins(t *testing.T) {
	dir := tempDir(t)
	s, other := open(t, dir, Options{}), open(t, dir, Options{})
	o, p := object(t, s, "k", 64*blk, blk), object(t, other, "k", 64*blk, blk)
	for n := range int64(64) {
		put(t, o, n)
	}
	s.Sync()
	here, _ := o.Get(10)
	there, ok := p.Get(40)
	if !ok {
		t.Fatal("one store's block isn't the other's")
	}
	if _, err := s.Prune(t.Context(), Pruning{}); err != nil {
		t.Fatal(err)
	}
	if got := present(o); !slices.Equal(got, []int64{10, 40}) {
		t.Errorf("left: %v", got)
	}
	for n, b := range map[int64]Block{10: here, 40: there} {
		got := make([]byte, b.Len)
		if _, err := b.File.ReadAt(got, b.Off); err != nil || !bytes.Equal(got, truth("k", n, blk)) {
			t.Errorf("block %d was taken from its reader", n)
		}
		b.Release()
	}
	if check(t, p, 3) {
		t.Error("a punched block is there")
	}
	other.releaseIdle(0)
	if _, err := s.Prune(t.Context(), Pruning{}); err != nil {
		t.Fatal(err)
	}
	if got := present(p); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
	// What both knew as good is fetched again, by one, and good for both.
	put(t, p, 40)
	if !check(t, o, 40) || !check(t, p, 40) {
		t.Error("block 40 isn't there")
	}

	// A whole object in the hands of the kernel.
	small := object(t, s, "small", 5*blk-3, blk)
	for n := range int64(5) {
		put(t, small, n)
	}
	w, err := small.File(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Sync()
	for _, pruner := range []*Store{s, other} {
		if _, err := pruner.Prune(t.Context(), Pruning{Prefix: "sm"}); err != nil {
			t.Fatal(err)
		}
	}
	if !small.Complete() {
		t.Error("a file in use was punched")
	}
	w.Release()
	if _, err := s.Prune(t.Context(), Pruning{Prefix: "sm"}); err != nil {
		t.Fatal(err)
	}
	if blocks, _ := small.Present(); blocks != 0 {
		t.Errorf("%d blocks stay", blocks)
	}
}

func TestPrune(t *testing.T) {
	c := newClock()
	dir := tempDir(t)
	s := open(t, dir, Options{clock: c.now})
	a, b := object(t, s, "x:a", 8*blk, blk), object(t, s, "y:b", 8*blk, blk)
	put(t, a, 0, 1, 2)
	put(t, b, 0, 1, 2)
	if err := s.SetBlob("x:blob", []byte("old")); err != nil {
		t.Fatal(err)
	}
	c.pass(s, 1000)
	put(t, a, 3)
	put(t, b, 3)
	s.Sync()
	prune := func(what Pruning) {
		t.Helper()
		if _, err := s.Prune(t.Context(), what); err != nil {
			t.Fatal(err)
		}
	}
	prune(Pruning{Prefix: "x:", OlderThan: 500 * time.Second})
	if !slices.Equal(present(a), []int64{3}) || len(present(b)) != 4 {
		t.Errorf("by prefix and age: %v, %v", present(a), present(b))
	}
	used, _, _ := s.Usage()
	prune(Pruning{Keep: used - 2*blk})
	if !slices.Equal(present(a), []int64{3}) || len(present(b)) != 2 {
		t.Errorf("by bytes: %v, %v", present(a), present(b))
	}
	a.Close()
	b.Close()
	prune(Pruning{})
	if infos, err := s.Objects(); err != nil || len(infos) > 0 {
		t.Errorf("left: %v, %v", infos, err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left: %v", names)
	}
}

// TestBudget fills a cache many times over.
func TestBudget(t *testing.T) {
	const budget = 4 << 20
	s := open(t, tempDir(t), Options{Budget: budget, lease: time.Nanosecond})
	o := object(t, s, "k", 1000*blk, blk)
	for n := range int64(400) {
		put(t, o, n)
		if n%8 == 0 {
			s.Sync()
			if used, _, err := s.Usage(); err != nil || used > budget+8*blk {
				t.Fatalf("%d KiB after %d blocks: %v", used>>10, n, err)
			}
			if n > 8 && !check(t, o, n) && !check(t, o, n-1) {
				t.Fatal("the newest are evicted")
			}
			if sp, err := s.Spool(t.Context(), "s", func(w io.Writer) error { _, err := w.Write(make([]byte, blk)); return err }); err != nil {
				t.Fatal(err)
			} else {
				sp.Close()
			}
		}
	}
	if got := len(present(o)); got < 30 {
		t.Errorf("only %d blocks of a budget for 64", got)
	}
}
