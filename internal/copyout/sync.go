package copyout

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// syncEach is how many files, and how many directories, are synchronised one by
// one. Of more, one syncfs(2) for all of them costs less.
const syncEach = 32

// syncer sees to it that what a run has copied is on disk when it ends. Which of
// the two ways costs less is known only then: the first files and directories stay
// open until the end, or until there are too many.
type syncer struct {
	bulk atomic.Bool // syncfs is needed at the end

	mu          sync.Mutex // of what follows
	files, dirs int
	open        []*os.File
}

// file leaves f, which is to be called name, to finish. A file that replaces another
// can't wait: the other's blocks may be gone before its own are written.
func (s *syncer) file(f *os.File, name string, replaces bool) error {
	if replaces {
		return ignoreUnsupported(f.Sync())
	}
	return s.later(f, name, &s.files)
}

// dir leaves the entries of a directory to finish.
func (s *syncer) dir(fd *os.File, name string) error { return s.later(fd, name, &s.dirs) }

func (s *syncer) later(f *os.File, name string, count *int) error {
	if s.bulk.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if *count++; *count > syncEach {
		s.bulk.Store(true)
		s.closeLocked()
		return nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return ignoreUnsupported(f.Sync())
	}
	s.open = append(s.open, os.NewFile(uintptr(fd), name))
	return nil
}

func (s *syncer) closeLocked() {
	for _, f := range s.open {
		f.Close()
	}
	s.open = nil
}

func (s *syncer) finish(dest *os.Root) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.closeLocked()
	if !s.bulk.Load() {
		var g errgroup.Group
		g.SetLimit(workers)
		for _, f := range s.open {
			g.Go(func() error { return ignoreUnsupported(f.Sync()) })
		}
		return g.Wait()
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
