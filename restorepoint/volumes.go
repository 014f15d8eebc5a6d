package restorepoint

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"yester/guestfs"
	"yester/guestfs/guestview"
	"yester/internal/ondisk"
	"yester/volume"
)

// OpenedVolume is something a filesystem can lie on.
type OpenedVolume struct {
	// Name is unique within the point: "p1", or "data-p1" where the point has
	// several disks; "vg0-root" of a logical volume.
	Name string
	Disk *OpenedDisk // nil of a logical volume, which may lie on several
	volume.Volume
	// Member says what the volume is a part of; nil when of nothing. Such a volume
	// has no filesystem.
	Member *volume.Member

	tree lazy[guestfs.Tree]
	opt  guestfs.Options
}

// volumeSet is what the partition tables of a point's disks gave, and what was put
// together from that.
type volumeSet struct {
	volumes []*OpenedVolume
	groups  []volume.Group
	warned  []string
	damage  error // the disks whose table can't be read, and the like
}

// Volumes returns the volumes of all disks, and behind them those that were put
// together from them. Disks whose partition table is damaged are left out; the
// error then says so, beside the volumes of the others.
func (o *Opened) Volumes(ctx context.Context) ([]*OpenedVolume, error) {
	set, err := o.volumeSet(ctx)
	return set.volumes, errors.Join(err, set.damage)
}

// Groups returns the volume groups that the point's volumes make up, and warnings
// about volumes that look like parts of one and aren't.
func (o *Opened) Groups(ctx context.Context) (groups []volume.Group, warnings []string, err error) {
	set, err := o.volumeSet(ctx)
	return set.groups, set.warned, err
}

func (o *Opened) volumeSet(ctx context.Context) (volumeSet, error) {
	return o.volumes.get(ctx, func(ctx context.Context) (volumeSet, error) {
		var set volumeSet
		for _, d := range o.Disks {
			t, err := d.Table(ctx)
			if err != nil {
				if len(o.Disks) == 1 || ctx.Err() != nil {
					return set, err
				}
				set.damage = errors.Join(set.damage, err)
				continue
			}
			for _, v := range t.Volumes {
				name := v.Name
				if len(o.Disks) > 1 {
					name = d.Name + "-" + name
				}
				set.volumes = append(set.volumes, o.newVolume(name, d, v))
			}
		}
		return set, o.assemble(ctx, &set)
	})
}

func (o *Opened) newVolume(name string, d *OpenedDisk, v volume.Volume) *OpenedVolume {
	return &OpenedVolume{Name: name, Disk: d, Volume: v, opt: guestfs.Options{
		Replay: o.src.opt.Replay,
		Logger: o.src.opt.Logger.With("point", o.Point.ID, "volume", name),
	}}
}

// assemble adds to set what its volumes make up together.
func (o *Opened) assemble(ctx context.Context, set *volumeSet) error {
	devs := make([]volume.Device, len(set.volumes))
	for i, v := range set.volumes {
		devs[i] = volume.Device{Name: v.Name, Reader: v.Reader}
	}
	log := o.src.opt.Logger.With("point", o.Point.ID)
	found, err := volume.Assemble(ctx, devs, volume.Options{Logger: log}, assemblies...)
	if err != nil {
		return err
	}
	taken := make(map[string]bool)
	for _, v := range set.volumes {
		taken[v.Name] = true
	}
	for _, a := range found {
		for _, w := range a.Warnings {
			log.Warn(w)
		}
		set.warned = append(set.warned, a.Warnings...)
		set.damage = errors.Join(set.damage, a.Damage)
		set.groups = append(set.groups, a.Groups...)
		for i := range a.Groups {
			g := &a.Groups[i]
			for _, w := range g.Warnings {
				log.Warn(w, "group", g.Name)
			}
			for _, v := range g.Volumes {
				// Disk "vg0" with a partition p1 beside a volume group vg0 with a volume p1.
				name := v.Name
				for taken[name] {
					name += "-" + v.Scheme
				}
				taken[name] = true
				set.volumes = append(set.volumes, o.newVolume(name, nil, v))
			}
		}
		for _, m := range a.Members {
			set.volumes[m.Device].Member = &m
		}
	}
	return nil
}

// Volume returns the volume of that name.
func (o *Opened) Volume(ctx context.Context, name string) (*OpenedVolume, error) {
	vols, err := o.Volumes(ctx)
	var names []string
	for _, v := range vols {
		if v.Name == name {
			return v, nil
		}
		names = append(names, v.Name)
	}
	if err != nil {
		return nil, err
	}
	return nil, notFoundf("volume %q (there are %q)", name, names)
}

// Tree returns the filesystem on the volume; an error matching ondisk.ErrFormat
// when there is none that yester knows.
func (v *OpenedVolume) Tree(ctx context.Context) (guestfs.Tree, error) {
	return v.tree.get(ctx, func(ctx context.Context) (guestfs.Tree, error) {
		err := v.Err
		var t guestfs.Tree
		switch {
		case err != nil:
		case v.Member != nil:
			err = fmt.Errorf("%s, no filesystem: %w", v.Member.Type, ondisk.ErrFormat)
		default:
			t, err = guestfs.Open(ctx, v.Reader, v.opt, filesystems...)
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		return t, nil
	})
}

// member says what the guest view needs to know of a volume.
func (o *Opened) member(v *OpenedVolume, tree guestfs.Tree) guestview.Member {
	m := guestview.Member{Name: v.Name, Tree: tree, Disk: -1, Devices: v.Devices}
	if v.Disk != nil {
		m.Disk, m.Number = slices.Index(o.Disks, v.Disk), v.Number
		m.PartUUID, m.PartLabel = v.ID, v.Label
	}
	return m
}
