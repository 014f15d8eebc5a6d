package vhd

import (
	"bytes"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// FuzzVHD opens hostile images. With sums set, checksums are made right first,
// so that what they guard is reached. Nothing may panic; a map must tile the
// disk; a read in pieces must give what a whole read gives.
func FuzzVHD(f *testing.F) {
	data := disk(48<<10, 1, 3)
	opt := WriteOptions{ID: [16]byte{1}, Created: epoch.Add(time.Hour), BlockSize: 4096}
	base := dynamicImage(f, data, opt)
	next := bytes.Clone(data)
	change(next, 2, 6)
	diff := diffImage(f, next, data, DiffOptions{WriteOptions: opt, ParentID: opt.ID, ParentModified: opt.Created, ParentName: "base.vhd",
		Locators: []imageformats.Locator{{Platform: "W2ru", Path: `.\base.vhd`}, {Platform: "MacX", Path: "/base.vhd"}}})
	var fixed buffer
	if err := WriteFixed(f.Context(), &fixed, data[:2048], opt); err != nil {
		f.Fatal(err)
	}
	opt.BlockSize = 512
	tiny := dynamicImage(f, data[:4096], opt)
	for _, b := range [][]byte{base, diff, fixed.b, tiny, base[:2000], base[:len(base)-1], diff[:len(diff)-600]} {
		f.Add(b, false)
		f.Add(b, true)
	}
	parent, err := Format.Open(f.Context(), readertest.Bytes(base), imageformats.OpenOptions{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, sums bool) {
		if sums {
			b = bytes.Clone(b)
			fixSums(b)
		}
		file := readertest.Bytes(b)
		info, err := Format.Probe(t.Context(), file)
		if err != nil {
			return
		}
		opt := imageformats.OpenOptions{AllowChangedParent: true}
		if info.Parent != nil {
			opt.Parent = parent
		}
		img, err := Format.Open(t.Context(), file, opt)
		if err != nil {
			return
		}
		if img.Size() != info.Size || img.Size() < 0 {
			t.Fatalf("Open sees %d bytes, Probe %d", img.Size(), info.Size)
		}
		walk(t, img)
		last := max(0, img.Size()-64<<10)
		for _, off := range []int64{0, 4096 - 700, last, last / 2} {
			pieces(t, img, off, min(64<<10, max(0, img.Size()-off)))
		}
	})
}

// walk follows the map for a bounded number of extents. Each is read in part;
// where the map has an answer, so has the read, and holes are zeros.
func walk(t *testing.T, img imageformats.Image) {
	buf := make([]byte, 4096)
	off := int64(0)
	for range 200 {
		if off >= img.Size() {
			break
		}
		e, err := block.ExtentAt(t.Context(), img, off, math.MaxInt64)
		if err != nil {
			if n, rerr := img.ReadAt(buf[:1], off); rerr == nil || n != 0 {
				t.Fatalf("at %#x the map fails (%v), and a read gives %d, %v", off, err, n, rerr)
			}
			off += 512 // what comes behind the damage?
			continue
		}
		n := int(min(e.Len, int64(len(buf))))
		got, err := img.ReadAt(buf[:n], off)
		if got != n {
			t.Fatalf("extent %+v at %#x: read %d, %v", e, off, got, err)
		}
		if e.Zero && len(bytes.Trim(buf[:n], "\x00")) > 0 {
			t.Fatalf("hole %+v at %#x isn't zeros", e, off)
		}
		off += e.Len
	}
}

// pieces compares a read of n bytes with reads of its parts.
func pieces(t *testing.T, img imageformats.Image, off, n int64) {
	whole := make([]byte, n)
	m, err := img.ReadAt(whole, off)
	if err != nil && err != io.EOF {
		if m != 0 {
			t.Fatalf("failed read at %#x gives %d bytes", off, m)
		}
		return
	}
	part := make([]byte, 777)
	for at := int64(0); at < n; at += int64(len(part)) {
		p := part[:min(int64(len(part)), n-at)]
		if m, err := img.ReadAt(p, off+at); m != len(p) || !bytes.Equal(p, whole[at:at+int64(m)]) {
			t.Fatalf("%d bytes at %#x: %d, %v, or other bytes than the whole read's", len(p), off+at, m, err)
		}
	}
}

// benchImage writes a VHD of 256 MiB of random data and warms the page cache.
func benchImage(b *testing.B) (img, raw block.Reader) {
	dir := b.TempDir()
	data := make(readertest.Bytes, 256<<20)
	for i := range data {
		data[i] = byte(i>>9) | 1
	}
	path := filepath.Join(dir, "img.vhd")
	create(b, path, func(f *os.File) error { return WriteDynamic(b.Context(), f, data, WriteOptions{ID: [16]byte{1}}) })
	plain := filepath.Join(dir, "raw")
	create(b, plain, func(f *os.File) error { _, err := f.Write(data); return err })
	next := data[:]
	for i := 0; i < len(next); i += 64 << 10 {
		next[i]++ // a sector of each 64 KiB
	}
	old := openFile(b, plain)
	diff := filepath.Join(dir, "diff.avhd")
	create(b, diff, func(f *os.File) error {
		return WriteDiff(b.Context(), f, next, old, DiffOptions{WriteOptions: WriteOptions{ID: [16]byte{2}}, ParentID: [16]byte{1}})
	})
	if b.Name() == "BenchmarkDifferencing" {
		return openImage(b, diff, openImage(b, path, nil)), old
	}
	return openImage(b, path, nil), old
}

func benchReads(b *testing.B) {
	img, raw := benchImage(b)
	for _, c := range []struct {
		name string
		r    block.Reader
	}{{"vhd", img}, {"file", raw}} {
		b.Run("seq1M/"+c.name, func(b *testing.B) {
			p := make([]byte, 1<<20)
			b.SetBytes(int64(len(p)))
			for i := 0; b.Loop(); i++ {
				if _, err := c.r.ReadAt(p, int64(i%255)<<20+12288); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("rand4K/"+c.name, func(b *testing.B) {
			p := make([]byte, 4096)
			b.SetBytes(int64(len(p)))
			for i := 0; b.Loop(); i++ {
				if _, err := c.r.ReadAt(p, int64(uint32(i)*2654435761%65535)<<12); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDynamic(b *testing.B)      { benchReads(b) }
func BenchmarkDifferencing(b *testing.B) { benchReads(b) }
