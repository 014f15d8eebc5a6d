package vhd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// failing accepts so many bytes.
type failing struct {
	left int
	err  error
}

func (f *failing) WriteAt(p []byte, _ int64) (int, error) {
	n := min(len(p), f.left)
	f.left -= n
	if n < len(p) {
		return n, f.err
	}
	return n, nil
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
		return WriteDiff(t.Context(), w, src, readertest.Bytes{}, DiffOptions{WriteOptions: opt, ParentName: "p",
			Locators: []imageformats.Locator{{Platform: "W2ru", Path: "p"}}})
	},
}

// TestFullTarget checks that no failed or short write passes for success.
func TestFullTarget(t *testing.T) {
	src := fullDisk(256 << 10)
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			var whole buffer
			opt := WriteOptions{BlockSize: 64 << 10}
			if err := write(t, &whole, src, opt); err != nil {
				t.Fatal(err)
			}
			for left := 0; left < len(src)+footerSize; left += 4099 {
				if err := write(t, &failing{left, syscall.ENOSPC}, src, opt); !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("room for %d bytes: error %v", left, err)
				}
				if err := write(t, &failing{left, nil}, src, opt); !errors.Is(err, io.ErrShortWrite) {
					t.Fatalf("short write after %d bytes: error %v", left, err)
				}
			}
		})
	}
}

// TestWriteOptions checks refusals, progress and that bytes follow from input.
func TestWriteOptions(t *testing.T) {
	src := disk(3<<20, 5, 9)
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			var images [2]buffer
			for i := range images {
				done := int64(-1)
				err := write(t, &images[i], src, WriteOptions{ID: [16]byte{3}, Created: epoch.Add(time.Hour), Progress: func(n int64) {
					if n < done {
						t.Errorf("progress %d after %d", n, done)
					}
					done = n
				}})
				if err != nil || done != src.Size() {
					t.Fatalf("error %v, last progress %d", err, done)
				}
			}
			if !bytes.Equal(images[0].b, images[1].b) {
				t.Error("two runs write different bytes")
			}
			info, err := probeBytes(t, images[0].b)
			if err != nil || info.Variant != name || info.ID != "03000000-0000-0000-0000-000000000000" || !info.Created.Equal(epoch.Add(time.Hour)) || len(info.Warnings) > 0 {
				t.Errorf("Probe: %+v, %v", info, err)
			}
			if err := write(t, &buffer{}, src, WriteOptions{Created: epoch.Add(-time.Second)}); err == nil {
				t.Error("a time before 2000 is taken")
			}
			if name == "fixed" {
				return
			}
			for _, n := range []int64{-1, 256, 3000, 1 << 31} {
				if err := write(t, &buffer{}, src, WriteOptions{BlockSize: n}); err == nil {
					t.Errorf("block size %d is taken", n)
				}
			}
			if err := write(t, &buffer{}, endless{}, WriteOptions{}); !errors.Is(err, ErrTooLarge) {
				t.Errorf("a disk of %d bytes: %v", endless{}.Size(), err)
			}
		})
	}
}

// endless is a hole just too large for a dynamic VHD.
type endless struct{}

func (endless) Size() int64                             { return maxDynamicSize + 512 }
func (endless) ReadAt(p []byte, off int64) (int, error) { clear(p); return len(p), nil }

// TestQEMUReads has QEMU read a fixed image, and the end of a large dynamic one
// whose size no geometry tells.
func TestQEMUReads(t *testing.T) {
	dir := t.TempDir()
	img, back := filepath.Join(dir, "img.vhd"), filepath.Join(dir, "back")
	data := disk(1<<20+512, 8, 9)
	create(t, img, func(f *os.File) error { return WriteFixed(t.Context(), f, data, WriteOptions{}) })
	runTool(t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", img, back)
	readertest.Run(t, openFile(t, back), data)
	const size = 300<<30 + 512
	create(t, img, func(f *os.File) error { return largeLayer(f, 0, size, [16]byte{}) })
	if out := runTool(t, "qemu-img", "info", "--output=json", "-f", "vpc", img); !bytes.Contains([]byte(out), []byte(`"virtual-size": 322122547712`)) {
		t.Errorf("QEMU says %s", out)
	}
	if st, err := os.Stat(img); err != nil || st.Size() > 4<<20 {
		t.Errorf("image of one block: %v, %v", st, err)
	}
}

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
			ParentInfo: &imageformats.Info{Format: "vhd", Size: 1 << 40, ID: "01000000-0000-0000-0000-000000000000"}})
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
