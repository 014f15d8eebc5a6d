package volume

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// maxWarnings bounds the warnings of a table: one made of nothing but impossible
// entries would otherwise fill the log.
const maxWarnings = 64

// Warnf adds a warning to t, up to a bound that no sound table comes near.
func (t *Table) Warnf(format string, args ...any) {
	t.Warnings = appendWarning(t.Warnings, format, args...)
}

func appendWarning(list []string, format string, args ...any) []string {
	switch len(list) {
	case maxWarnings:
		return list
	case maxWarnings - 1:
		return append(list, "there are more warnings than are shown")
	}
	return append(list, fmt.Sprintf(format, args...))
}

// Add appends v to t as the size bytes of dev from v.Start on, both not negative
// and their sum an int64.
//
// A partition may reach past the end of dev when the image was cut off. It is
// kept at its full size, with a warning: what is there can be read, and a read
// of the rest is an error that matches ondisk.ErrCorrupt.
func (t *Table) Add(dev block.Reader, v Volume, size int64) {
	v.Scheme = t.Scheme
	if s, err := block.NewSection(dev, v.Start, size); err == nil {
		v.Reader = s
	} else {
		p := &partial{dev: dev, v: v, size: size, have: max(0, min(size, dev.Size()-v.Start))}
		v.Reader = p
		t.Warnf("partition %s ends at %#x, past the end of the disk (%#x): the image is cut off, and %d of the partition's %d bytes can be read",
			v.Name, v.Start+size, dev.Size(), p.have, size)
	}
	t.Volumes = append(t.Volumes, v)
}

// Sort puts the volumes of t in the order of their numbers.
func (t *Table) Sort() {
	slices.SortStableFunc(t.Volumes, func(a, b Volume) int { return cmp.Compare(a.Number, b.Number) })
}

// CheckOverlaps adds a warning for each pair of neighbours, by their place on the
// disk, that share bytes.
func (t *Table) CheckOverlaps() {
	byStart := slices.Clone(t.Volumes)
	slices.SortStableFunc(byStart, func(a, b Volume) int { return cmp.Compare(a.Start, b.Start) })
	var last *Volume // reaches furthest of those seen
	for i := range byStart {
		v := &byStart[i]
		if last != nil && v.Start < last.Start+last.Size() {
			t.Warnf("partitions %s and %s overlap at %#x", last.Name, v.Name, v.Start)
		}
		if last == nil || v.Start+v.Size() > last.Start+last.Size() {
			last = v
		}
	}
}

// partial is a partition of which only the first bytes lie on the disk.
type partial struct {
	dev  block.Reader
	v    Volume // for messages; its Reader isn't set
	size int64  // as the table says
	have int64  // bytes that lie on dev, less than size
}

// Prefetch implements block.Prefetcher.
func (p *partial) Prefetch(ranges []block.Range) bool {
	moved := make([]block.Range, 0, len(ranges))
	for _, g := range ranges {
		if g, ok := g.Clip(p.have); ok {
			moved = append(moved, block.Range{Off: p.v.Start + g.Off, Len: g.Len})
		}
	}
	return block.Prefetch(p.dev, moved...)
}

// Size returns the size that the partition table states, in bytes.
func (p *partial) Size() int64 { return p.size }

// ReadAt implements block.Reader.
func (p *partial) ReadAt(b []byte, off int64) (int, error) {
	return p.ReadAtContext(context.Background(), b, off)
}

// ReadAtContext implements block.ContextReader.
func (p *partial) ReadAtContext(ctx context.Context, b []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(b), p.size)
	if n == 0 {
		return 0, eof
	}
	lies := int(max(0, min(int64(n), p.have-off)))
	if lies > 0 {
		if err := block.ReadFull(ctx, p.dev, b[:lies], p.v.Start+off); err != nil {
			return 0, err
		}
	}
	if lies == n {
		return n, eof
	}
	return lies, ondisk.Corruptf(p.v.Scheme, "partition "+p.v.Name, p.v.Start+max(off, p.have),
		"lies past the end of the disk (%#x): the image is cut off", p.dev.Size())
}

// Extent implements block.Mapper. The part that isn't there is data of unknown
// place: never a hole, so that whoever wants it reads it and gets the error.
func (p *partial) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if off < p.have {
		return block.ExtentAt(ctx, p.dev, p.v.Start+off, min(n, p.have-off))
	}
	return block.Extent{Len: min(n, p.size-off)}, nil
}
