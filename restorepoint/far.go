package restorepoint

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"yester/cache"
	"yester/imageformats/ebs"
	"yester/internal/block"
	"yester/origin"
	"yester/origin/sftp"
)

// farFolder is a folder on another host seen through the cache: what was read of a
// file once is on this host from then on.
type farFolder struct {
	origin.Folder
	cache   *cache.Cache
	sched   *cache.Scheduler
	handles *origin.Handles
}

const (
	// farBlock is the unit in which files are fetched, in bytes: a round trip's
	// worth on a line of 20 ms and 50 Mbit/s.
	farBlock = 128 << 10
	// farOpen is how many files stay open on the other host.
	farOpen = 64
	// farListing is how long a listing of what lies far away is good for.
	farListing = 15 * time.Second
	// settled is how old a file's time must be for its version to be told by size
	// and time alone: what was written within the same second as the time says may
	// be written to again.
	settled = 5 * time.Second
)

func newFarFolder(f origin.Folder, c *cache.Cache) *farFolder {
	return &farFolder{Folder: f, cache: c, sched: cache.NewScheduler(cache.Limits{}, nil), handles: origin.NewHandles(f, farOpen)}
}

// Open implements origin.Folder. The file itself is opened when something of it is
// read that the cache doesn't hold.
func (f *farFolder) Open(ctx context.Context, name string) (origin.File, error) {
	e, err := f.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	v := e.Version
	if time.Since(e.ModTime) < settled {
		return f.Folder.Open(ctx, name)
	}
	handle := f.handles.Reader(name, v)
	where := f.Path() + "/" + name
	r, err := f.cache.Open(cache.Object{
		Key: fmt.Sprintf("%s %d %d", where, v.Size, v.Mtime), Lineage: where, Size: v.Size, BlockSize: farBlock,
		Fetch: func(ctx context.Context, n int64, p []byte) error { return block.ReadFull(ctx, handle, p, n*farBlock) },
	}, f.sched)
	if err != nil {
		return nil, err
	}
	return &farFile{folder: f, name: name, version: v, r: r}, nil
}

// Close implements origin.Folder.
func (f *farFolder) Close() error {
	f.handles.Close() //nolint:errcheck // nothing was written
	return f.Folder.Close()
}

// farFile is an opened file of a farFolder.
type farFile struct {
	folder  *farFolder
	name    string
	version origin.Version
	r       *cache.Reader
}

var (
	_ origin.File         = (*farFile)(nil)
	_ block.ContextReader = (*farFile)(nil)
	_ block.Mapper        = (*farFile)(nil)
	_ block.Prefetcher    = (*farFile)(nil)
)

// Name implements origin.File.
func (f *farFile) Name() string { return f.name }

// Version implements origin.File.
func (f *farFile) Version() origin.Version { return f.version }

// Size implements block.Reader.
func (f *farFile) Size() int64 { return f.version.Size }

// ReadAt implements block.Reader.
func (f *farFile) ReadAt(p []byte, off int64) (int, error) { return f.r.ReadAt(p, off) }

// ReadAtContext implements block.ContextReader.
func (f *farFile) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return f.r.ReadAtContext(ctx, p, off)
}

// Extent implements block.Mapper.
func (f *farFile) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	return f.r.Extent(ctx, off, n)
}

// Prefetch implements block.Prefetcher.
func (f *farFile) Prefetch(ranges []block.Range) bool { return f.r.Prefetch(ranges) }

// Check implements origin.File. What was cached is of the file's version for good;
// this asks whether the file still is.
func (f *farFile) Check(ctx context.Context) error {
	e, err := f.folder.Stat(ctx, f.name)
	if err != nil {
		return err
	}
	if e.Version != f.version {
		return fmt.Errorf("%s: %w", f.name, ErrChanged)
	}
	return nil
}

// Close implements origin.File.
func (f *farFile) Close() error { return f.r.Close() }

// ErrLocation means that a location is of no form that there is.
var ErrLocation = errors.New("not a location of a source")

// Redact returns a location as it may be shown: without a password, which none
// should have. What can't be taken apart loses all that might be one.
func Redact(location string) string {
	scheme, rest, ok := strings.Cut(location, "://")
	at := strings.LastIndex(rest, "@")
	if !ok || at < 0 {
		return location
	}
	if u, err := url.Parse(location); err == nil {
		if _, has := u.User.Password(); !has {
			return location
		}
		return u.Redacted()
	}
	user, _, _ := strings.Cut(rest[:at], ":")
	return scheme + "://" + user + ":xxxxx" + rest[at:]
}

// openFar prepares the connection to a source that lies far away.
func (s *Source) openFar(location, scheme string) error {
	if s.opt.Cache == nil {
		return fmt.Errorf("%s: a source that lies far away needs a cache", scheme)
	}
	var err error
	switch scheme {
	case sftp.Scheme:
		s.connect = s.connectSFTP
		err = sftp.Check(location)
	case ebs.Scheme:
		var query ebs.Query
		query, err = ebs.ParseQuery(location)
		s.connect = func(ctx context.Context) error { return s.connectEBS(ctx, query) }
	default:
		err = fmt.Errorf("sources of type %q are not supported", scheme)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLocation, err)
	}
	return nil
}

func (s *Source) connectSFTP(ctx context.Context) error {
	c, err := s.opt.Cache()
	if err != nil {
		return err
	}
	folder, only, err := sftp.Open(ctx, s.location, s.opt.SSH)
	if err != nil {
		return err
	}
	s.dir, s.only = newFarFolder(folder, c), only
	return nil
}
