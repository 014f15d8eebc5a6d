package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// TestParentProof checks which parents a child accepts.
func TestParentProof(t *testing.T) {
	data := fullDisk(2 << 20)
	next := slices.Clone(data)
	next[5000] = 0
	id, alt := [16]byte{0xaa, 1}, [16]byte{0xcc}
	parent := func(id [16]byte, sector int64) imageformats.Image {
		return openMem(t, dynamicImage(t, data, WriteOptions{ID: id, SectorSize: sector}), imageformats.OpenOptions{})
	}
	child := func(id, alt [16]byte) *mem {
		return diffImage(t, next, data, DiffOptions{ParentID: id, ParentAltID: alt, Locators: ParentLocators(`.\p.vhdx`, "")})
	}
	const changed = "made from the image with id"
	for _, c := range []struct {
		name  string
		child *mem
		opt   imageformats.OpenOptions
		msgs  []string // parts of the error; none when it opens
	}{
		{"id", child(id, [16]byte{}), imageformats.OpenOptions{Parent: parent(id, 0)}, nil},
		{"alternative", child([16]byte{0xbb}, alt), imageformats.OpenOptions{Parent: parent(alt, 0)}, nil},
		{"wrong id", child([16]byte{0xbb}, alt), imageformats.OpenOptions{Parent: parent(id, 0)},
			[]string{changed, "c.avhdx", "p.vhdx", "bb000000-0000-", "cc000000-", "aa010000-0000-", "corrupt"}},
		{"changed, allowed", child([16]byte{0xbb}, alt), imageformats.OpenOptions{Parent: parent(id, 0), AllowChangedParent: true}, nil},
		{"no second id isn't id 0", child([16]byte{0xbb}, [16]byte{}), imageformats.OpenOptions{Parent: parent([16]byte{}, 0)}, []string{changed}},
		{"lying info", child([16]byte{0xbb}, alt), imageformats.OpenOptions{Parent: parent(id, 0),
			ParentInfo: &imageformats.Info{ID: "bb000000-0000-0000-0000-000000000000"}}, []string{"aa010000"}},
		{"sector size", child(id, alt), imageformats.OpenOptions{Parent: parent(id, 4096), AllowChangedParent: true}, []string{"sectors of 512 bytes", "4096"}},
		{"no parent", child(id, alt), imageformats.OpenOptions{}, []string{"c.avhdx", `"p.vhdx"`, "aa010000"}},
		{"another format", child(id, alt), imageformats.OpenOptions{Parent: plain{data}, ParentInfo: &imageformats.Info{ID: "AA010000-0000-0000-0000-000000000000"}}, nil},
		{"another format, unknown", child(id, alt), imageformats.OpenOptions{Parent: plain{data}}, []string{"nothing is known"}},
		{"another format without an id", child(id, alt), imageformats.OpenOptions{Parent: plain{data}, ParentInfo: &imageformats.Info{}}, []string{changed}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			c.opt.Logger = slog.New(slog.NewTextHandler(&log, nil))
			c.opt.Name, c.opt.ParentName = "c.avhdx", "p.vhdx"
			img, err := Format.Open(t.Context(), c.child, c.opt)
			if (err == nil) != (c.msgs == nil) {
				t.Fatalf("error %v, want one: %t", err, c.msgs != nil)
			}
			for _, m := range c.msgs {
				if !strings.Contains(err.Error(), m) {
					t.Errorf("error %q lacks %q", err, m)
				}
			}
			if err == nil {
				same(t, img, next)
			}
			if warned := strings.Contains(log.String(), changed); warned != (c.name == "changed, allowed") {
				t.Errorf("log %q", log.String())
			}
		})
	}
}

// plain is a parent that is no VHDX.
type plain struct{ readertest.Bytes }

func (plain) Close() error { return nil }

// TestSizes reads children that are longer and shorter than their parents.
func TestSizes(t *testing.T) {
	small, large := fullDisk(1<<20+512), fullDisk(3<<20)
	large[100] = 0
	for _, c := range []struct{ parent, child readertest.Bytes }{{small, large}, {large, small}, {nil, small}, {small, nil}} {
		p := openMem(t, dynamicImage(t, c.parent, WriteOptions{}), imageformats.OpenOptions{})
		readertest.Run(t, openMem(t, diffImage(t, c.child, c.parent, DiffOptions{}), imageformats.OpenOptions{Parent: p}), c.child)
	}
}

// TestShortAncestor reads a disk that was shrunk and grown again: what its
// oldest ancestor has beyond the end of the shrunk one is gone.
func TestShortAncestor(t *testing.T) {
	base, middle := fullDisk(4<<20), fullDisk(1<<20+512)
	top := make(readertest.Bytes, 4<<20)
	copy(top, middle)
	top[3<<20] = 1
	var img imageformats.Image
	for _, file := range []*mem{
		dynamicImage(t, base, WriteOptions{}),
		diffImage(t, middle, base, DiffOptions{}),
		diffImage(t, top, middle, DiffOptions{}),
	} {
		img = openMem(t, file, imageformats.OpenOptions{Parent: img})
	}
	readertest.Run(t, img, top)
}

// TestLocators checks what is told of the parent, and what is refused.
func TestLocators(t *testing.T) {
	want := []imageformats.Locator{
		{Platform: keyRelative, Path: `..\база\п😀.vhdx`, Relative: true},
		{Platform: keyVolume, Path: `\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\base.vhdx`},
		{Platform: keyAbsolute, Path: `C:\Users\Müller\base.vhdx`},
	}
	stored := slices.Clone(want)
	slices.Reverse(stored) // stored in any order, told by preference
	m := diffImage(t, fullDisk(512), nil, DiffOptions{ParentID: [16]byte{7}, ParentAltID: [16]byte{8}, Locators: stored})
	info, err := Format.Probe(t.Context(), m)
	p := &imageformats.Parent{ID: "07000000-0000-0000-0000-000000000000", AltID: "08000000-0000-0000-0000-000000000000", Name: "п😀.vhdx", Locators: want}
	if err != nil || info.Variant != "differencing" || !reflect.DeepEqual(info.Parent, p) {
		t.Errorf("%v: parent %+v\nwant   %+v", err, info.Parent, p)
	}
	const item = int64(40) // of the items: where the locator lies
	pair := func(i, off int64, v uint32) func(m *mem) {
		return inItems(item+locatorHeadSize+i*pairSize+off, u32(v)...)
	}
	key := int64(le.Uint32(m.get(writeMetadataOff+tableSize+item+locatorHeadSize+offKey, 4)))
	for name, c := range map[string]struct {
		damage func(m *mem)
		err    error
		msg    string
	}{
		"type":        {inItems(item, 0), ondisk.ErrUnsupported, "type b04aef00"},
		"count":       {inItems(item+offPairCount, 0xff, 0xff), ondisk.ErrCorrupt, "65535 pairs"},
		"no pairs":    {inItems(item+offPairCount, 0), ondisk.ErrCorrupt, "no parent_linkage"},
		"key outside": {pair(0, offKey, 1<<31), ondisk.ErrCorrupt, "pair 0"},
		"value":       {pair(1, offValue, 1<<32-1), ondisk.ErrCorrupt, "pair 1"},
		"same key": {all(pair(1, offKey, uint32(key)), func(m *mem) {
			at := writeMetadataOff + tableSize + item + locatorHeadSize + pairSize + offKeyLen
			m.put(at, byte(2*len(keyLinkage)))
		}), ondisk.ErrCorrupt, "a second parent_linkage"},
		"not a guid": {inItems(item+key+2*int64(len(keyLinkage)), 'x'), ondisk.ErrCorrupt, `parent_linkage is "x`},
		"length":     {inTable(5, offItemLength, u32(8)...), ondisk.ErrCorrupt, "parent locator at"},
	} {
		d := m.clone()
		c.damage(d)
		if _, err := Format.Probe(t.Context(), d); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.msg) {
			t.Errorf("%s: %v; want %v with %q", name, err, c.err, c.msg)
		}
	}
}

// TestLibvhdi has libvhdi read a chain, as a second opinion.
func TestLibvhdi(t *testing.T) {
	tool(t, "vhdimount")
	dir := t.TempDir()
	var parent imageformats.Image
	var old readertest.Bytes
	state := disk(11<<20, 3, 20)
	opt := WriteOptions{ID: [16]byte{1}, BlockSize: 2 << 20}
	name := ""
	for i := range 4 {
		next := opt
		next.ID[15] = byte(i)
		path := filepath.Join(dir, fmt.Sprintf("d%d.vhdx", i))
		create(t, path, func(f *os.File) error {
			if i == 0 {
				return WriteDynamic(t.Context(), f, state, next)
			}
			return WriteDiff(t.Context(), f, state, old, DiffOptions{WriteOptions: next, ParentID: opt.ID,
				Locators: ParentLocators(`.\`+name, `C:\`+name)})
		})
		parent, opt, name = openImage(t, path, parent), next, filepath.Base(path)
		old = slices.Clone(state)
		for k := range 40 { // in steps of 4 KiB: libvhdi takes eight sectors for one
			clear(state[(k*k*37+i*11)%2800*4096:][:4096])
			state[(k*k*37+i*11)%2800*4096] = byte(i + 1)
			state[(k*k*37+i*11)%2800*4096+4095] = byte(i + 1)
		}
	}
	readertest.Run(t, parent, old)
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	runTool(t, "vhdimount", filepath.Join(dir, name), mnt)
	defer func() {
		for range 50 {
			if exec.Command("fusermount", "-u", mnt).Run() == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("%s stays mounted", mnt)
	}()
	f := openFile(t, filepath.Join(mnt, "vhdi4"))
	defer f.Close() // before the unmount
	readertest.Run(t, f.File, old)
}

// counting counts reads and says nothing of where its bytes lie.
type counting struct {
	block.Reader
	reads, bytes atomic.Int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.Reader.ReadAt(p, off)
}

// TestReads counts what a request costs: with the metadata known, a run of
// neighbouring blocks is one read, and a chain is resolved at once.
func TestReads(t *testing.T) {
	data := fullDisk(16 << 20)
	file := &counting{Reader: dynamicImage(t, data, WriteOptions{BlockSize: 2 << 20})}
	img := openMem(t, file, imageformats.OpenOptions{})
	if n := file.bytes.Load(); n > 160<<10 { // headers and region tables take 136 KiB
		t.Errorf("Open read %d bytes", n)
	}
	reads := func(off int64, n int) int64 {
		file.reads.Store(0)
		if m, err := img.ReadAt(make([]byte, n), off); m != n {
			t.Fatal(err)
		}
		return file.reads.Load()
	}
	if n := reads(0, 1<<20); n != 2 { // BAT, data
		t.Errorf("first megabyte: %d reads", n)
	}
	if n := reads(3<<19, 5<<20); n != 1 { // over blocks that lie behind each other
		t.Errorf("megabytes over four blocks: %d reads", n)
	}
	// Every second sector changed: the child's 1024 sectors are read along in one.
	next := slices.Clone(data[:2<<20])
	for i := 0; i < 1<<20; i += 1024 {
		next[i] = 0
	}
	child := &counting{Reader: diffImage(t, next, data, DiffOptions{WriteOptions: WriteOptions{BlockSize: 2 << 20}})}
	top := openMem(t, child, imageformats.OpenOptions{Parent: img})
	p := make([]byte, 1<<20)
	for range 2 {
		file.reads.Store(0)
		child.reads.Store(0)
		if _, err := top.ReadAt(p, 0); err != nil || !bytes.Equal(p, next[:1<<20]) {
			t.Fatal(err)
		}
	}
	if a, b := child.reads.Load(), file.reads.Load(); a != 1 || b != 1 {
		t.Errorf("a megabyte of a chain with alternate sectors: %d and %d reads", a, b)
	}
}

// largeLayer writes a layer that holds one sector, at i tenths of the disk.
func largeLayer(f *os.File, i int, size, blockSize int64, parent [16]byte) error {
	params, opt := uint32(0), DiffOptions{WriteOptions: WriteOptions{ID: [16]byte{byte(i + 1)}, BlockSize: blockSize}}
	state := fullyPresent
	if i > 0 {
		params, opt.ParentID, state = hasParent, parent, partiallyPresent
	}
	b, err := newBuilder(f, size, params, opt)
	if err != nil {
		return err
	}
	off := largeOffset(i, size)
	if _, err := b.WriteAt([]byte{byte(i + 1)}, b.end); err != nil {
		return err
	}
	if err := b.allocate(off/b.opt.BlockSize, state); err != nil {
		return err
	}
	if i > 0 {
		chunk, sector := off/(bitmapBits*512), off%(bitmapBits*512)/512
		if _, err := b.WriteAt([]byte{1 << (sector % 8)}, b.end+sector/8); err != nil {
			return err
		}
		if err := b.setEntry(chunk*(b.ratio+1)+b.ratio, b.end, fullyPresent); err != nil {
			return err
		}
		b.end += bitmapSize
	}
	return b.finish()
}

func largeOffset(i int, size int64) int64 { return int64(i) * (size / 10) &^ (maxBlock - 1) }

// TestLargeChain opens ten images of a terabyte each; memory stays small, as
// BATs are read when they are needed.
func TestLargeChain(t *testing.T) {
	for _, c := range []struct{ size, blockSize int64 }{{1 << 40, 2 << 20}, {64 << 40, 256 << 20}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			dir := t.TempDir()
			var files []host
			for i := range 10 {
				path := filepath.Join(dir, fmt.Sprint(i))
				create(t, path, func(f *os.File) error { return largeLayer(f, i, c.size, c.blockSize, [16]byte{byte(i)}) })
				files = append(files, openFile(t, path))
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var img imageformats.Image
			for _, f := range files {
				img = openMem(t, f, imageformats.OpenOptions{Parent: img})
			}
			p := make([]byte, 4096)
			for i := range 10 {
				if _, err := img.ReadAt(p, largeOffset(i, c.size)); err != nil || p[0] != byte(i+1) || p[4095] != 0 {
					t.Errorf("block of layer %d: %v, starts with %d", i, err, p[0])
				}
			}
			var extents int
			for off := int64(0); off < c.size; extents++ {
				e, err := block.ExtentAt(t.Context(), img, off, c.size)
				if err != nil {
					t.Fatal(err)
				}
				off += e.Len
			}
			if most := c.size/c.blockSize/256 + 100; int64(extents) > most {
				t.Errorf("%d extents, at most %d", extents, most)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > 32<<20+c.size/(8<<20) {
				t.Errorf("chain holds %d bytes of memory after its whole map was walked", used)
			}
			runtime.KeepAlive(img)
		})
	}
}
