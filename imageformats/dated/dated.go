// Package dated reads rows of folders of which each is a directory tree as it was
// at one time: what rsnapshot keeps (daily.0, daily.1, …), and what scripts around
// `rsync --link-dest` or `cp -al` make (2026-11-10, 2026-11-11, …). Nothing is
// decoded: the files are the host's own.
package dated

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/nametime"
	"yester/origin"
)

// Rsnapshot recognises a folder that rsnapshot rotates its snapshots in.
var Rsnapshot = imageformats.RepositoryFormat{
	Name: "rsnapshot",
	Probe: func(ctx context.Context, folder origin.Folder, dir string) (bool, error) {
		return probe(ctx, folder, dir, rotated)
	},
	Open: open(rotated, func(_ string, v origin.Version) string { return fmt.Sprintf("at %d", v.Mtime) }),
}

// Folders recognises a folder whose folders are called by dates and hold files,
// not disk images.
var Folders = imageformats.RepositoryFormat{
	Name: "dated-folders",
	Probe: func(ctx context.Context, folder origin.Folder, dir string) (bool, error) {
		return probe(ctx, folder, dir, byDate)
	},
	Open: open(byDate, func(name string, v origin.Version) string { return fmt.Sprintf("%s %d:%d", name, v.Dev, v.Ino) }),
}

// Snapshots opens a folder in which a storage system shows its snapshots
// (.snapshot, .zfs/snapshot): every folder in it is a member, at the time that its
// name has or else at its modification time. Who calls it knows such a folder by
// its place.
var Snapshots = imageformats.RepositoryFormat{
	Name: "storage-snapshot",
	Probe: func(context.Context, origin.Folder, string) (bool, error) {
		return false, nil
	},
	// The folders' inode numbers may be the same in all of them, and their device
	// is known only once they are entered.
	Open: open(everyFolder, func(name string, v origin.Version) string { return fmt.Sprintf("%s at %d", name, v.Mtime) }),
}

// everyFolder is the scheme of Snapshots.
func everyFolder(entries []origin.DirEntry, loc *time.Location) (found []member) {
	for _, e := range entries {
		if e.Type == fs.ModeDir {
			t, _, _ := nametime.Find(e.Name, loc)
			found = append(found, member{name: e.Name, time: t})
		}
	}
	return found
}

// identity says by what a member is known again, given its folder's name and
// version. A rotation of rsnapshot renames folders or makes copies of them (all
// links), and leaves their time of modification; dates don't move.
type identity func(name string, v origin.Version) string

// member is a folder that may be a point.
type member struct {
	name string
	time time.Time // zero: the folder's modification time
}

// scheme finds the members among the entries of a folder; none when the folder
// is of another kind.
type scheme func(entries []origin.DirEntry, loc *time.Location) []member

// rotatedName is the name of a snapshot: an interval's name and a number. The
// names of intervals are configured (rsnapshot(1), "retain").
var rotatedName = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_-]*)\.(0|[1-9][0-9]{0,4})$`)

// rotated is rsnapshot's scheme. It gives each snapshot's root folder the time of
// the snapshot, at the end: until then the newest folder has the time of the one it
// was copied to, so the higher number comes first.
func rotated(entries []origin.DirEntry, _ *time.Location) (found []member) {
	number := make(map[string]int)
	first := false
	for _, e := range entries {
		m := rotatedName.FindStringSubmatch(e.Name)
		if e.Type != fs.ModeDir || m == nil {
			continue
		}
		found = append(found, member{name: e.Name})
		number[e.Name], _ = strconv.Atoi(m[2])
		first = first || m[2] == "0"
	}
	if !first {
		return nil // release.7, lib.2: folders of another kind
	}
	slices.SortFunc(found, func(a, b member) int { return number[b.name] - number[a.name] })
	return found
}

// byDate is the scheme of folders that are called by dates, all with the same
// name around it.
func byDate(entries []origin.DirEntry, loc *time.Location) (found []member) {
	around := ""
	for _, e := range entries {
		if e.Type != fs.ModeDir {
			continue
		}
		t, rest, ok := nametime.Find(e.Name, loc)
		if !ok {
			continue
		}
		if len(found) > 0 && rest != around {
			return nil
		}
		around = rest
		found = append(found, member{name: e.Name, time: t})
	}
	if nametime.Trim(around) != "" && len(found) < 2 {
		return nil // one folder that has a date in its name is no row
	}
	return found
}

// probe reports whether dir is a row of trees. One whose newest member holds disk
// images is a row of machines instead.
func probe(ctx context.Context, folder origin.Folder, dir string, s scheme) (bool, error) {
	entries, err := folder.ReadDir(ctx, dir)
	if err != nil {
		return false, nil //nolint:nilerr // the walk meets the same error, and tells it
	}
	for _, e := range entries {
		if imageformats.IsImageName(e.Name) {
			return false, nil
		}
	}
	found := s(entries, time.UTC)
	if len(found) == 0 {
		return false, nil
	}
	images, some, err := holdsImages(ctx, folder, path.Join(dir, found[len(found)-1].name), imageDepth)
	return some && !images && err == nil, nil
}

// imageDepth is how deep below a dated folder disk images are looked for:
// <date>/<host>/<product>/disk.vhdx is the deepest layout in use.
const imageDepth = 3

// maxLooked bounds how many entries are looked at for that.
const maxLooked = 4096

// holdsImages reports whether there is a disk image below dir, and whether there
// is anything.
func holdsImages(ctx context.Context, folder origin.Folder, dir string, depth int) (images, some bool, err error) {
	entries, err := folder.ReadDir(ctx, dir)
	if err != nil {
		return false, false, err
	}
	entries = entries[:min(len(entries), maxLooked)]
	for _, e := range entries {
		if e.Type == 0 && imageformats.IsImageName(e.Name) {
			return true, true, nil
		}
	}
	// A system's tree is told by its upper folders alone, and is not searched.
	if depth == 1 || len(entries) > 8 {
		return false, len(entries) > 0, nil
	}
	for _, e := range entries {
		if e.Type != fs.ModeDir {
			continue
		}
		if images, _, _ = holdsImages(ctx, folder, path.Join(dir, e.Name), depth-1); images {
			return true, true, nil
		}
	}
	return false, len(entries) > 0, nil
}

// repository is an opened row of folders.
type repository struct {
	folder  origin.Folder
	dir     string
	scheme  scheme
	id      identity
	opt     imageformats.RepositoryOptions
	handles *origin.Handles

	index *index

	mu    sync.Mutex
	names map[string]string // of the members' folders, by their identity
}

// maxOpen is how many files a repository keeps open.
const maxOpen = 512

func open(s scheme, id identity) func(context.Context, origin.Folder, string, imageformats.RepositoryOptions) (imageformats.Repository, error) {
	return func(_ context.Context, folder origin.Folder, dir string, opt imageformats.RepositoryOptions) (imageformats.Repository, error) {
		if opt.Location == nil {
			opt.Location = time.Local
		}
		return &repository{
			folder: folder, dir: dir, scheme: s, id: id, opt: opt,
			handles: origin.NewHandles(folder, maxOpen), index: newIndex(),
		}, nil
	}
}

// Points implements imageformats.Repository.
func (r *repository) Points(ctx context.Context) (list imageformats.RepositoryListing, err error) {
	entries, err := r.folder.ReadDir(ctx, r.dir)
	if err != nil {
		return list, err
	}
	names := make(map[string]string)
	for _, m := range r.scheme(entries, r.opt.Location) {
		info, err := r.folder.Lstat(ctx, path.Join(r.dir, m.name))
		if err != nil {
			if ctx.Err() != nil {
				return list, ctx.Err()
			}
			list.Warnings = append(list.Warnings, fmt.Sprintf("%s: %v", m.name, err))
			continue
		}
		t := m.time
		if t.IsZero() {
			t = info.Mtime
		}
		key := r.id(m.name, info.Version)
		if names[key] != "" {
			continue // being made as a copy of that one
		}
		names[key] = m.name
		list.Points = append(list.Points, imageformats.RepositoryPoint{
			Time: t.UTC(), Name: m.name, Key: key,
		})
	}
	r.mu.Lock()
	r.names = names
	r.mu.Unlock()
	slices.SortStableFunc(list.Points, func(a, b imageformats.RepositoryPoint) int { return a.Time.Compare(b.Time) })
	return list, nil
}

// Root implements imageformats.Repository.
func (r *repository) Root(ctx context.Context, p imageformats.RepositoryPoint) (imageformats.Root, error) {
	t, err := r.tree(ctx, p)
	if err != nil {
		return imageformats.Root{}, err
	}
	var root imageformats.Root
	if root.Attr, err = t.Attr(ctx, t.Root()); err != nil {
		return root, err
	}
	names, err := t.ListXattr(ctx, t.Root())
	for _, n := range names {
		if root.Xattrs == nil {
			root.Xattrs = make(map[string][]byte)
		}
		if root.Xattrs[n], err = t.Xattr(ctx, t.Root(), n); err != nil {
			return root, err
		}
	}
	return root, err
}

// OpenPoint implements imageformats.Repository.
func (r *repository) OpenPoint(ctx context.Context, p imageformats.RepositoryPoint) (guestfs.Tree, error) {
	return r.tree(ctx, p)
}

func (r *repository) tree(ctx context.Context, p imageformats.RepositoryPoint) (*tree, error) {
	t := &tree{repo: r, key: p.Key, listings: make(map[uint32]listing)}
	name, err := r.member(ctx, p.Key)
	if err != nil {
		return nil, err
	}
	// A snapshot that is mounted when it is entered shows its own device only then.
	if _, err := r.folder.ReadDir(ctx, name); err != nil {
		return nil, err
	}
	info, err := r.folder.Lstat(ctx, name)
	t.dev = info.Version.Dev
	return t, err
}

// member returns the name that a member's folder has now: a rotation renames it.
func (r *repository) member(ctx context.Context, key string) (string, error) {
	for again := false; ; again = true {
		r.mu.Lock()
		name, ok := r.names[key]
		r.mu.Unlock()
		if ok {
			full := path.Join(r.dir, name)
			info, err := r.folder.Lstat(ctx, full)
			if err == nil && r.id(name, info.Version) == key {
				return full, nil
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
		if again {
			return "", fmt.Errorf("%s: the folder of this date is gone: %w", r.dir, origin.ErrChanged)
		}
		if _, err := r.Points(ctx); err != nil {
			return "", err
		}
	}
}

// Close implements imageformats.Repository.
func (r *repository) Close() error { return r.handles.Close() }
