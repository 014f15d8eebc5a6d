package restorepoint

import (
	"context"
	"errors"
	"fmt"

	"yester/guestfs"
	"yester/guestfs/guestview"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/volume"
)

// Opened is a restore point whose disks, or whose tree, are open. Partition tables, filesystems
// and the guest view are opened when they are first asked for. All methods are
// safe for parallel use.
type Opened struct {
	Point Point
	Disks []*OpenedDisk
	// Tree is the directory tree of a point of KindTree; nil of one that has disks.
	Tree guestfs.Tree

	src       *Source
	images    []*pooledImage
	snapshots []*snapshotImage
	volumes   lazy[volumeSet]
	view      lazy[*guestview.View]
}

// OpenedDisk is one virtual disk of an opened point, as the guest saw it.
type OpenedDisk struct {
	Disk
	Image block.Reader // the guest's bytes

	table lazy[*volume.Table]
	opt   volume.Options
}

// OpenPoint opens the disks of p, with all the images that they are made of.
func (s *Source) OpenPoint(ctx context.Context, p Point) (*Opened, error) {
	o := &Opened{Point: p, src: s}
	if p.Kind == KindTree {
		tree, err := p.tree.open(ctx, &p)
		if err != nil {
			return nil, &pointError{point: &p, err: err}
		}
		o.Tree = tree
		return o, nil
	}
	if p.problem != nil {
		return nil, &pointError{point: &p, err: p.problem}
	}
	for _, d := range p.Disks {
		img, err := o.openDisk(ctx, &d)
		if err != nil {
			o.Close()
			return nil, &pointError{point: &p, err: err}
		}
		o.Disks = append(o.Disks, &OpenedDisk{
			Disk:  d,
			Image: img,
			opt:   volume.Options{SectorSize: d.Info.SectorSize, Logger: s.opt.Logger.With("point", p.ID, "disk", d.Name)},
		})
	}
	return o, nil
}

// openDisk opens one of the point's disks; Close closes it.
func (o *Opened) openDisk(ctx context.Context, d *Disk) (block.Reader, error) {
	if d.snap != nil {
		img, err := o.src.snapshots.open(d.snap)
		if err != nil {
			return nil, err
		}
		o.snapshots = append(o.snapshots, img)
		return img, nil
	}
	img, err := o.src.images.get(ctx, d.image, d.Snapshot)
	if err != nil {
		return nil, err
	}
	o.images = append(o.images, img)
	return img.Image, nil
}

// pointError says which point could not be opened.
type pointError struct {
	point *Point
	err   error
}

func (e *pointError) Error() string {
	return fmt.Sprintf("restore point %s of %s: %v", e.point.ID, e.point.Machine, e.err)
}

func (e *pointError) Unwrap() error { return e.err }

// Close closes the point's filesystems and gives its images back. Nothing of it
// may be in use any more.
func (o *Opened) Close() {
	if o.Tree != nil {
		o.Tree.Close()
	}
	if set, ok := o.volumes.done(); ok {
		for _, v := range set.volumes {
			if tree, ok := v.tree.done(); ok {
				tree.Close()
			}
		}
	}
	for _, img := range o.images {
		o.src.images.put(img)
	}
	o.images = nil
	for _, img := range o.snapshots {
		img.Close()
	}
	o.snapshots = nil
}

// Disk returns the disk of that name; with an empty name the only one.
func (o *Opened) Disk(name string) (*OpenedDisk, error) {
	if name == "" && len(o.Disks) == 1 {
		return o.Disks[0], nil
	}
	var names []string
	for _, d := range o.Disks {
		if d.Name == name {
			return d, nil
		}
		names = append(names, d.Name)
	}
	if name == "" {
		return nil, fmt.Errorf("the machine has %d disks, name one of %q: %w", len(names), names, ErrNotFound)
	}
	return nil, notFoundf("disk %q (there are %q)", name, names)
}

// Table returns the disk's partition table.
func (d *OpenedDisk) Table(ctx context.Context) (*volume.Table, error) {
	return d.table.get(ctx, func(ctx context.Context) (*volume.Table, error) {
		t, err := volume.Open(ctx, d.Image, d.opt, schemes...)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Name, err)
		}
		for _, w := range t.Warnings {
			d.opt.Logger.Warn(w)
		}
		return t, nil
	})
}

// GuestView returns the point's volumes put together as the guest's own system
// mounted them; an error matching guestview.ErrNoRoot when none looks like a
// system's root.
func (o *Opened) GuestView(ctx context.Context) (*guestview.View, error) {
	return o.view.get(ctx, func(ctx context.Context) (*guestview.View, error) {
		vols, err := o.Volumes(ctx)
		if len(vols) == 0 && err != nil {
			return nil, err
		}
		var members []guestview.Member
		for _, v := range vols {
			tree, err := v.Tree(ctx)
			switch {
			case err == nil:
				members = append(members, o.member(v, tree))
			case ctx.Err() != nil || errors.Is(err, ErrChanged):
				return nil, err
			case !errors.Is(err, ondisk.ErrFormat):
				m := o.member(v, nil)
				m.Err = err
				members = append(members, m)
			}
		}
		view, err := guestview.New(ctx, members, o.src.opt.Logger.With("point", o.Point.ID))
		// What can't be read is told in the view, and a file that changes meanwhile
		// makes much unreadable: that would be a view of nothing that ever was.
		if changed := o.check(ctx); changed != nil {
			return nil, changed
		}
		return view, err
	})
}

// check fails with ErrChanged when one of the point's files is no longer what it
// was when it was opened.
func (o *Opened) check(ctx context.Context) error {
	for _, img := range o.images {
		for ; img != nil; img = img.parent {
			for _, part := range img.file.parts {
				if err := part.Check(ctx); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
