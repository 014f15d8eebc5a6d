package treetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"yester/guestfs"
	"yester/internal/block"
)

// checkFiles reads the contents of files whole, by pieces and by extents, and
// verifies that all agree.
func checkFiles(t *testing.T, tree guestfs.Tree, nodes []Node, opt Options) {
	ctx := context.Background()
	done := make(map[guestfs.ID]bool)
	var read int64
	for _, n := range nodes {
		a, err := tree.Attr(ctx, n.ID)
		if err != nil || !a.IsRegular() || done[n.ID] || read >= opt.Bytes {
			continue
		}
		done[n.ID] = true
		r, err := tree.Open(ctx, n.ID)
		if err != nil {
			t.Errorf("%q: open: %v", n.Path, err)
			continue
		}
		if r.Size() != a.Size {
			t.Errorf("%q: content of %d bytes, size %d", n.Path, r.Size(), a.Size)
			continue
		}
		checkEnds(t, n.Path, r)
		if a.Size <= opt.MaxFile {
			checkContent(t, n.Path, r, a.Blocks == 0 && opt.Sparse)
			read += a.Size + 1<<10
		}
	}
	t.Logf("read %d files", len(done))
}

// checkEnds reads around the end of the file and before its start.
func checkEnds(t *testing.T, path string, r block.Reader) {
	var buf [16]byte
	size := r.Size()
	if n, err := r.ReadAt(buf[:], size); n != 0 || err != io.EOF {
		t.Errorf("%q: read at the end: %d, %v", path, n, err)
	}
	if n, err := r.ReadAt(buf[:], size+100); n != 0 || err != io.EOF {
		t.Errorf("%q: read past the end: %d, %v", path, n, err)
	}
	if _, err := r.ReadAt(buf[:], -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%q: read at -1: %v", path, err)
	}
	if size > 5 {
		if n, err := r.ReadAt(buf[:], size-5); n != 5 || err != io.EOF {
			t.Errorf("%q: read of the last 5 bytes: %d, %v", path, n, err)
		}
	}
	if _, err := block.ExtentAt(context.Background(), r, size, 1); err == nil {
		t.Errorf("%q: extent at the end: no error", path)
	}
}

// checkContent compares the whole content with random pieces and with what the
// extents say.
func checkContent(t *testing.T, path string, r block.Reader, hole bool) {
	ctx := context.Background()
	whole := make([]byte, r.Size())
	if err := block.ReadFull(ctx, r, whole, 0); err != nil {
		t.Errorf("%q: %v", path, err)
		return
	}
	rng := rand.New(rand.NewPCG(uint64(len(whole)), 1))
	for range 20 {
		if len(whole) == 0 {
			break
		}
		off := rng.Int64N(int64(len(whole)))
		p := make([]byte, 1+rng.IntN(min(len(whole), 100_000)))
		n, err := r.ReadAt(p, off)
		want := whole[off:min(off+int64(len(p)), int64(len(whole)))]
		if !bytes.Equal(p[:n], want) || n < len(p) && err != io.EOF || err != nil && err != io.EOF {
			t.Errorf("%q: piece of %d bytes at %#x differs from the whole (error: %v)", path, len(p), off, err)
		}
	}
	for off := int64(0); off < int64(len(whole)); {
		e, err := block.ExtentAt(ctx, r, off, r.Size()-off)
		if err != nil {
			t.Errorf("%q: extent at %#x: %v", path, off, err)
			return
		}
		part := whole[off : off+e.Len]
		if e.Zero && len(bytes.Trim(part, "\x00")) != 0 {
			t.Errorf("%q: zero extent at %#x+%#x holds data", path, off, e.Len)
		}
		if hole && !e.Zero {
			t.Errorf("%q: data at %#x of a file that occupies no blocks", path, off)
		}
		if e.File != nil && !e.Zero {
			p := make([]byte, e.Len)
			if _, err := e.File.ReadAt(p, e.Off); err != nil || !bytes.Equal(p, part) {
				t.Errorf("%q: extent at %#x+%#x: the host file holds other bytes at %#x (error: %v)", path, off, e.Len, e.Off, err)
			}
		}
		off += e.Len
	}
}
