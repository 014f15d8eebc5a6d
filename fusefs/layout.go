package fusefs

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/fusefs/erofs"
	"yester/guestfs"
	"yester/internal/ondisk"
	"yester/restorepoint"
)

// upperIno is what the inode numbers of directories that no guest has are shown
// above, so that none equals a guest's.
const upperIno = 0xffff << slotShift

const (
	modeDir  = guestfs.ModeDir | 0o555
	modeDisk = guestfs.ModeRegular | 0o444
)

// upperAttr fills in the attributes of a directory above the points.
func (f *rawFS) upperAttr(n nodeID, out *fuse.Attr) {
	f.cat.mu.Lock()
	t := f.cat.changed
	f.cat.mu.Unlock()
	f.dirAttr(upperIno|n.ino(), t, out)
}

// layoutAttr fills in the attributes of a directory that a point consists of.
func (f *rawFS) layoutAttr(s *slot, ino uint64, out *fuse.Attr) {
	f.dirAttr(s.layoutIno(ino), s.point.Time, out)
}

func (f *rawFS) dirAttr(ino uint64, t time.Time, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: ino, Mode: modeDir, Nlink: 2, Blksize: 4096,
		Owner: fuse.Owner{Uid: f.uid, Gid: f.gid},
	}
	out.SetTimes(&t, &t, &t)
}

// ownDirAttr is layoutAttr for every directory that a point consists of: a point
// that is a tree has its root's attributes.
func (f *rawFS) ownDirAttr(ctx context.Context, s *slot, ino uint64, out *fuse.Attr) error {
	if !s.isTree() || ino != pointIno {
		f.layoutAttr(s, ino, out)
		return nil
	}
	root, err := f.cat.src.Root(ctx, s.point)
	if err != nil {
		return err
	}
	s.treeAttr(makeID(s.num, spaceLayout, pointIno), &root.Attr, out)
	return nil
}

// pointEntry fills in the entry of a point's directory.
func (f *rawFS) pointEntry(ctx context.Context, s *slot, out *fuse.EntryOut) error {
	f.layoutEntry(out, s, pointIno)
	return f.ownDirAttr(ctx, s, pointIno, &out.Attr)
}

// layoutEntry fills in the entry of one of a point's own directories.
func (f *rawFS) layoutEntry(out *fuse.EntryOut, s *slot, ino uint64) {
	out.NodeId = uint64(makeID(s.num, spaceLayout, ino))
	f.layoutAttr(s, ino, &out.Attr)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(relistAfter)
}

// treeAttr fills in what a tree says of one of its inodes.
func (s *slot) treeAttr(n nodeID, a *guestfs.Attr, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:       s.shownIno(n),
		Size:      uint64(a.Size),
		Blocks:    uint64(a.Blocks),
		Atime:     uint64(a.Atime.Sec),
		Mtime:     uint64(a.Mtime.Sec),
		Ctime:     uint64(a.Ctime.Sec),
		Atimensec: a.Atime.Nsec,
		Mtimensec: a.Mtime.Nsec,
		Ctimensec: a.Ctime.Nsec,
		Mode:      a.Mode,
		Nlink:     a.Nlink,
		Owner:     fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:      erofs.Rdev(a.Major, a.Minor),
		Blksize:   4096,
	}
}

// shownIno is the inode number that stat shows of a node inside the point. In its
// lower bits it is the guest's, and the spaces are told apart by the upper ones: a
// directory must never have the number of one above it, or tools believe they
// walk in a circle.
func (s *slot) shownIno(n nodeID) uint64 {
	if n.space() == spaceLayout {
		return s.layoutIno(n.ino())
	}
	return s.inoBase | uint64(n.space()-spaceView)<<spaceShift | n.ino()
}

// layoutIno is shownIno for spaceLayout.
func (s *slot) layoutIno(ino uint64) uint64 {
	return upperIno | (s.inoBase>>slotShift+1)<<16 | ino
}

// disk returns the disk that a node in spaceLayout is.
func (pl *place) disk() (*restorepoint.OpenedDisk, error) {
	if i := pl.id.ino() - firstDisk; pl.id.ino() >= firstDisk && i < uint64(len(pl.p.Disks)) {
		return pl.p.Disks[i], nil
	}
	return nil, guestfs.ErrIsDir
}

func (pl *place) diskAttr(out *fuse.Attr) error {
	d, err := pl.disk()
	if err != nil {
		return err
	}
	f, t := pl.fs, pl.slot.point.Time
	*out = fuse.Attr{
		Ino:  pl.slot.layoutIno(pl.id.ino()),
		Mode: modeDisk, Nlink: 1, Size: uint64(d.Image.Size()), Blocks: uint64(d.Image.Size()+511) / 512, Blksize: 4096,
		Owner: fuse.Owner{Uid: f.uid, Gid: f.gid},
	}
	out.SetTimes(&t, &t, &t)
	return nil
}

// layoutItem is an entry of one of a point's own directories.
type layoutItem struct {
	name string
	ino  uint64 // in spaceLayout; 0 for a tree's root
	base uint8  // the tree's space
	tree guestfs.Tree
	err  error // why the tree can't be opened
}

// layout returns the entries of the point's own directory that pl is.
func (pl *place) layout(ctx context.Context) ([]layoutItem, error) {
	var items []layoutItem
	switch pl.id.ino() {
	case pointIno:
		view, err := pl.p.guestView(ctx)
		if view != nil || err != nil {
			items = append(items, layoutItem{name: filesName, base: spaceView, tree: view, err: err})
		}
		return append(items, layoutItem{name: volumesName, ino: volumesIno}, layoutItem{name: disksName, ino: disksIno}), ctx.Err()
	case volumesIno:
		vols, err := pl.p.Volumes(ctx)
		for i, v := range vols[:min(len(vols), maxVolumes)] {
			tree, terr := v.Tree(ctx)
			if errors.Is(terr, ondisk.ErrFormat) {
				continue // swap, or something that yester can't read
			}
			items = append(items, layoutItem{name: v.Name, base: uint8(spaceVolume + i), tree: tree, err: terr})
		}
		return items, err
	case disksIno:
		for i, d := range pl.p.Disks {
			items = append(items, layoutItem{name: d.Name + diskSuffix, ino: firstDisk + uint64(i)})
		}
		return items, nil
	}
	return nil, guestfs.ErrNotDir
}

// entry fills in the entry of a layout item.
func (pl *place) entry(ctx context.Context, it layoutItem, out *fuse.EntryOut) error {
	switch {
	case it.err != nil:
		return it.err
	case it.ino == 0:
		_, err := pl.treeEntry(ctx, it.tree, it.base, it.tree.Root(), out)
		return err
	case it.ino >= firstDisk:
		d := *pl
		d.id = makeID(pl.slot.num, spaceLayout, it.ino)
		out.NodeId = uint64(d.id)
		out.SetEntryTimeout(forever)
		out.SetAttrTimeout(forever)
		return d.diskAttr(&out.Attr)
	}
	pl.fs.layoutEntry(out, pl.slot, it.ino)
	return nil
}

// lookupLayout looks name up in one of the point's own directories.
func (pl *place) lookupLayout(ctx context.Context, name string, out *fuse.EntryOut) error {
	if pl.id.ino() == pointIno && strings.HasPrefix(name, ".") {
		return guestfs.ErrNotExist
	}
	items, err := pl.layout(ctx)
	for _, it := range items {
		if it.name == name {
			return pl.entry(ctx, it, out)
		}
	}
	if err == nil {
		err = guestfs.ErrNotExist
	}
	return err
}
