package lvm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/volume"
)

// finder sorts out which physical volumes belong to which group.
type finder struct {
	out     *volume.Assembled
	members []*member
	parsed  map[[sha256.Size]byte]*text // the copies of a group are alike as a rule
	budget  budget
	groups  []*text // the newest of each group, in the order in which they were found
}

// budget is what the texts of one machine may still take.
type budget struct{ bytes, values int }

// text is a metadata text, or why it is of no use.
type text struct {
	root *section
	g    *group
	err  error
	rest error // another text has the same number and says something else
}

// findMembers reads the labels of all devices.
func (f *finder) findMembers(ctx context.Context, devs []volume.Device) error {
	for _, d := range devs {
		block.Prefetch(d.Reader, block.Range{Len: labelSectors * sectorSize})
	}
	for i, d := range devs {
		b := make([]byte, min(d.Reader.Size(), labelSectors*sectorSize))
		err := block.ReadFull(ctx, d.Reader, b, 0)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var h *header
		if err == nil {
			h, err = readLabel(b)
		}
		switch {
		case err == nil:
			f.members = append(f.members, &member{name: d.Name, index: i, dev: d.Reader, header: h, size: d.Reader.Size()})
		case errors.Is(err, ondisk.ErrFormat):
		case errors.Is(err, ondisk.ErrCorrupt) || errors.Is(err, ondisk.ErrUnsupported):
			f.out.Warnf("%s is not taken for a physical volume: %v", d.Name, err)
		default:
			f.out.Damage = errors.Join(f.out.Damage, fmt.Errorf("%s: %w", d.Name, err))
		}
	}
	return nil
}

// readAreas reads the headers of all metadata areas, then the texts: what lies far
// away is asked for at once.
func (f *finder) readAreas(ctx context.Context) error {
	for _, d := range f.members {
		var headers []block.Range
		for _, r := range d.header.mdas {
			if r.off <= math.MaxInt64 {
				headers = append(headers, block.Range{Off: int64(r.off), Len: mdaHeaderSize})
			}
		}
		block.Prefetch(d.dev, headers...)
	}
	for _, d := range f.members {
		if err := d.readHeaders(ctx); err != nil {
			return err
		}
	}
	for _, d := range f.members {
		for i := range d.areas {
			t, err := f.read(ctx, d, &d.areas[i])
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				d.problems = append(d.problems, err)
			case d.text == nil || t.g.seqno > d.text.g.seqno:
				d.text = t
			}
		}
	}
	return nil
}

// readHeaders reads the headers of d's metadata areas and asks for their texts. It
// fails only when ctx ends.
func (d *member) readHeaders(ctx context.Context) error {
	b := make([]byte, mdaHeaderSize)
	var texts []block.Range
	for _, r := range d.header.mdas {
		r, err := checkRegion(r, d.dev.Size())
		if err == nil {
			err = block.ReadFull(ctx, d.dev, b, int64(r.off))
		}
		var a area
		if err == nil {
			a, err = parseArea(b, r)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			d.problems = append(d.problems, err)
		case a.text.size == 0:
			d.empty = true
		default:
			d.areas = append(d.areas, a)
			texts = append(texts, a.pieces()...)
		}
	}
	block.Prefetch(d.dev, texts...)
	return nil
}

// read reads the text of one of d's areas, or takes the same text of another.
func (f *finder) read(ctx context.Context, d *member, a *area) (*text, error) {
	raw, err := a.readText(ctx, d.dev)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(raw)
	t := f.parsed[key]
	if t == nil {
		t = f.parse(raw)
		f.parsed[key] = t
		if t.err == nil {
			f.add(t)
		}
	}
	return t, t.err
}

func (f *finder) parse(raw []byte) *text {
	t := &text{}
	if f.budget.bytes -= len(raw); f.budget.bytes < 0 {
		t.err = ondisk.Unsupportedf(format, "metadata text", -1, "all texts together have more than %d bytes", maxAllText)
		return t
	}
	if t.root, t.err = parse(string(raw), &f.budget); t.err != nil {
		t.err = corruptf("metadata text", "%v", t.err)
		return t
	}
	t.g, t.err = newGroup(t.root)
	return t
}

// add makes t its group's text if it is newer than those seen.
func (f *finder) add(t *text) {
	for i, old := range f.groups {
		if old.g.id != t.g.id {
			continue
		}
		switch {
		case t.g.seqno > old.g.seqno:
			f.groups[i] = t
		case t.g.seqno == old.g.seqno && !sameGroup(t.root, old.root):
			old.rest = corruptf("volume group "+t.g.name, "two texts of the same number (%d) that differ", t.g.seqno)
		}
		return
	}
	f.groups = append(f.groups, t)
}

// sameGroup compares what two texts say of their groups; beside them they tell who
// wrote them, and when.
func sameGroup(a, b *section) bool {
	first := func(s *section) *value {
		for i := range s.entries {
			if s.entries[i].kind == kindSection {
				return &s.entries[i].value
			}
		}
		return nil
	}
	return equalValue(first(a), first(b)) // newGroup has found one in each
}

// attach finds the devices of all groups' physical volumes.
func (f *finder) attach() {
	claims := make(map[*member][]*group)
	lists := make(map[string]map[string]bool) // by group, the UUIDs of its PVs
	for _, t := range f.groups {
		list := make(map[string]bool)
		for _, pv := range t.g.pvs {
			list[pv.uuid] = true
		}
		lists[t.g.id] = list
	}
	byUUID := make(map[string][]*member)
	for _, d := range f.members {
		byUUID[d.header.uuid] = append(byUUID[d.header.uuid], d)
	}
	for _, t := range f.groups {
		for _, pv := range t.g.pvs {
			for _, d := range byUUID[pv.uuid] {
				// One that has a text of its own knows best: it may have been in
				// another group, whose other members haven't heard that it left.
				if own := d.text; own == nil || own.g.id == t.g.id || !lists[own.g.id][pv.uuid] {
					claims[d] = append(claims[d], t.g)
					pv.found = append(pv.found, d)
				}
			}
		}
	}
	for _, t := range f.groups {
		for _, pv := range t.g.pvs {
			pv.choose(t.g, claims)
		}
	}
}

// choose decides whether pv's device is there, and says why if it isn't.
func (pv *physical) choose(g *group, claims map[*member][]*group) {
	switch {
	case len(pv.found) == 0:
		pv.why = missingf("physical volume %s of %s", pv.uuid, g.name)
		return
	case len(pv.found) > 1:
		pv.why = corruptf("physical volume "+pv.uuid, "it is on %s and on %s: one is a copy", pv.found[0].name, pv.found[1].name)
	case len(claims[pv.found[0]]) > 1:
		c := claims[pv.found[0]]
		pv.why = corruptf("physical volume "+pv.uuid, "two groups, %s (%s) and %s (%s), say that it is theirs", c[0].name, c[0].id, c[1].name, c[1].id)
	case pv.lost:
		pv.why = missingf("physical volume %s, without which %s has gone on, so that what it holds is out of date", pv.uuid, g.name)
	default:
		pv.dev = pv.found[0]
		bytes, _ := product(pv.count, g.extent)
		pv.dev.size = max(pv.dev.size, int64(pv.start)+bytes)
	}
	for _, d := range pv.found {
		d.group = g.name
	}
}

// tell adds to vg what has to be said about g's physical volumes.
func (f *finder) tell(t *text, vg *volume.Group) {
	for _, pv := range t.g.pvs {
		if pv.dev == nil {
			vg.Missing = append(vg.Missing, pv.uuid)
			vg.Warnf("%v", pv.why)
		}
		for _, d := range pv.found {
			if have := d.dev.Size(); have < d.size {
				vg.Warnf("%s is cut off: of the %d bytes of physical volume %s there are %d", d.name, d.size, pv.uuid, have)
			}
			if d.text != nil && d.text.g.id == t.g.id && d.text.g.seqno < t.g.seqno {
				vg.Warnf("%s has older metadata than others: number %d, not %d", d.name, d.text.g.seqno, t.g.seqno)
			}
			for _, err := range d.problems {
				vg.Warnf("%s: a copy of the metadata is of no use: %v", d.name, err)
			}
		}
	}
}

// tellRest tells of the physical volumes that are in no group. One without metadata
// has never been in any; but one whose metadata are damaged may hold volumes that
// nobody shows.
func (f *finder) tellRest() {
	for _, d := range f.members {
		switch {
		case d.group != "":
		case len(d.problems) > 0:
			err := errors.Join(d.problems...)
			f.out.Damage = errors.Join(f.out.Damage, fmt.Errorf("%s, physical volume %s: no metadata, so its volumes aren't known: %w", d.name, d.header.uuid, err))
		case d.text != nil:
			f.out.Warnf("%s, physical volume %s, was taken out of volume group %s", d.name, d.header.uuid, d.text.g.name)
		case !d.empty && len(d.header.mdas) == 0:
			f.out.Warnf("%s, physical volume %s, keeps no metadata, and no other says what group it belongs to", d.name, d.header.uuid)
		}
	}
}
