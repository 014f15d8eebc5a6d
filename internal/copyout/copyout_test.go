package copyout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/memtree"
	"yester/internal/ondisk"
)

// run copies the whole tree into dir and returns what was reported, by place in
// the destination.
func run(t *testing.T, tree guestfs.Tree, dir string, opt Options) (Result, map[string]Event) {
	t.Helper()
	dest, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dest.Close()
	events := make(map[string]Event)
	opt.Report = func(e Event) { events[e.Dest] = e }
	res, err := Copy(t.Context(), tree, dest, []Item{{ID: tree.Root(), Path: "/"}}, opt)
	if err != nil {
		t.Fatal(err)
	}
	noTemporary(t, dir)
	return res, events
}

// noTemporary fails when a temporary file was left behind.
func noTemporary(t *testing.T, dir string) {
	t.Helper()
	filepath.WalkDir(dir, func(p string, _ os.DirEntry, _ error) error {
		if strings.HasSuffix(p, ".part") {
			t.Errorf("%s was left behind", p)
		}
		return nil
	})
}

func newTree() *memtree.Tree { return memtree.New(guestfs.Info{Type: "mem"}) }

func lstat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return &st
}

func TestCopyAttributes(t *testing.T) {
	tree := newTree()
	when := guestfs.Time{Sec: 1_111_111_111, Nsec: 123_456_789}
	old := guestfs.Time{Sec: -86400, Nsec: 5}
	set := func(n *memtree.Node, perm uint32) {
		n.Attr.Mode = n.Attr.Mode&guestfs.ModeType | perm
		n.Attr.Mtime, n.Attr.Atime = when, old
		if os.Geteuid() == 0 {
			n.Attr.UID, n.Attr.GID = 12345, 54321
		} else {
			n.Attr.UID, n.Attr.GID = uint32(os.Geteuid()), uint32(os.Getegid())
		}
	}
	set(tree.File("dir/sub/readonly", "content"), 0o444)
	set(tree.File("dir/suid", "x"), 0o4755)
	set(tree.File("dir/bytes-\xff\x01", ""), 0o600)
	set(tree.File("dir/.yester-00000000.part.txt", "not ours"), 0o600)
	set(tree.Symlink("dir/link", "/etc/passwd"), 0o777)
	set(tree.Add("dir/fifo", guestfs.ModeFifo), 0o640)
	set(tree.Add("dir/socket", guestfs.ModeSocket), 0o755)
	set(tree.Mkdir("dir/sub"), 0o555)
	set(tree.Mkdir("dir"), 0o2750)
	for i := range 40 { // more than are synchronised one by one
		set(tree.File(fmt.Sprintf("many/%d/f", i), "x"), 0o644)
		set(tree.Mkdir(fmt.Sprintf("many/%d", i)), 0o755)
	}
	set(tree.Mkdir("many"), 0o755)
	dest := t.TempDir()
	t.Cleanup(func() { os.Chmod(filepath.Join(dest, "dir/sub"), 0o755) })
	res, _ := run(t, tree, dest, Options{})
	if res.Files != 44 || res.Dirs != 43 || res.Others != 3 || res.Failed != 0 || len(res.Losses) != 0 {
		t.Errorf("result %+v", res)
	}
	for name, perm := range map[string]uint32{
		"dir": unix.S_IFDIR | 0o2750, "dir/sub": unix.S_IFDIR | 0o555, "dir/sub/readonly": unix.S_IFREG | 0o444,
		"dir/suid": unix.S_IFREG | 0o4755, "dir/bytes-\xff\x01": unix.S_IFREG | 0o600, "dir/link": unix.S_IFLNK | 0o777,
		"dir/fifo": unix.S_IFIFO | 0o640, "dir/socket": unix.S_IFSOCK | 0o755,
	} {
		st := lstat(t, filepath.Join(dest, name))
		if st.Mode != perm {
			t.Errorf("%q: mode %#o, want %#o", name, st.Mode, perm)
		}
		if os.Geteuid() == 0 && (st.Uid != 12345 || st.Gid != 54321) {
			t.Errorf("%q: owner %d:%d", name, st.Uid, st.Gid)
		}
		if got := (guestfs.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}); got != when {
			t.Errorf("%q: mtime %+v", name, got)
		}
		if got := (guestfs.Time{Sec: st.Atim.Sec, Nsec: uint32(st.Atim.Nsec)}); got != old && st.Mode&unix.S_IFMT == unix.S_IFREG {
			t.Errorf("%q: atime %+v", name, got)
		}
	}
	if l, _ := os.Readlink(filepath.Join(dest, "dir/link")); l != "/etc/passwd" {
		t.Errorf("link to %q", l)
	}
	if b, _ := os.ReadFile(filepath.Join(dest, "dir/sub/readonly")); string(b) != "content" {
		t.Errorf("content %q", b)
	}
}

func TestHardLinks(t *testing.T) {
	tree := newTree()
	n := tree.File("a/one", "shared")
	tree.Link("b/c/two", n)
	tree.Link("a/three", n)
	tree.Mkdir("b").Attr.Mode = guestfs.ModeDir | 0o500
	l := tree.Symlink("a/sym", "x")
	tree.Link("b/sym", l)
	bad := tree.File("a/broken", "")
	bad.Content = failing{64}
	tree.Link("b/broken", bad)
	dest := t.TempDir()
	t.Cleanup(func() { os.Chmod(filepath.Join(dest, "b"), 0o755) })
	res, events := run(t, tree, dest, Options{})
	if res.Files != 3 || res.Others != 2 || res.Failed != 2 {
		t.Errorf("result %+v", res)
	}
	if events["b/broken"].Action != Failed || !errors.Is(events["b/broken"].Err, ondisk.ErrCorrupt) {
		t.Errorf("second name of a file that can't be read: %+v", events["b/broken"])
	}
	one := lstat(t, filepath.Join(dest, "a/one"))
	for _, name := range []string{"b/c/two", "a/three"} {
		if st := lstat(t, filepath.Join(dest, name)); st.Ino != one.Ino || st.Nlink != 3 {
			t.Errorf("%s is inode %d with %d links, want %d with 3", name, st.Ino, st.Nlink, one.Ino)
		}
	}
	if lstat(t, filepath.Join(dest, "a/sym")).Ino != lstat(t, filepath.Join(dest, "b/sym")).Ino {
		t.Error("names of a symbolic link became two links")
	}
	for _, name := range []string{"a", "b", "b/c"} { // their times come after the links
		if st := lstat(t, filepath.Join(dest, name)); st.Mtim.Sec != 1_700_000_000 {
			t.Errorf("%s: mtime %d", name, st.Mtim.Sec)
		}
	}
	res, events = run(t, tree, dest, Options{Overwrite: Always})
	if res.Failed != 2 {
		t.Errorf("again: %+v %v", res, events)
	}
	if st := lstat(t, filepath.Join(dest, "b/c/two")); st.Nlink != 3 {
		t.Errorf("again: %d links", st.Nlink)
	}
}

// failing is content that can't be read.
type failing struct{ size int64 }

func (f failing) Size() int64 { return f.size }
func (f failing) ReadAt([]byte, int64) (int, error) {
	return 0, ondisk.Corruptf("mem", "block", 0, "is gone")
}

// TestHostile copies trees that want out of the destination.
func TestHostile(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	os.WriteFile(victim, []byte("untouched"), 0o600)

	tree := newTree()
	tree.Symlink("dir", outside) // a link …
	evil := tree.Mkdir("real")   // … and a directory of the same name
	tree.File("real/victim", "overwritten")
	tree.File("ok", "fine")
	loop := tree.Mkdir("loop/inner")
	names := []string{"../victim", "..", ".", "", "/etc/x", "a\x00b", "dir"}
	w := &rewriting{Tree: tree, emit: func(dir guestfs.ID, emit func(guestfs.Dirent) bool) {
		switch dir {
		case tree.Root():
			for i, n := range names {
				emit(guestfs.Dirent{Name: n, ID: evil.ID(), Type: guestfs.ModeDir, Next: uint64(1000 + i)})
			}
		case loop.ID():
			emit(guestfs.Dirent{Name: "again", ID: loop.ID(), Type: guestfs.ModeDir, Next: 1000})
			emit(guestfs.Dirent{Name: "root", ID: tree.Root(), Type: 0, Next: 1001})
		}
	}}
	dest := t.TempDir()
	for _, o := range []Overwrite{Never, Always} {
		res, events := run(t, w, dest, Options{Overwrite: o})
		if b, _ := os.ReadFile(victim); string(b) != "untouched" {
			t.Fatal("a file outside the destination was written to")
		}
		if es, _ := os.ReadDir(outside); len(es) != 1 {
			t.Fatalf("outside the destination there is %v", es)
		}
		if res.Failed < 6 {
			t.Errorf("%s: %+v %+v", o, res, events)
		}
		if e := events["loop/inner/again"]; !errors.Is(e.Err, ondisk.ErrCorrupt) {
			t.Errorf("loop: %+v", e)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(dest, "ok")); string(b) != "fine" {
		t.Error("what isn't hostile was not copied")
	}
}

// TestLinkInDestination copies into a destination in which links lie in the way.
func TestLinkInDestination(t *testing.T) {
	tree := newTree()
	tree.File("d/f", "new")
	tree.File("g", "new")
	for _, o := range []Overwrite{Never, IfNewer, IfChanged, Always} {
		outside, dest := t.TempDir(), t.TempDir()
		os.WriteFile(filepath.Join(outside, "g"), []byte("old"), 0o600)
		os.Symlink(outside, filepath.Join(dest, "d"))
		os.Mkdir(filepath.Join(dest, "inside"), 0o755)
		os.Symlink(filepath.Join(outside, "g"), filepath.Join(dest, "g"))
		res, _ := run(t, tree, dest, Options{Overwrite: o})
		if es, _ := os.ReadDir(outside); len(es) != 1 {
			t.Errorf("%s: followed a link to a directory", o)
		}
		if b, _ := os.ReadFile(filepath.Join(outside, "g")); string(b) != "old" {
			t.Errorf("%s: followed a link to a file", o)
		}
		if res.Exists+res.Failed+res.Unchanged == 0 {
			t.Errorf("%s: %+v", o, res)
		}
	}
}

// rewriting adds entries to the directories of a tree.
type rewriting struct {
	guestfs.Tree
	emit func(dir guestfs.ID, emit func(guestfs.Dirent) bool)
}

func (r *rewriting) ReadDir(ctx context.Context, dir guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	if err := r.Tree.ReadDir(ctx, dir, from, emit); err != nil {
		return err
	}
	r.emit(dir, func(e guestfs.Dirent) bool { return e.Next <= from || emit(e) })
	return nil
}

func TestOverwrite(t *testing.T) {
	const mtime = 1_700_000_000
	tests := []struct {
		o       Overwrite
		content string
		age     time.Duration // of the existing file, from the tree's
		want    Action
	}{
		{Never, "same", 0, Exists},
		{IfNewer, "xxxx", 0, Unchanged},
		{IfNewer, "xxxx", time.Second, Unchanged},
		{IfNewer, "xxxx", -time.Nanosecond, Copied},
		{IfChanged, "xxxx", 0, Unchanged},
		{IfChanged, "xxxxx", 0, Copied},
		{IfChanged, "same", time.Nanosecond, Copied},
		{Always, "same", 0, Copied},
	}
	for _, tt := range tests {
		tree := newTree()
		tree.File("d/f", "same")
		tree.Symlink("l", "target")
		tree.Mkdir("d").Attr.Mode = guestfs.ModeDir | 0o700
		dest := t.TempDir()
		os.Mkdir(filepath.Join(dest, "d"), 0o755)
		f := filepath.Join(dest, "d/f")
		os.WriteFile(f, []byte(tt.content), 0o600)
		os.Chtimes(f, time.Unix(mtime, 0), time.Unix(mtime, 0).Add(tt.age))
		os.Symlink("target", filepath.Join(dest, "l"))
		dry, _ := run(t, tree, dest, Options{Overwrite: tt.o, DryRun: true})
		if b, _ := os.ReadFile(f); string(b) != tt.content {
			t.Errorf("%+v: a dry run wrote", tt)
		}
		res, events := run(t, tree, dest, Options{Overwrite: tt.o})
		if got := events["d/f"].Action; got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
		if dry.Files != res.Files || dry.Exists != res.Exists || dry.Unchanged != res.Unchanged {
			t.Errorf("%+v: dry run %+v, real %+v", tt, dry, res)
		}
		want := tt.content
		if tt.want == Copied {
			want = "same"
		}
		if b, _ := os.ReadFile(f); string(b) != want {
			t.Errorf("%+v: holds %q", tt, b)
		}
		mode := uint32(0o700)
		if tt.o == Never {
			mode = 0o755
		}
		if st := lstat(t, filepath.Join(dest, "d")); st.Mode&0o777 != mode {
			t.Errorf("%+v: existing directory has mode %#o", tt, st.Mode)
		}
	}
}

func TestTypesInTheWay(t *testing.T) {
	tree := newTree()
	tree.File("dir", "a file")
	tree.File("file/x", "in a directory")
	for o, want := range map[Overwrite][2]Action{Never: {Exists, Exists}, Always: {Failed, Failed}} {
		dest := t.TempDir()
		os.MkdirAll(filepath.Join(dest, "dir/keep"), 0o755)
		os.WriteFile(filepath.Join(dest, "file"), []byte("keep"), 0o644)
		_, events := run(t, tree, dest, Options{Overwrite: o})
		if got := [2]Action{events["dir"].Action, events["file"].Action}; got != want {
			t.Errorf("%s: %v %+v", o, got, events)
		}
		if _, err := os.Stat(filepath.Join(dest, "dir/keep")); err != nil {
			t.Error(err)
		}
	}
}

func TestProtected(t *testing.T) {
	tree := newTree()
	tree.File("disk.vhd", "x")
	dest := t.TempDir()
	src := filepath.Join(dest, "disk.vhd")
	os.WriteFile(src, []byte("the source"), 0o644)
	fi, _ := os.Stat(src)
	_, events := run(t, tree, dest, Options{Overwrite: Always, Protected: func(o os.FileInfo) bool { return os.SameFile(fi, o) }})
	if b, _ := os.ReadFile(src); string(b) != "the source" || events["disk.vhd"].Action != Failed {
		t.Errorf("%q %+v", b, events)
	}
}

// hole is content of which only parts are data.
type holey struct {
	*bytes.Reader
	hole [2]int64
}

func (h *holey) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	switch {
	case off < h.hole[0]:
		return block.Extent{Len: min(n, h.hole[0]-off)}, nil
	case off < h.hole[1]:
		return block.Extent{Len: min(n, h.hole[1]-off), Zero: true}, nil
	}
	return block.Extent{Len: n}, nil
}

// TestContent copies large files of all kinds and compares them.
func TestContent(t *testing.T) {
	const size = 3*segment + 12345
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i*7 + i>>11 + 1)
	}
	clear(data[5<<20 : 14<<20])
	clear(data[20<<20+100 : 20<<20+9000])
	clear(data[size-100000:])
	host := filepath.Join(t.TempDir(), "host")
	if err := os.WriteFile(host, append(make([]byte, 4096), data...), 0o644); err != nil {
		t.Fatal(err)
	}
	hf, err := os.Open(host)
	if err != nil {
		t.Fatal(err)
	}
	defer hf.Close()
	tree := newTree()
	tree.File("plain", "").Content = bytes.NewReader(data)
	tree.File("hole", "").Content = &holey{bytes.NewReader(data), [2]int64{5 << 20, 14 << 20}}
	tree.File("located", "").Content = located{hf, 4096, size}
	tree.File("unaligned", "").Content = located{hf, 4096 + 77, size - 77}
	dest := t.TempDir()
	var p Progress
	p.WantTotals = true
	res, events := run(t, tree, dest, Options{Progress: &p})
	if res.Files != 4 || res.Bytes != 4*size-77 {
		t.Fatalf("%+v %+v", res, events)
	}
	if s := p.Snapshot(); s.Bytes != 4*size-77 || s.TotalBytes != s.Bytes || s.Files != 4 || s.TotalFiles != 4 || !s.TotalsKnown {
		t.Errorf("progress %+v", s)
	}
	for _, name := range []string{"plain", "hole", "located", "unaligned"} {
		want := data
		if name == "unaligned" {
			want = data[77:]
		}
		got, err := os.ReadFile(filepath.Join(dest, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs: %v", name, err)
		}
	}
	for _, name := range []string{"plain", "hole"} {
		if st := lstat(t, filepath.Join(dest, name)); st.Blocks*512 > size-9<<20+64<<10 {
			t.Errorf("%s takes %d bytes", name, st.Blocks*512)
		}
	}
}

// located is content that lies in a host file.
type located struct {
	f         *os.File
	off, size int64
}

func (l located) Size() int64 { return l.size }
func (l located) ReadAt(p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), l.size)
	if n == 0 {
		return 0, eof
	}
	if got, err := l.f.ReadAt(p[:n], l.off+off); got < n {
		return got, fmt.Errorf("cut off (%v): %w", err, ondisk.ErrCorrupt)
	}
	return n, eof
}
func (l located) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	return block.Extent{Len: n, File: l.f, Off: l.off + off}, nil
}

// TestCutOff copies from a host file that has become shorter.
func TestCutOff(t *testing.T) {
	host := filepath.Join(t.TempDir(), "host")
	os.WriteFile(host, bytes.Repeat([]byte{1}, 2<<20), 0o644)
	hf, err := os.Open(host)
	if err != nil {
		t.Fatal(err)
	}
	defer hf.Close()
	tree := newTree()
	tree.File("big", "").Content = located{hf, 0, 12 << 20}
	tree.File("fine", "x")
	dest := t.TempDir()
	res, events := run(t, tree, dest, Options{})
	if res.Failed != 1 || res.Files != 1 || !errors.Is(events["big"].Err, ondisk.ErrCorrupt) {
		t.Errorf("%+v %+v", res, events)
	}
	if es, _ := os.ReadDir(dest); len(es) != 1 {
		t.Errorf("left behind: %v", es)
	}
}

// slow is content that takes until its context is over.
type slow struct{ started chan struct{} }

func (s *slow) Size() int64                       { return 20 << 20 }
func (s *slow) ReadAt([]byte, int64) (int, error) { panic("not abandonable") }
func (s *slow) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off == 0 {
		clear(p)
		p[0] = 1
		return len(p), nil
	}
	select {
	case s.started <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return 0, ctx.Err()
}

// TestCancel ends a run in the middle of a file.
func TestCancel(t *testing.T) {
	s := &slow{make(chan struct{}, 1)}
	tree := newTree()
	tree.File("d/slow", "").Content = s
	tree.Mkdir("d").Attr.Mode = guestfs.ModeDir | 0o751
	dir := t.TempDir()
	dest, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dest.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-s.started
		cancel()
	}()
	_, err = Copy(ctx, tree, dest, []Item{{ID: tree.Root(), Path: "/"}}, Options{})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if es, _ := os.ReadDir(filepath.Join(dir, "d")); len(es) != 0 {
		t.Errorf("left behind: %v", es)
	}
	if st := lstat(t, filepath.Join(dir, "d")); st.Mode&0o777 != 0o751 || st.Mtim.Sec != 1_700_000_000 {
		t.Errorf("the directory has mode %#o, mtime %d", st.Mode, st.Mtim.Sec)
	}
}
