package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// change is something that is done to a file of the cache. Tests see every one
// before it is made, to replay what a power failure would have left, or to fail it.
type change struct {
	kind kind
	file *file
	off  int64
	data []byte // written bytes
	n    int64  // length punched, size truncated to
}

type kind int

const (
	write kind = iota
	punch
	truncate
	dataSync
)

// file is a file of the cache: of the directory, or memory (memfd).
type file struct {
	*os.File
	name string
	hook func(change) error // nil outside tests, and for memory
}

func (f *file) before(c change) error {
	if f.hook == nil {
		return nil
	}
	c.file = f
	return f.hook(c)
}

func (f *file) writeAt(p []byte, off int64) error {
	if err := f.before(change{kind: write, off: off, data: p}); err != nil {
		return err
	}
	_, err := f.WriteAt(p, off)
	return err
}

// punch gives back the space of n bytes at off, which then read as zeros.
func (f *file) punch(off, n int64) error {
	if err := f.before(change{kind: punch, off: off, n: n}); err != nil {
		return err
	}
	return eintr(func() error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

func (f *file) truncate(n int64) error {
	if err := f.before(change{kind: truncate, n: n}); err != nil {
		return err
	}
	return f.Truncate(n)
}

// sync returns once the file's bytes are on disk.
func (f *file) sync() error {
	if err := f.before(change{kind: dataSync}); err != nil {
		return err
	}
	return eintr(func() error { return unix.Fdatasync(int(f.Fd())) })
}

// lock tries to set a lock of the kind (F_RDLCK, F_WRLCK, F_UNLCK) on n bytes at
// off (n = 0: all that follow). Such a lock belongs to the open file description:
// the kernel drops it when the process ends, however that comes. It is false when
// another description has a lock in the way.
func (f *file) lock(kind int16, off, n int64) (bool, error) {
	lk := unix.Flock_t{Type: kind, Whence: 0, Start: off, Len: n}
	err := eintr(func() error { return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk) })
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

// lockWithin is lock that tries again for that long.
func (f *file) lockWithin(d time.Duration, kind int16, off, n int64) (bool, error) {
	ok, err := f.lock(kind, off, n)
	for start, pause := time.Now(), 50*time.Microsecond; !ok && err == nil && time.Since(start) < d; pause = min(2*pause, 5*time.Millisecond) {
		time.Sleep(pause)
		ok, err = f.lock(kind, off, n)
	}
	return ok, err
}

func (f *file) unlock(off, n int64) {
	// Dropping a lock fails only for a closed file, which has none.
	_, _ = f.lock(unix.F_UNLCK, off, n)
}

// held returns what the file takes up on its disk, in bytes.
func (f *file) held() int64 {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0
	}
	return st.Blocks * 512
}

func eintr(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// directory is the cache's folder, by descriptor, so that nothing in its path can
// be exchanged under a running process.
type directory struct {
	*os.File
	hook func(change) error
}

// open opens a plain file of the directory. A symbolic link, or what isn't a
// plain file of this user's, is an error that wraps errForeign.
func (d *directory) open(name string, flags int) (*file, error) {
	var fd int
	err := eintr(func() (err error) {
		fd, err = unix.Openat(int(d.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
		return err
	})
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENXIO):
		return nil, &fs.PathError{Op: "open", Path: name, Err: errForeign}
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := &file{File: os.NewFile(uintptr(fd), name), name: name, hook: d.hook}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = f.Close()
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 || st.Nlink > 1 {
		_ = f.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: errForeign}
	}
	return f, nil
}

// openOurs is open that removes what isn't a plain file of ours and makes an
// empty one in its place. A folder there stays, and is an error.
func (d *directory) openOurs(name string) (*file, error) {
	const flags = unix.O_RDWR | unix.O_CREAT
	f, err := d.open(name, flags)
	if errors.Is(err, errForeign) {
		if err := d.remove(name); err != nil {
			return nil, err
		}
		f, err = d.open(name, flags)
	}
	return f, err
}

// temp makes a file of a name that nothing has.
func (d *directory) temp() (*file, error) {
	var b [12]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	f, err := d.open(tempPrefix+hex.EncodeToString(b[:]), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return nil, err
	}
	// Its sweeper takes it for left behind once nobody has it locked.
	_, _ = f.lock(unix.F_RDLCK, 0, 1)
	return f, nil
}

func (d *directory) remove(name string) error {
	err := unix.Unlinkat(int(d.Fd()), name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

func (d *directory) rename(from, to string) error {
	if err := unix.Renameat(int(d.Fd()), from, int(d.Fd()), to); err != nil {
		return &fs.PathError{Op: "rename", Path: to, Err: err}
	}
	return nil
}

// is reports whether the name still leads to f.
func (d *directory) is(name string, f *file) bool {
	var a, b unix.Stat_t
	return unix.Fstatat(int(d.Fd()), name, &a, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstat(int(f.Fd()), &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// names lists the directory.
func (d *directory) names() ([]string, error) {
	// A descriptor of its own: a listing moves the position that all share.
	fd, err := unix.Openat(int(d.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("list the cache: %w", err)
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	return f.Readdirnames(-1)
}

// memory makes a file that lies in memory only.
func memory(name string) (*file, error) {
	fd, err := unix.MemfdCreate("yester-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	return &file{File: os.NewFile(uintptr(fd), name), name: name}, nil
}
