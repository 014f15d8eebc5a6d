package vhdx

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"yester/imageformats"
	"yester/internal/readertest"
)

// TestQEMU reads what qemu-img wrote and compares with what it reads back.
func TestQEMU(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ size, blockSize int64 }{
		{512, 1 << 20}, {3<<20 + 512, 1 << 20}, {5<<20 + 1536, 2 << 20}, {9<<20 + 512, 8 << 20}, {3 << 20, 256 << 20},
	} {
		raw := filepath.Join(dir, "raw")
		if err := os.WriteFile(raw, disk(c.size, uint64(c.size), 20), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, sub := range []string{"dynamic", "fixed"} {
			for _, zero := range []string{"on", "off"} {
				t.Run(fmt.Sprintf("%s/%d/%d/zero=%s", sub, c.size, c.blockSize, zero), func(t *testing.T) {
					img, back := filepath.Join(t.TempDir(), "img.vhdx"), filepath.Join(t.TempDir(), "back")
					runTool(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o",
						fmt.Sprintf("subformat=%s,block_size=%d,block_state_zero=%s", sub, c.blockSize, zero), raw, img)
					runTool(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", img, back)
					info, err := Format.Probe(t.Context(), openFile(t, img))
					// QEMU doesn't mark fixed disks as such.
					if err != nil || len(info.Warnings) > 0 || info.BlockSize != c.blockSize || info.Format != "vhdx" || info.SectorSize != 512 {
						t.Fatalf("Probe = %+v, %v", info, err)
					}
					if zero == "on" {
						data, err := os.ReadFile(back)
						if err != nil {
							t.Fatal(err)
						}
						same(t, openImage(t, img, nil), data)
						return
					}
					readertest.Run(t, openImage(t, img, nil), openFile(t, back), c.blockSize)
				})
			}
		}
	}
}

// TestQEMUWrites reads a disk that QEMU has written to here and there.
func TestQEMUWrites(t *testing.T) {
	dir := t.TempDir()
	img, back := filepath.Join(dir, "img.vhdx"), filepath.Join(dir, "back")
	runTool(t, "qemu-img", "create", "-f", "vhdx", "-o", "block_size=1M", img, "40M")
	args := []string{"-f", "vhdx"}
	for i := range 20 {
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", i+1, (i*i*1237)%75000*512, 512*(1+i*i)))
	}
	runTool(t, "qemu-io", append(args, img)...)
	runTool(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", img, back)
	readertest.Run(t, openImage(t, img, nil), openFile(t, back))
}

// TestWrite has QEMU read and check what this package wrote.
func TestWrite(t *testing.T) {
	for _, c := range []struct{ size, blockSize, sectorSize int64 }{
		{0, 0, 0}, {512, 1 << 20, 0}, {1000, 0, 0}, {5<<20 + 512, 1 << 20, 0}, {6 << 20, 2 << 20, 512}, {33 << 20, 0, 0},
		{4<<20 + 4096, 1 << 20, 4096}, {3<<20 + 512, 256 << 20, 4096},
	} {
		for _, variant := range []string{"dynamic", "fixed"} {
			t.Run(fmt.Sprintf("%s/%+v", variant, c), func(t *testing.T) {
				opt := WriteOptions{ID: [16]byte{1}, DiskID: [16]byte{2}, BlockSize: c.blockSize, SectorSize: c.sectorSize}
				data := disk(c.size, uint64(c.size), 12)
				sector := max(512, c.sectorSize)
				padded := append(slices.Clone(data), make([]byte, -c.size&(sector-1))...)
				img, back := filepath.Join(t.TempDir(), "img.vhdx"), filepath.Join(t.TempDir(), "back")
				create(t, img, func(f *os.File) error {
					if variant == "fixed" {
						return WriteFixed(t.Context(), f, data, opt)
					}
					return WriteDynamic(t.Context(), f, data, opt)
				})
				r := openImage(t, img, nil)
				if i := r.Info(); i.Variant != variant || i.ID != "01000000-0000-0000-0000-000000000000" || i.Creator != "yester" || len(i.Warnings) > 0 || int64(i.SectorSize) != sector {
					t.Errorf("info %+v", i)
				}
				readertest.Run(t, r, padded)
				if c.sectorSize == 4096 || c.size == 0 {
					return // QEMU takes neither
				}
				runTool(t, "qemu-img", "check", "-f", "vhdx", img)
				runTool(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", img, back)
				same(t, openFile(t, back), padded)
			})
		}
	}
}

// TestChain builds a chain of differencing images and reads each of its states.
func TestChain(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ blockSize, sectorSize int64 }{{1 << 20, 512}, {2 << 20, 4096}, {256 << 20, 512}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			state := disk(9<<20+4096, 7, 30)
			opt := WriteOptions{ID: [16]byte{1}, BlockSize: c.blockSize, SectorSize: c.sectorSize}
			base := filepath.Join(dir, "base.vhdx")
			create(t, base, func(f *os.File) error { return WriteDynamic(t.Context(), f, state, opt) })
			var parent imageformats.Image = openImage(t, base, nil)
			for i := range 5 {
				old := slices.Clone(state)
				change(state, uint64(i+100), 12)
				if i == 3 { // a block changed as a whole, and one to zeros
					change(state[1<<20:3<<20], 5, 200)
					for j := 4 << 20; j < 6<<20; j++ {
						state[j] = byte(j>>9) | 1
					}
					clear(state[6<<20 : 7<<20])
				}
				next := opt
				next.ID[0] = byte(i + 2)
				path := filepath.Join(dir, fmt.Sprintf("diff%d.avhdx", i))
				create(t, path, func(f *os.File) error {
					return WriteDiff(t.Context(), f, state, old, DiffOptions{WriteOptions: next, ParentID: opt.ID,
						Locators: ParentLocators(`.\base.vhdx`, `C:\base.vhdx`)})
				})
				parent, opt = openImage(t, path, parent), next
				if i == 3 {
					readertest.Run(t, parent, state, c.blockSize)
				} else {
					same(t, parent, state)
				}
			}
		})
	}
}
