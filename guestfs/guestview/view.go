// Package guestview puts the filesystems of one machine together as its own system
// mounted them: the root filesystem, and the others where its /etc/fstab says.
//
// What the guest's kernel would show is what the view shows: a mount covers the
// directory it is on, mount points are looked up within the guest, links
// included, and a filesystem may be mounted at several places, as Btrfs
// subvolumes and bind mounts are.
package guestview

import (
	"context"
	"errors"
	"fmt"
	"math/bits"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// ErrNoRoot means that none of the volumes looks like a system's root, so there is nothing
// to put together; the volumes can be shown one by one.
var ErrNoRoot = errors.New("no root filesystem among the volumes")

// Member is one filesystem of the machine and what its volume is known by.
type Member struct {
	Name string       // for messages, and as Mount.Volume
	Tree guestfs.Tree // stays the caller's to close, after the View's last use
	// Err says why the filesystem can't be read; there is no Tree then. Where the
	// guest mounted it, the view shows this error, not the empty directory below.
	Err error

	Disk      int    // the disk's position among the machine's, from 0; -1: on none (a logical volume)
	Number    int    // the partition's number; 0 when the filesystem takes the whole disk
	PartUUID  string // as Linux writes it
	PartLabel string // GPT partition name
	// Devices are paths by which the guest knew the volume, where that is known:
	// "/dev/mapper/vg-root", "/dev/md0", "/dev/xvdf1". Without them, the likes of
	// /dev/sdb1 are taken for a disk's position.
	Devices []string
}

// Mount is one place where a filesystem is in the view.
type Mount struct {
	Path    string   `json:"path"`              // in the view, without links
	Volume  string   `json:"volume"`            // the Member's name
	Member  int      `json:"-"`                 // its index
	Spec    string   `json:"spec,omitempty"`    // what /etc/fstab calls it
	Options []string `json:"options,omitempty"` // by /etc/fstab
	// Problem says why what was mounted there can't be shown.
	Problem string `json:"problem,omitempty"`
}

// View is the machine's tree. It implements guestfs.Tree.
//
// Its IDs are the members' own, with the mount's index in the high bits of Sub.
// The index belongs to the mount, not to the member: one member may be mounted
// twice, even within itself, and only so does the inner one end where the guest's
// does.
type View struct {
	mounts []mount
	over   map[guestfs.ID]int // mount index by the directory it covers
	shift  int                // of the mount index in ID.Sub

	// Warnings tell what of /etc/fstab couldn't be followed, and which choices
	// were made.
	Warnings []string
}

var _ guestfs.Tree = (*View)(nil)

// mount is a Mount with what it shows.
type mount struct {
	Mount
	tree guestfs.Tree
	root guestfs.ID // within tree
}

// newView returns a view of one mount, with room for the IDs of n.
func newView(root mount, n int) *View {
	return &View{
		mounts: []mount{root},
		over:   make(map[guestfs.ID]int),
		shift:  32 - bits.Len(uint(n-1)),
	}
}

// Mounts returns what is mounted where, the root first.
func (v *View) Mounts() []Mount {
	list := make([]Mount, len(v.mounts))
	for i := range v.mounts {
		list[i] = v.mounts[i].Mount
	}
	return list
}

// outer turns an ID of mount i's tree into one of the view's, crossing into what
// is mounted there.
func (v *View) outer(i int, id guestfs.ID) (guestfs.ID, error) {
	for {
		if uint64(id.Sub)>>v.shift != 0 {
			return guestfs.ID{}, fmt.Errorf("inode space %d of %s is too large for the guest view: %w",
				id.Sub, v.mounts[i].Volume, ondisk.ErrUnsupported)
		}
		id = v.Join(i, id)
		j, ok := v.over[id]
		if !ok {
			return id, nil
		}
		i, id = j, v.mounts[j].root
	}
}

// inner turns an ID of the view into the tree's that it belongs to.
func (v *View) inner(id guestfs.ID) (int, guestfs.Tree, guestfs.ID, error) {
	i, inner := v.Split(id)
	if i >= len(v.mounts) {
		return 0, nil, guestfs.ID{}, fmt.Errorf("inode %d:%d: %w", id.Sub, id.Ino, guestfs.ErrNotExist)
	}
	return i, v.mounts[i].tree, inner, nil
}

// Split takes an ID of the view apart: the mount's index in Mounts, and the ID
// within its filesystem.
func (v *View) Split(id guestfs.ID) (mount int, inner guestfs.ID) {
	mount = int(uint64(id.Sub) >> v.shift)
	id.Sub &= uint32(uint64(1)<<v.shift - 1)
	return mount, id
}

// Join is the reverse of Split. The result is good for nothing when the view has
// no such mount.
func (v *View) Join(mount int, inner guestfs.ID) guestfs.ID {
	inner.Sub |= uint32(uint64(mount) << v.shift)
	return inner
}

// Root implements guestfs.Tree.
func (v *View) Root() guestfs.ID {
	id, err := v.outer(0, v.mounts[0].root)
	if err != nil { // New has tried
		return v.mounts[0].root
	}
	return id
}

// Attr implements guestfs.Tree.
func (v *View) Attr(ctx context.Context, id guestfs.ID) (guestfs.Attr, error) {
	_, tree, id, err := v.inner(id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	return tree.Attr(ctx, id)
}

// Lookup implements guestfs.Tree.
func (v *View) Lookup(ctx context.Context, dir guestfs.ID, name string) (guestfs.ID, error) {
	i, tree, dir, err := v.inner(dir)
	if err != nil {
		return guestfs.ID{}, err
	}
	id, err := tree.Lookup(ctx, dir, name)
	if err != nil {
		return guestfs.ID{}, err
	}
	return v.outer(i, id)
}

// ReadDir implements guestfs.Tree.
func (v *View) ReadDir(ctx context.Context, dir guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	i, tree, dir, err := v.inner(dir)
	if err != nil {
		return err
	}
	var failed error
	err = tree.ReadDir(ctx, dir, from, func(e guestfs.Dirent) bool {
		id, err := v.outer(i, e.ID)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%q: %w", e.Name, err))
			return true // the others can be shown
		}
		e.ID = id
		return emit(e)
	})
	if err == nil {
		err = failed
	}
	return err
}

// ReadLink implements guestfs.Tree.
func (v *View) ReadLink(ctx context.Context, id guestfs.ID) (string, error) {
	_, tree, id, err := v.inner(id)
	if err != nil {
		return "", err
	}
	return tree.ReadLink(ctx, id)
}

// ListXattr implements guestfs.Tree.
func (v *View) ListXattr(ctx context.Context, id guestfs.ID) ([]string, error) {
	_, tree, id, err := v.inner(id)
	if err != nil {
		return nil, err
	}
	return tree.ListXattr(ctx, id)
}

// Xattr implements guestfs.Tree.
func (v *View) Xattr(ctx context.Context, id guestfs.ID, name string) ([]byte, error) {
	_, tree, id, err := v.inner(id)
	if err != nil {
		return nil, err
	}
	return tree.Xattr(ctx, id, name)
}

// Open implements guestfs.Tree.
func (v *View) Open(ctx context.Context, id guestfs.ID) (block.Reader, error) {
	_, tree, id, err := v.inner(id)
	if err != nil {
		return nil, err
	}
	return tree.Open(ctx, id)
}

// Info returns the root filesystem's, as statfs of / does.
func (v *View) Info() guestfs.Info { return v.mounts[0].tree.Info() }

// Close does nothing: the members' trees are their owner's to close.
func (v *View) Close() error { return nil }
