package vhd

import (
	"bytes"
	"io"
	"math"
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
	// Small, as the fuzzer's shrinking takes the square of the length.
	data := disk(5<<10, 1, 1)
	opt := WriteOptions{ID: [16]byte{1}, Created: epoch.Add(time.Hour), BlockSize: 2048}
	base := dynamicImage(f, data, opt)
	next := bytes.Clone(data)
	copy(next[2<<10:], "changed")
	next[4<<10]++
	diff := diffImage(f, next, data, DiffOptions{WriteOptions: opt, ParentID: opt.ID, ParentModified: opt.Created, ParentName: "base.vhd",
		Locators: []imageformats.Locator{{Platform: "W2ru", Path: `.\base.vhd`}, {Platform: "MacX", Path: "/base.vhd"}}})
	var fixed buffer
	if err := WriteFixed(f.Context(), &fixed, data[:2048], opt); err != nil {
		f.Fatal(err)
	}
	opt.BlockSize = 512
	tiny := dynamicImage(f, data[:1024], opt)
	for _, b := range [][]byte{base, diff, fixed.b, tiny, base[:1700], base[:len(base)-1], diff[:len(diff)-600]} {
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
