package copyout

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"yester/guestfs"
)

// errProtected is about a file of the source itself.
var errProtected = errors.New("is a file of the source, which is never written to")

// existing returns what lies at name in d; nil when nothing does.
func (d *hostDir) existing(name string) (os.FileInfo, error) {
	if d.root == nil {
		return nil, nil
	}
	fi, err := d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return fi, err
}

// decide says what becomes of a file in whose place old lies: Copied when it is
// to be replaced.
func (c *copier) decide(j job, attr *guestfs.Attr, target string, old os.FileInfo) (Action, error) {
	if c.opt.Overwrite == Never {
		return Exists, nil
	}
	if old.IsDir() {
		return "", errIsDirectory
	}
	if c.opt.Protected != nil && c.opt.Protected(old) {
		return "", errProtected
	}
	mtime := attr.Mtime.Time()
	switch c.opt.Overwrite {
	case IfNewer:
		if !mtime.After(old.ModTime()) {
			return Unchanged, nil
		}
	case IfChanged:
		st, ok := old.Sys().(*syscall.Stat_t)
		if !ok || st.Mode&guestfs.ModeType != attr.Mode&guestfs.ModeType {
			break
		}
		switch {
		case attr.IsSymlink():
			if was, err := j.dir.root.Readlink(j.name); err == nil && was == target {
				return Unchanged, nil
			}
		case attr.IsRegular():
			if old.Size() == attr.Size && old.ModTime().Equal(mtime) {
				return Unchanged, nil
			}
		case st.Rdev == unix.Mkdev(attr.Major, attr.Minor):
			return Unchanged, nil
		}
	}
	return Copied, nil
}

// temp calls make with temporary names until one isn't taken, and returns it.
func temp(make func(name string) error) (string, error) {
	for range 100 {
		name := fmt.Sprintf(".yester-%08x.part", rand.Uint32())
		if err := make(name); !errors.Is(err, fs.ErrExist) {
			return name, err
		}
	}
	return "", errors.New("no temporary name is free")
}

// create makes the file name, which isn't there yet. os.Root would have it polled,
// in vain, with five system calls.
func (d *hostDir) create(name string) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(d.fd.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &fs.PathError{Op: "openat", Path: name, Err: err}
		}
	}
}

// place renames what is whole to its name. Nothing is replaced unless replace is
// set: whatever took the name meanwhile stays, and the action is Exists.
func (d *hostDir) place(tmp, name string, replace bool) (Action, error) {
	if !replace {
		fd := int(d.fd.Fd())
		err := unix.Renameat2(fd, tmp, fd, name, unix.RENAME_NOREPLACE)
		switch {
		case err == nil:
			return Copied, nil
		case errors.Is(err, unix.EEXIST):
			d.root.Remove(tmp)
			return Exists, nil
		case !noReplaceUnsupported(err):
			return "", &os.LinkError{Op: "rename", Old: tmp, New: name, Err: err}
		}
		if _, err := d.root.Lstat(name); err == nil {
			d.root.Remove(tmp)
			return Exists, nil
		}
	}
	return Copied, d.root.Rename(tmp, name)
}
