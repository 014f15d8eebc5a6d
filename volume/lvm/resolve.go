package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/volume"
)

// state says how far a logical volume has been put together.
type state uint8

const (
	stateNew state = iota
	stateBusy
	stateDone
)

// resolver puts the logical volumes of a group together.
type resolver struct {
	ctx  context.Context
	g    *group
	warn func(format string, args ...any)
}

// resolve puts lv together, once: what it is made of, down to the physical
// volumes. depth is that of lv below a volume that was asked for.
func (r *resolver) resolve(lv *logical, depth int) (*mapped, error) {
	switch {
	case lv.state == stateDone:
		return lv.mapped, lv.err
	case lv.state == stateBusy:
		return nil, corruptf(r.g.full(lv), "it lies on itself")
	case depth > maxHeight:
		return nil, corruptf(r.g.full(lv), "volumes upon each other more than %d high", maxHeight)
	case lv.err != nil:
		lv.state = stateDone
		return nil, lv.err
	}
	lv.state = stateBusy
	m, err := r.build(lv, depth)
	lv.state = stateDone
	if err != nil {
		lv.err = err
		return nil, err
	}
	lv.mapped = m
	return m, nil
}

func (r *resolver) build(lv *logical, depth int) (*mapped, error) {
	m := &mapped{size: lv.size, height: 1}
	for i := range lv.segs {
		if err := r.ctx.Err(); err != nil {
			return nil, err
		}
		seg := &lv.segs[i]
		off, _ := product(seg.start, r.g.extent) // within lv.size, which is one
		n, _ := product(seg.count, r.g.extent)
		t := run{off: off, n: n, stripe: int64(seg.stripe)}
		places, err := r.places(lv, seg, depth)
		if err != nil {
			return nil, err
		}
		t.places = places
		m.runs = append(m.runs, t)
		for _, p := range places {
			m.add(p.r)
		}
	}
	if m.height > maxHeight {
		return nil, corruptf(r.g.full(lv), "volumes upon each other more than %d high", maxHeight)
	}
	m.hinted = slices.ContainsFunc(m.below, func(d block.Reader) bool { return block.Prefetch(d) })
	return m, nil
}

// add notes what m lies on.
func (m *mapped) add(r block.Reader) {
	below := []block.Reader{r}
	if v, ok := r.(*mapped); ok {
		below = v.below
		m.height = max(m.height, v.height+1)
	}
	for _, d := range below {
		if !slices.Contains(m.below, d) {
			m.below = append(m.below, d)
		}
	}
}

// places returns where seg's bytes are to be read: all of its areas, or one of
// those that hold the same.
func (r *resolver) places(lv *logical, seg *segment, depth int) ([]place, error) {
	switch {
	case len(seg.areas) == 0: // zeros
		return nil, nil
	case seg.typ == "mirror":
		p, err := r.mirror(lv, seg, depth)
		return []place{p}, err
	case seg.typ == "raid1":
		p, err := r.raid1(lv, seg, depth)
		return []place{p}, err
	}
	var places []place
	for _, a := range seg.areas {
		p, err := r.place(a, seg.perArea(), depth)
		if err != nil {
			return nil, err
		}
		places = append(places, p)
	}
	return places, nil
}

// place returns where n extents of a lie.
func (r *resolver) place(a areaRef, n uint64, depth int) (place, error) {
	off, ok := product(a.start, r.g.extent)
	bytes, ok2 := product(n, r.g.extent)
	if !ok || !ok2 {
		return place{}, corruptf("area", "extent %d: no volume is that large", a.start)
	}
	if pv := a.pv; pv != nil {
		if pv.dev == nil {
			return place{}, pv.why
		}
		return place{pv.dev, int64(pv.start) + off}, nil // inside pv.count extents, hence no overflow
	}
	m, err := r.resolve(a.lv, depth+1)
	if err != nil {
		return place{}, err
	}
	if off > m.size || bytes > m.size-off {
		return place{}, corruptf(r.g.full(a.lv), "%d bytes from %#x on are asked for, of %#x", bytes, off, m.size)
	}
	return place{m, off}, nil
}

// missingf returns an error that matches volume.ErrMissing.
func missingf(msg string, args ...any) error {
	return &ondisk.FormatError{Format: format, Field: fmt.Sprintf(msg, args...), Off: -1, Err: volume.ErrMissing}
}

// mirror chooses the leg of a mirror that is read. Device-mapper's mirror target
// takes the first one's data for the others where they differ, so it is always
// right; but of a move that is complete, the new place is.
func (r *resolver) mirror(lv *logical, seg *segment, depth int) (place, error) {
	if seg.moved {
		return r.place(seg.areas[1], seg.perArea(), depth)
	}
	p, first := r.place(seg.areas[0], seg.perArea(), depth)
	if first == nil || r.ctx.Err() != nil {
		return p, first
	}
	if lv.pvmove || lv.notSynced {
		return p, fmt.Errorf("%s: its other legs may never have had the same data: %w", r.g.full(lv), first)
	}
	for i, a := range seg.areas[1:] {
		if p, err := r.place(a, seg.perArea(), depth); err == nil {
			r.warn("%s is read from leg %d of its mirror, which may not be in sync, because of the first: %v", r.g.full(lv), i+1, first)
			return p, nil
		}
	}
	return p, first
}

// raid1 chooses the leg of a RAID 1 that is read: the first that is there and in
// sync, as md does while legs differ.
func (r *resolver) raid1(lv *logical, seg *segment, depth int) (place, error) {
	type leg struct {
		place
		err error // why it can't be read
	}
	legs := make([]leg, len(seg.areas))
	var absent []int
	for i, a := range seg.areas {
		legs[i].place, legs[i].err = r.place(a, seg.perArea(), depth)
		if err := r.ctx.Err(); err != nil {
			return place{}, err
		}
		if legs[i].err != nil {
			absent = append(absent, i)
		}
	}
	found, err := r.raidStates(lv, seg, depth)
	if err != nil {
		return place{}, err
	}
	var errs []error
	for i := range legs {
		stale := found[i]
		if seg.areas[i].lv.rebuild && stale == nil {
			stale = errors.New("it was being rebuilt")
		}
		switch {
		case legs[i].err != nil:
			errs = append(errs, fmt.Errorf("leg %d: %w", i, legs[i].err))
		case stale != nil:
			errs = append(errs, &ondisk.FormatError{Format: format, Field: fmt.Sprintf("leg %d of %s", i, r.g.full(lv)), Off: -1, Msg: stale.Error(), Err: ondisk.ErrCorrupt})
		default:
			if len(errs) > 0 {
				r.warn("%s is read from leg %d of its RAID 1, because of the others: %v", r.g.full(lv), i, errors.Join(errs...))
			} else if len(absent) > 0 {
				r.warn("%s is read from leg %d of its RAID 1; other legs aren't there, so nothing tells whether it was up to date", r.g.full(lv), i)
			}
			return legs[i].place, nil
		}
	}
	return place{}, fmt.Errorf("%s: no leg can be read: %w", r.g.full(lv), errors.Join(errs...))
}
