package fusefs

import (
	"context"
	"maps"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"yester/guestfs"
)

// GetXAttr implements fuse.RawFileSystem.
func (f *rawFS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	f.stats.begin()
	defer f.stats.end()
	n := nodeID(h.NodeId)
	v, err := f.xattr(request{cancel}, n, name)
	if err != nil {
		return 0, f.fail("getxattr", n, name, err)
	}
	return deliver(v, dest)
}

func (f *rawFS) xattr(ctx context.Context, n nodeID, name string) ([]byte, error) {
	if n.slot() == 0 || n.space() == spaceLayout {
		root, err := f.rootXattrs(ctx, n)
		v, ok := root[name]
		if err == nil && !ok {
			err = guestfs.ErrNoXattr
		}
		return v, err
	}
	pl, err := f.locate(ctx, n)
	if err != nil {
		return nil, err
	}
	defer pl.release()
	return pl.tree.Xattr(ctx, pl.ino, name)
}

// rootXattrs returns the extended attributes of a directory that no guest has:
// none, but for a point that is a tree.
func (f *rawFS) rootXattrs(ctx context.Context, n nodeID) (map[string][]byte, error) {
	s := f.cat.slot(n.slot())
	if s == nil || !s.isTree() {
		return nil, nil
	}
	root, err := f.cat.src.Root(ctx, s.point)
	return root.Xattrs, err
}

// ListXAttr implements fuse.RawFileSystem.
func (f *rawFS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	f.stats.begin()
	defer f.stats.end()
	n := nodeID(h.NodeId)
	names, err := f.xattrNames(request{cancel}, n)
	if err != nil {
		return 0, f.fail("listxattr", n, "", err)
	}
	var list []byte
	for _, name := range names {
		list = append(list, name...)
		list = append(list, 0)
	}
	return deliver(list, dest)
}

func (f *rawFS) xattrNames(ctx context.Context, n nodeID) ([]string, error) {
	if n.slot() == 0 || n.space() == spaceLayout {
		root, err := f.rootXattrs(ctx, n)
		return slices.Sorted(maps.Keys(root)), err
	}
	pl, err := f.locate(ctx, n)
	if err != nil {
		return nil, err
	}
	defer pl.release()
	return pl.tree.ListXattr(ctx, pl.ino)
}

// deliver answers an xattr request: the size alone when the caller has no room
// yet, ERANGE when it has too little.
func deliver(v, dest []byte) (uint32, fuse.Status) {
	if len(dest) > 0 && len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	copy(dest, v)
	return uint32(len(v)), fuse.OK
}

// Statx implements fuse.RawFileSystem. The kernel asks by it when somebody wants
// a file's time of creation.
func (f *rawFS) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	var a fuse.AttrOut
	get := fuse.GetAttrIn{InHeader: in.InHeader}
	if st := f.GetAttr(cancel, &get, &a); st != fuse.OK {
		return st
	}
	out.AttrValid, out.AttrValidNsec = a.AttrValid, a.AttrValidNsec
	x := &out.Statx
	x.Mask = unix.STATX_BASIC_STATS
	x.Ino, x.Mode, x.Nlink, x.Uid, x.Gid = a.Ino, uint16(a.Mode), a.Nlink, a.Uid, a.Gid
	x.Size, x.Blocks, x.Blksize = a.Size, a.Blocks, a.Blksize
	x.RdevMajor, x.RdevMinor = a.Rdev>>8&0xfff, a.Rdev&0xff|a.Rdev>>12&^0xff
	x.Atime = fuse.SxTime{Sec: a.Atime, Nsec: a.Atimensec}
	x.Mtime = fuse.SxTime{Sec: a.Mtime, Nsec: a.Mtimensec}
	x.Ctime = fuse.SxTime{Sec: a.Ctime, Nsec: a.Ctimensec}
	n := nodeID(in.NodeId)
	if n.slot() == 0 || n.space() == spaceLayout {
		return fuse.OK
	}
	pl, err := f.locate(request{cancel}, n)
	if err != nil {
		return f.fail("statx", n, "", err)
	}
	defer pl.release()
	attr, err := pl.tree.Attr(request{cancel}, pl.ino)
	if err != nil {
		return f.fail("statx", n, "", err)
	}
	if attr.Btime != (guestfs.Time{}) {
		x.Btime = fuse.SxTime{Sec: uint64(attr.Btime.Sec), Nsec: attr.Btime.Nsec}
		x.Mask |= unix.STATX_BTIME
	}
	return fuse.OK
}
