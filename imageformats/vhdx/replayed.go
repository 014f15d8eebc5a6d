package vhdx

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sort"

	"yester/internal/block"
)

// patch is an update of the log: what the file holds there once it is replayed.
type patch struct {
	at       int64 // in the file, a multiple of logSector
	n        int64 // bytes; logSector unless zero
	zero     bool
	leading  [leadingSize]byte  // what the data sector's own fields displace
	trailing [trailingSize]byte // likewise, at its end
	src      int64              // where the data sector lies in the file
}

// replayed is a file as it will be once its log is replayed. The log stays where
// it is: updates are read from it as they are needed.
type replayed struct {
	file    block.Reader
	size    int64
	patches []patch // ascending, apart from each other
	updates int     // descriptors replayed
}

var (
	_ block.ContextReader = (*replayed)(nil)
	_ block.Mapper        = (*replayed)(nil)
)

// newReplayed applies updates in their order to file, which is at least last
// bytes long thereafter ([2.3.3]).
func newReplayed(file block.Reader, last int64, updates []patch) *replayed {
	r := &replayed{file: file, size: max(file.Size(), last), updates: len(updates)}
	cuts := make([]int64, 0, 2*len(updates))
	for _, u := range updates {
		cuts = append(cuts, u.at, u.at+u.n)
		r.size = max(r.size, u.at+u.n)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	// Between two cuts the last update counts. Painting from the last to the
	// first, each stretch is painted once: free[i] leads to the first from i on
	// that isn't painted yet.
	free := make([]int, len(cuts)+1)
	for i := range free {
		free[i] = i
	}
	find := func(i int) int {
		for free[i] != i {
			free[i] = free[free[i]]
			i = free[i]
		}
		return i
	}
	for k := len(updates) - 1; k >= 0; k-- {
		u := updates[k]
		i, _ := slices.BinarySearch(cuts, u.at)
		for i = find(i); i < len(cuts) && cuts[i] < u.at+u.n; i = find(i) {
			p := u
			if u.zero {
				p.at, p.n = cuts[i], cuts[i+1]-cuts[i]
			}
			r.patches = append(r.patches, p)
			free[i] = i + 1
		}
	}
	slices.SortFunc(r.patches, func(a, b patch) int { return cmp.Compare(a.at, b.at) })
	return r
}

// Size implements block.Reader.
func (r *replayed) Size() int64 { return r.size }

// ReadAt implements block.Reader.
func (r *replayed) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadAtContext(context.Background(), p, off)
}

// piece says what the file holds from off on, n bytes at most: a patch, or the
// file's own bytes (nil), of which those beyond its end are zeros.
func (r *replayed) piece(off, n int64) (p *patch, m int64) {
	i := sort.Search(len(r.patches), func(i int) bool { return r.patches[i].at+r.patches[i].n > off })
	if i == len(r.patches) {
		return nil, n
	}
	if p = &r.patches[i]; p.at > off {
		return nil, min(n, p.at-off)
	}
	return p, min(n, p.at+p.n-off)
}

// ReadAtContext implements block.ContextReader. A failed read returns no bytes.
func (r *replayed) ReadAtContext(ctx context.Context, b []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(b), r.size)
	for done := 0; done < n; {
		at := off + int64(done)
		p, m := r.piece(at, int64(n-done))
		dst := b[done : done+int(m)]
		var err error
		switch {
		case p == nil:
			err = r.own(ctx, dst, at)
		case p.zero:
			clear(dst)
		default:
			var sector [logSector]byte
			if err = block.ReadFull(ctx, r.file, sector[:], p.src); err == nil {
				copy(sector[:], p.leading[:])
				copy(sector[logSector-trailingSize:], p.trailing[:])
				copy(dst, sector[at-p.at:])
			}
		}
		if err != nil {
			return 0, err
		}
		done += int(m)
	}
	return n, eof
}

// own reads the file's own bytes.
func (r *replayed) own(ctx context.Context, b []byte, off int64) error {
	n := max(0, min(int64(len(b)), r.file.Size()-off))
	clear(b[n:])
	if n == 0 {
		return nil
	}
	return block.ReadFull(ctx, r.file, b[:n], off)
}

var errOutside = errors.New("outside the file")

// Extent implements block.Mapper. What the log left alone lies where it lies in
// the file.
func (r *replayed) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if off < 0 || off >= r.size || n < 1 {
		return block.Extent{}, errors.Join(errOutside, io.EOF)
	}
	p, m := r.piece(off, min(n, r.size-off))
	switch size := r.file.Size(); {
	case p != nil:
		return block.Extent{Len: m, Zero: p.zero}, nil
	case off >= size:
		return block.Extent{Len: m, Zero: true}, nil
	default:
		return block.ExtentAt(ctx, r.file, off, min(m, size-off))
	}
}
