package imageformats

import (
	"context"
	"io"
	"log/slog"
	"time"

	"yester/guestfs"
	"yester/internal/block"
	"yester/origin"
)

// Repository is a backup whose restore points are directory trees instead of
// disks: an rdiff-backup repository, a row of dated folders. It is safe for
// parallel use, and never written to.
type Repository interface {
	// Points lists the points anew, oldest first. What has not changed since the
	// last listing costs little.
	Points(ctx context.Context) (RepositoryListing, error)
	// OpenPoint opens the tree of a point that Points has listed. When the
	// repository has changed so that the point is no longer what it was, the error
	// matches origin.ErrChanged, and so do reads of the tree from then on.
	OpenPoint(ctx context.Context, p RepositoryPoint) (guestfs.Tree, error)
	// Root returns the attributes of the root of a point's tree, without the cost
	// of opening the tree: a listing of all points shows them.
	Root(ctx context.Context, p RepositoryPoint) (Root, error)
	// Close closes the repository. Trees opened from it must be closed first.
	Close() error
}

// RepositoryListing is what a Repository's Points found.
type RepositoryListing struct {
	Points   []RepositoryPoint
	Warnings []string // an interrupted session, lost metadata, …
}

// RepositoryPoint is one restore point of a Repository.
type RepositoryPoint struct {
	Time time.Time // UTC
	// Key changes when the point's content does: two listings that give the same
	// key speak of the same bytes.
	Key string
	// Name is the point's own name in the repository ("daily.3"); empty when it has
	// none but its time.
	Name string
	// Problem says why it can't be opened, when that is known already.
	Problem string
	// Degraded says what of the point is known to be lost, when it can be opened all
	// the same.
	Degraded string
}

// Root is what a tree's methods say of its root directory.
type Root struct {
	Attr   guestfs.Attr
	Xattrs map[string][]byte // by name, as Tree.Xattr has them
}

// RepositoryOptions go to whoever opens a Repository.
type RepositoryOptions struct {
	// Spool keeps bytes that were derived from the repository; nil: in temporary
	// files.
	Spool Spooler
	// NumericIDs takes the owners' and ACLs' recorded numbers, instead of looking
	// their names up on this host.
	NumericIDs bool
	// Location is the zone of dates that name none; nil: local.
	Location *time.Location
	// Logger receives warnings; never nil.
	Logger *slog.Logger
}

// Spooler keeps bytes that are dear to make. A key names content and version:
// same key, same bytes.
type Spooler interface {
	// Spool returns what fill writes, from what was kept when the key is known
	// already. The result gives its place in a host file, and is valid until
	// closed.
	Spool(ctx context.Context, key string, fill func(w io.Writer) error) (Spooled, error)
}

// Spooled is what a Spooler keeps.
type Spooled interface {
	block.Reader
	io.Closer
}

// RepositoryFormat is a reader of repositories that a source's folders are probed
// with.
type RepositoryFormat struct {
	Name string // "rdiff-backup", …
	// Recorded: what the trees tell of files comes from a record of theirs, not from
	// files of the host: of times, there is that of the last change alone.
	Recorded bool
	// Probe reports whether the directory dir of folder ("." for folder itself) is
	// such a repository. It reads little and fails only when reading fails.
	Probe func(ctx context.Context, folder origin.Folder, dir string) (bool, error)
	// Open opens it. folder stays open for as long as the Repository is.
	Open func(ctx context.Context, folder origin.Folder, dir string, opt RepositoryOptions) (Repository, error)
}

// Historian is a Repository that knows the versions of a path without opening each
// of its points.
type Historian interface {
	// History calls emit for each version that the path had, oldest first, until it
	// returns false. path is relative to the points' root, its components joined by
	// '/' ("" is the root), in raw bytes. A path that was never there has none.
	History(ctx context.Context, path string, emit func(PathVersion) bool) error
}

// RootSizer is a Repository that knows how large its points' root directories can
// be without reading any.
type RootSizer interface {
	// RootSize returns how many entries the root of a point has at most, whichever
	// point it is, and how many bytes their names have together.
	RootSize(ctx context.Context) (entries, names int, err error)
}

// PathVersion is what a path was over a run of consecutive points.
type PathVersion struct {
	First, Last RepositoryPoint // the points at which it was so; the same when there is one
	Points      int             // how many they are
	Missing     bool            // it wasn't there; what follows but Changed is zero
	Attr        guestfs.Attr    // Size -1: not known without opening it
	Target      string          // of a symbolic link
	SHA1        string          // of a regular file's content, hex; empty when not recorded
	// Changed says in what it differs from the version before; zero for the first,
	// and for one after an Err that is as it was before that, or the first known.
	Changed Change
	// Err says why it isn't known what it was; all but the points is zero then.
	Err error
}

// Change says in what two versions of a path differ.
type Change uint

// The ways in which a path can have changed.
const (
	ChangeAdded   Change = 1 << iota // it wasn't there before
	ChangeRemoved                    // it is no longer there
	ChangeType                       // it is of another type
	ChangeContent                    // content, link target or device number
	ChangeMode                       // permissions
	ChangeOwner                      // owner or group
	ChangeMtime                      // time of modification
	ChangeXattrs                     // extended attributes or ACLs
	ChangeLinks                      // number of names of the file
)

// Differ is a Repository that compares points by their metadata.
type Differ interface {
	// Diff calls emit for each path at or below path that differs between two
	// points, in the order of the tree, until it returns false.
	Diff(ctx context.Context, from, to RepositoryPoint, path string, emit func(PathDiff) bool) error
	// Deleted calls emit for each path below path (of any depth) that was there at
	// one point and not at the next, the latest such points first, until it returns
	// false.
	Deleted(ctx context.Context, path string, emit func(DeletedPath) bool) error
}

// PathDiff is a path that differs between two points.
type PathDiff struct {
	Path     string // relative to the root, raw bytes; "" is the root
	Changed  Change
	Old, New guestfs.Attr // zero where it wasn't there
}

// DeletedPath is a path that was deleted between two consecutive points.
type DeletedPath struct {
	Path         string // relative to the root, raw bytes
	LastSeen     RepositoryPoint
	FirstMissing RepositoryPoint
	Attr         guestfs.Attr // as it was last seen
}

// Verifier is a guestfs.Tree with recorded checksums of its files' contents.
type Verifier interface {
	// VerifyFile reads the whole content of a regular file and compares it with what
	// is recorded. known is false when there is no checksum to compare with; then it
	// is only known that the file can be read. An error that matches
	// ondisk.ErrCorrupt names the file of the repository at fault where that can be
	// found out.
	VerifyFile(ctx context.Context, id guestfs.ID) (known bool, err error)
}
