package qcow2

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"yester/imageformats"
)

// benchImage has QEMU make an image of 256 MiB of text and numbers, in the page
// cache afterwards.
func benchImage(b *testing.B, args ...string) *Image {
	dir := b.TempDir()
	plain, path := filepath.Join(dir, "plain"), filepath.Join(dir, "img")
	data := make([]byte, 256<<20)
	x := uint64(1)
	for i := range data {
		x = x*6364136223846793005 + 1442695040888963407
		data[i] = "an image of a disk with text on it, and numbers: 0123456789"[x>>58%59]
		if i>>12&3 == 0 {
			data[i] = byte(i >> 9) // sectors alike
		}
	}
	if err := os.WriteFile(plain, data, 0o644); err != nil {
		b.Fatal(err)
	}
	tool(b, append(append([]string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"}, args...), plain, path)...)
	return openImage(b, path, "")
}

func BenchmarkSequential(b *testing.B) {
	for _, c := range []struct {
		name string
		args []string
	}{{"plain", nil}, {"extended", []string{"-o", "extended_l2=on"}}, {"zlib", []string{"-c"}}, {"zstd", []string{"-c", "-o", "compression_type=zstd"}}} {
		b.Run(c.name, func(b *testing.B) {
			img := benchImage(b, c.args...)
			p := make([]byte, 1<<20)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := img.ReadAt(p, int64(i%255)<<20+12288); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRandom4K(b *testing.B) {
	for _, args := range [][]string{nil, {"-o", "extended_l2=on"}} {
		b.Run(fmt.Sprint(args), func(b *testing.B) {
			img := benchImage(b, args...)
			p := make([]byte, 4096)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := img.ReadAt(p, int64(uint32(i)*2654435761%65535)<<12); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpenChain opens ten images of a terabyte each and reads through all of
// them.
func BenchmarkOpenChain(b *testing.B) {
	dir := b.TempDir()
	var files []host
	for i := range 10 {
		path := filepath.Join(dir, fmt.Sprint(i))
		var args []string
		if i > 0 {
			args = []string{"-b", filepath.Join(dir, fmt.Sprint(i-1)), "-F", "qcow2"}
		}
		create(b, path, 1<<40, "", args...)
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
		if _, err := img.ReadAt(make([]byte, 4096), 1<<39); err != nil {
			b.Fatal(err)
		}
	}
}
