package dated

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"yester/guestfs"
	"yester/internal/block"
	"yester/origin"
)

// tree is one member of a row.
type tree struct {
	repo *repository
	key  string // the member's identity
	dev  uint64 // the filesystem it is on; none that is mounted inside is entered

	mu       sync.Mutex
	listings map[uint32]listing // of the directories read last, by path
}

// listing is a directory as it was read.
type listing struct {
	version origin.Version
	entries []origin.DirEntry
}

// maxListings and maxListed bound what a tree keeps of directories: a large one is
// read in many steps.
const maxListings, maxListed = 8, 1 << 20

var _ guestfs.Tree = (*tree)(nil)

// dirBit marks the ID of a directory, which is its path's number, and largeIno the
// space of IDs for inode numbers that have this bit themselves.
const (
	dirBit   = 1 << 38
	largeIno = 1
)

// find returns where id is, and what it is.
func (t *tree) find(ctx context.Context, id guestfs.ID) (n uint32, name string, info origin.Info, err error) {
	candidates := []uint32{uint32(id.Ino)}
	isDir := id.Sub == 0 && id.Ino&^(1<<32-1) == dirBit
	if !isDir {
		candidates = t.repo.index.find(t.key, id.Ino)
	}
	root, err := t.repo.member(ctx, t.key)
	if err != nil {
		return 0, "", info, err
	}
	for _, n := range candidates {
		p, known := t.repo.index.path(n)
		if !known {
			continue
		}
		info, err = t.repo.folder.Lstat(ctx, root+p)
		switch {
		case err == nil && info.Version.Dev == t.dev && (info.Mode&guestfs.ModeType == guestfs.ModeDir) == isDir && (isDir || info.Version.Ino == id.Ino):
			return n, root + p, info, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return 0, "", info, err
		}
	}
	return 0, "", info, fmt.Errorf("%s: inode %d is no longer where it was: %w", root, id.Ino, origin.ErrChanged)
}

// Root implements guestfs.Tree.
func (t *tree) Root() guestfs.ID { return guestfs.ID{Ino: dirBit} }

// Attr implements guestfs.Tree.
func (t *tree) Attr(ctx context.Context, id guestfs.ID) (guestfs.Attr, error) {
	_, _, info, err := t.find(ctx, id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	v := &info.Version
	return guestfs.Attr{
		Mode: info.Mode, Nlink: info.Nlink, UID: info.UID, GID: info.GID, Major: info.Major, Minor: info.Minor,
		Size: v.Size, Blocks: info.Blocks, Atime: treeTime(info.Atime), Mtime: treeTime(info.Mtime), Ctime: treeTime(info.Ctime),
	}, nil
}

func treeTime(t time.Time) guestfs.Time {
	return guestfs.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
}

// Lookup implements guestfs.Tree.
func (t *tree) Lookup(ctx context.Context, dir guestfs.ID, name string) (guestfs.ID, error) {
	n, dirName, info, err := t.find(ctx, dir)
	if err != nil {
		return guestfs.ID{}, err
	}
	if info.Mode&guestfs.ModeType != guestfs.ModeDir {
		return guestfs.ID{}, guestfs.ErrNotDir
	}
	child, err := t.repo.folder.Lstat(ctx, dirName+"/"+name)
	if err != nil {
		return guestfs.ID{}, err
	}
	return t.note(n, name, child)
}

// note gives a child of the directory with the path number dir its ID. What is
// mounted there is another filesystem, and no part of the tree.
func (t *tree) note(dir uint32, name string, child origin.Info) (guestfs.ID, error) {
	v := &child.Version
	if v.Dev != t.dev {
		return guestfs.ID{}, fmt.Errorf("%q: another filesystem is mounted there: %w", name, guestfs.ErrNotExist)
	}
	n := t.repo.index.child(dir, name)
	if child.Mode&guestfs.ModeType == guestfs.ModeDir {
		return guestfs.ID{Ino: dirBit | uint64(n)}, nil
	}
	t.repo.index.met(t.key, v.Ino, n)
	id := guestfs.ID{Ino: v.Ino}
	if v.Ino >= dirBit {
		id.Sub = largeIno
	}
	return id, nil
}

// list returns the entries of a directory, sorted by name.
func (t *tree) list(ctx context.Context, n uint32, name string, v origin.Version) ([]origin.DirEntry, error) {
	t.mu.Lock()
	l, ok := t.listings[n]
	t.mu.Unlock()
	if ok && l.version == v {
		return l.entries, nil
	}
	entries, err := t.repo.folder.ReadDir(ctx, name)
	if err == nil && len(entries) <= maxListed {
		t.mu.Lock()
		for old := range t.listings {
			if len(t.listings) < maxListings {
				break
			}
			delete(t.listings, old)
		}
		t.listings[n] = listing{v, entries}
		t.mu.Unlock()
	}
	return entries, err
}

// ReadDir implements guestfs.Tree. A cookie is an entry's place in the sorted
// listing, counted from 1.
func (t *tree) ReadDir(ctx context.Context, id guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	n, dirName, info, err := t.find(ctx, id)
	if err != nil {
		return err
	}
	if info.Mode&guestfs.ModeType != guestfs.ModeDir {
		return guestfs.ErrNotDir
	}
	entries, err := t.list(ctx, n, dirName, info.Version)
	for i := min(from, uint64(len(entries))); i < uint64(len(entries)); i++ {
		name := entries[i].Name
		child, err := t.repo.folder.Lstat(ctx, dirName+"/"+name)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed meanwhile
			}
			return err
		}
		cid, err := t.note(n, name, child)
		if err != nil {
			continue // a mount point
		}
		if !emit(guestfs.Dirent{Name: name, ID: cid, Type: child.Mode & guestfs.ModeType, Next: i + 1}) {
			return nil
		}
	}
	return err
}

// ReadLink implements guestfs.Tree.
func (t *tree) ReadLink(ctx context.Context, id guestfs.ID) (string, error) {
	_, name, info, err := t.find(ctx, id)
	if err != nil {
		return "", err
	}
	if info.Mode&guestfs.ModeType != guestfs.ModeSymlink {
		return "", guestfs.ErrInvalid
	}
	return t.repo.folder.ReadLink(ctx, name)
}

// ListXattr implements guestfs.Tree. Of a folder on another host none are known.
func (t *tree) ListXattr(ctx context.Context, id guestfs.ID) ([]string, error) {
	_, name, _, err := t.find(ctx, id)
	x, ok := t.repo.folder.(origin.XattrReader)
	if err != nil || !ok {
		return nil, err
	}
	return x.ListXattr(ctx, name)
}

// Xattr implements guestfs.Tree.
func (t *tree) Xattr(ctx context.Context, id guestfs.ID, attr string) ([]byte, error) {
	_, name, _, err := t.find(ctx, id)
	if err != nil {
		return nil, err
	}
	x, ok := t.repo.folder.(origin.XattrReader)
	if !ok {
		return nil, guestfs.ErrNoXattr
	}
	v, err := x.Xattr(ctx, name, attr)
	if errors.Is(err, origin.ErrNoXattr) {
		err = guestfs.ErrNoXattr
	}
	return v, err
}

// Open implements guestfs.Tree.
func (t *tree) Open(ctx context.Context, id guestfs.ID) (block.Reader, error) {
	_, name, info, err := t.find(ctx, id)
	if err != nil {
		return nil, err
	}
	switch info.Mode & guestfs.ModeType {
	case guestfs.ModeRegular:
		c := &content{tree: t, id: id, version: info.Version}
		c.handle.Store(t.repo.handles.Reader(name, info.Version))
		return c, nil
	case guestfs.ModeDir:
		return nil, guestfs.ErrIsDir
	}
	return nil, guestfs.ErrInvalid
}

// Info implements guestfs.Tree.
func (t *tree) Info() guestfs.Info {
	return guestfs.Info{Type: "folder", BlockSize: 4096, Journal: guestfs.JournalNone}
}

// Close implements guestfs.Tree.
func (t *tree) Close() error { return nil }
