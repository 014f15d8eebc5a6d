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
	// Probe reports whether the directory dir of folder ("." for folder itself) is
	// such a repository. It reads little and fails only when reading fails.
	Probe func(ctx context.Context, folder origin.Folder, dir string) (bool, error)
	// Open opens it. folder stays open for as long as the Repository is.
	Open func(ctx context.Context, folder origin.Folder, dir string, opt RepositoryOptions) (Repository, error)
}
