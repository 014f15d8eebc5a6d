package vhdx

import (
	"errors"
	"io"
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
