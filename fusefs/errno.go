package fusefs

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/guestfs"
	"yester/internal/ondisk"
	"yester/restorepoint"
)

// errStale is what a look into a point gets that has vanished from the source,
// or whose files have changed there.
var errStale = errors.New("the restore point has changed or vanished in the source")

// status is the table from errors to what the kernel is told. Everything that
// says the data can't be had is EIO, whose cause goes to the log.
func status(err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, guestfs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, guestfs.ErrNotDir):
		return fuse.ENOTDIR
	case errors.Is(err, guestfs.ErrIsDir):
		return fuse.Status(syscall.EISDIR)
	case errors.Is(err, guestfs.ErrInvalid):
		return fuse.EINVAL
	case errors.Is(err, guestfs.ErrNoXattr):
		return fuse.ENODATA
	case errors.Is(err, guestfs.ErrEncrypted):
		return fuse.Status(syscall.ENOKEY)
	case errors.Is(err, errStale), errors.Is(err, restorepoint.ErrChanged):
		return fuse.Status(syscall.ESTALE)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fuse.EINTR
	case errors.Is(err, ondisk.ErrUnsupported):
		return fuse.Status(syscall.EOPNOTSUPP)
	case errors.Is(err, fs.ErrPermission):
		return fuse.EACCES
	}
	return fuse.EIO
}

// worthLogging tells the errors that are a cause from those that are an answer.
func worthLogging(st fuse.Status) bool {
	switch st {
	case fuse.EIO, fuse.EACCES, fuse.Status(syscall.EOPNOTSUPP), fuse.Status(syscall.ESTALE):
		return true
	}
	return false
}
