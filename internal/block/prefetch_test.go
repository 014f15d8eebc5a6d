package block_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"yester/internal/block"
	"yester/internal/readertest"
)

// far is a Reader that takes hints.
type far struct {
	readertest.Bytes
	hints []block.Range
}

func (f *far) Prefetch(ranges []block.Range) bool { f.hints = append(f.hints, ranges...); return true }

// TestPrefetch passes hints through sections, clipped to them.
func TestPrefetch(t *testing.T) {
	f := &far{Bytes: make(readertest.Bytes, 10_000)}
	outer, err := block.NewSection(f, 1000, 5000)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := block.NewSection(outer, 100, 400)
	if err != nil {
		t.Fatal(err)
	}
	ranges := []block.Range{{Off: 10, Len: 20}, {Off: 390, Len: 20}, {Off: 400, Len: 1}, {Off: -1, Len: 5}, {Off: 3, Len: 0}, {Off: 5, Len: 1<<63 - 1}}
	if !block.Prefetch(inner, ranges...) {
		t.Error("of no use")
	}
	if want := []block.Range{{Off: 1110, Len: 20}, {Off: 1490, Len: 10}, {Off: 1105, Len: 395}}; !slices.Equal(f.hints, want) {
		t.Errorf("hints %v, want %v", f.hints, want)
	}
	near, err := block.NewSection(make(readertest.Bytes, 100), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	if block.Prefetch(near) {
		t.Error("of use where nothing takes hints")
	}
}

// TestAhead reads through a file in pieces, out of order and in order, and stops.
func TestAhead(t *testing.T) {
	const size = 100 << 20
	for name, order := range map[string][]int64{"in order": {0, 1, 2, 3}, "out of order": {1, 0, 3, 2}} {
		var a block.Ahead
		var until int64
		for off := int64(0); off < size; off += 512 << 10 {
			for _, i := range order {
				at := off + i*(128<<10)
				g, ok := a.Note(at, 128<<10, size)
				if !ok {
					continue
				}
				if until > 0 && g.Off != until {
					t.Errorf("%s: at %#x: %+v, expected from %#x on", name, at, g, until)
				}
				until = g.Off + g.Len
				if ahead := until - at; ahead > 2*at+4<<20 {
					t.Errorf("%s: at %#x: %#x bytes ahead", name, at, ahead)
				}
			}
			// Far in, there is always something left to ask for while what was is on its way.
			if off >= 32<<20 && until < min(off+56<<20, size) {
				t.Errorf("%s: at %#x only %#x is asked for", name, off, until)
			}
			if off > 4<<20 && until < min(off+4<<20, size) {
				t.Errorf("%s: at %#x only %#x is asked for", name, off, until)
			}
		}
		if until != size {
			t.Errorf("%s: ended at %#x of %#x", name, until, int64(size))
		}
	}
	var a block.Ahead
	for i, off := range []int64{50 << 20, 10 << 20, 90 << 20, 30 << 20} {
		if g, ok := a.Note(off, 4096, size); ok {
			t.Errorf("read %d is no sequence, but asks for %+v", i, g)
		}
	}
	b := block.Ahead{After: 256 << 10}
	for off := int64(0); off < 128<<10; off += 4096 {
		if g, ok := b.Note(off, 4096, size); ok {
			t.Errorf("at %#x: %+v before enough was read", off, g)
		}
	}
}

// placed is a Reader in a file, all of it in one place.
type placed struct {
	readertest.File
	stamp uint64
}

func (p placed) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	return block.Extent{Len: n, File: p.File.File, Off: off, Stamp: p.stamp}, nil
}

// TestDataAtEvicted looks for holes in a file whose bytes may be evicted: a hole
// there is no zeros.
func TestDataAtEvicted(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	for stamp, zero := range map[uint64]bool{0: true, 1: false} {
		e, err := block.DataAt(t.Context(), placed{readertest.File{File: f}, stamp}, 0, 1<<20)
		if err != nil || e.Zero != zero {
			t.Errorf("stamp %d: %+v, %v", stamp, e, err)
		}
	}
}
