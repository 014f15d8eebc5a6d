package lvm

import (
	"strings"

	"yester/internal/ondisk"
)

// unreadable are the types of segments that aren't read, and what they are called
// in lvmraid(7), lvmthin(7), lvmcache(7) and lvmvdo(7).
var unreadable = map[string]string{
	"snapshot":   "a snapshot",
	"thin":       "a thin volume",
	"thin-pool":  "a thin pool",
	"cache":      "a cached volume",
	"cache-pool": "a cache pool",
	"writecache": "a volume with a write cache",
	"vdo":        "a VDO volume",
	"vdo-pool":   "a VDO pool",
	"integrity":  "a volume with integrity checksums",
	"raid4":      "RAID 4",
	"raid10":     "RAID 10",
}

// unreadableName says what a type that isn't read is.
func unreadableName(typ string) string {
	if name, ok := unreadable[typ]; ok {
		return name
	}
	for _, level := range []string{"5", "6"} { // raid5_ls, raid6_zr, …
		if typ == "raid"+level || strings.HasPrefix(typ, "raid"+level+"_") {
			return "RAID " + level + " (" + typ + ")"
		}
	}
	return "segments of type " + quoteShort(typ)
}

func quoteShort(s string) string {
	if len(s) > 40 || !validName(s) {
		return "unknown"
	}
	return s
}

// perArea returns how many extents of each area the segment takes.
func (s *segment) perArea() uint64 {
	if s.striped() {
		return s.count / uint64(len(s.areas))
	}
	return s.count
}

// striped reports whether the segment's bytes are spread over its areas, rather
// than the same in all.
func (s *segment) striped() bool {
	return len(s.areas) > 0 && (s.typ == "striped" || s.typ == "raid0" || s.typ == "raid0_meta")
}

// fill reads what a segment is made of.
func (g *group) fill(seg *segment, lv *logical, s *section, keys map[string]*physical) error {
	typ, _ := s.text("type")
	seg.typ, _, _ = strings.Cut(typ, "+") // flags follow (lib/format_text/flags.c)
	switch seg.typ {
	case "striped":
		areas, err := g.refs(s, "stripes", keys)
		if err != nil {
			return err
		}
		return g.setStripes(seg, areas, s)
	case "raid0", "raid0_meta":
		areas, _, err := g.legs(seg, s)
		if err != nil {
			return err
		}
		return g.setStripes(seg, areas, s)
	case "mirror":
		areas, err := g.refs(s, "mirrors", keys)
		if err != nil {
			return err
		}
		if n, ok := s.number("mirror_count"); !ok || n != uint64(len(areas)) {
			return corruptf("mirror_count", "%d, and there are %d", n, len(areas))
		}
		seg.areas = areas
		moved, _ := s.number("extents_moved")
		seg.moved = lv.pvmove && moved == seg.count && len(areas) == 2
		return g.checkAreas(seg)
	case "raid1":
		areas, metas, err := g.legs(seg, s)
		if err != nil {
			return err
		}
		if n, ok := s.number("device_count"); !ok || n != uint64(len(areas)) || n > raidMaxLegs {
			return corruptf("device_count", "%d, and there are %d", n, len(areas))
		}
		for _, key := range []string{"data_offset", "reshape_count"} {
			if n, ok := s.number(key); ok && n > 0 {
				return unsupportedf(key, "a RAID 1 that is being reshaped")
			}
		}
		seg.areas, seg.metas = areas, metas
		return g.checkAreas(seg)
	case "zero":
		return nil
	case "error":
		return corruptf("type", "what was there is lost: it lay on a physical volume that was taken out of the group")
	}
	return ondisk.Unsupportedf(format, "type", -1, "%s", unreadableName(seg.typ))
}

// setStripes makes seg one of stripes over areas, which are one for a linear one.
func (g *group) setStripes(seg *segment, areas []areaRef, s *section) error {
	n := uint64(len(areas))
	if have, ok := s.number("stripe_count"); !ok || have != n {
		return corruptf("stripe_count", "%d, and there are %d", have, n)
	}
	if seg.count%n != 0 {
		return corruptf("extent_count", "%d extents on %d stripes", seg.count, n)
	}
	if n > 1 {
		sectors, _ := s.number("stripe_size")
		bytes, ok := product(sectors, sectorSize)
		size, _ := product(seg.count/n, g.extent) // no more than the volume's
		if !ok || bytes == 0 || size%bytes != 0 {
			return corruptf("stripe_size", "%d sectors, of which an area of %d bytes is no multiple", sectors, size)
		}
		seg.stripe = uint64(bytes)
	}
	seg.areas = areas
	return g.checkAreas(seg)
}

// legs reads the volumes of a RAID: pairs of one for its metadata and one for the
// data, or the data's alone.
func (g *group) legs(seg *segment, s *section) (areas []areaRef, metas []*logical, err error) {
	key, step := "raids", 2
	if seg.typ == "raid0" {
		key, step = "raid0_lvs", 1
	}
	list, _ := s.array(key)
	if len(list) == 0 || len(list)%step != 0 {
		return nil, nil, corruptf(key, "%d values", len(list))
	}
	for i := range list {
		lv := g.byName[list[i].str]
		if list[i].kind != kindString || lv == nil {
			return nil, nil, corruptf(key, "value %d is no logical volume", i)
		}
		if i%step < step-1 {
			metas = append(metas, lv)
		} else {
			areas = append(areas, areaRef{lv: lv})
		}
	}
	return areas, metas, nil
}

// checkAreas checks that seg's areas lie on their physical volumes. Those on
// logical ones are checked when these are put together.
func (g *group) checkAreas(seg *segment) error {
	n := seg.perArea()
	for _, a := range seg.areas {
		if a.pv != nil && (a.start > a.pv.count || n > a.pv.count-a.start) {
			err := corruptf("areas", "%d extents from %d on of physical volume %s, which has %d", n, a.start, a.pv.uuid, a.pv.count)
			seg.areas = nil
			return err
		}
	}
	return nil
}
