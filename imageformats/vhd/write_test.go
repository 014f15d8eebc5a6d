package vhd

import (
	"bytes"
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
