package vmdk

import (
	"fmt"
	"path/filepath"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

const benchSize = 256 << 20

// benchData compresses to about a half, as system disks do.
func benchData() readertest.Bytes {
	data := make(readertest.Bytes, benchSize)
	x := uint64(1)
	for i := range data {
		if i&63 < 24 {
			x = x*6364136223846793005 + 1442695040888963407
			data[i] = byte(x >> 56)
		} else {
			data[i] = byte(i >> 9)
		}
	}
	return data
}

func benchReads(b *testing.B, r block.Reader) {
	b.Run("seq1M", func(b *testing.B) {
		p := make([]byte, 1<<20)
		b.SetBytes(int64(len(p)))
		for i := 0; b.Loop(); i++ {
			if _, err := r.ReadAt(p, int64(i%256)<<20); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("seq128K", func(b *testing.B) {
		p := make([]byte, 128<<10)
		b.SetBytes(int64(len(p)))
		for i := 0; b.Loop(); i++ {
			if _, err := r.ReadAt(p, int64(i%2048)<<17); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("rand4K", func(b *testing.B) {
		p := make([]byte, 4096)
		b.SetBytes(int64(len(p)))
		for i := 0; b.Loop(); i++ {
			if _, err := r.ReadAt(p, int64(uint32(i)*2654435761%65536)<<12); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkReads reads from images that qemu-img made, and from a plain file.
func BenchmarkReads(b *testing.B) {
	dir := b.TempDir()
	raw := filepath.Join(dir, "raw")
	writeFile(b, raw, benchData())
	for _, sub := range []string{"monolithicSparse", "streamOptimized"} {
		img := filepath.Join(dir, sub+".vmdk")
		runTool(b, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat="+sub, raw, img)
		b.Run(sub, func(b *testing.B) { benchReads(b, openImage(b, img, nil)) })
		if sub == "streamOptimized" {
			b.Run(sub+"/qemu-img convert", func(b *testing.B) {
				b.SetBytes(benchSize)
				for b.Loop() {
					runTool(b, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", "-t", "unsafe", "-W", "-m", "16", img, filepath.Join(dir, "back"))
				}
			})
			b.Run(sub+"/qemu-img bench", func(b *testing.B) { // reads without writing
				b.SetBytes(benchSize)
				for b.Loop() {
					runTool(b, "qemu-img", "bench", "-f", "vmdk", "-c", "256", "-d", "16", "-s", "1M", "-S", "1M", img)
				}
			})
		}
	}
	b.Run("file", func(b *testing.B) { benchReads(b, openFile(b, raw)) })
}

// BenchmarkOpenChain opens ten images of a terabyte each.
func BenchmarkOpenChain(b *testing.B) {
	dir := b.TempDir()
	var files []host
	for i := range 10 {
		path := filepath.Join(dir, fmt.Sprint(i, ".vmdk"))
		args := []string{"create", "-q", "-f", "vmdk"}
		if i > 0 {
			args = append(args, "-b", filepath.Join(dir, fmt.Sprint(i-1, ".vmdk")), "-F", "vmdk")
		}
		runTool(b, "qemu-img", append(args, path, "1T")...)
		files = append(files, openFile(b, path))
	}
	b.ReportAllocs()
	buf := make([]byte, 4096)
	for b.Loop() {
		var img imageformats.Image
		for _, f := range files {
			var err error
			if img, err = Format.Open(b.Context(), f, imageformats.OpenOptions{Parent: img}); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := img.ReadAt(buf, 1<<39); err != nil {
			b.Fatal(err)
		}
	}
}
