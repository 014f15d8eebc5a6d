package lvm

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"

	"yester/internal/ondisk"
)

// group is a volume group by its metadata.
type group struct {
	name   string
	id     string // with dashes
	seqno  uint64
	extent uint64 // bytes
	pvs    []*physical
	lvs    []*logical
	byName map[string]*logical
}

// physical is a physical volume as its group knows it.
type physical struct {
	key   string // the metadata's own name for it: "pv0"
	uuid  string
	lost  bool   // the group has gone on without it, so that what is on it is stale
	start uint64 // bytes: where its first extent begins
	count uint64 // extents

	found []*member // devices with its label
	dev   *member   // the one to read from; nil when there is none
	why   error     // there is none
}

// logical is a logical volume.
type logical struct {
	name    string
	id      string
	visible bool // not just a part of another
	size    int64
	segs    []segment
	err     error // why it can't be read, as far as the metadata tell

	pvmove    bool // its mirrors are data on the move
	notSynced bool // its legs never were the same
	rebuild   bool // a leg that is being rebuilt

	state  state
	mapped *mapped
}

// segment is a part of a logical volume that is made in one way.
type segment struct {
	start, count uint64 // extents
	typ          string // "striped", "mirror", "raid1", "zero", …
	stripe       uint64 // bytes of each area in turn; 0 for one after the other
	areas        []areaRef
	metas        []*logical // of a raid1: beside each area
	moved        bool       // of a mirror in a pvmove: all of it has been copied
}

// areaRef is a place on a PV or a logical volume.
type areaRef struct {
	pv    *physical
	lv    *logical
	start uint64 // extent
}

// newGroup reads a volume group from the metadata text. What is wrong with one of
// its logical volumes is that volume's error.
func newGroup(text *section) (*group, error) {
	if c, _ := text.text("contents"); c != "Text Format Volume Group" {
		return nil, corruptf("metadata text", "contents are %.40q", c)
	}
	if v, _ := text.number("version"); v != 1 {
		return nil, ondisk.Unsupportedf(format, "metadata text", -1, "version %d", v)
	}
	g := &group{byName: make(map[string]*logical)}
	var s *section
	for i := range text.entries {
		if e := &text.entries[i]; e.kind == kindSection {
			if s != nil {
				return nil, corruptf("metadata text", "two volume groups, %.40q and %.40q", g.name, e.key)
			}
			s, g.name = e.sub, e.key
		}
	}
	switch {
	case s == nil:
		return nil, corruptf("metadata text", "no volume group")
	case !validName(g.name):
		return nil, corruptf("volume group", "name %.40q", g.name)
	}
	what := "volume group " + g.name
	var ok bool
	if g.id, ok = s.text("id"); ok {
		_, ok = undashed(g.id)
	}
	if !ok {
		return nil, corruptf(what, "id %.40q", g.id)
	}
	if g.seqno, ok = s.number("seqno"); !ok {
		return nil, corruptf(what, "no seqno")
	}
	sectors, _ := s.number("extent_size")
	if sectors == 0 || sectors > math.MaxUint32 { // the field is of 32 bits
		return nil, corruptf(what, "extents of %d sectors", sectors)
	}
	g.extent = sectors * sectorSize
	keys := make(map[string]*physical)
	if pvs, ok := s.section("physical_volumes"); ok {
		for i := range pvs.entries {
			pv, err := g.newPhysical(&pvs.entries[i])
			if err != nil {
				return nil, err
			}
			g.pvs = append(g.pvs, pv)
			keys[pv.key] = pv
		}
	}
	if err := g.uniquePVs(); err != nil {
		return nil, err
	}
	if lvs, ok := s.section("logical_volumes"); ok {
		if err := g.addLogicals(lvs, keys); err != nil {
			return nil, err
		}
	}
	g.markSnapshots(s)
	g.markOverlaps()
	return g, nil
}

// validName reports whether LVM2 lets a group or a volume have that name
// (lib/misc/lvm-string.c, validate_name). Names become those of files.
func validName(s string) bool {
	if s == "" || len(s) > maxName || s == "." || s == ".." || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !alnum(c) && !strings.ContainsRune("+_.-", rune(c)) {
			return false
		}
	}
	return true
}

func corruptf(field, msg string, args ...any) error {
	return ondisk.Corruptf(format, field, -1, msg, args...)
}

func (g *group) newPhysical(e *entry) (*physical, error) {
	pv := &physical{key: e.key}
	what := fmt.Sprintf("volume group %s, physical volume %.40s", g.name, e.key)
	if e.kind != kindSection {
		return nil, corruptf(what, "no section")
	}
	pv.uuid, _ = e.sub.text("id")
	if _, ok := undashed(pv.uuid); !ok {
		return nil, corruptf(what, "id %.40q", pv.uuid)
	}
	start, ok1 := e.sub.number("pe_start")
	count, ok2 := e.sub.number("pe_count")
	if !ok1 || !ok2 {
		return nil, corruptf(what, "no pe_start or no pe_count")
	}
	first, ok1 := product(start, sectorSize)
	bytes, ok2 := product(count, g.extent)
	if !ok1 || !ok2 || uint64(first)+uint64(bytes) > math.MaxInt64 {
		return nil, corruptf(what, "%d extents from sector %d on: no device is that large", count, start)
	}
	pv.start, pv.count, pv.lost = uint64(first), count, e.sub.has("MISSING")
	return pv, nil
}

func (g *group) uniquePVs() error {
	seen := make(map[string]bool)
	for _, pv := range g.pvs {
		if seen[pv.uuid] {
			return corruptf("volume group "+g.name, "two physical volumes %s", pv.uuid)
		}
		seen[pv.uuid] = true
	}
	return nil
}

// product returns a times b when that is a size or an offset.
func product(a, b uint64) (int64, bool) {
	hi, lo := bits.Mul64(a, b)
	return int64(lo), hi == 0 && lo <= math.MaxInt64
}

func (g *group) addLogicals(lvs *section, keys map[string]*physical) error {
	for i := range lvs.entries {
		e := &lvs.entries[i]
		if e.kind != kindSection || !validName(e.key) {
			return corruptf("volume group "+g.name, "logical volume %.40q: no section, or no name", e.key)
		}
		lv := &logical{name: e.key, visible: e.sub.has("VISIBLE"),
			pvmove: e.sub.has("PVMOVE"), notSynced: e.sub.has("NOTSYNCED"), rebuild: e.sub.has("REBUILD")}
		lv.id, _ = e.sub.text("id")
		if _, ok := undashed(lv.id); !ok {
			lv.id = ""
		}
		g.lvs = append(g.lvs, lv)
		g.byName[lv.name] = lv
	}
	// Segments name volumes that may come later in the text.
	for i, lv := range g.lvs {
		if err := g.addSegments(lv, lvs.entries[i].sub, keys); err != nil {
			lv.err = fmt.Errorf("%s: %w", g.full(lv), err)
		}
	}
	return nil
}

// full names lv in messages, as LVM2's own do.
func (g *group) full(lv *logical) string { return g.name + "/" + lv.name }

// addSegments reads lv's segments, which must follow one upon the other.
func (g *group) addSegments(lv *logical, s *section, keys map[string]*physical) error {
	var total uint64
	for i := range s.entries {
		e := &s.entries[i]
		if e.kind != kindSection || !strings.HasPrefix(e.key, "segment") {
			continue
		}
		seg := segment{}
		var ok1, ok2 bool
		seg.start, ok1 = e.sub.number("start_extent")
		seg.count, ok2 = e.sub.number("extent_count")
		if !ok1 || !ok2 || seg.count == 0 || seg.count > math.MaxInt64 || seg.start > math.MaxInt64 {
			return corruptf(e.key, "no start_extent or no extent_count")
		}
		total += seg.count
		if _, ok := product(total, g.extent); !ok || total < seg.count {
			return corruptf(e.key, "%d extents: no volume is that large", seg.count)
		}
		lv.segs = append(lv.segs, seg)
		if err := g.fill(&lv.segs[len(lv.segs)-1], lv, e.sub, keys); err != nil && lv.err == nil {
			lv.err = fmt.Errorf("%s: %s: %w", g.full(lv), e.key, err)
		}
	}
	lv.size, _ = product(total, g.extent)
	if n, ok := s.number("segment_count"); !ok || n != uint64(len(lv.segs)) || n == 0 {
		return corruptf("segment_count", "%d, and there are %d", n, len(lv.segs))
	}
	slices.SortStableFunc(lv.segs, func(a, b segment) int { return cmp.Compare(a.start, b.start) })
	var next uint64
	for i := range lv.segs {
		if lv.segs[i].start != next {
			return corruptf("segments", "extents from %d on are in none or in two", min(next, lv.segs[i].start))
		}
		next += lv.segs[i].count
	}
	return nil
}

// refs reads pairs of a name and an extent.
func (g *group) refs(s *section, key string, keys map[string]*physical) ([]areaRef, error) {
	list, _ := s.array(key)
	if len(list) == 0 || len(list)%2 != 0 {
		return nil, corruptf(key, "%d values, which are no pairs", len(list))
	}
	var areas []areaRef
	for i := 0; i < len(list); i += 2 {
		name, at := &list[i], &list[i+1]
		if name.kind != kindString || at.kind != kindInt || at.num < 0 {
			return nil, corruptf(key, "pair %d is no name with an extent", i/2)
		}
		r := areaRef{pv: keys[name.str], start: uint64(at.num)}
		if r.pv == nil {
			if r.lv = g.byName[name.str]; r.lv == nil {
				return nil, corruptf(key, "%.40q is neither a physical nor a logical volume", name.str)
			}
		}
		areas = append(areas, r)
	}
	return areas, nil
}

// markSnapshots gives an error to the volumes that don't hold what they would show:
// the store of a snapshot, and the origin that a snapshot is being merged into.
func (g *group) markSnapshots(s *section) {
	lvs, ok := s.section("logical_volumes")
	if !ok {
		return
	}
	for i := range lvs.entries {
		for j := range lvs.entries[i].sub.entries {
			e := &lvs.entries[i].sub.entries[j]
			if e.kind != kindSection {
				continue
			}
			if typ, _ := e.sub.text("type"); typ != "snapshot" {
				continue
			}
			cow, _ := e.sub.text("cow_store")
			merging, isMerging := e.sub.text("merging_store")
			origin, _ := e.sub.text("origin")
			for _, name := range []string{cow, merging} {
				if lv := g.byName[name]; lv != nil {
					// The store itself isn't VISIBLE in the metadata; as the snapshot it is.
					lv.visible = lv.visible || name == cow
					lv.err = unsupportedf(g.full(lv), "a snapshot with a copy-on-write store, of %.128s", origin)
				}
			}
			if lv := g.byName[origin]; lv != nil && isMerging {
				lv.err = unsupportedf(g.full(lv), "a snapshot is being merged into it")
			}
		}
	}
}

func unsupportedf(field, msg string, args ...any) error {
	return ondisk.Unsupportedf(format, field, -1, msg, args...)
}

// markOverlaps gives an error to volumes that share extents of a PV: one of them
// would show the other's bytes.
func (g *group) markOverlaps() {
	type use struct {
		start, end uint64
		lv         *logical
	}
	uses := make(map[*physical][]use)
	for _, lv := range g.lvs {
		for i := range lv.segs {
			seg := &lv.segs[i]
			for _, a := range seg.areas {
				if a.pv != nil {
					uses[a.pv] = append(uses[a.pv], use{a.start, a.start + seg.perArea(), lv})
				}
			}
		}
	}
	for _, pv := range g.pvs {
		list := uses[pv]
		slices.SortStableFunc(list, func(a, b use) int { return cmp.Compare(a.start, b.start) })
		last := use{} // reaches furthest of those seen
		for _, u := range list {
			if u.start < last.end {
				for _, lv := range []*logical{u.lv, last.lv} {
					lv.err = corruptf(g.full(lv), "extent %d of physical volume %s belongs to %s and to %s",
						u.start, pv.uuid, last.lv.name, u.lv.name)
				}
			}
			if u.end > last.end {
				last = u
			}
		}
	}
}
