package vmdk

import (
	"context"
	"sort"
)

// extent is a part of a disk; offsets are the part's own.
type extent interface {
	// next describes the bytes from off on, n at most, which lie in the extent.
	next(ctx context.Context, off, n int64) (span, error)
}

// layer is one disk of a chain.
type layer struct {
	size    int64 // bytes
	extents []placed
}

// placed is an extent with its place on the disk, bytes.
type placed struct {
	extent
	start, n int64
}

// next describes the bytes of the disk from off on, n at most. off lies inside.
func (l *layer) next(ctx context.Context, off, n int64) (span, error) {
	i := 0
	if len(l.extents) > 1 {
		i = sort.Search(len(l.extents), func(i int) bool { return l.extents[i].start > off }) - 1
	}
	e := &l.extents[i]
	off -= e.start
	return e.next(ctx, off, min(n, e.n-off))
}

// close drops the decompressed grains.
func (l *layer) close() {
	for _, e := range l.extents {
		if s, ok := e.extent.(*sparse); ok && s.units != nil {
			s.units.Close()
		}
	}
}

// zeros is an extent of type ZERO.
type zeros struct{}

func (zeros) next(_ context.Context, _, n int64) (span, error) {
	return span{kind: zero, n: n}, nil
}

// damaged is an extent that can't be read.
type damaged struct{ err error }

func (d damaged) next(context.Context, int64, int64) (span, error) { return span{}, d.err }

// flat is an extent that lies in its file as it is, from off on.
type flat struct {
	*source
	off int64
}

func (e *flat) next(_ context.Context, off, n int64) (span, error) {
	at := e.off + off
	if at >= e.size {
		return span{}, e.corrupt("flat extent", at, "the file ends at %#x", e.size)
	}
	return span{kind: plain, n: min(n, e.size-at), file: e.source, at: at}, nil
}
