package lvm

import (
	"context"
	"sort"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// mapped is a logical volume that can be read.
type mapped struct {
	size   int64
	runs   []run          // from 0 to size without gaps
	below  []block.Reader // the devices it lies on
	hinted bool           // one of them has use for hints
	height int            // of volumes upon each other, this one included
}

// run is a part of a volume whose bytes are spread in one way.
type run struct {
	off, n int64
	stripe int64   // bytes of each place in turn; 0 with one place
	places []place // none: zeros
}

type place struct {
	r   block.Reader // a *member or a *mapped
	off int64
}

// at returns the run that off lies in.
func (m *mapped) at(off int64) *run {
	return &m.runs[sort.Search(len(m.runs), func(i int) bool { return off < m.runs[i].off+m.runs[i].n })]
}

// locate says where the byte at off lies and how many follow it there; r is nil
// for zeros.
func (m *mapped) locate(off int64) (r block.Reader, at, n int64) {
	run := m.at(off)
	in := off - run.off
	left := run.n - in
	switch {
	case len(run.places) == 0:
		return nil, 0, left
	case run.stripe == 0:
		return run.places[0].r, run.places[0].off + in, left
	}
	chunk, within := in/run.stripe, in%run.stripe
	count := int64(len(run.places))
	p := run.places[chunk%count]
	return p.r, p.off + chunk/count*run.stripe + within, min(left, run.stripe-within)
}

// Size returns the volume's size in bytes.
func (m *mapped) Size() int64 { return m.size }

// ReadAt implements block.Reader.
func (m *mapped) ReadAt(p []byte, off int64) (int, error) {
	return m.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader.
func (m *mapped) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), m.size)
	if n == 0 {
		return 0, eof
	}
	for done := 0; done < n; {
		r, at, left := m.locate(off + int64(done))
		part := p[done:][:min(int64(n-done), left)]
		if r == nil {
			if err := ctx.Err(); err != nil {
				return done, err
			}
			clear(part)
		} else if err := block.ReadFull(ctx, r, part, at); err != nil {
			return done, err
		}
		done += len(part)
	}
	return n, eof
}

// Extent implements block.Mapper.
func (m *mapped) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	r, at, left := m.locate(off)
	if left = min(left, n); r == nil {
		return block.Extent{Len: left, Zero: true}, nil
	}
	return block.ExtentAt(ctx, r, at, left)
}

// Prefetch implements block.Prefetcher.
func (m *mapped) Prefetch(ranges []block.Range) bool {
	if !m.hinted || len(ranges) == 0 {
		return m.hinted
	}
	var order []block.Reader
	moved := make(map[block.Reader][]block.Range)
	add := func(r block.Reader, g block.Range) {
		if moved[r] == nil {
			order = append(order, r)
		}
		moved[r] = append(moved[r], g)
	}
	for _, g := range ranges {
		g, ok := g.Clip(m.size)
		for ok && g.Len > 0 {
			run := m.at(g.Off)
			n := min(g.Len, run.off+run.n-g.Off)
			run.spread(block.Range{Off: g.Off - run.off, Len: n}, add)
			g = block.Range{Off: g.Off + n, Len: g.Len - n}
		}
	}
	for _, r := range order {
		block.Prefetch(r, moved[r]...)
	}
	return true
}

// spread calls add with where g, whose offset counts from the run's, lies. Of
// stripes that g takes in part, the whole is named: a hint may be too large, and
// one piece of each place is better than many.
func (r *run) spread(g block.Range, add func(block.Reader, block.Range)) {
	switch {
	case len(r.places) == 0:
		return
	case r.stripe == 0 || g.Off/r.stripe == (g.Off+g.Len-1)/r.stripe:
		p, at := r.places[0], g.Off
		if r.stripe > 0 {
			count := int64(len(r.places))
			chunk := g.Off / r.stripe
			p, at = r.places[chunk%count], chunk/count*r.stripe+g.Off%r.stripe
		}
		add(p.r, block.Range{Off: p.off + at, Len: g.Len})
		return
	}
	count := int64(len(r.places))
	first, last := g.Off/r.stripe, (g.Off+g.Len-1)/r.stripe
	for i, p := range r.places {
		// The chunks of this place are those that leave i when divided by count.
		from := first + (int64(i)-first%count+count)%count
		to := last - (last%count-int64(i)+count)%count
		if from <= to {
			add(p.r, block.Range{Off: p.off + from/count*r.stripe, Len: (to/count - from/count + 1) * r.stripe})
		}
	}
}

// member is a device with a PV's label.
type member struct {
	name   string // the device's
	index  int    // among the devices
	dev    block.Reader
	header *header
	size   int64 // bytes that a volume may lie on: what isn't there of them is an error to read

	areas    []area
	text     *text   // the newest that it holds; nil when it holds none
	problems []error // of its metadata areas
	empty    bool    // a metadata area is in order and holds no text
	group    string  // that it belongs to
}

// Size returns how many bytes the metadata say the PV has, label and all.
func (d *member) Size() int64 { return d.size }

// ReadAt implements block.Reader.
func (d *member) ReadAt(p []byte, off int64) (int, error) {
	return d.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader.
func (d *member) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if have := d.dev.Size(); off >= have || int64(len(p)) > have-off {
		return 0, ondisk.Corruptf(format, "physical volume "+d.header.uuid, off,
			"%d bytes are asked for, and %s ends at %#x: the image is cut off", len(p), d.name, have)
	}
	if err := block.ReadFull(ctx, d.dev, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Extent implements block.Mapper. The part that isn't there is data of unknown
// place: never a hole, so that whoever wants it reads it and gets the error.
func (d *member) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if off < d.dev.Size() {
		return block.ExtentAt(ctx, d.dev, off, n)
	}
	return block.Extent{Len: n}, nil
}

// Prefetch implements block.Prefetcher.
func (d *member) Prefetch(ranges []block.Range) bool { return block.Prefetch(d.dev, ranges...) }
