package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"

	"yester/cache/store"
	"yester/fusefs"
	"yester/guestfs"
	"yester/guestfs/guestview"
	"yester/imageformats/ebs"
	"yester/internal/exitcode"
	"yester/internal/ondisk"
	"yester/origin/sftp"
	"yester/restorepoint"
	"yester/restorepoint/timeexpr"
)

// codedError is an error with its exit code and hint.
type codedError struct {
	msg  string
	hint string // "" leaves it to the table
	code int
	err  error // the cause, which msg need not repeat; may be nil
}

func (e *codedError) Error() string {
	switch {
	case e.err == nil:
		return e.msg
	case e.msg == "":
		return e.err.Error()
	}
	return e.msg + ": " + e.err.Error()
}

func (e *codedError) Unwrap() error { return e.err }

// sourceError is about a source that could not be opened or listed.
type sourceError struct {
	location string
	err      error
}

func (e *sourceError) Error() string {
	msg := e.err.Error()
	var pe *fs.PathError
	if errors.As(e.err, &pe) { // "lstat /backups/web: no such file or directory"
		msg = pe.Path + ": " + pe.Err.Error()
	}
	if strings.Contains(msg, e.location) {
		return msg
	}
	return e.location + ": " + msg
}

func (e *sourceError) Unwrap() error { return e.err }

// silentError carries an exit code for errors that have been printed.
type silentError struct{ code int }

func (e *silentError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// isAny reports whether err matches one of targets.
func isAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// code is the table from errors to exit codes.
func code(err error) int {
	var coded *codedError
	var silent *silentError
	var source *sourceError
	var sys syscall.Errno
	var path *fs.PathError
	switch {
	case err == nil:
		return exitcode.OK
	case errors.As(err, &silent):
		return silent.code
	case errors.As(err, &coded):
		return coded.code
	case isAny(err, context.Canceled, context.DeadlineExceeded):
		return exitcode.Partial
	case errors.Is(err, ebs.ErrNotFound):
		return exitcode.NotFound
	case isAny(err, sftp.ErrConnection, ebs.ErrDenied, ebs.ErrKMS, ebs.ErrNotOwner, ebs.ErrCredentials, ebs.ErrRegion,
		ebs.ErrThrottled, ebs.ErrUnreachable, ebs.ErrMaxCost, ebs.ErrPending, ebs.ErrArchived, ebs.ErrRecycleBin):
		return exitcode.Unreachable
	case errors.As(err, &path) && path.Op == "write": // never to a source
		return exitcode.Partial
	case isAny(err, timeexpr.ErrSyntax, fusefs.ErrMountpoint, store.ErrUnsafe):
		return exitcode.Usage
	case isAny(err, ondisk.ErrCorrupt, ondisk.ErrUnsupported, ondisk.ErrFormat, guestfs.ErrEncrypted, io.ErrUnexpectedEOF):
		return exitcode.Damaged
	case errors.As(err, &source):
		return exitcode.Unreachable
	case isAny(err, restorepoint.ErrNotFound, timeexpr.ErrNotFound, guestview.ErrNoRoot, guestfs.ErrNotExist, guestfs.ErrNotDir, guestfs.ErrLoop):
		return exitcode.NotFound
	case isAny(err, guestfs.ErrIsDir, guestfs.ErrInvalid, guestfs.ErrTooLong):
		return exitcode.Partial
	case errors.As(err, &sys): // what the host says of the files of the source
		return exitcode.Unreachable
	}
	return exitcode.Partial
}

// hint is the table from errors to what may help; "" for most.
func hint(err error) string {
	var coded *codedError
	var source *sourceError
	var format *ondisk.FormatError
	var aws *ebs.Error
	if errors.As(err, &coded) && coded.hint != "" {
		return coded.hint
	}
	if errors.As(err, &aws) && aws.Hint() != "" {
		return aws.Hint()
	}
	switch {
	case isAny(err, context.Canceled):
		return ""
	case errors.Is(err, sftp.ErrConnection) && strings.Contains(err.Error(), "Host key verification failed"):
		return "connect once by ssh yourself, check the host's key, and let ssh remember it"
	case errors.Is(err, sftp.ErrConnection):
		return "yester never asks for a password: `ssh` to that host must work with a key or an agent; --ssh 'ssh -i FILE' names a key"
	case errors.Is(err, restorepoint.ErrChanged):
		return "something writes to the source; try again when it has finished, or read from a copy or snapshot"
	case errors.As(err, &format) && format.Format == "jbd2":
		return "--replay=off shows the filesystem as it lies there, without its journal: files may be stale or missing"
	case errors.As(err, &format) && format.Field == "parent" && strings.Contains(format.Msg, "time stamp"):
		return "a parent that was written to makes its children worthless; --allow-changed-parent opens it if only its time stamp was changed"
	case errors.Is(err, fusefs.ErrDeadMount):
		return "`yester umount DIR` cleans it up"
	case errors.Is(err, fusefs.ErrMountpoint):
		return "choose an existing directory that is outside the source"
	case errors.Is(err, store.ErrUnsafe):
		return "choose another directory by --cache-dir, or make this one private: chmod 700"
	case errors.Is(err, timeexpr.ErrSyntax):
		return "examples: --at latest, --at 10D, --at '2006-07-28 02:30', --at 3B; see `yester --help`"
	case errors.Is(err, timeexpr.ErrNotFound):
		return "`yester points SOURCE` lists the restore points"
	case errors.As(err, &source) && errors.Is(err, fs.ErrPermission):
		return "run it as root, or as a user who may read the source"
	case errors.As(err, &source) && errors.Is(err, fs.ErrNotExist):
		return "SOURCE is a disk image, a folder in which disk images lie, or an rdiff-backup repository"
	case errors.Is(err, guestfs.ErrIsDir):
		return "`yester ls` lists directories, `yester cp` copies them"
	case errors.Is(err, guestfs.ErrNotExist), errors.Is(err, guestfs.ErrNotDir):
		return "it may be there at another time: see `yester points`, and --at"
	case errors.Is(err, ondisk.ErrFormat):
		return "yester reads VHD, VHDX, VMDK and raw images with ext2, ext3 or ext4 in partitions or on the whole disk, and rdiff-backup repositories"
	}
	return ""
}

// message is what is printed of err.
func message(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	return err.Error()
}

// tally counts what went right and wrong of several things, to find the exit
// code of all.
type tally struct {
	ok    int
	codes []int
}

// result returns nil when nothing went wrong, or an error whose cause has been
// printed: with the one exit code of everything if all of it failed for one
// reason, else that of a partial failure.
func (t *tally) result() error {
	if len(t.codes) == 0 {
		return nil
	}
	c := t.codes[0]
	for _, other := range t.codes {
		if other != c {
			c = exitcode.Partial
		}
	}
	if t.ok > 0 {
		c = exitcode.Partial
	}
	return &silentError{code: c}
}
