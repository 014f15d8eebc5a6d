package vhdx

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// benchImage writes a VHDX of 256 MiB of data and warms the page cache.
func benchImage(b *testing.B, diff bool) (img, raw block.Reader) {
	dir := b.TempDir()
	data := make(readertest.Bytes, 256<<20)
	for i := range data {
		data[i] = byte(i>>9) | 1
	}
	path := filepath.Join(dir, "img.vhdx")
	create(b, path, func(f *os.File) error { return WriteDynamic(b.Context(), f, data, WriteOptions{ID: [16]byte{1}}) })
	plain := filepath.Join(dir, "raw")
	create(b, plain, func(f *os.File) error { _, err := f.Write(data); return err })
	old := openFile(b, plain)
	if !diff {
		return openImage(b, path, nil), old
	}
	for i := 0; i < len(data); i += 64 << 10 {
		data[i]++ // a sector of each 64 KiB
	}
	child := filepath.Join(dir, "diff.avhdx")
	create(b, child, func(f *os.File) error {
		return WriteDiff(b.Context(), f, data, old, DiffOptions{WriteOptions: WriteOptions{ID: [16]byte{2}, BlockSize: 2 << 20}, ParentID: [16]byte{1}})
	})
	return openImage(b, child, openImage(b, path, nil)), old
}

func benchReads(b *testing.B, diff bool) {
	img, raw := benchImage(b, diff)
	for _, c := range []struct {
		name string
		r    block.Reader
	}{{"vhdx", img}, {"file", raw}} {
		for _, n := range []int{1 << 20, 64 << 10} {
			b.Run(fmt.Sprintf("seq%dK/%s", n>>10, c.name), func(b *testing.B) {
				p := make([]byte, n)
				b.SetBytes(int64(n))
				for i := 0; b.Loop(); i++ {
					if _, err := c.r.ReadAt(p, int64(i*n%(255<<20))+12288); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
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

func BenchmarkDynamic(b *testing.B)      { benchReads(b, false) }
func BenchmarkDifferencing(b *testing.B) { benchReads(b, true) }

// BenchmarkQEMU is the peer: qemu-img bench reads the same disk, as often as it
// is told, in one process.
func BenchmarkQEMU(b *testing.B) {
	path := filepath.Join(b.TempDir(), "img.vhdx")
	data := make(readertest.Bytes, 256<<20)
	for i := range data {
		data[i] = byte(i>>9) | 1
	}
	create(b, path, func(f *os.File) error { return WriteDynamic(b.Context(), f, data, WriteOptions{ID: [16]byte{1}}) })
	for _, c := range []struct {
		name       string
		size, step int64
	}{{"seq1024K", 1 << 20, 1 << 20}, {"seq64K", 64 << 10, 64 << 10}, {"strided4K", 4096, 40503 * 4096}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(c.size)
			runTool(b, "qemu-img", "bench", "-f", "vhdx", "-c", fmt.Sprint(b.N), "-d", "1",
				"-s", fmt.Sprint(c.size), "-S", fmt.Sprint(c.step), path)
		})
	}
}

// BenchmarkOpenChain opens ten images of a terabyte each.
func BenchmarkOpenChain(b *testing.B) {
	dir := b.TempDir()
	var files []host
	for i := range 10 {
		path := filepath.Join(dir, fmt.Sprint(i))
		create(b, path, func(f *os.File) error { return largeLayer(f, i, 1<<40, 2<<20, [16]byte{byte(i)}) })
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

// BenchmarkReplay opens an image with a log of a megabyte to replay.
func BenchmarkReplay(b *testing.B) {
	m := dynamicImage(b, fullDisk(1<<20), WriteOptions{})
	w := newLog(m, 0)
	w.tail = 0
	for range 120 {
		w.add(now(m, writeBATOff))
	}
	path := filepath.Join(b.TempDir(), "dirty.vhdx")
	m.save(b, path)
	f := openFile(b, path)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Format.Open(b.Context(), f, imageformats.OpenOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
