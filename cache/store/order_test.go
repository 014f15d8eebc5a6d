package store

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestOrder looks, at each step of a block's life, at what others see of it.
func TestOrder(t *testing.T) {
	dir := tempDir(t)
	var watch func(change)
	s := open(t, dir, Options{hook: func(c change) error {
		if watch != nil && strings.HasPrefix(c.file.name, objectPrefix) {
			watch(c)
		}
		return nil
	}})
	o := object(t, s, "k", 8*blk, blk)
	other := object(t, open(t, dir, Options{}), "k", 8*blk, blk)
	state := func() uint32 {
		e, err := other.disk.entry(3)
		if err != nil {
			t.Error(err)
		}
		return e.state & 0xff
	}
	steps := map[kind]int{}
	expect := uint32(stateAbsent)
	watch = func(c change) {
		steps[c.kind]++
		switch data := strings.HasSuffix(c.file.name, partSuffix+"0"); {
		case c.kind == write && data && state() != stateAbsent:
			t.Errorf("bytes are written under an entry of state %d", state())
		case c.kind == dataSync && (!data || state() != stateVolatile):
			t.Errorf("%s is synced in state %d", c.file.name, state())
		case c.kind == punch && (!data || state() != expect):
			t.Errorf("a hole is punched in state %d", state())
		}
	}
	put(t, o, 3)
	if state() != stateVolatile {
		t.Errorf("state %d after the put", state())
	}
	if err := s.Sync(); err != nil || state() != stateDurable {
		t.Errorf("state %d after the sync: %v", state(), err)
	}
	s.releaseIdle(0)
	expect = stateEvicting
	if freed, err := o.disk.evict(3, s.now.Load()); err != nil || freed != blk || state() != stateAbsent {
		t.Errorf("state %d, %d freed, %v", state(), freed, err)
	}
	if steps[write] < 5 || steps[punch] != 1 || steps[dataSync] != 1 {
		t.Errorf("steps: %v", steps)
	}
}

// TestSeen has a block that one process knows as good evicted by another, put
// again, and damaged: to know the one from before is not to know this one.
func TestSeen(t *testing.T) {
	dir := tempDir(t)
	s, other := open(t, dir, Options{}), open(t, dir, Options{})
	o, p := object(t, s, "k", 8*blk, blk), object(t, other, "k", 8*blk, blk)
	put(t, o, 3)
	s.Sync()
	check(t, o, 3)
	s.releaseIdle(0)
	if _, err := other.Prune(t.Context(), Pruning{}); err != nil || len(present(p)) > 0 {
		t.Fatal("not evicted", err)
	}
	put(t, p, 3)
	flip(t, filepath.Join(dir, o.name+partSuffix+"0"), 3*blk+5)
	if check(t, o, 3) {
		t.Error("damaged, and there")
	}
}

// TestEvictingIsFinished finds a block whose eviction was cut short by a kill.
func TestEvictingIsFinished(t *testing.T) {
	s := open(t, tempDir(t), Options{})
	o := object(t, s, "k", 8*blk, blk)
	put(t, o, 3)
	s.Sync()
	s.releaseIdle(0)
	if err := o.disk.writeEntry(3, entry{state: stateEvicting}); err != nil {
		t.Fatal(err)
	}
	o.Close()
	o = object(t, s, "k", 8*blk, blk)
	if check(t, o, 3) || len(present(o)) > 0 {
		t.Error("it is still there")
	}
	before := o.disk.parts[0].held()
	if _, err := s.Prune(t.Context(), Pruning{}); err != nil {
		t.Fatal(err)
	}
	if after := o.disk.parts[0].held(); before < blk || after > before-blk {
		t.Errorf("%d bytes before, %d after", before, after)
	}
}
