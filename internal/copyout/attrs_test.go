package copyout

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"yester/guestfs"
)

// skip passes a test over that this host can't run; in CI, where all is to be had,
// it fails it.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func TestXattrs(t *testing.T) {
	dest := t.TempDir()
	if err := unix.Setxattr(dest, "user.try", []byte("1"), 0); err != nil {
		skip(t, "the host's filesystem has no extended attributes: %v", err)
	}
	tree := newTree()
	f := tree.File("d/f", "x")
	f.Attr.Mode = guestfs.ModeRegular | 0o470
	acl := posixACL(4, 4, 7, map[uint32]uint16{1234: 6}) // group r, mask rwx
	f.Xattrs = map[string][]byte{
		"user.a": []byte("value\x00\xff"), "user.empty": {}, accessACL: acl,
		"nonsense.x": []byte("no such namespace"),
	}
	plain := tree.File("d/plain", "x")
	plain.Attr.Mode = guestfs.ModeRegular | 0o640
	d := tree.Mkdir("d")
	d.Xattrs = map[string][]byte{"user.dir": []byte("d")}
	if os.Geteuid() == 0 {
		f.Xattrs["trusted.t"] = []byte("t")
		tree.Symlink("l", "nowhere").Xattrs = map[string][]byte{"trusted.l": []byte("link")}
		tree.Add("fifo", guestfs.ModeFifo|0o600).Xattrs = map[string][]byte{"trusted.f": []byte("fifo")}
	}
	// What the destination would pass on must not reach the copies.
	if err := unix.Setxattr(dest, defaultACL, posixACL(7, 7, 7, map[uint32]uint16{999: 7}), 0); err != nil {
		skip(t, "the host's filesystem has no ACLs: %v", err)
	}
	res, events := run(t, tree, dest, Options{})
	res.Losses = slices.DeleteFunc(res.Losses, func(l Loss) bool { return l.Kind == lossOwner && os.Geteuid() != 0 })
	if res.Failed != 0 || len(res.Losses) != 1 || res.Losses[0].Kind != "nonsense.* extended attributes" {
		t.Errorf("%+v %+v", res, events)
	}
	get := func(path, name string) string {
		b := make([]byte, 1000)
		n, err := unix.Lgetxattr(filepath.Join(dest, path), name, b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	for name, v := range f.Xattrs {
		if got := get("d/f", name); got != string(v) && name != "nonsense.x" {
			t.Errorf("%s is %q, want %q", name, got, v)
		}
	}
	if got := get("d", "user.dir"); got != "d" {
		t.Errorf("directory: %q", got)
	}
	if st := lstat(t, filepath.Join(dest, "d/f")); st.Mode&0o777 != 0o470 {
		t.Errorf("mode %#o", st.Mode)
	}
	none := unix.ENODATA.Error()
	for _, name := range []string{"d", "d/plain"} {
		if got := get(name, accessACL); got != none {
			t.Errorf("%s: inherited ACL %q", name, got)
		}
	}
	if got := get("d", defaultACL); got != none {
		t.Errorf("inherited default ACL %q", got)
	}
	if os.Geteuid() == 0 {
		if got := get("l", "trusted.l") + get("fifo", "trusted.f"); got != "linkfifo" {
			t.Errorf("attributes of link and FIFO: %q", got)
		}
	}
}

// posixACL encodes an ACL as include/uapi/linux/posix_acl_xattr.h says.
func posixACL(owner, group, mask uint16, users map[uint32]uint16) []byte {
	b := []byte{2, 0, 0, 0}
	add := func(tag, perm uint16, id uint32) {
		b = append(b, byte(tag), 0, byte(perm), 0, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	const none = 1<<32 - 1
	add(1, owner, none)
	for id, perm := range users {
		add(2, perm, id)
	}
	add(4, group, none)
	add(0x10, mask, none)
	add(0x20, 0, none)
	return b
}

func TestWithoutMask(t *testing.T) {
	if got := withoutMask(0o100770, posixACL(7, 4, 7, nil)); got != 0o100740 {
		t.Errorf("%#o", got)
	}
	if got := withoutMask(0o100750, posixACL(7, 7, 5, nil)); got != 0o100750 {
		t.Errorf("%#o", got)
	}
	if got := withoutMask(0o770, []byte{2}); got != 0o700 {
		t.Errorf("%#o", got)
	}
}

func TestDevices(t *testing.T) {
	tree := newTree()
	n := tree.Add("dev/null", guestfs.ModeChar|0o666)
	n.Attr.Major, n.Attr.Minor = 1, 3
	n = tree.Add("dev/big", guestfs.ModeBlock|0o600)
	n.Attr.Major, n.Attr.Minor = 259, 70000
	dest := t.TempDir()
	res, events := run(t, tree, dest, Options{})
	if os.Geteuid() != 0 {
		if res.Failed != 2 || !strings.Contains(events["dev/null"].Err.Error(), "only root") {
			t.Errorf("%+v %+v", res, events)
		}
		return
	}
	st := lstat(t, filepath.Join(dest, "dev/big"))
	if res.Others != 2 || st.Mode != unix.S_IFBLK|0o600 || st.Rdev != unix.Mkdev(259, 70000) {
		t.Errorf("%+v: mode %#o dev %#x", res, st.Mode, st.Rdev)
	}
}

// TestUnprivileged runs as root under another user's identity: in the child
// process, since an identity belongs to all of a process's threads.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "needs root to become somebody else")
	}
	dir := t.TempDir()
	for p := dir; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		os.Chmod(p, 0o755)
	}
	dest := filepath.Join(dir, "dest")
	os.Mkdir(dest, 0o755)
	os.Chown(dest, 65534, 65534)
	asNobody(t, func() {
		tree := newTree()
		f := tree.File("d/suid", "x")
		f.Attr.Mode = guestfs.ModeRegular | 0o6755
		f.Xattrs = map[string][]byte{"trusted.x": []byte("1"), "security.capability": []byte("x")}
		tree.Mkdir("d").Attr.Mode = guestfs.ModeDir | 0o500
		n := tree.Add("null", guestfs.ModeChar|0o666)
		n.Attr.Major, n.Attr.Minor = 1, 3
		res, events := run(t, tree, dest, Options{})
		var kinds []string
		for _, l := range res.Losses {
			kinds = append(kinds, l.Kind)
		}
		slices.Sort(kinds)
		want := []string{lossOwner, "security.* extended attributes", lossSetID, "trusted.* extended attributes"}
		if !slices.Equal(kinds, want) {
			t.Errorf("lost %q, want %q", kinds, want)
		}
		if res.Files != 1 || events["null"].Action != Failed {
			t.Errorf("%+v %+v", res, events)
		}
	})
	if st := lstat(t, filepath.Join(dest, "d/suid")); st.Mode&0o7777 != 0o755 || st.Uid != 65534 {
		t.Errorf("mode %#o, owner %d", st.Mode, st.Uid)
	}
}

// asNobody runs f with the effective identity of user and group 65534.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(-1, 65534, -1), syscall.Setresuid(-1, 65534, -1)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(syscall.Setresuid(-1, 0, -1), syscall.Setresgid(-1, 0, -1), syscall.Setgroups([]int{0})); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

// TestFull ends a run whose destination has no room left.
func TestFull(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "needs root to mount a small filesystem")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		skip(t, "can't mount: %v", err)
	}
	defer unix.Unmount(dir, 0)
	tree := newTree()
	tree.File("a", "").Content = bytes.NewReader(bytes.Repeat([]byte{1}, 4<<20))
	dest, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dest.Close()
	_, err = Copy(t.Context(), tree, dest, []Item{{ID: tree.Root(), Path: "/"}}, Options{})
	if !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	if es, _ := os.ReadDir(dir); len(es) != 0 {
		t.Errorf("left behind: %v", es)
	}
}
