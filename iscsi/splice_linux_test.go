package iscsi

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSpliceIsUsed: reads that could be spliced are, and the pipes come back.
func TestSpliceIsUsed(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, randomBytes(4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(Options{})
	s.spliceLocal = true
	if err := s.AddTarget(testTarget, LUN{ID: 1, Reader: openFile(t, name)}); err != nil {
		t.Fatal(err)
	}
	c := connect(t, serve(t, s), loginSpec{})
	for range 50 {
		c.read(0, 1024) // inline, once the extent is known
		c.read(0, 8192) // on a worker
	}
	s.pipes.mu.Lock()
	defer s.pipes.mu.Unlock()
	if s.pipes.n == 0 || s.pipes.n != len(s.pipes.idle) {
		t.Errorf("%d pipes, %d idle", s.pipes.n, len(s.pipes.idle))
	}
}
