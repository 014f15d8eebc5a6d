package readertest

import (
	"bytes"
	"io"
	"math"
	"testing"

	"yester/internal/block"
)

// Walk is for readers of hostile data, of which nobody knows what they hold. It
// follows the map of r for a bounded number of extents and reads a part of each:
// where the map has an answer, so has the read, holes are zeros, and a read in
// pieces gives what a whole one gives. A read that fails must give no bytes.
func Walk(t testing.TB, r block.Reader, extents int) {
	t.Helper()
	buf := make([]byte, 4096)
	off := int64(0)
	for range extents {
		if off >= r.Size() {
			break
		}
		e, err := block.ExtentAt(t.Context(), r, off, math.MaxInt64)
		if err != nil {
			if n, rerr := r.ReadAt(buf[:1], off); rerr == nil || n != 0 {
				t.Fatalf("at %#x the map fails (%v), and a read gives %d, %v", off, err, n, rerr)
			}
			off += 512 // what comes behind the damage?
			continue
		}
		n := int(min(e.Len, int64(len(buf))))
		got, err := r.ReadAt(buf[:n], off)
		switch {
		case err != nil && err != io.EOF && got == 0 && !e.Zero && e.File == nil:
			// What is compressed is damaged where only decoding shows it.
		case got != n:
			t.Fatalf("extent %+v at %#x: read %d, %v", e, off, got, err)
		case e.Zero && len(bytes.Trim(buf[:n], "\x00")) > 0:
			t.Fatalf("hole %+v at %#x isn't zeros", e, off)
		}
		off += e.Len
	}
	last := max(0, r.Size()-64<<10)
	for _, off := range []int64{0, 4096 - 700, last, last / 2} {
		pieces(t, r, off, min(64<<10, max(0, r.Size()-off)))
	}
}

// pieces compares a read of n bytes with reads of its parts.
func pieces(t testing.TB, r block.Reader, off, n int64) {
	t.Helper()
	whole := make([]byte, n)
	m, err := r.ReadAt(whole, off)
	if err != nil && err != io.EOF {
		if m != 0 {
			t.Fatalf("failed read at %#x gives %d bytes", off, m)
		}
		return
	}
	part := make([]byte, 777)
	for at := int64(0); at < n; at += int64(len(part)) {
		p := part[:min(int64(len(part)), n-at)]
		if m, err := r.ReadAt(p, off+at); m != len(p) || !bytes.Equal(p, whole[at:at+int64(m)]) {
			t.Fatalf("%d bytes at %#x: %d, %v, or other bytes than the whole read's", len(p), off+at, m, err)
		}
	}
}
