package vhd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

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

// BenchmarkOpenChain opens ten images of a terabyte each.
func BenchmarkOpenChain(b *testing.B) {
	dir := b.TempDir()
	var files []host
	for i := range 10 {
		path := filepath.Join(dir, fmt.Sprint(i))
		create(b, path, func(f *os.File) error { return largeLayer(f, i, 1<<40, [16]byte{byte(i)}) })
		files = append(files, openFile(b, path))
	}
	b.ReportAllocs()
	for b.Loop() {
		var img imageformats.Image
		for _, f := range files {
			var err error
			if img, err = Format.Open(b.Context(), f, imageformats.OpenOptions{Parent: img}); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkWrite writes 256 MiB, half of them zeros.
func BenchmarkWrite(b *testing.B) {
	data := make(readertest.Bytes, 256<<20)
	for i := range data {
		data[i] = byte(i>>9&0xff) * byte(i>>22&1)
	}
	b.SetBytes(data.Size())
	for b.Loop() {
		create(b, filepath.Join(b.TempDir(), "img"), func(f *os.File) error {
			return WriteDynamic(b.Context(), f, data, WriteOptions{})
		})
	}
}
