package iscsi

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"yester/internal/block"
)

// evictable is a disk in a cache's file, from which it can be evicted.
type evictable struct {
	memory
	file  *os.File
	stamp uint64 // 0: not there
}

func (e *evictable) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	n = min(n, 4096-off%4096)
	if e.stamp == 0 {
		return block.Extent{Len: n}, nil
	}
	return block.Extent{Len: n, File: e.file, Off: off, Stamp: e.stamp}, nil
}

// TestEvicted evicts what a target remembers the place of, and puts the same bytes
// there again: neither place may be taken for what was read in between, and the
// new one is found.
func TestEvicted(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "blocks"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := &evictable{memory: make(memory, 8192), file: f, stamp: 1}
	l := newLocated(r)
	l.learn(t.Context(), 0)
	e, what := l.lookup(4096, 512)
	if what != inPlace || e.File != f || !l.holds(4096, 512, e) {
		t.Fatalf("%v, %+v", what, e)
	}
	r.stamp = 0
	if l.holds(4096, 512, e) {
		t.Error("holds after it was evicted")
	}
	r.stamp = 2
	if l.holds(4096, 512, e) {
		t.Error("holds after it was evicted and came back")
	}
	if _, what := l.lookup(4096, 512); what != unknown {
		t.Errorf("known by what was remembered: %v", what)
	}
	l.learn(t.Context(), 0)
	if e, what := l.lookup(4096, 512); what != inPlace || !l.holds(4096, 512, e) {
		t.Errorf("not found where it is now: %v, %+v", what, e)
	}
}

// TestArrives reads what has no place until it gets one.
func TestArrives(t *testing.T) {
	r := &evictable{memory: make(memory, 8192), file: os.Stdin}
	l := newLocated(r)
	l.learn(t.Context(), 0)
	if _, what := l.lookup(0, 512); what != plain {
		t.Fatalf("knowledge %v", what)
	}
	r.stamp = 1
	for i := 0; ; i++ {
		_, what := l.lookup(0, 512)
		if what == inPlace {
			break
		}
		if i > 2*relearnAfter {
			t.Fatalf("knowledge %v after %d reads", what, i)
		}
		if what == unknown {
			l.learn(t.Context(), 0)
		}
	}
}
