// Package lvm reads the volume groups of LVM2 and puts their logical volumes
// together: linear and striped ones, and one leg of mirrors and RAID 1.
//
// The description of a group is text that each of its physical volumes may hold
// copies of; the newest sound one counts. What can't be read rightly is a volume
// whose every read is the error that says why.
package lvm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"slices"
	"strings"

	"yester/volume"
)

// Assembly is LVM2 for volume.Assemble.
var Assembly = volume.Assembly{Name: format, Open: Open}

// memberType is a physical volume's volume.Member.Type.
const memberType = "LVM2 PV"

// Open finds the physical volumes among devs and returns their volume groups. It
// fails only when ctx ends.
func Open(ctx context.Context, devs []volume.Device, opt volume.Options) (*volume.Assembled, error) {
	f := &finder{
		out:    &volume.Assembled{},
		parsed: make(map[[sha256.Size]byte]*text),
		budget: budget{bytes: maxAllText, values: maxAllValues},
	}
	if err := f.findMembers(ctx, devs); err != nil {
		return nil, err
	}
	if err := f.readAreas(ctx); err != nil {
		return nil, err
	}
	f.attach()
	for _, t := range f.groups {
		vg := volume.Group{Scheme: format, Name: t.g.name, ID: t.g.id}
		f.tell(t, &vg)
		if err := fill(ctx, t, &vg); err != nil {
			return nil, err
		}
		f.out.Groups = append(f.out.Groups, vg)
	}
	uniqueNames(f.out)
	f.tellRest()
	for _, d := range f.members {
		f.out.Members = append(f.out.Members, volume.Member{Device: d.index, Type: memberType, ID: d.header.uuid, Group: d.group})
	}
	return f.out, nil
}

// fill puts the volumes of t's group into vg.
func fill(ctx context.Context, t *text, vg *volume.Group) error {
	g := t.g
	r := &resolver{ctx: ctx, g: g, warn: vg.Warnf}
	r.hintSuperblocks()
	for _, lv := range g.lvs {
		if !lv.visible {
			continue
		}
		m, err := r.resolve(lv, 0)
		if t.rest != nil {
			err = t.rest
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		dm := mapperName(g.name, lv.name)
		v := volume.Volume{Name: dm, Scheme: format, Type: lv.kind(), Label: lv.name, ID: lv.id, Err: err, Reader: m}
		v.Devices = []string{"/dev/mapper/" + dm, "/dev/" + g.name + "/" + lv.name, "/dev/disk/by-id/dm-name-" + dm}
		if vgID, ok := undashed(g.id); ok && lv.id != "" {
			lvID, _ := undashed(lv.id)
			v.Devices = append(v.Devices, "/dev/disk/by-id/dm-uuid-LVM-"+vgID+lvID)
		}
		if err != nil {
			v.Reader = &volume.Unreadable{Bytes: lv.size, Err: err}
		}
		vg.Volumes = append(vg.Volumes, v)
	}
	return nil
}

// kind says how lv is made, in lvs's words.
func (lv *logical) kind() string {
	if len(lv.segs) == 0 {
		return ""
	}
	seg := &lv.segs[0]
	if seg.typ == "striped" && len(seg.areas) == 1 {
		return "linear"
	}
	return quoteShort(seg.typ)
}

// mapperName returns the name of a volume's device in /dev/mapper: dashes of the
// two names are doubled (libdm, dm_build_dm_name).
func mapperName(vg, lv string) string {
	return strings.ReplaceAll(vg, "-", "--") + "-" + strings.ReplaceAll(lv, "-", "--")
}

// uniqueNames gives the volumes of groups that have their name in common names of
// their own. The guest could not tell them apart either: none is at its path.
func uniqueNames(out *volume.Assembled) {
	count := make(map[string]int)
	for i := range out.Groups {
		count[out.Groups[i].Name]++
	}
	for i := range out.Groups {
		vg := &out.Groups[i]
		if count[vg.Name] < 2 {
			continue
		}
		vg.Warnf("there are %d volume groups called %s; this is %s", count[vg.Name], vg.Name, vg.ID)
		for j := range vg.Volumes {
			vg.Volumes[j].Name += "@" + vg.ID
			vg.Volumes[j].Devices = nil
		}
	}
	slices.SortStableFunc(out.Groups, func(a, b volume.Group) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
}
