package vhdx

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// failing accepts so many writes.
type failing struct {
	left int
	err  error
}

func (f *failing) WriteAt(p []byte, _ int64) (int, error) {
	if f.left--; f.left < 0 {
		return len(p) - 1, f.err
	}
	return len(p), nil
}

// writers are the three kinds with the same options.
var writers = map[string]func(t *testing.T, w io.WriterAt, src block.Reader, opt WriteOptions) error{
	"fixed": func(t *testing.T, w io.WriterAt, src block.Reader, opt WriteOptions) error {
		return WriteFixed(t.Context(), w, src, opt)
	},
	"dynamic": func(t *testing.T, w io.WriterAt, src block.Reader, opt WriteOptions) error {
		return WriteDynamic(t.Context(), w, src, opt)
	},
	"differencing": func(t *testing.T, w io.WriterAt, src block.Reader, opt WriteOptions) error {
		return WriteDiff(t.Context(), w, src, readertest.Bytes{}, DiffOptions{WriteOptions: opt, Locators: ParentLocators("p", "")})
	},
}

// TestFullTarget checks that no failed or short write passes for success.
func TestFullTarget(t *testing.T) {
	src := fullDisk(2 << 20)
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			for left := 0; ; left++ {
				opt := WriteOptions{BlockSize: mib}
				probe := &failing{left, syscall.ENOSPC}
				err := write(t, probe, src, opt)
				if probe.left >= 0 {
					if err != nil {
						t.Fatal(err)
					}
					break // all its writes fit
				}
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("room for %d writes: error %v", left, err)
				}
				if err := write(t, &failing{left, nil}, src, opt); !errors.Is(err, io.ErrShortWrite) {
					t.Fatalf("short write after %d: error %v", left, err)
				}
			}
		})
	}
}

// TestWriteOptions checks refusals and progress.
func TestWriteOptions(t *testing.T) {
	src := disk(3<<20, 5, 9)
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			done := int64(-1)
			err := write(t, &mem{}, src, WriteOptions{Progress: func(n int64) {
				if n < done {
					t.Errorf("progress %d after %d", n, done)
				}
				done = n
			}})
			if err != nil || done != src.Size() {
				t.Fatalf("error %v, last progress %d", err, done)
			}
			for _, opt := range []WriteOptions{{BlockSize: -1}, {BlockSize: 1 << 19}, {BlockSize: 3 << 20}, {BlockSize: 1 << 29}, {SectorSize: 1024}} {
				if err := write(t, &mem{}, src, opt); err == nil {
					t.Errorf("%+v is taken", opt)
				}
			}
			if err := write(t, &mem{}, endless{}, WriteOptions{}); !errors.Is(err, ErrTooLarge) {
				t.Errorf("a disk of %d bytes: %v", endless{}.Size(), err)
			}
		})
	}
	err := WriteDiff(t.Context(), &mem{}, src, src, DiffOptions{Locators: []imageformats.Locator{{Platform: "W2ru", Path: "p"}}})
	if err == nil {
		t.Error("a locator of another format is taken")
	}
}

// endless is a hole just too large for a VHDX.
type endless struct{}

func (endless) Size() int64                             { return maxSize + 512 }
func (endless) ReadAt(p []byte, off int64) (int, error) { clear(p); return len(p), nil }

// hollow is a terabyte of zeros that says so and can't be read, but for a megabyte
// of ones at 1 << 39.
type hollow struct{ ones bool }

func (hollow) Size() int64 { return 1 << 40 }

func (h hollow) ReadAt(p []byte, off int64) (int, error) {
	if off < 1<<39 || off+int64(len(p)) > 1<<39+64<<20 {
		return 0, syscall.EIO
	}
	for i := range p {
		p[i] = 0
		if h.ones && off+int64(i) < 1<<39+1<<20 {
			p[i] = 1
		}
	}
	return len(p), nil
}

func (h hollow) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	switch {
	case !h.ones || off >= 1<<39+1<<20:
		return block.Extent{Len: n, Zero: true}, nil
	case off < 1<<39:
		return block.Extent{Len: min(n, 1<<39-off), Zero: true}, nil
	}
	return block.Extent{Len: min(n, 1<<39+1<<20-off)}, nil
}

// TestDiffOfHoles compares two disks that are nearly all holes, without reading them.
func TestDiffOfHoles(t *testing.T) {
	for _, c := range []struct{ src, parent hollow }{{hollow{true}, hollow{false}}, {hollow{false}, hollow{true}}} {
		var done int64
		path := filepath.Join(t.TempDir(), "diff")
		create(t, path, func(f *os.File) error {
			return WriteDiff(t.Context(), f, c.src, c.parent, DiffOptions{ParentID: [16]byte{1}, WriteOptions: WriteOptions{ID: [16]byte{2}, Progress: func(n int64) { done = n }}})
		})
		img, err := Format.Open(t.Context(), openFile(t, path), imageformats.OpenOptions{Parent: hollowImage{c.parent},
			ParentInfo: &imageformats.Info{Format: "vhdx", Size: 1 << 40, ID: "01000000-0000-0000-0000-000000000000"}})
		if err != nil {
			t.Fatal(err)
		}
		p, want := make([]byte, 1<<20), make([]byte, 1<<20)
		if err := block.ReadFull(t.Context(), img, p, 1<<39); err != nil {
			t.Fatal(err)
		}
		if _, err := c.src.ReadAt(want, 1<<39); err != nil || !bytes.Equal(p, want) {
			t.Errorf("wrong bytes, %v", err)
		}
		if done != 1<<40 {
			t.Errorf("progress ends at %d", done)
		}
	}
}

type hollowImage struct{ hollow }

func (hollowImage) Close() error { return nil }
