package origin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// beneathFD finds files below a folder with one openat2(2) each, where os.Root
// opens every directory on the way. The kernel keeps the same promise: no step, no
// link leads out of the folder. Whatever it refuses for other reasons than that the
// file isn't there, os.Root is asked again, so that results don't depend on which of
// the two was at work.
type beneathFD struct {
	dir  *os.File
	conn syscall.RawConn
	off  atomic.Bool // the kernel, or a filter of system calls, has no openat2
}

// newBeneathFD returns nil when the folder can't be opened as a file.
func newBeneathFD(root *os.Root) *beneathFD {
	dir, err := root.Open(".")
	if err != nil {
		return nil
	}
	conn, err := dir.SyscallConn()
	if err != nil {
		dir.Close()
		return nil
	}
	return &beneathFD{dir: dir, conn: conn}
}

func (b *beneathFD) close() {
	if b != nil {
		b.dir.Close()
	}
}

// openat opens name. ok is false when os.Root must be asked.
func (b *beneathFD) openat(name string, flags uint64) (fd int, ok bool, err error) {
	if b == nil || name == "" || b.off.Load() {
		return -1, false, nil
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	ctlErr := b.conn.Control(func(dir uintptr) {
		for {
			if fd, err = unix.Openat2(int(dir), filepath.FromSlash(name), &how); err != unix.EINTR {
				return
			}
		}
	})
	switch {
	case ctlErr != nil: // closed
		return -1, false, nil
	case err == nil:
		return fd, true, nil
	case errors.Is(err, unix.ENOENT):
		return -1, true, &fs.PathError{Op: "openat2", Path: name, Err: err}
	case errors.Is(err, unix.ENOSYS):
		b.off.Store(true)
	}
	return -1, false, nil
}

// lstat is Folder.Lstat.
func (b *beneathFD) lstat(name string) (info Info, ok bool, err error) {
	fd, ok, err := b.openat(name, unix.O_PATH|unix.O_NOFOLLOW)
	if !ok || err != nil {
		return Info{}, ok, err
	}
	defer unix.Close(fd)
	st, err := fstat(fd)
	if err != nil {
		return Info{}, true, &fs.PathError{Op: "fstat", Path: name, Err: err}
	}
	return infoOfStat(&st), true, nil
}

// open is Folder.Open.
func (b *beneathFD) open(name string) (f *HostFile, ok bool, err error) {
	fd, ok, err := b.openat(name, unix.O_RDONLY|openFlags)
	if !ok || err != nil {
		return nil, ok, err
	}
	st, err := fstat(fd)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("%s: %w", name, ErrNotRegular)
	}
	if err == nil {
		// os.File would take what doesn't block for something to be polled.
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	}
	if err != nil {
		unix.Close(fd)
		return nil, true, err
	}
	return &HostFile{f: os.NewFile(uintptr(fd), name), name: name, version: versionOfStat(&st)}, true, nil
}

func fstat(fd int) (st syscall.Stat_t, err error) {
	for {
		if err = syscall.Fstat(fd, &st); err != syscall.EINTR {
			return st, err
		}
	}
}

func versionOfStat(st *syscall.Stat_t) Version {
	return Version{Dev: st.Dev, Ino: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}
}

func infoOfStat(st *syscall.Stat_t) Info {
	return Info{
		Version: versionOfStat(st), Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid,
		Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), Blocks: st.Blocks,
		Atime: time.Unix(st.Atim.Unix()), Mtime: time.Unix(st.Mtim.Unix()), Ctime: time.Unix(st.Ctim.Unix()),
	}
}
