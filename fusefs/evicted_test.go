package fusefs

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"yester/internal/block"
)

// evictedReader says where its bytes lie, and by the next question they have been
// evicted: to nowhere, or and put there again.
type evictedReader struct {
	size  int64
	file  *os.File
	stamp uint64
	after func(*evictedReader)
}

func (r *evictedReader) Size() int64 { return r.size }

func (r *evictedReader) ReadAt(p []byte, off int64) (int, error) { return r.file.ReadAt(p, off) }

func (r *evictedReader) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	e := block.Extent{Len: n, File: r.file, Off: off, Stamp: r.stamp}
	if r.stamp == 0 {
		e.File = nil
	}
	if r.after != nil {
		r.after(r)
	}
	return e, nil
}

// TestSplicedFromEvicted loads a pipe from a place that is no longer the reader's:
// what was loaded must not be answered.
func TestSplicedFromEvicted(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "blocks"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		after func(*evictedReader)
		whole bool
	}{
		"stays":          {nil, true},
		"evicted":        {func(r *evictedReader) { r.stamp = 0 }, false},
		"and back again": {func(r *evictedReader) { r.stamp++ }, false},
	} {
		res, err := new(rawFS).spliced(t.Context(), &evictedReader{1 << 20, file, 1, c.after}, 0, 64<<10)
		if err != nil || (res != nil) != c.whole {
			t.Errorf("%s: %v, %v", name, res, err)
		}
		if res != nil {
			res.Done()
		}
	}
}
