package copyout

import (
	"errors"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// syncEach is how many files, and how many directories, are synchronised one by
// one. From there on, one syncfs(2) for all of them costs less.
const syncEach = 32

// syncer sees to it that what a run has copied is on disk when it ends.
type syncer struct {
	files, dirs atomic.Int64
	bulk        atomic.Bool // syncfs is needed at the end
}

// file synchronises f, or leaves it to finish. A file that replaces another can't
// wait: the other's blocks may be gone before its own are written.
func (s *syncer) file(f *os.File, replaces bool) error {
	if s.files.Add(1) <= syncEach || replaces {
		return ignoreUnsupported(f.Sync())
	}
	s.bulk.Store(true)
	return nil
}

// dir synchronises the entries of a directory, or leaves them to finish.
func (s *syncer) dir(fd *os.File) error {
	if s.dirs.Add(1) <= syncEach {
		return ignoreUnsupported(fd.Sync())
	}
	s.bulk.Store(true)
	return nil
}

func (s *syncer) finish(dest *os.Root) error {
	if !s.bulk.Load() {
		return nil
	}
	fd, err := dest.Open(".")
	if err != nil {
		return err
	}
	defer fd.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(fd.Fd())))
}

// ignoreUnsupported drops what filesystems say that have nothing to synchronise.
func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
