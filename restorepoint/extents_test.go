package restorepoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/ondisk"
)

// descriptor writes a VMDK descriptor of flat extents of 32 KiB, each naming a
// file; parent is the name of the parent and its content id is pcid, unless empty.
func (s source) descriptor(name, cid, pcid, parent string, files ...string) {
	s.t.Helper()
	if pcid == "" {
		pcid = "ffffffff"
	}
	text := "# Disk DescriptorFile\nversion=1\nCID=" + cid + "\nparentCID=" + pcid + "\ncreateType=\"twoGbMaxExtentFlat\"\n"
	if parent != "" {
		text += "parentFileNameHint=\"" + parent + "\"\n"
	}
	for _, f := range files {
		text += fmt.Sprintf("RW 64 FLAT \"%s\" 0\n", f)
	}
	s.file(name, []byte(text))
}

func (s source) file(name string, b []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), b, 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chtimes(s.path(name), stamp, stamp); err != nil {
		s.t.Fatal(err)
	}
}

// half is an extent that says n, and looks like a disk with a boot sector.
func half(n byte) []byte {
	b := bytes.Repeat([]byte{n}, 32<<10)
	b[510], b[511] = 0x55, 0xaa
	return b
}

func ignoredNames(c *Catalogue) (names []string) {
	for _, i := range c.Ignored {
		names = append(names, i.Name)
	}
	return names
}

// TestExtents opens a disk in several files: they are no points of their own, and
// the disk is found by the name of any of them.
func TestExtents(t *testing.T) {
	s := newSource(t)
	s.file("vm/disk-f001.vmdk", half(1))
	s.file("vm/disk-f002.vmdk", half(2))
	s.file("vm/notes", []byte("hello"))
	s.descriptor("vm/disk.vmdk", "12345678", "", "", "disk-f001.vmdk", `C:\vms\disk-f002.vmdk`)
	s.file("vm/other-s001.vmdk", append([]byte("KDMV\x01\x00\x00\x00"), make([]byte, 4096)...))
	src := s.open("")
	c := s.expect(src, "disk 2026-11-18T02-30-00Z mtime vm/disk.vmdk")
	if got := strings.Join(ignoredNames(c), " "); got != "vm/notes vm/other-s001.vmdk" {
		t.Errorf("ignored: %s", got)
	}
	if i := c.Ignored[1]; i.Damaged || !errors.Is(i.Err, imageformats.ErrPart) {
		t.Errorf("an extent without its descriptor is %+v", i)
	}
	want := append(half(1), half(2)...)
	if c.Points[0].Disks[0].Bytes < int64(len(want)) {
		t.Errorf("%d bytes on the host", c.Points[0].Disks[0].Bytes)
	}
	for _, name := range []string{"", "vm/disk.vmdk", "vm/disk-f002.vmdk"} {
		src := s.open(name)
		c, err := src.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		o, err := src.OpenPoint(t.Context(), c.Points[0])
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := o.Disks[0].Image.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("opened by %q: %v, or other bytes", name, err)
		}
		o.Close()
	}

	// A write to an extent is noticed as one to the image itself.
	o, err := src.OpenPoint(t.Context(), c.Points[0])
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	key := c.Points[0].Key()
	s.file("vm/disk-f002.vmdk", append(half(2), 0))
	if err := o.check(t.Context()); !errors.Is(err, ErrChanged) {
		t.Errorf("check: %v", err)
	}
	if _, err := o.Disks[0].Image.ReadAt(make([]byte, 1), 40<<10); !errors.Is(err, ErrChanged) {
		t.Errorf("read of a changed extent: %v", err)
	}
	c, err = src.List(t.Context())
	if err != nil || c.Points[0].Key() == key {
		t.Errorf("the key is the same after a change, %v", err)
	}
}

// TestExtentsNotFound names files that aren't there, or not in the source.
func TestExtentsNotFound(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, half(9), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, file string
		want       string // part of the problem; empty: none
		err        error
	}{
		{"beside", "part", "", nil},
		{"in a folder", "sub/far", "", nil},
		{"by a path of Windows", `sub\far`, "", nil},
		{"up and down", "../vm/part", "", nil},
		{"absolute, beside", "/vmfs/volumes/1234/vm/part", "", nil},
		{"missing", "gone", `extent "gone" named by vm/disk.vmdk: not in the source`, ErrNotFound},
		{"outside", outside, "not in the source", ErrNotFound},
		{"outside, relative", "../../../../../../../.." + outside, "not in the source", ErrNotFound},
		{"a link to the outside", "link", "not in the source", ErrNotFound},
		{"itself", "disk.vmdk", "is that file itself", ondisk.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSource(t)
			s.file("vm/part", half(1))
			s.file("vm/sub/far", half(1))
			s.descriptor("vm/disk.vmdk", "1", "", "", c.file)
			if err := os.Symlink(outside, s.path("vm/link")); err != nil {
				t.Fatal(err)
			}
			src := s.open("")
			cat, err := src.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var p Point
			for _, q := range cat.Points {
				if q.Disks[0].Files[0] == "vm/disk.vmdk" {
					p = q
				}
			}
			if c.want == "" && p.Problem != "" || !strings.Contains(p.Problem, c.want) {
				t.Errorf("problem %q, want %q", p.Problem, c.want)
			}
			o, err := src.OpenPoint(t.Context(), p)
			if !errors.Is(err, c.err) {
				t.Errorf("OpenPoint: %v, want %v", err, c.err)
			}
			if err == nil {
				o.Close()
			}
		})
	}
}

// TestExtentsHideNoImages has a descriptor name an image with a header of its own:
// that one stays a point.
func TestExtentsHideNoImages(t *testing.T) {
	s := newSource(t)
	s.base("web.vhd", 1)
	s.descriptor("evil.vmdk", "1", "", "", "web.vhd")
	s.expect(s.open(""), "evil 2026-11-18T02-30-00Z mtime evil.vmdk", "web 2026-11-18T03-30-00Z header web.vhd")
}

// TestSharedIDs finds parents among clones, which have the same content id.
func TestSharedIDs(t *testing.T) {
	s := newSource(t)
	for i, dir := range []string{"a", "b"} {
		s.file(dir+"/base-f.vmdk", append(half(byte(i)), half(byte(i))...))
		s.descriptor(dir+"/base.vmdk", "aaaaaaaa", "", "", "base-f.vmdk")
		s.file(dir+"/snap-f.vmdk", half(3))
		// As VMware makes it: until it is written to, a child's id is its parent's.
		s.descriptor(dir+"/snap.vmdk", "aaaaaaaa", "aaaaaaaa", "base.vmdk", "snap-f.vmdk")
	}
	s.descriptor("c/lost.vmdk", "cccccccc", "aaaaaaaa", "renamed.vmdk")
	s.file("c/lost.vmdk", append(mustRead(t, s.path("c/lost.vmdk")), "RW 64 ZERO\n"...))
	find := func(allow bool) map[string]Point {
		src, err := Open(s.dir, Options{AllowChangedParent: allow})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		c, err := src.List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		m := make(map[string]Point)
		for _, p := range c.Points {
			m[p.Disks[0].Files[0]] = p
			if p.Problem == "" {
				o, err := src.OpenPoint(t.Context(), p)
				if err != nil {
					t.Errorf("%s: %v", p.Disks[0].Files[0], err)
					continue
				}
				o.Close()
			}
		}
		return m
	}
	m := find(false)
	for _, dir := range []string{"a", "b"} {
		p := m[dir+"/snap.vmdk"]
		if got := strings.Join(p.Disks[0].Files, "<"); got != dir+"/snap.vmdk<"+dir+"/base.vmdk" || p.Problem != "" {
			t.Errorf("chain %s, problem %q", got, p.Problem)
		}
	}
	if p := m["c/lost.vmdk"]; !strings.Contains(p.Problem, "more than once") {
		t.Errorf("an ambiguous parent: %q", p.Problem)
	}

	// The parent beside it was written to: its clone won't do in its place.
	s.descriptor("a/base.vmdk", "dddddddd", "", "", "base-f.vmdk")
	if p := find(false)["a/snap.vmdk"]; !strings.Contains(p.Problem, "has id dddddddd") {
		t.Errorf("a changed parent: %q, %q", p.Problem, p.Disks[0].Files)
	}
	if p := find(true)["a/snap.vmdk"]; p.Problem != "" || len(p.Disks[0].Files) != 2 || p.Disks[0].Files[1] != "a/base.vmdk" {
		t.Errorf("a changed parent, allowed: %q, %q", p.Problem, p.Disks[0].Files)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
