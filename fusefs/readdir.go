package fusefs

import (
	"context"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// A directory's offsets: 1 is after ".", 2 after "..", and an entry's cookie is
// shifted past them.
const dotEntries = 2

// Init implements fuse.RawFileSystem: it comes once, before the first request.
func (f *rawFS) Init(server *fuse.Server) {
	f.noOpenDir = server.KernelSettings().Flags64()&fuse.CAP_NO_OPENDIR_SUPPORT != 0
}

// OpenDir implements fuse.RawFileSystem. A kernel from 5.1 on takes ENOSYS for
// leave to open and close directories without asking, which is half the round
// trips of a walk over small ones; it keeps what it has listed until the
// directory's mtime changes.
func (f *rawFS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if f.noOpenDir {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *rawFS) ReleaseDir(*fuse.ReleaseIn) {}

// ReadDir implements fuse.RawFileSystem.
func (f *rawFS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(cancel, in, out, false)
}

// ReadDirPlus implements fuse.RawFileSystem.
func (f *rawFS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(cancel, in, out, true)
}

func (f *rawFS) readDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	f.stats.begin()
	defer f.stats.end()
	ctx := request{cancel}
	n := nodeID(in.NodeId)
	l := lister{out: out, plus: plus}
	if n.slot() == 0 {
		return f.fail("readdir", n, "", f.listUpper(ctx, n, in.Offset, &l))
	}
	pl, err := f.locate(ctx, n)
	if err != nil {
		return f.fail("readdir", n, "", err)
	}
	defer pl.release()
	if pl.tree == nil {
		err = pl.listLayout(ctx, in.Offset, &l)
	} else {
		err = pl.listTree(ctx, in.Offset, &l)
	}
	if status(err) == fuse.ENOENT {
		// Programs take that for the end of a directory that was removed.
		err = fmt.Errorf("%s: %w", err.Error(), ondisk.ErrCorrupt)
	}
	if err != nil && l.added {
		// What could be read goes out first; the next call, which begins behind
		// it, gets the error.
		f.fail("readdir", n, "", err)
		return fuse.OK
	}
	return f.fail("readdir", n, "", err)
}

// lister fills a reply with entries.
type lister struct {
	out   *fuse.DirEntryList
	plus  bool
	added bool
}

// add adds an entry; it returns nil and false when the reply is full. The
// EntryOut is nil when attributes aren't asked for.
func (l *lister) add(name string, ino uint64, mode uint32, off uint64) (*fuse.EntryOut, bool) {
	e := fuse.DirEntry{Name: name, Ino: ino, Mode: mode, Off: off}
	if !l.plus {
		ok := l.out.AddDirEntry(e)
		l.added = l.added || ok
		return nil, ok
	}
	out := l.out.AddDirLookupEntry(e)
	l.added = l.added || out != nil
	return out, out != nil
}

// dots adds "." and ".." as far as they lie behind off. The kernel knows their
// attributes by itself.
func (l *lister) dots(off uint64, self uint64) bool {
	for i, name := range []string{".", ".."} {
		if off <= uint64(i) {
			if _, ok := l.add(name, self, guestfs.ModeDir, uint64(i+1)); !ok {
				return false
			}
		}
	}
	return true
}

// resume turns the offset of a request into the cookie to continue after.
func resume(off uint64) uint64 { return max(off, dotEntries) - dotEntries }

func (f *rawFS) listUpper(ctx context.Context, n nodeID, off uint64, l *lister) error {
	if off == 0 {
		if err := f.cat.refresh(ctx, relistAfter); err != nil {
			return err
		}
	}
	entries, ok := f.cat.list(n.ino())
	if !ok {
		return guestfs.ErrNotDir
	}
	if !l.dots(off, upperIno|n.ino()) {
		return nil
	}
	for _, e := range entries {
		if e.cookie <= resume(off) {
			continue // the entries before may have changed since
		}
		var attr fuse.Attr
		s := f.cat.slot(e.id.slot())
		if s != nil {
			f.layoutAttr(s, pointIno, &attr)
		} else {
			f.upperAttr(e.id, &attr)
		}
		out, ok := l.add(e.name, attr.Ino, guestfs.ModeDir, e.cookie+dotEntries)
		if !ok {
			return nil
		}
		if out != nil && (s == nil || !s.isTree()) { // a tree's has its own attributes: see lookupPoint
			out.NodeId, out.Attr = uint64(e.id), attr
			out.SetAttrTimeout(relistAfter)
			out.SetEntryTimeout(relistAfter)
			if e.name == latestName {
				out.SetEntryTimeout(0)
			}
		}
	}
	return nil
}

func (pl *place) listLayout(ctx context.Context, off uint64, l *lister) error {
	items, err := pl.layout(ctx)
	if len(items) == 0 && err != nil {
		return err
	}
	if !l.dots(off, upperIno|pl.id.ino()) {
		return nil
	}
	for i, it := range items {
		if uint64(i) < resume(off) {
			continue
		}
		var tmp fuse.EntryOut
		eerr := pl.entry(ctx, it, &tmp)
		mode := tmp.Mode
		if eerr != nil {
			mode = guestfs.ModeDir // named, though it can't be looked into
		}
		out, ok := l.add(it.name, tmp.Ino, mode, uint64(i)+1+dotEntries)
		if !ok {
			return nil
		}
		if out != nil && eerr == nil {
			*out = tmp
		}
	}
	return err
}

func (pl *place) listTree(ctx context.Context, off uint64, l *lister) error {
	base := pl.base()
	if !l.dots(off, pl.slot.shownIno(pl.id)) {
		return nil
	}
	var files []pushItem
	err := pl.tree.ReadDir(ctx, pl.ino, resume(off), func(d guestfs.Dirent) bool {
		n := pl.node(base, d.ID)
		out, ok := l.add(d.Name, pl.slot.shownIno(n), d.Type, d.Next+dotEntries)
		if !ok {
			return false
		}
		if out != nil {
			// An inode that can't be read leaves its entry without attributes: the
			// kernel asks for them when they are wanted, and gets the error.
			a, err := pl.treeEntry(ctx, pl.tree, base, d.ID, out)
			if err != nil {
				*out = fuse.EntryOut{}
			} else if small(&a) {
				files = append(files, pushItem{n, a.Size})
			}
		}
		return true
	})
	if len(files) > 0 {
		pl.fs.cache.push.listed(pl.id, off, files)
	}
	return err
}
