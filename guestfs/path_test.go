package guestfs_test

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"yester/guestfs"
	"yester/internal/memtree"
)

func sample() *memtree.Tree {
	t := memtree.New(guestfs.Info{Type: "mem"})
	t.File("etc/hosts", "127.0.0.1 localhost\n")
	t.File("usr/lib/os-release", "ID=x\n")
	t.Symlink("etc/os-release", "../usr/lib/os-release")
	t.Symlink("lib", "usr/lib")
	t.Symlink("abs", "/usr/lib/")
	t.Symlink("up", "../../../../../../etc/hosts")
	t.Symlink("a", "b")
	t.Symlink("b", "a")
	t.Symlink("dangling", "/nowhere")
	t.Symlink("empty", "")
	t.Symlink("tofile", "etc/hosts/")
	t.Mkdir("var/empty")
	n := t.Add("run/fifo", guestfs.ModeFifo|0o600)
	n.NoType = true
	t.Add("tmp", guestfs.ModeDir|0o1777)
	long := ""
	for i := range 45 {
		name := "l" + strings.Repeat("x", i)
		if i == 0 {
			t.Symlink(name, "etc")
		} else {
			t.Symlink(name, long)
		}
		long = name
	}
	return t
}

func TestResolve(t *testing.T) {
	tree := sample()
	tests := []struct {
		path string
		link bool // don't follow at the end
		real string
		err  error
	}{
		{"", false, "/", nil},
		{"/", false, "/", nil},
		{"..", false, "/", nil},
		{"/../..//etc/./hosts", false, "/etc/hosts", nil},
		{"etc/hosts", false, "/etc/hosts", nil},
		{"etc/os-release", false, "/usr/lib/os-release", nil},
		{"etc/os-release", true, "/etc/os-release", nil},
		{"lib/os-release", true, "/usr/lib/os-release", nil},
		{"lib", true, "/lib", nil},
		{"lib/", true, "/usr/lib", nil},
		{"abs/../lib/os-release", false, "/usr/lib/os-release", nil},
		{"up", false, "/etc/hosts", nil},
		{"var/empty/../../etc", false, "/etc", nil},
		{"a", false, "", guestfs.ErrLoop},
		{"a", true, "/a", nil},
		{"dangling", false, "", guestfs.ErrNotExist},
		{"dangling", true, "/dangling", nil},
		{"empty", false, "", guestfs.ErrNotExist},
		{"tofile", false, "", guestfs.ErrNotDir},
		{"etc/hosts/", false, "", guestfs.ErrNotDir},
		{"etc/hosts/..", false, "", guestfs.ErrNotDir},
		{"etc/hosts/x", false, "", guestfs.ErrNotDir},
		{"nowhere", false, "", guestfs.ErrNotExist},
		{"l" + strings.Repeat("x", 39), false, "/etc", nil},
		{"l" + strings.Repeat("x", 40), false, "", guestfs.ErrLoop},
		{strings.Repeat("/", 1<<17), false, "", guestfs.ErrTooLong},
	}
	for _, test := range tests {
		name := test.path[:min(len(test.path), 60)]
		id, err := guestfs.Resolve(t.Context(), tree, test.path, !test.link)
		if !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
			t.Errorf("Resolve(%q, %v): error %v, want %v", name, !test.link, err, test.err)
			continue
		}
		if err != nil {
			continue
		}
		if want, err := guestfs.Resolve(t.Context(), tree, test.real, false); err != nil || id != want {
			t.Errorf("Resolve(%q, %v) = %v, want %v (%v)", name, !test.link, id, want, err)
		}
		if !test.link {
			if real, rid, err := guestfs.RealPath(t.Context(), tree, test.path); real != test.real || rid != id || err != nil {
				t.Errorf("RealPath(%q) = %q, %v, %v; want %q", name, real, rid, err, test.real)
			}
		}
	}
}

func TestReadFile(t *testing.T) {
	tree := sample()
	id, err := guestfs.Resolve(t.Context(), tree, "etc/hosts", true)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := guestfs.ReadFile(t.Context(), tree, id, 20); err != nil || string(b) != "127.0.0.1 localhost\n" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := guestfs.ReadFile(t.Context(), tree, id, 19); !errors.Is(err, guestfs.ErrTooLong) {
		t.Errorf("limit: %v", err)
	}
	if _, err := guestfs.ReadFile(t.Context(), tree, tree.Root(), 99); !errors.Is(err, guestfs.ErrIsDir) {
		t.Errorf("directory: %v", err)
	}
	if _, err := guestfs.ReadDir(t.Context(), tree, tree.Root(), 3); !errors.Is(err, guestfs.ErrTooLong) {
		t.Errorf("directory's limit: %v", err)
	}
}

func TestFS(t *testing.T) {
	tree := memtree.New(guestfs.Info{})
	tree.File("etc/hosts", strings.Repeat("127.0.0.1 localhost\n", 300))
	tree.File("usr/lib/os-release", "ID=x\n").Attr.Mode |= 0o4000
	tree.Symlink("lib", "usr/lib")
	tree.Mkdir("var/empty")
	n := tree.File("notype", "")
	n.NoType = true
	if err := fstest.TestFS(guestfs.FS(t.Context(), tree), "etc/hosts", "usr/lib/os-release", "var/empty", "notype"); err != nil {
		t.Error(err)
	}
	fsys := guestfs.FS(t.Context(), sample())
	if target, err := fs.ReadLink(fsys, "etc/os-release"); err != nil || target != "../usr/lib/os-release" {
		t.Errorf("%q, %v", target, err)
	}
	if b, err := fs.ReadFile(fsys, "abs/os-release"); err != nil || string(b) != "ID=x\n" {
		t.Errorf("%q, %v", b, err)
	}
	for name, want := range map[string]string{"tmp": "dtrwxrwxrwx", "run/fifo": "prw-------", "lib": "Lrwxrwxrwx"} {
		info, err := fs.Lstat(fsys, name)
		if err != nil || info.Mode().String() != want {
			t.Errorf("%s: %v, %v", name, info, err)
		} else if info.Sys().(*guestfs.Attr).Mode == 0 {
			t.Errorf("%s: no attributes", name)
		}
	}
	if _, err := fsys.Open("run/fifo"); !errors.Is(err, guestfs.ErrInvalid) {
		t.Errorf("open of a FIFO: %v", err)
	}
	if _, err := fs.Stat(fsys, "../etc"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("invalid path: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := guestfs.FS(ctx, sample())
	cancel()
	if _, err := fs.Stat(cancelled, "etc"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestFSDamage: a listing that is incomplete says so.
func TestFSDamage(t *testing.T) {
	tree := memtree.New(guestfs.Info{})
	damage := errors.New("bad block")
	tree.File("d/a", "")
	n := tree.File("d/b", "")
	n.Err, n.NoType = damage, true
	tree.Mkdir("e").Err = damage
	fsys := guestfs.FS(t.Context(), tree)
	if list, err := fs.ReadDir(fsys, "d"); len(list) != 1 || !errors.Is(err, damage) {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := fs.ReadDir(fsys, "e"); !errors.Is(err, damage) {
		t.Error(err)
	}
}
