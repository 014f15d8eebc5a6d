package qcow2

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"yester/internal/block"
	"yester/internal/readertest"
)

// islands is a large disk with little on it, which isn't kept in memory.
type islands struct {
	size int64
	data map[int64]string // by offset
}

func (d islands) Size() int64 { return d.size }

func (d islands) ReadAt(p []byte, off int64) (int, error) {
	n, err := block.CheckRead(off, len(p), d.size)
	clear(p[:n])
	for at, s := range d.data {
		for i := range len(s) {
			if k := at + int64(i) - off; k >= 0 && k < int64(n) {
				p[k] = s[i]
			}
		}
	}
	return n, err
}

// touches reports whether there is data in the n bytes at off.
func (d islands) touches(off, n int64) bool {
	for at, s := range d.data {
		if at < off+n && at+int64(len(s)) > off {
			return true
		}
	}
	return false
}

// TestWrite has QEMU check and read back what was written.
func TestWrite(t *testing.T) {
	random := make(readertest.Bytes, 3<<20+700)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range random {
		if i>>16%3 != 1 {
			random[i] = byte(rng.Uint32())
		}
	}
	for name, src := range map[string]block.Reader{
		"empty":   readertest.Bytes{},
		"zeros":   make(readertest.Bytes, 1<<20),
		"one":     readertest.Bytes{1},
		"random":  random,
		"regions": islands{1600 << 20, map[int64]string{0: "a", 512<<20 - 1: "bc", 1599 << 20: "d", 1600<<20 - 1: "e"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			img, back := filepath.Join(dir, "img"), filepath.Join(dir, "back")
			f, err := os.Create(img)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var done int64
			if err := Write(t.Context(), f, src, WriteOptions{Progress: func(n int64) {
				if n < done {
					t.Errorf("progress went from %d to %d", done, n)
				}
				done = n
			}}); err != nil {
				t.Fatal(err)
			}
			if done != src.Size() {
				t.Errorf("last progress %d of %d", done, src.Size())
			}
			tool(t, "qemu-img", "check", "-f", "qcow2", img)
			tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", img, back)
			g, err := os.Open(back)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			got := readertest.File{File: g}
			if want := (src.Size() + 511) &^ 511; got.Size() != want {
				t.Fatalf("QEMU sees %d bytes, want %d", got.Size(), want)
			}
			a, b := make([]byte, 1<<20), make([]byte, 1<<20)
			for off := int64(0); off < src.Size(); off += 1 << 20 {
				n := min(1<<20, src.Size()-off)
				if d, ok := src.(islands); ok && !d.touches(off, n) {
					if e, err := block.DataAt(t.Context(), host{got}, off, n); err == nil && e.Zero && e.Len == n {
						continue
					}
				}
				if err := errors.Join(block.ReadFull(t.Context(), src, a[:n], off), block.ReadFull(t.Context(), got, b[:n], off)); err != nil {
					t.Fatal(err)
				}
				if string(a[:n]) != string(b[:n]) {
					t.Fatalf("QEMU reads other bytes in the megabyte at %#x", off)
				}
			}
		})
	}
}

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

// TestFullDisk checks that no failed or short write passes for success.
func TestFullDisk(t *testing.T) {
	src := make(readertest.Bytes, 1<<20)
	for i := range src {
		src[i] = 7
	}
	for left := 0; left < 1<<20+4*clusterSize; left += 30_011 {
		if err := Write(t.Context(), &failing{left, syscall.ENOSPC}, src, WriteOptions{}); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("room for %d bytes: error %v", left, err)
		}
		if err := Write(t.Context(), &failing{left, nil}, src, WriteOptions{}); !errors.Is(err, io.ErrShortWrite) {
			t.Fatalf("short write after %d bytes: error %v", left, err)
		}
	}
	if err := Write(t.Context(), &failing{left: 1 << 30}, islands{size: maxSize + 1}, WriteOptions{}); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("disk of %d bytes: %v", maxSize+1, err)
	}
}
