// Package origin gives bytes by name: the files that a source is made of. Every
// one is opened read-only and pinned to the version it had when it was opened.
package origin

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"yester/internal/block"
)

// Version identifies the content of a file as far as stat can: it changes when
// the file is replaced, written to, truncated or extended. Of a file on another
// host, Dev, Ino and Ctime may not be known and are 0.
type Version struct {
	Dev, Ino uint64
	Size     int64 // bytes
	Mtime    int64 // nanoseconds since 1970
	Ctime    int64 // nanoseconds since 1970
}

// Folder is a place with files by name: a folder on this host, or on another.
// Names are slash-separated and relative to it; neither ".." nor a symbolic link
// leads out of it. All methods are safe for parallel use.
type Folder interface {
	// Path names the folder in messages; on this host it is its absolute path.
	Path() string
	// Local reports whether the folder is on this host.
	Local() bool
	// Walk calls visit for every regular file below the folder, in lexical order.
	// enter is asked before a directory below the folder is descended into (nil:
	// into all). What can't be read is told to unreadable, and the walk goes on.
	Walk(ctx context.Context, enter func(dir string) bool, visit func(Entry), unreadable func(name string, err error)) error
	// Stat returns the entry of one regular file, through symbolic links that stay
	// inside.
	Stat(ctx context.Context, name string) (Entry, error)
	// Lstat returns what name itself is, without following a symbolic link at its
	// end.
	Lstat(ctx context.Context, name string) (Info, error)
	// ReadDir returns the entries of a directory, sorted by name, with no more in
	// each than the listing itself tells: Name (the last element) and Type.
	ReadDir(ctx context.Context, name string) ([]DirEntry, error)
	// ReadLink returns the target of a symbolic link, as stored.
	ReadLink(ctx context.Context, name string) (string, error)
	// Open opens one regular file read-only, pinned to the version it has now.
	Open(ctx context.Context, name string) (File, error)
	// Close closes the folder; files opened from it stay open.
	Close() error
}

// File is an opened file of a Folder, pinned to the version it had then: reads and
// extents of a file that has changed since fail with ErrChanged.
type File interface {
	block.Reader
	Name() string // by which it was opened
	Version() Version
	// Check fails with ErrChanged when the file is no longer in its version.
	Check(ctx context.Context) error
	Close() error
}

// DirEntry is an entry of a directory as the listing has it.
type DirEntry struct {
	Name string
	Type fs.FileMode // type bits only
}

// Info is what lstat shows of a file.
type Info struct {
	Version      Version
	Mode         uint32 // st_mode: type and permission bits, as POSIX has them
	Nlink        uint32
	UID, GID     uint32
	Major, Minor uint32 // device number of a character or block device
	Blocks       int64  // allocated units of 512 bytes
	// Times, also of years that nanoseconds in 64 bits can't hold, as those of
	// Version can't.
	Atime, Mtime, Ctime time.Time
}

// ErrChanged means that a file is no longer what it was when it was opened.
var ErrChanged = errors.New("changed since it was opened")

// ErrNotRegular means that something is no regular file.
var ErrNotRegular = errors.New("not a regular file")

// Entry is a regular file inside a Folder.
type Entry struct {
	Name    string // slash-separated, relative to the Dir's root
	ModTime time.Time
	Version Version
	// Allocated is what the file takes of the host's disk, bytes; 0 where that isn't
	// known.
	Allocated int64
}

// XattrReader is a Folder that can read extended attributes, of symbolic links
// themselves too. A file without the attribute is an error matching ErrNoXattr.
type XattrReader interface {
	ListXattr(ctx context.Context, name string) ([]string, error)
	Xattr(ctx context.Context, name, attr string) ([]byte, error)
}

// ErrNoXattr means that a file doesn't have an extended attribute of that name.
var ErrNoXattr = errors.New("no such extended attribute")
