package vmdk

import (
	"fmt"
	"path/filepath"
	"testing"

	"yester/imageformats"
	"yester/internal/readertest"
)

// TestQEMU reads every subformat that qemu-img writes and compares with what it
// reads back.
func TestQEMU(t *testing.T) {
	for _, size := range []int64{512, 68 * 512, 3<<20 + 512, 33<<20 + 1536} {
		raw := filepath.Join(t.TempDir(), "raw")
		data := disk(size, uint64(size), 25)
		writeFile(t, raw, data)
		for _, o := range []string{"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
			"streamOptimized", "monolithicSparse,zeroed_grain=on"} {
			if size > 32<<20 && o != "monolithicSparse" && o != "streamOptimized" {
				continue // the size is for a second grain table
			}
			t.Run(fmt.Sprintf("%s/%d", o, size), func(t *testing.T) {
				img := filepath.Join(t.TempDir(), "disk.vmdk")
				runTool(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat="+o, raw, img)
				info, err := Format.Probe(t.Context(), openFile(t, img))
				if err != nil || len(info.Warnings) > 0 || info.Parent != nil || len(info.ID) != 8 {
					t.Fatalf("Probe = %+v, %v", info, err)
				}
				readertest.Run(t, openImage(t, img, nil), data, 64<<10, 32<<20)
			})
		}
	}
}

// TestQEMUSplit reads a disk of five gigabytes in extents of two.
func TestQEMUSplit(t *testing.T) {
	const size = 5 << 30
	for _, sub := range []string{"twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		t.Run(sub, func(t *testing.T) {
			dir := t.TempDir()
			img := filepath.Join(dir, "disk.vmdk")
			runTool(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat="+sub, img, fmt.Sprint(size))
			edges := []int64{0, 2<<30 - 4096, 4<<30 - 512, size - 65536}
			args := []string{"-f", "vmdk", img}
			for i, off := range edges {
				args = append(args, "-c", fmt.Sprintf("write -q -P %d %d 8192", i+1, off))
			}
			runTool(t, "qemu-io", args...)
			m := openImage(t, img, nil)
			if m.Size() != size || len(m.info.Files) != 3 {
				t.Fatalf("%d bytes, files %q", m.Size(), m.info.Files)
			}
			for i, off := range edges {
				buf := make([]byte, 4<<20)
				at := max(0, off-1<<20)
				n, err := m.ReadAt(buf, at)
				if err != nil && int64(n) != size-at {
					t.Fatal(err)
				}
				for j, c := range buf[:n] {
					want := byte(0)
					if x := at + int64(j); x >= off && x < off+8192 {
						want = byte(i + 1)
					}
					if c != want {
						t.Fatalf("byte at %#x is %#x, want %#x", at+int64(j), c, want)
					}
				}
			}
		})
	}
}

// TestQEMUChain builds chains with qemu-img, with and without grains that hide the
// parent's with zeros.
func TestQEMUChain(t *testing.T) {
	const size = 9<<20 + 1536
	for _, opts := range []string{"subformat=monolithicSparse", "subformat=monolithicSparse,zeroed_grain=on", "subformat=twoGbMaxExtentSparse"} {
		t.Run(opts, func(t *testing.T) {
			dir := t.TempDir()
			state := disk(size, 3, 30)
			raw, base := filepath.Join(dir, "raw"), filepath.Join(dir, "base.vmdk")
			writeFile(t, raw, state)
			runTool(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, base)
			parent := openImage(t, base, nil)
			old := base
			for i := range 4 {
				next := filepath.Join(dir, fmt.Sprintf("snap%d.vmdk", i))
				runTool(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", opts, "-b", old, "-F", "vmdk", next)
				args := []string{"-f", "vmdk", next}
				for j := range 6 {
					off, n := int64(j*i*777)%17*512*1024, int64(j+1)*8192
					cmd, fill := fmt.Sprintf("write -q -P %d %d %d", i*6+j+1, off, n), byte(i*6+j+1)
					if j == 3 {
						cmd, fill = fmt.Sprintf("write -q -z %d %d", off, n), 0
					}
					args = append(args, "-c", cmd)
					for k := off; k < off+n; k++ {
						state[k] = fill
					}
				}
				runTool(t, "qemu-io", args...)
				img := openImage(t, next, parent)
				if p := img.info.Parent; p == nil || p.ID != parent.info.ID || p.Name != filepath.Base(old) {
					t.Fatalf("parent is %+v", img.info.Parent)
				}
				if i == 1 || i == 3 {
					readertest.Run(t, img, state)
				}
				parent, old = img, next
			}
		})
	}
}

// TestChangedParent writes to a parent behind its child's back.
func TestChangedParent(t *testing.T) {
	dir := t.TempDir()
	base, child := filepath.Join(dir, "base.vmdk"), filepath.Join(dir, "child.vmdk")
	runTool(t, "qemu-img", "create", "-q", "-f", "vmdk", base, "1M")
	runTool(t, "qemu-img", "create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", child)
	runTool(t, "qemu-io", "-f", "vmdk", base, "-c", "write -q -P 7 0 4096")
	parent := openImage(t, base, nil)
	opt := imageformats.OpenOptions{Parent: parent, Name: "child.vmdk", ParentName: "base.vmdk"}
	if _, err := Format.Open(t.Context(), openFile(t, child), opt); err == nil {
		t.Error("a changed parent was taken")
	} else {
		t.Log(err)
	}
	opt.AllowChangedParent = true
	img, err := Format.Open(t.Context(), openFile(t, child), opt)
	if err != nil || len(img.(*Image).Info().Warnings) != 1 {
		t.Errorf("with AllowChangedParent: %v, %v", img, err)
	}
	opt.Parent = nil
	if _, err := Format.Open(t.Context(), openFile(t, child), opt); err == nil {
		t.Error("opened without its parent")
	}
}
