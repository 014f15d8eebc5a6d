package vmdk

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// qemuReads has qemu-img read the disk and compares.
func qemuReads(t *testing.T, img string, want []byte) {
	t.Helper()
	back := filepath.Join(t.TempDir(), "back")
	runTool(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", img, back)
	got, err := os.ReadFile(back)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("qemu-img reads %d bytes, %v, or others than the %d that were written", len(got), err, len(want))
	}
}

// libvmdkReads has libvmdk read the disk and compares.
func libvmdkReads(t *testing.T, img string, want []byte) {
	t.Helper()
	mnt := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, "vmdkmount"), img, mnt) // goes to the background once mounted
	if err := cmd.Run(); err != nil {
		t.Fatalf("vmdkmount: %v", err)
	}
	defer func() {
		for range 100 {
			if exec.Command("umount", mnt).Run() == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("%s stays mounted", mnt)
	}()
	for range 100 {
		got, err := os.ReadFile(filepath.Join(mnt, "vmdk1"))
		if err == nil {
			if !bytes.Equal(got, want) {
				t.Errorf("libvmdk reads %d bytes, or others than the %d that were written", len(got), len(want))
			}
			return
		}
		if !os.IsNotExist(err) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("libvmdk shows no disk")
}

// TestHosted reads hosted sparse extents of every shape, and so does QEMU.
func TestHosted(t *testing.T) {
	for name, o := range map[string]sparseOptions{
		"plain":            {},
		"small grains":     {grain: 1},
		"grains of 4K":     {grain: 8, redundant: true},
		"grains of 2M":     {grain: 4096},
		"short tables":     {grain: 8, gtes: 16},
		"version 2 zeros":  {version: 2, zeroed: true},
		"version 3":        {version: 3, redundant: true},
		"stored zeros":     {grain: 16, plainZeros: true},
		"stream":           {version: 3, stream: true},
		"stream, small":    {version: 3, stream: true, grain: 16},
		"stream, odd":      {version: 1, stream: true, zeroed: true, grain: 1024},
		"without a marker": {unmarked: true},
	} {
		t.Run(name, func(t *testing.T) {
			const size = 2<<20 + 1536
			data := disk(size, 9, 30)
			kind := "monolithicSparse"
			if o.stream || o.unmarked {
				kind = "streamOptimized"
			}
			o.descriptor = lines(kind, "", "", line(t, size, "SPARSE", "by another name.vmdk"))
			img := filepath.Join(t.TempDir(), "disk.vmdk")
			writeFile(t, img, makeSparse(data, nil, o))
			qemuReads(t, img, data)
			readertest.Run(t, openImage(t, img, nil), data, 8<<10, 1<<20)
		})
	}
}

// TestESX reads ESX Server's and space-efficient sparse extents, alone and as a
// chain over a flat disk, and so does QEMU.
func TestESX(t *testing.T) {
	for name, c := range map[string]struct {
		createType, kind string
		size             int64 // more than two grain tables, or a part of one
		make             func(data, parent []byte) []byte
	}{
		"COWD":            {"vmfsSparse", "VMFSSPARSE", 4<<20 + 8192, func(d, p []byte) []byte { return makeCowd(d, p, 1) }},
		"COWD, grains 8K": {"vmfsSparse", "VMFSSPARSE", 6<<20 + 512, func(d, p []byte) []byte { return makeCowd(d, p, 16) }},
		"seSparse":        {"seSparse", "SESPARSE", 16<<20 + 512, makeSe},
	} {
		t.Run(name, func(t *testing.T) {
			size := c.size
			dir := t.TempDir()
			path := func(name string) string { return filepath.Join(dir, name) }
			base := disk(size, 5, 40)
			writeFile(t, path("web-flat.vmdk"), base)
			writeFile(t, path("web.vmdk"), []byte(lines("vmfs", "", "", line(t, size, "VMFS", "web-flat.vmdk"))))
			parent := openImage(t, path("web.vmdk"), nil)
			writeFile(t, path("alone-x.vmdk"), c.make(base, nil))
			writeFile(t, path("alone.vmdk"), []byte(lines(c.createType, "", "", line(t, size, c.kind, "alone-x.vmdk"))))
			qemuReads(t, path("alone.vmdk"), base)
			readertest.Run(t, openImage(t, path("alone.vmdk"), nil), base)

			state := bytes.Clone(base)
			change(state, 77, 20)
			clear(state[2<<20 : 3<<20])
			writeFile(t, path("web-000001-x.vmdk"), c.make(state, base))
			writeFile(t, path("web-000001.vmdk"), []byte(lines(c.createType, "fedc1234", "web.vmdk", line(t, size, c.kind, "web-000001-x.vmdk"))))
			qemuReads(t, path("web-000001.vmdk"), state)
			readertest.Run(t, openImage(t, path("web-000001.vmdk"), parent), readertest.Bytes(state))
		})
	}
}

// TestMixed reads a disk of extents of several kinds, one of them zeros, and one
// file used twice.
func TestMixed(t *testing.T) {
	const part = 1<<20 + 512
	dir := t.TempDir()
	data := disk(5*part, 21, 40)
	clear(data[2*part : 3*part])
	piece := func(i int) []byte { return data[i*part : (i+1)*part] }
	writeFile(t, filepath.Join(dir, "a.vmdk"), makeSparse(piece(0), nil, sparseOptions{grain: 16}))
	writeFile(t, filepath.Join(dir, "b.bin"), append(append(make([]byte, 3*sectorSize), piece(3)...), piece(1)...))
	writeFile(t, filepath.Join(dir, "c.vmdk"), makeSparse(piece(4), nil, sparseOptions{stream: true, version: 3}))
	sectors := part / sectorSize
	text := lines("custom", "", "",
		line(t, part, "SPARSE", "a.vmdk"),
		fmt.Sprintf(`RDONLY %d FLAT "b.bin" %d`, sectors, sectors+3),
		fmt.Sprintf("RW %d ZERO", sectors),
		fmt.Sprintf(`RW %d FLAT "b.bin" 3`, sectors),
		line(t, part, "SPARSE", "c.vmdk"))
	img := filepath.Join(dir, "disk.vmdk")
	writeFile(t, img, []byte(strings.ReplaceAll(text, "\n", "\r\n")))
	m := openImage(t, img, nil)
	if len(m.info.Files) != 3 || len(m.info.Warnings) > 0 {
		t.Errorf("info is %+v", m.info)
	}
	readertest.Run(t, m, data, part, 2*part, 3*part, 4*part)
}

// TestLibvmdk asks another reader what it makes of the images made here and by
// QEMU. It knows neither monolithicFlat nor seSparse.
func TestLibvmdk(t *testing.T) {
	const size = 4<<20 + 64<<10
	data := disk(size, 31, 30)
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw")
	writeFile(t, raw, data)
	for _, sub := range []string{"monolithicSparse", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"} {
		img := filepath.Join(dir, sub+".vmdk")
		runTool(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat="+sub, raw, img)
		libvmdkReads(t, img, data)
	}
	img := filepath.Join(dir, "made.vmdk")
	writeFile(t, img, makeSparse(data, nil, sparseOptions{version: 3, stream: true,
		descriptor: lines("streamOptimized", "", "", line(t, size, "SPARSE", "made.vmdk"))}))
	libvmdkReads(t, img, data)
	writeFile(t, filepath.Join(dir, "cow-delta.vmdk"), makeCowd(data, nil, 8))
	writeFile(t, filepath.Join(dir, "cow.vmdk"), []byte(lines("vmfsSparse", "", "", line(t, size, "VMFSSPARSE", "cow-delta.vmdk"))))
	libvmdkReads(t, filepath.Join(dir, "cow.vmdk"), data)
}

// TestShorterParent stacks disks of different sizes: beyond a parent's end there
// are zeros, not the grandparent's data.
func TestShorterParent(t *testing.T) {
	var parent imageformats.Image
	for i, size := range []int{16 << 10, 8 << 10, 16 << 10} {
		pcid := ""
		if i > 0 {
			pcid = "fedc1234"
		}
		files := [][]byte{makeSparse(make([]byte, size), make([]byte, size), sparseOptions{grain: 8})}
		if i == 0 {
			files[0] = makeSparse(full(size), nil, sparseOptions{grain: 8})
		}
		opt := imageformats.OpenOptions{Parent: parent, Files: []block.Reader{readertest.Bytes(files[0])}}
		img, err := Format.Open(t.Context(), readertest.Bytes(lines("custom", pcid, "p", line(t, int64(size), "SPARSE", "x"))), opt)
		if err != nil {
			t.Fatal(err)
		}
		parent = img
	}
	want := make(readertest.Bytes, 16<<10)
	copy(want, full(16 << 10)[:8<<10])
	readertest.Run(t, parent, want)
}
