// Package rdiff reads the repositories of rdiff-backup: every session's date is a
// directory tree, read at random without restoring anything.
//
// The newest tree lies in the repository as it is (the mirror), with the older
// versions of its files beside it, as librsync deltas that lead from newer to
// older (increments). Attributes are in metadata files of their own, a whole one
// every ten sessions and differences in between. docs/formats/rdiff.md has the
// format's facts and traps.
//
// Nothing is written, no lock is taken, and rdiff-backup may run meanwhile. It
// replaces files of the mirror by renaming, after it has written the increment; so
// a mirror's file is opened first and the increments are looked for afterwards:
// what is then found, or not found, tells which state the opened file is of.
package rdiff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/ondisk"
	"yester/origin"
)

// Format is the reader of rdiff-backup repositories.
var Format = imageformats.RepositoryFormat{Name: "rdiff-backup", Recorded: true, Probe: probe, Open: open}

func probe(ctx context.Context, folder origin.Folder, dir string) (bool, error) {
	info, err := folder.Lstat(ctx, join(dir, dataDir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return false, nil
	}
	return err == nil && info.Mode&guestfs.ModeType == guestfs.ModeDir, err
}

func open(_ context.Context, folder origin.Folder, dir string, opt imageformats.RepositoryOptions) (imageformats.Repository, error) {
	return Open(folder, dir, opt), nil
}

// Open returns the repository in the directory dir of folder. It reads nothing yet.
func Open(folder origin.Folder, dir string, opt imageformats.RepositoryOptions) *Repository {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	return &Repository{folder: folder, dir: dir, opt: opt, lazyFrom: defaultLazy}
}

// Repository is an rdiff-backup repository. It is safe for parallel use.
type Repository struct {
	folder origin.Folder
	dir    string
	opt    imageformats.RepositoryOptions
	// lazyFrom is the size in bytes of a metadata file from which on no more of it
	// is read than needed.
	lazyFrom int64

	mu  sync.Mutex // of cur
	cur *listing

	tables tableCache
	dirs   dirCache
	safe   safeDirs
}

// join is path.Join for names that needn't be cleaned.
func join(dir, name string) string {
	if dir == "." || dir == "" {
		return name
	}
	return dir + "/" + name
}

// path returns the folder's name of a file of the repository.
func (r *Repository) path(elem ...string) string {
	name := r.dir
	for _, e := range elem {
		if e != "" {
			name = join(name, e)
		}
	}
	return name
}

// listing returns what dataDir holds now.
func (r *Repository) listing(ctx context.Context) (*listing, error) {
	r.mu.Lock()
	cur := r.cur
	r.mu.Unlock()
	if cur != nil && cur.settled {
		info, err := r.folder.Lstat(ctx, r.path(dataDir))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", format, err)
		}
		if info.Version == cur.version {
			return cur, nil
		}
	}
	l, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	if r.cur == nil || r.cur.version != l.version {
		r.safe.known.Clear()
	}
	r.cur = l
	r.mu.Unlock()
	return l, nil
}

// last returns what dataDir held when it was listed last; nil when its time wouldn't
// tell of a change since.
func (r *Repository) last() *listing {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cur != nil && r.cur.settled {
		return r.cur
	}
	return nil
}

// Points implements imageformats.Repository, from the names of files alone.
func (r *Repository) Points(ctx context.Context) (imageformats.RepositoryListing, error) {
	l, err := r.listing(ctx)
	if err != nil {
		return imageformats.RepositoryListing{}, err
	}
	out := imageformats.RepositoryListing{Warnings: l.warnings}
	for i := range l.sessions[:l.points] {
		out.Points = append(out.Points, l.point(i))
	}
	return out, nil
}

func (l *listing) point(i int) imageformats.RepositoryPoint {
	s := &l.sessions[i]
	p := imageformats.RepositoryPoint{Time: time.Unix(s.time, 0).UTC(), Key: l.key(s), Problem: s.twice}
	if s.lost {
		p.Degraded = "its metadata are lost: names, attributes and times are those of the files in the repository"
	}
	return p
}

// locate returns the session of a point that was listed before.
func (l *listing) locate(p imageformats.RepositoryPoint) (int, error) {
	i, ok := l.find(p.Time.Unix())
	if !ok || l.key(&l.sessions[i]) != p.Key {
		return 0, fmt.Errorf("%s: restore point of %s: %w: %w", format, p.Time.UTC().Format(time.RFC3339), origin.ErrChanged, ondisk.ErrCorrupt)
	}
	if twice := l.sessions[i].twice; twice != "" {
		return 0, ondisk.Corruptf(format, "restore point of "+p.Time.UTC().Format(time.RFC3339), -1, "%s", twice)
	}
	return i, nil
}

// Close implements imageformats.Repository.
func (r *Repository) Close() error { return nil }

// open opens a regular file of the repository, and nothing that a symbolic link
// leads to: those are data here.
func (r *Repository) open(ctx context.Context, name string) (origin.File, error) {
	if err := r.safe.check(ctx, r.folder, r.dir, path.Dir(name)); err != nil {
		return nil, err
	}
	info, err := r.folder.Lstat(ctx, name)
	if err != nil {
		return nil, err
	}
	if info.Mode&guestfs.ModeType != guestfs.ModeRegular {
		return nil, ondisk.Corruptf(format, name, -1, "is no regular file (mode %#o)", info.Mode)
	}
	f, err := r.folder.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	if v := f.Version(); v.Dev != info.Version.Dev || v.Ino != info.Version.Ino {
		f.Close()
		return nil, fmt.Errorf("%s: %s: %w: %w", format, name, origin.ErrChanged, ondisk.ErrCorrupt)
	}
	return f, nil
}

// safeDirs remembers which directories were found to be directories, down from the
// repository's root. One that is replaced by a link later leads nowhere outside of
// the source: the folder sees to that.
type safeDirs struct {
	known sync.Map // name -> struct{}
}

func (s *safeDirs) check(ctx context.Context, folder origin.Folder, root, dir string) error {
	if dir == root || dir == "." {
		return nil
	}
	if _, ok := s.known.Load(dir); ok {
		return nil
	}
	rest := dir
	if root != "." && root != "" {
		rest = strings.TrimPrefix(dir, root+"/")
	}
	at := root
	for elem := range strings.SplitSeq(rest, "/") {
		at = join(at, elem)
		if _, ok := s.known.Load(at); ok {
			continue
		}
		info, err := folder.Lstat(ctx, at)
		if err != nil {
			return err
		}
		if info.Mode&guestfs.ModeType != guestfs.ModeDir {
			return fmt.Errorf("%s: %s is no directory: %w", format, at, fs.ErrNotExist)
		}
		s.known.Store(at, struct{}{})
	}
	return nil
}
