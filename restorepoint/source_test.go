package restorepoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"yester/imageformats"
	"yester/imageformats/vhd"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// disk is a small disk in memory.
type disk []byte

func (d disk) Size() int64 { return int64(len(d)) }
func (d disk) ReadAt(p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), d.Size())
	return copy(p[:n], d[min(off, d.Size()):]), eof
}

// state returns a disk of 64 KiB that says n in every sector.
func state(n byte) disk { return bytes.Repeat([]byte{n}, 64<<10) }

func id(n byte) [16]byte { return [16]byte(bytes.Repeat([]byte{n}, 16)) }

// source is a folder to put images into.
type source struct {
	t   *testing.T
	dir string
}

func newSource(t *testing.T) source { return source{t, t.TempDir()} }

func (s source) path(name string) string {
	p := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		s.t.Fatal(err)
	}
	return p
}

var stamp = time.Date(2026, 11, 18, 2, 30, 0, 0, time.UTC)

// base writes a dynamic VHD with id n, full of n, stamped n hours after stamp.
func (s source) base(name string, n byte) {
	s.t.Helper()
	s.write(name, func(f *os.File) error {
		return vhd.WriteDynamic(context.Background(), f, state(n), vhd.WriteOptions{ID: id(n), Created: stamp.Add(time.Duration(n) * time.Hour)})
	})
}

// child writes a differencing VHD with id n, full of n, on the parent of id p.
func (s source) child(name string, n, p byte, parent string, locators ...imageformats.Locator) {
	s.t.Helper()
	s.write(name, func(f *os.File) error {
		return vhd.WriteDiff(context.Background(), f, state(n), state(p), vhd.DiffOptions{
			WriteOptions: vhd.WriteOptions{ID: id(n), Created: stamp.Add(time.Duration(n) * time.Hour)},
			ParentID:     id(p), ParentModified: stamp.Add(time.Duration(p) * time.Hour), ParentName: parent, Locators: locators,
		})
	})
}

func (s source) write(name string, fill func(*os.File) error) {
	s.t.Helper()
	f, err := os.Create(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if err := fill(f); err != nil {
		s.t.Fatal(err)
	}
}

// open opens the source, or a file in it.
func (s source) open(name string) *Source {
	s.t.Helper()
	src, err := Open(filepath.Join(s.dir, name), Options{Location: time.UTC})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { src.Close() })
	return src
}

// lines describes the points of a listing, a line each.
func lines(c *Catalogue) []string {
	var out []string
	for _, p := range c.Points {
		line := fmt.Sprintf("%s %s %s %s", p.Machine, p.ID, p.TimeFrom, strings.Join(p.Disks[0].Files, "<"))
		if p.Problem != "" {
			line += " !"
		}
		out = append(out, line)
	}
	return out
}

// list lists the source.
func (s source) list(src *Source) *Catalogue {
	s.t.Helper()
	c, err := src.List(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s source) expect(src *Source, want ...string) *Catalogue {
	s.t.Helper()
	c, err := src.List(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	if got := lines(c); strings.Join(got, "\n") != strings.Join(want, "\n") {
		s.t.Errorf("points are\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	return c
}

// holds fails the test unless the point reads n everywhere.
func (s source) holds(src *Source, p Point, n byte) {
	s.t.Helper()
	o, err := src.OpenPoint(context.Background(), p)
	if err != nil {
		s.t.Errorf("%s: %v", p.ID, err)
		return
	}
	defer o.Close()
	got, err := io.ReadAll(io.NewSectionReader(o.Disks[0].Image, 0, o.Disks[0].Image.Size()))
	if err != nil || !bytes.Equal(got, state(n)) {
		s.t.Errorf("%s: %d bytes, %v, not all of them %d", p.ID, len(got), err, n)
	}
}

func TestChainsBecomePoints(t *testing.T) {
	s := newSource(t)
	s.base("web01/base.vhd", 1)
	s.child("web01/a.avhd", 2, 1, "base.vhd")
	s.child("web01/b.avhd", 3, 2, "a.avhd")
	s.child("web01/branch.avhd", 4, 2, "a.avhd")
	s.base("db01-2026-11-20.vhd", 5)
	s.base("db01-2026-11-21.vhd", 6)
	if err := os.WriteFile(s.path("notes.txt"), []byte("not a disk"), 0o644); err != nil {
		t.Fatal(err)
	}
	src := s.open("")
	c := s.expect(src,
		"db01 2026-11-20T00-00-00Z name db01-2026-11-20.vhd",
		"db01 2026-11-21T00-00-00Z name db01-2026-11-21.vhd",
		"web01 2026-11-18T03-30-00Z header web01/base.vhd",
		"web01 2026-11-18T04-30-00Z header web01/a.avhd<web01/base.vhd",
		"web01 2026-11-18T05-30-00Z header web01/b.avhd<web01/a.avhd<web01/base.vhd",
		"web01 2026-11-18T06-30-00Z header web01/branch.avhd<web01/a.avhd<web01/base.vhd",
	)
	for i, n := range []byte{5, 6, 1, 2, 3, 4} {
		s.holds(src, c.Points[i], n)
	}
	if got := fmt.Sprint(c.Machines(), len(c.Of("web01")), len(c.Of("none"))); got != "[db01 web01] 4 0" {
		t.Errorf("machines: %s", got)
	}
	if len(c.Ignored) != 1 || c.Ignored[0].Name != "notes.txt" || c.Ignored[0].Damaged {
		t.Errorf("ignored: %+v", c.Ignored)
	}
	if len(src.images.images) != 0 {
		t.Errorf("%d images are still open", len(src.images.images))
	}
}

// TestSharedImages opens points that have ancestors in common, in every order.
func TestSharedImages(t *testing.T) {
	s := newSource(t)
	s.base("base.vhd", 1)
	s.child("a.avhd", 2, 1, "base.vhd")
	s.child("b.avhd", 3, 2, "a.avhd")
	src := s.open("")
	c, err := src.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var opened []*Opened
	for _, i := range []int{1, 2, 0, 2} {
		o, err := src.OpenPoint(context.Background(), c.Points[i])
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, o)
	}
	if n := len(src.images.images); n != 3 {
		t.Errorf("%d images are open, want 3", n)
	}
	for i, want := range []int{3, 3, 3, 0} {
		opened[i].Close()
		if n := len(src.images.images); n != want {
			t.Errorf("%d images are open after %d closes, want %d", n, i+1, want)
		}
	}
}

func TestParentsAreFoundInsideTheSourceOnly(t *testing.T) {
	outside := newSource(t)
	outside.base("base.vhd", 1)
	s := newSource(t)
	s.child("a.avhd", 2, 1, "base.vhd",
		imageformats.Locator{Platform: "W2ru", Path: `..\` + filepath.Base(outside.dir) + `\base.vhd`},
		imageformats.Locator{Platform: "W2ku", Path: outside.dir + "/base.vhd"})
	if err := os.Symlink(filepath.Join(outside.dir, "base.vhd"), s.path("base.vhd")); err != nil {
		t.Fatal(err)
	}
	src := s.open("")
	c := s.expect(src, "a 2026-11-18T04-30-00Z header a.avhd !")
	_, err := src.OpenPoint(context.Background(), c.Points[0])
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "base.vhd") {
		t.Errorf("opening it: %v, want the missing base.vhd", err)
	}

	// The same parent inside, wherever its folder is, is found by its id.
	s.base("elsewhere/renamed.vhd", 1)
	c, err = src.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Points {
		if p.Disks[0].Files[0] == "a.avhd" {
			s.holds(src, p, 2)
		}
	}
}

func TestLocators(t *testing.T) {
	s := newSource(t)
	s.base("store/parents/base.vhd", 1)
	s.base("store/children/base.vhd", 9) // of the right name, in the wrong folder
	s.child("store/children/child.avhd", 2, 1, "base.vhd", imageformats.Locator{Platform: "W2ru", Path: `..\parents\base.vhd`, Relative: true})
	src := s.open("")
	c, err := src.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Points {
		if p.Disks[0].Info.Parent != nil {
			if p.Disks[0].Files[1] != "store/parents/base.vhd" {
				t.Errorf("the parent is %q", p.Disks[0].Files)
			}
			s.holds(src, p, 2)
		}
	}
}

func TestBrokenChains(t *testing.T) {
	t.Run("wrong id", func(t *testing.T) {
		s := newSource(t)
		s.base("base.vhd", 7)
		s.child("a.avhd", 2, 1, "base.vhd")
		src := s.open("")
		c, err := src.List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.Points {
			if p.Disks[0].Files[0] != "a.avhd" {
				continue
			}
			for _, part := range []string{"a.avhd", "base.vhd", "01010101-", "07070707-"} {
				if !strings.Contains(p.Problem, part) {
					t.Errorf("%q doesn't name %s", p.Problem, part)
				}
			}
		}
	})
	t.Run("changed parent", func(t *testing.T) {
		s := newSource(t)
		s.base("base.vhd", 1)
		s.write("a.avhd", func(f *os.File) error {
			return vhd.WriteDiff(context.Background(), f, state(2), state(1), vhd.DiffOptions{
				WriteOptions: vhd.WriteOptions{ID: id(2), Created: stamp.Add(2 * time.Hour)},
				ParentID:     id(1), ParentModified: stamp, ParentName: "base.vhd",
			})
		})
		for _, allow := range []bool{false, true} {
			src, err := Open(s.dir, Options{AllowChangedParent: allow})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			c, err := src.List(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			o, err := src.OpenPoint(context.Background(), c.Points[1])
			if allow && err != nil {
				t.Errorf("--allow-changed-parent: %v", err)
			}
			if !allow && (!errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), "base.vhd")) {
				t.Errorf("changed parent: %v, want an error that names it", err)
			}
			if o != nil {
				o.Close()
			}
		}
	})
	t.Run("loop", func(t *testing.T) {
		s := newSource(t)
		s.child("a.avhd", 1, 2, "b.avhd")
		s.child("b.avhd", 2, 1, "a.avhd")
		s.child("c.avhd", 3, 2, "b.avhd")
		c, err := s.open("").List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.Points {
			if p.Problem == "" {
				t.Errorf("%s has no problem", p.Disks[0].Files)
			}
		}
	})
	t.Run("own parent", func(t *testing.T) {
		s := newSource(t)
		s.child("a.avhd", 1, 1, "a.avhd")
		c, err := s.open("").List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Points) != 1 || c.Points[0].Problem == "" {
			t.Errorf("points: %+v", c.Points)
		}
	})
	t.Run("grandparent missing", func(t *testing.T) {
		s := newSource(t)
		s.child("b.avhd", 3, 2, "a.avhd")
		s.child("a.avhd", 2, 1, "base.vhd")
		c, err := s.open("").List(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.Points {
			if !strings.Contains(p.Problem, "base.vhd") {
				t.Errorf("%s: problem %q doesn't name what is missing", p.Disks[0].Files, p.Problem)
			}
		}
	})
}

func TestFileAsSource(t *testing.T) {
	s := newSource(t)
	s.base("base.vhd", 1)
	s.child("a.avhd", 2, 1, "base.vhd")
	s.child("b.avhd", 3, 2, "a.avhd")
	s.base("other.vhd", 8)
	name := filepath.Base(s.dir)
	s.expect(s.open("a.avhd"),
		name+" 2026-11-18T03-30-00Z header base.vhd",
		name+" 2026-11-18T04-30-00Z header a.avhd<base.vhd")
	if err := os.WriteFile(s.path("text"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.open("text").List(context.Background()); !errors.Is(err, ondisk.ErrFormat) {
		t.Errorf("a text file: %v, want ErrFormat", err)
	}
	if _, err := Open(s.path("nonesuch"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := Open("ebs://snap-1", Options{}); err == nil || !strings.Contains(err.Error(), "ebs") {
		t.Errorf("an unknown scheme: %v", err)
	}
}

func TestSplitDisk(t *testing.T) {
	s := newSource(t)
	whole := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	copy(whole[510:], "\x55\xaa")
	copy(whole[446:], "\x00\x00\x02\x00\x83\x00\x00\x00\x01\x00\x00\x00\x40\x00\x00\x00")
	clear(whole[462:510])
	for i, at := range []int{0, 10000, 30001} {
		end := []int{10000, 30001, len(whole)}[i]
		if err := os.WriteFile(s.path(fmt.Sprintf("disk-2026-11-20.raw.%03d", i+1)), whole[at:end], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	src := s.open("")
	c := s.expect(src, "disk 2026-11-20T00-00-00Z name disk-2026-11-20.raw.001")
	o, err := src.OpenPoint(context.Background(), c.Points[0])
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	got, err := io.ReadAll(io.NewSectionReader(o.Disks[0].Image, 0, o.Disks[0].Image.Size()))
	if err != nil || !bytes.Equal(got, whole) {
		t.Errorf("%d bytes, %v, or other bytes than the whole disk's %d", len(got), err, len(whole))
	}
	if err := os.Remove(s.path("disk-2026-11-20.raw.002")); err != nil {
		t.Fatal(err)
	}
	if c, err = src.List(context.Background()); err != nil || len(c.Ignored) == 0 || !c.Ignored[0].Damaged {
		t.Errorf("with a part missing: %+v, %v", c, err)
	}
}

// TestKeys changes a file under its name: the listing gives another key, and the
// point of the old listing can't be opened with the new bytes.
func TestKeys(t *testing.T) {
	s := newSource(t)
	s.base("base.vhd", 1)
	s.child("a.avhd", 2, 1, "base.vhd")
	src := s.open("")
	before, err := src.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	again, err := src.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range before.Points {
		if before.Points[i].Key() != again.Points[i].Key() {
			t.Errorf("%s has another key without a change", before.Points[i].ID)
		}
	}
	os.Remove(s.path("base.vhd"))
	s.base("base.vhd", 1)
	after, err := src.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range before.Points {
		if before.Points[i].Key() == after.Points[i].Key() {
			t.Errorf("%s has the same key though a file of its chain was replaced", before.Points[i].ID)
		}
	}
	if _, err := src.OpenPoint(context.Background(), before.Points[0]); err == nil {
		t.Error("a point of the old listing opens though its file was replaced")
	}
}

func TestSameSecond(t *testing.T) {
	s := newSource(t)
	s.base("2026-11-20/web01.vhd", 1)
	s.base("web01-2026-11-20.vhd", 2)
	s.base("20261120/web01.vhd", 3)
	s.expect(s.open(""),
		"web01 2026-11-20T00-00-00Z name 2026-11-20/web01.vhd",
		"web01 2026-11-20T00-00-00Z-2 name 20261120/web01.vhd",
		"web01 2026-11-20T00-00-00Z-3 name web01-2026-11-20.vhd")
}
