package restorepoint

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"yester/internal/ondisk"
)

// qemu runs a program of QEMU in the source's folder.
func (s source) qemu(args ...string) {
	s.t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		if os.Getenv("CI") == "true" {
			s.t.Fatal(err)
		}
		s.t.Skip(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// overlay makes a qcow2 image over a backing file (none when it is empty) and
// fills it with n from offset 4096 on, but not its first 4 KiB. It was modified n
// hours after stamp.
func (s source) overlay(name string, n byte, backing, format string) {
	s.t.Helper()
	path := s.path(name)
	s.qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", path, "65536")
	s.fill(name, n, 4096)
	if backing != "" {
		// Unchecked: it may not be there yet, or be named as on another host.
		s.qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", backing, "-F", cmp.Or(format, "raw"), path)
	}
	if backing != "" && format == "" {
		b, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		// Older images don't say it; today's QEMU doesn't write such.
		b = bytes.Replace(b, []byte{0xe2, 0x79, 0x2a, 0xca}, []byte("none"), 1)
		s.raw(name, n, b)
	}
	s.touch(name, n)
}

func (s source) fill(name string, n byte, from int) {
	s.t.Helper()
	s.qemu("qemu-io", "-t", "unsafe", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %d %d", n, from, 65536-from), s.path(name))
}

func (s source) touch(name string, n byte) {
	s.t.Helper()
	t := stamp.Add(time.Duration(n) * time.Hour)
	if err := os.Chtimes(s.path(name), t, t); err != nil {
		s.t.Fatal(err)
	}
}

func (s source) raw(name string, n byte, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), data, 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.touch(name, n)
}

// first returns the first n bytes of the point whose own file is name.
func (s source) first(src *Source, c *Catalogue, name string, n int) []byte {
	s.t.Helper()
	for _, p := range c.Points {
		if p.Disks[0].Files[0] != name {
			continue
		}
		o, err := src.OpenPoint(context.Background(), p)
		if err != nil {
			s.t.Fatalf("%s: %v", name, err)
		}
		defer o.Close()
		b := make([]byte, n)
		if _, err := o.Disks[0].Image.ReadAt(b, 0); err != nil {
			s.t.Fatal(err)
		}
		return b
	}
	s.t.Fatalf("no point of %s", name)
	return nil
}

// TestNamedParents finds backing files by the ways in which QEMU names them.
func TestNamedParents(t *testing.T) {
	s := newSource(t)
	s.raw("vm/base.img", 1, state(1)) // nothing tells that it is a disk, but its child
	s.overlay("vm/a.qcow2", 2, "base.img", "raw")
	s.overlay("vm/snap/b.qcow2", 3, "../a.qcow2", "qcow2")
	s.overlay("vm/snap/c.qcow2", 4, "/var/lib/libvirt/images/b.qcow2", "qcow2")
	s.overlay("vm/snap/d.qcow2", 5, filepath.Join(s.dir, "vm/a.qcow2"), "")
	s.overlay("vm/e.qcow2", 6, `json:{"driver":"raw","file":{"driver":"file","filename":"base.img"}}`, "")
	s.raw("vm/notes.txt", 1, []byte("not a disk\n"))
	src := s.open("")
	c := s.expect(src,
		"vm 2026-11-18T03-30-00Z mtime vm/base.img",
		"vm 2026-11-18T04-30-00Z mtime vm/a.qcow2<vm/base.img",
		"vm 2026-11-18T05-30-00Z mtime vm/snap/b.qcow2<vm/a.qcow2<vm/base.img",
		"vm 2026-11-18T06-30-00Z mtime vm/snap/c.qcow2<vm/snap/b.qcow2<vm/a.qcow2<vm/base.img",
		"vm 2026-11-18T07-30-00Z mtime vm/snap/d.qcow2<vm/a.qcow2<vm/base.img",
		"vm 2026-11-18T08-30-00Z mtime vm/e.qcow2<vm/base.img",
	)
	for _, p := range c.Points {
		name := p.Disks[0].Files[0]
		if b := s.first(src, c, name, 8192); b[8191] != byte(p.Time.Sub(stamp)/time.Hour) || b[0] != 1 {
			t.Errorf("%s: %d over %d", name, b[8191], b[0])
		}
	}
	if len(c.Ignored) != 1 || c.Ignored[0].Name != "vm/notes.txt" {
		t.Errorf("ignored: %+v", c.Ignored)
	}
}

// TestCopiedChain lists a chain whose files were copied in any order: a parent is
// no younger than its child.
func TestCopiedChain(t *testing.T) {
	s := newSource(t)
	s.overlay("web01.qcow2", 5, "", "")
	s.overlay("web01.snap1", 3, "web01.qcow2", "qcow2")
	s.overlay("web01.snap2", 4, "web01.snap1", "qcow2")
	c, err := s.open("").List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, p := range c.Points {
		order = append(order, p.ID+" "+p.Disks[0].Files[0])
	}
	if got := strings.Join(order, ", "); got != "2026-11-18T05-30-00Z web01.qcow2, 2026-11-18T05-30-00Z-2 web01.snap1, 2026-11-18T06-30-00Z web01.snap2" {
		t.Error(got)
	}
}

// TestNamedParentsMissing tells what is wrong with a backing file.
func TestNamedParentsMissing(t *testing.T) {
	s := newSource(t)
	outside := newSource(t)
	outside.raw("base.img", 1, state(1))
	s.overlay("gone.qcow2", 2, outside.path("base.img"), "raw")
	s.overlay("up.qcow2", 3, "../"+filepath.Base(outside.dir)+"/base.img", "raw")
	s.overlay("self.qcow2", 4, "self.qcow2", "qcow2")
	s.overlay("loop1.qcow2", 5, "loop2.qcow2", "qcow2")
	s.overlay("loop2.qcow2", 6, "loop1.qcow2", "qcow2")
	s.base("other.vhd", 7)
	s.overlay("wrong.qcow2", 8, "other.vhd", "qcow2")
	s.overlay("vpc.qcow2", 9, "other.vhd", "vpc")
	c, err := s.open("").List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Points {
		name := p.Disks[0].Files[0]
		if sound := name == "other.vhd" || name == "vpc.qcow2"; sound != (p.Problem == "") {
			t.Errorf("%s: problem %q", name, p.Problem)
		}
	}
	if len(c.Points) != 8 {
		t.Errorf("%q", lines(c))
	}
	s2 := newSource(t)
	s2.overlay("net.qcow2", 1, "nbd://10.0.0.1/x", "raw")
	c, err = s2.open("").List(context.Background())
	if err != nil || len(c.Ignored) != 1 || !errors.Is(c.Ignored[0].Err, ondisk.ErrUnsupported) || !strings.Contains(c.Ignored[0].Reason, "nbd") {
		t.Errorf("%v, %+v", err, c)
	}
}

// TestRawParentStaysRaw has guests write containers' headers into their raw disks.
func TestRawParentStaysRaw(t *testing.T) {
	s := newSource(t)
	s.raw("victim.raw", 1, append(state(9), state(9)...))
	s.overlay("header", 2, filepath.Join(s.dir, "victim.raw"), "raw")
	header, err := os.ReadFile(s.path("header"))
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(s.path("header"))
	// Opened as what it looks like, this disk would show the victim's.
	s.raw("disk.img", 3, header)
	s.overlay("vm.qcow2", 4, "disk.img", "raw")
	src := s.open("")
	c := s.expect(src,
		filepath.Base(s.dir)+" 2026-11-18T05-30-00Z mtime disk.img",
		filepath.Base(s.dir)+" 2026-11-18T06-30-00Z mtime vm.qcow2<disk.img",
	)
	for _, name := range []string{"disk.img", "vm.qcow2"} {
		if b := s.first(src, c, name, 4096); !bytes.Equal(b, header[:4096]) {
			t.Errorf("%s shows %q", name, b[:16])
		}
	}
	if w := c.Points[0].Disks[0].Info.Warnings; len(w) != 1 || !strings.Contains(w[0], "qcow2") {
		t.Errorf("warnings %q", w)
	}
	// A file whose name says what it is stays that, whatever another says of it.
	s.overlay("evil.qcow2", 5, "vm.qcow2", "raw")
	if c, err = src.List(context.Background()); err != nil {
		t.Fatal(err)
	}
	if b := s.first(src, c, "vm.qcow2", 8192); b[8191] != 4 {
		t.Errorf("vm.qcow2 reads %d", b[8191])
	}
	if b := s.first(src, c, "evil.qcow2", 4096); string(b[:4]) != "QFI\xfb" {
		t.Errorf("its view as raw begins with %q", b[:4])
	}
}

// TestSnapshotPoints makes points of an image's own snapshots.
func TestSnapshotPoints(t *testing.T) {
	s := newSource(t)
	s.overlay("base.qcow2", 1, "", "")
	s.fill("base.qcow2", 1, 0)
	s.overlay("web01.qcow2", 2, "base.qcow2", "qcow2")
	for n := byte(3); n < 6; n++ {
		s.fill("web01.qcow2", n, 0)
		s.qemu("qemu-img", "snapshot", "-c", fmt.Sprint("before ", n), s.path("web01.qcow2"))
	}
	s.fill("web01.qcow2", 6, 0)
	s.touch("base.qcow2", 1)
	soon := time.Now().Add(time.Hour)
	if err := os.Chtimes(s.path("web01.qcow2"), soon, soon); err != nil {
		t.Fatal(err)
	}
	src := s.open("")
	c, err := src.List(context.Background())
	if err != nil || len(c.Points) != 5 {
		t.Fatalf("%v, %q", err, lines(c))
	}
	var opened []*Opened
	keys := make(map[string]bool)
	for i, want := range []byte{1, 3, 4, 5, 6} {
		p := c.Points[i]
		s.holds(src, p, want)
		keys[p.Key()+p.ID] = true
		if d := p.Disks[0]; i > 0 && i < 4 {
			if d.Snapshot != fmt.Sprint(i) || p.TimeFrom != FromSnapshot || len(d.Info.Snapshots) != 1 || time.Since(p.Time) > time.Hour {
				t.Errorf("%+v", p)
			}
		}
		o, err := src.OpenPoint(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, o)
	}
	if len(keys) != 5 || len(src.images.images) != 5 {
		t.Errorf("%d keys, %d images are open; want 5 of each", len(keys), len(src.images.images))
	}
	for _, o := range opened {
		o.Close()
	}
	if n := len(src.images.images); n != 0 {
		t.Errorf("%d images are still open", n)
	}
}
