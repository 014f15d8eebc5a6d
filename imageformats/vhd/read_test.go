package vhd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"yester/imageformats"
	"yester/internal/readertest"
)

// TestQEMU reads what qemu-img wrote and compares with what it reads back.
func TestQEMU(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int64{0, 512, 68 * 512, 3<<20 + 512, 17<<20 + 1536} {
		raw := filepath.Join(dir, "raw")
		data := disk(size, uint64(size), 20)
		if err := os.WriteFile(raw, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, sub := range []string{"dynamic", "fixed"} {
			if sub == "fixed" && size == 0 {
				continue // a lone footer, in which QEMU sees the copy of a dynamic one
			}
			for _, force := range []string{"on", "off"} {
				t.Run(fmt.Sprintf("%s/%d/force=%s", sub, size, force), func(t *testing.T) {
					img, back := filepath.Join(t.TempDir(), "img.vhd"), filepath.Join(t.TempDir(), "back")
					runTool(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat="+sub+",force_size="+force, raw, img)
					runTool(t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", img, back)
					info, err := Format.Probe(t.Context(), openFile(t, img))
					if err != nil || info.Variant != sub || len(info.Warnings) > 0 {
						t.Fatalf("Probe = %+v, %v", info, err)
					}
					readertest.Run(t, openImage(t, img, nil), openFile(t, back))
				})
			}
		}
	}
}

// TestWriteDynamic has QEMU and libvhdi read what this package wrote.
func TestWriteDynamic(t *testing.T) {
	for _, size := range []int64{0, 512, 1000, 5<<20 + 512, 40 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			data := disk(size, uint64(size), 12)
			padded := append(data, make([]byte, -size&511)...)
			img, back := filepath.Join(t.TempDir(), "img.vhd"), filepath.Join(t.TempDir(), "back")
			create(t, img, func(f *os.File) error {
				return WriteDynamic(t.Context(), f, data, WriteOptions{ID: [16]byte{1}, Created: epoch.Add(time.Hour)})
			})
			readertest.Run(t, openImage(t, img, nil), padded)
			runTool(t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", img, back)
			readertest.Run(t, openFile(t, back), padded)
		})
	}
}

// TestChain builds a chain of differencing images and reads each of its states.
func TestChain(t *testing.T) {
	dir := t.TempDir()
	for _, blockSize := range []int64{512, 4096, 64 << 10, 2 << 20, 8 << 20} {
		t.Run(fmt.Sprint(blockSize), func(t *testing.T) {
			size := 9<<20 + int64(1536)
			if blockSize < 4096 {
				size = 1 << 20
			}
			state := disk(size, 7, 30)
			opt := WriteOptions{ID: [16]byte{1}, Created: epoch.Add(time.Hour), BlockSize: blockSize}
			base := filepath.Join(dir, "base.vhd")
			create(t, base, func(f *os.File) error { return WriteDynamic(t.Context(), f, state, opt) })
			var parent imageformats.Image = openImage(t, base, nil)
			for i := range 6 {
				old := append(readertest.Bytes(nil), state...)
				change(state, uint64(i+100), 12)
				next := opt
				next.ID[0] = byte(i + 2)
				next.Created = opt.Created.Add(time.Hour)
				path := filepath.Join(dir, fmt.Sprintf("diff%d.avhd", i))
				create(t, path, func(f *os.File) error {
					return WriteDiff(t.Context(), f, state, old, DiffOptions{
						WriteOptions: next, ParentID: opt.ID, ParentModified: opt.Created, ParentName: "base.vhd",
						Locators: []imageformats.Locator{{Platform: "W2ru", Path: `.\base.vhd`}}})
				})
				parent, opt = openImage(t, path, parent), next
				if i == 1 || i == 5 {
					readertest.Run(t, parent, state)
				}
			}
		})
	}
}
