package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/internal/memtree"
	"yester/internal/ondisk"
)

func TestFind(t *testing.T) {
	tree := memtree.New(guestfs.Info{})
	for _, name := range []string{
		"a/x.txt", "a/y.txt", "a/.dot", "a/b/x.txt", "a/b/c/x.txt", "a/b/c/z", "lit/*", "lit/a", "q/[1]", "q/1", "raw/\xff1",
	} {
		tree.File(name, "")
	}
	tree.Symlink("link", "a/b")
	tree.Symlink("a/l.txt", "b/x.txt")
	tree.Symlink("a/dangling.txt", "nowhere")
	tree.Symlink("loop", "loop")
	tests := []struct {
		pattern string
		follow  bool
		want    string
	}{
		{"/", false, "/"},
		{"a/x.txt", false, "/a/x.txt"},
		{"//a/./x.txt", false, "/a/x.txt"},
		{"/a/*.txt", false, "/a/dangling.txt /a/l.txt /a/x.txt /a/y.txt"},
		{"/a/*.txt", true, "/a/l.txt /a/x.txt /a/y.txt"},
		{"/a/*", false, "/a/.dot /a/b /a/dangling.txt /a/l.txt /a/x.txt /a/y.txt"},
		{"/*/b", false, "/a/b"},
		{"/*/x.txt", false, "/a/x.txt /link/x.txt"},
		{"a/**/x.txt", false, "/a/b/c/x.txt /a/b/x.txt /a/x.txt"},
		{"a/b/**", false, "/a/b/c /a/b/c/x.txt /a/b/c/z /a/b/x.txt"},
		{"**/c", false, "/a/b/c"},
		{"a/**/c/?", false, "/a/b/c/z"},
		{"/lit/*", false, "/lit/*"}, // the file of this very name
		{`/lit/\*`, false, "/lit/*"},
		{"/q/[1]", false, "/q/[1]"},
		{"/q/[0-9]", false, "/q/1"},
		{`/q/\[?]`, false, "/q/[1]"},
		{"/raw/?1", false, "/raw/\xff1"},
		{"link/*", false, "/link/c /link/x.txt"},
		{"/loop/*", false, ""},
		{"/none/*", false, ""},
		{"/a/x.txt/*", false, ""},
		{"/a/*.jpg", false, ""},
	}
	for _, tt := range tests {
		matches, err := find(t.Context(), tree, tt.pattern, tt.follow)
		var got []string
		for _, m := range matches {
			got = append(got, m.path)
			if id, err := guestfs.Resolve(t.Context(), tree, m.path, tt.follow); err != nil || id != m.id {
				t.Errorf("%q: %q is %v, found as %v (%v)", tt.pattern, m.path, id, m.id, err)
			}
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%q: %q, want %q (%v)", tt.pattern, s, tt.want, err)
		}
		if (err == nil) != (tt.want != "") {
			t.Errorf("%q: %v", tt.pattern, err)
		}
	}
}

// TestFindLoop expands ** over a directory that contains itself.
func TestFindLoop(t *testing.T) {
	tree := memtree.New(guestfs.Info{})
	d := tree.Mkdir("a/b")
	tree.Link("a/b/again", d)
	if _, err := find(t.Context(), tree, "/**/x", false); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Error(err)
	}
}

func TestModeString(t *testing.T) {
	for mode, want := range map[uint32]string{
		0o100644: "-rw-r--r--", 0o040755: "drwxr-xr-x", 0o104755: "-rwsr-xr-x", 0o104644: "-rwSr--r--",
		0o042770: "drwxrws---", 0o041777: "drwxrwxrwt", 0o041776: "drwxrwxrwT", 0o020600: "crw-------",
		0o120777: "lrwxrwxrwx", 0o010000: "p---------", 0o140000: "s---------", 0o060000: "b---------", 0: "?---------",
	} {
		if got := modeString(mode); got != want {
			t.Errorf("%#o: %s, want %s", mode, got, want)
		}
	}
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 40: "1.0 TiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestPrintable checks that nothing from an image can act on a terminal.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain ä 文": "plain ä 文", "a\x1b[31mb": `a\x1b[31mb`, "a\nb\tc": "a\\x0ab\tc", "bad\xff": `bad\xff`,
		"rtl\u202e": `rtl\u202e`, "\u009b": `\x9b`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := shownName("a\x1b]0;x\a", true); strings.ContainsAny(got, "\x1b\a") {
		t.Errorf("%q", got)
	}
	if got := shownName("a\x1bb", false); got != "a\x1bb" {
		t.Errorf("%q", got)
	}
}

func TestReadNames(t *testing.T) {
	tree := memtree.New(guestfs.Info{})
	tree.File("etc/passwd", "root:x:0:0::/:/bin/sh\nbad\n:x:1:\nada:x:1000:1000\ntoor:x:0:0\nevil\x1b[:x:7:7\nneg:x:-1:\nbig:x:4294967295:")
	names := readNames(t.Context(), tree, "/etc/passwd")
	if len(names) != 3 || names[0] != "root" || names[1000] != "ada" || names[4294967295] != "big" {
		t.Errorf("%v", names)
	}
	if len(readNames(t.Context(), tree, "/etc/group")) != 0 {
		t.Error("names of a file that isn't there")
	}
}

func TestRealPath(t *testing.T) {
	dir := t.TempDir()
	if got := realPath(dir + "/a/../b/c"); !slices.Contains([]string{dir + "/b/c", "/private" + dir + "/b/c"}, got) {
		t.Error(got)
	}
	if !inside("/a/b", "/a") || inside("/ab", "/a") || !inside("/a", "/a") || !inside("/a", "/") {
		t.Error("inside")
	}
}
