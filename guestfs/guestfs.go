// Package guestfs is the contract of a read-only directory tree: a filesystem in
// a guest's volume, an rdiff-backup increment, or the guest view that puts the
// volumes of a machine together. Readers live in sub-packages; none of them
// knows of the others, and whoever opens a volume passes the list to Open.
package guestfs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"yester/internal/block"
)

// Errors a Tree returns for what is asked, as opposed to what is damaged
// (ondisk.ErrCorrupt and ErrUnsupported). A name that doesn't exist is
// fs.ErrNotExist.
var (
	ErrNotExist = fs.ErrNotExist
	// ErrNotDir: a directory operation on something else.
	ErrNotDir = errors.New("not a directory")
	// ErrIsDir: a file operation on a directory.
	ErrIsDir = errors.New("is a directory")
	// ErrInvalid: an operation that the file's type doesn't have, such as
	// reading the target of something that is no symbolic link.
	ErrInvalid = errors.New("operation does not apply to this type of file")
	// ErrNoXattr: the file has no extended attribute of that name.
	ErrNoXattr = errors.New("no such extended attribute")
	// ErrEncrypted: names or contents are encrypted and no key is known.
	ErrEncrypted = errors.New("encrypted")
)

// ID names one inode within a Tree, for the life of the Tree and across
// re-openings of the same point. It is the filesystem's own inode number where
// that is unique.
type ID struct {
	Ino uint64 // inode number, MFT record number, …: what stat shows as st_ino
	Sub uint32 // inode space: a Btrfs subvolume, a member of the guest view; else 0
}

// The type bits of Attr.Mode and Dirent.Type, as in POSIX st_mode.
const (
	ModeType    = 0o170000
	ModeSocket  = 0o140000
	ModeSymlink = 0o120000
	ModeRegular = 0o100000
	ModeBlock   = 0o060000
	ModeDir     = 0o040000
	ModeChar    = 0o020000
	ModeFifo    = 0o010000
)

// Time is a point in time with nanoseconds, wide enough for every filesystem.
type Time struct {
	Sec  int64  // seconds since 1970-01-01T00:00:00Z; negative before
	Nsec uint32 // 0..999,999,999, added to Sec
}

// Time returns t as a time.Time in UTC.
func (t Time) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }

// Attr is what stat shows of a file.
type Attr struct {
	Mode                uint32 // st_mode: type and permission bits
	Nlink               uint32
	UID, GID            uint32
	Major, Minor        uint32 // device number of a character or block device
	Size                int64  // bytes; of a symbolic link: its target's length
	Blocks              int64  // allocated units of 512 bytes
	Atime, Mtime, Ctime Time
	Btime               Time // creation; the zero Time when the filesystem has none
}

// IsDir reports whether a is a directory's.
func (a *Attr) IsDir() bool { return a.Mode&ModeType == ModeDir }

// IsRegular reports whether a is a regular file's.
func (a *Attr) IsRegular() bool { return a.Mode&ModeType == ModeRegular }

// IsSymlink reports whether a is a symbolic link's.
func (a *Attr) IsSymlink() bool { return a.Mode&ModeType == ModeSymlink }

// Dirent is one entry of a directory.
type Dirent struct {
	Name string // raw bytes, not necessarily UTF-8; never empty, ".", "..", nor with '/' or NUL
	ID   ID
	Type uint32 // ModeType bits; 0 when the directory doesn't record them
	Next uint64 // cookie that continues after this entry; never 0
}

// Tree is a read-only directory tree, addressed by ID. All methods are safe for
// parallel use and return early when ctx is done.
type Tree interface {
	// Root returns the root directory's ID.
	Root() ID
	// Attr returns the attributes of id.
	Attr(ctx context.Context, id ID) (Attr, error)
	// Lookup finds name in the directory dir. A name that isn't there is an error
	// matching ErrNotExist. The names "." and ".." are not looked up.
	Lookup(ctx context.Context, dir ID, name string) (ID, error)
	// ReadDir calls emit for each entry of dir in a fixed order, beginning after
	// the entry whose Next was from (0: at the start), until emit returns false.
	// "." and ".." are left out. Damage in the directory is returned as an error
	// after the entries that could still be read.
	ReadDir(ctx context.Context, dir ID, from uint64, emit func(Dirent) bool) error
	// ReadLink returns the target of a symbolic link, as stored.
	ReadLink(ctx context.Context, id ID) (string, error)
	// ListXattr returns the names of id's extended attributes with their
	// namespace ("user.x", "security.selinux", "system.posix_acl_access").
	ListXattr(ctx context.Context, id ID) ([]string, error)
	// Xattr returns the value of one attribute in the form that Linux's
	// getxattr(2) shows, or ErrNoXattr.
	Xattr(ctx context.Context, id ID, name string) ([]byte, error)
	// Open returns the content of a regular file. It holds no resources of its
	// own: there is nothing to close. It is valid until the Tree is closed.
	Open(ctx context.Context, id ID) (block.Reader, error)
	// Info describes the filesystem.
	Info() Info
	// Close releases what the Tree holds; not the device it was opened from.
	Close() error
}

// Journal is the state of a filesystem's journal when the image was taken.
type Journal string

// The states a journal can have.
const (
	JournalNone     Journal = "none"     // the filesystem has no journal
	JournalClean    Journal = "clean"    // unmounted cleanly, or nothing to replay
	JournalReplayed Journal = "replayed" // was dirty; replayed in memory, source untouched
	JournalIgnored  Journal = "ignored"  // was dirty, and replay is off: what is shown may be stale
)

// Info describes a filesystem.
type Info struct {
	Type      string   `json:"type"`            // "ext4", "ext2", "xfs", …
	Label     string   `json:"label,omitempty"` // volume label
	UUID      string   `json:"uuid,omitempty"`  // as /etc/fstab writes it
	Size      int64    `json:"size"`            // bytes, by the superblock
	Free      int64    `json:"free"`            // bytes, by the superblock
	BlockSize int      `json:"block_size"`      // bytes
	Files     int64    `json:"files"`           // inodes in use; 0 when not known
	FilesMax  int64    `json:"files_max"`       // inodes in all; 0 when not limited
	Journal   Journal  `json:"journal"`
	Features  []string `json:"features,omitempty"` // names as the filesystem's own tools print them
	LastMount string   `json:"last_mount,omitempty"`
}

// Replay says what to do with a journal that needs recovery.
type Replay bool

// The values of Replay.
const (
	ReplayOn  Replay = true  // replay it in memory
	ReplayOff Replay = false // show the filesystem as it lies there
)

// Options go to a Format's Open.
type Options struct {
	Replay Replay
	// Logger receives warnings (a checksum of one of two copies was wrong);
	// never nil when passed through Open.
	Logger *slog.Logger
}

// Format is a filesystem reader that Open can choose.
type Format struct {
	Name string
	// Probe reports whether dev begins with this filesystem, by its magic and a
	// few cross-checks. It reads little and fails only when reading fails.
	Probe func(ctx context.Context, dev block.Reader) (bool, error)
	// Open opens the filesystem on dev.
	Open func(ctx context.Context, dev block.Reader, opt Options) (Tree, error)
}
