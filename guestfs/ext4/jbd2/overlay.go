package jbd2

import (
	"context"
	"io"
	"slices"

	"yester/internal/block"
)

// Overlay is a device as recovery would leave it. It implements block.Reader,
// block.ContextReader and block.Mapper; replaced blocks have no host location.
type Overlay struct {
	j   *Journal
	dev block.Reader
}

var (
	_ block.ContextReader = (*Overlay)(nil)
	_ block.Mapper        = (*Overlay)(nil)
)

// Overlay lays what recovery writes over dev, which the journal belongs to.
func (j *Journal) Overlay(dev block.Reader) *Overlay { return &Overlay{j: j, dev: dev} }

// Size implements block.Reader.
func (o *Overlay) Size() int64 { return o.dev.Size() }

// ReadAt implements block.Reader.
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	return o.ReadAtContext(context.Background(), p, off)
}

// Prefetch implements block.Prefetcher. The journal, in which replaced blocks lie,
// has been read.
func (o *Overlay) Prefetch(ranges []block.Range) bool { return block.Prefetch(o.dev, ranges...) }

// seek returns the index of the first write at or behind byte off.
func (o *Overlay) seek(off int64) int {
	i, _ := slices.BinarySearchFunc(o.j.writes, uint64(off)>>o.j.bits, func(w write, blk uint64) int {
		switch {
		case w.target < blk:
			return -1
		case w.target > blk:
			return 1
		}
		return 0
	})
	return i
}

// ReadAtContext implements block.ContextReader.
func (o *Overlay) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), o.dev.Size())
	if n == 0 {
		return 0, eof
	}
	size := int64(1) << o.j.bits
	end := off + int64(n)
	done := off
	for i := o.seek(off); done < end; i++ {
		// The device's own bytes up to the next replaced block.
		stop := end
		if i < len(o.j.writes) {
			stop = min(end, int64(o.j.writes[i].target)<<o.j.bits)
		}
		if stop > done {
			got, err := block.ReadAt(ctx, o.dev, p[done-off:stop-off], done)
			done += int64(got)
			if done < stop {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return int(done - off), err
			}
		}
		if done >= end {
			break
		}
		w := o.j.writes[i]
		skip := done - int64(w.target)<<o.j.bits
		stop = min(end, done+size-skip)
		q := p[done-off : stop-off]
		if err := block.ReadFull(ctx, o.j.log, q, int64(w.source)<<o.j.bits+skip); err != nil {
			return int(done - off), err
		}
		if w.escaped && skip < 4 {
			var m [4]byte
			be.PutUint32(m[:], magic)
			copy(q, m[skip:])
		}
		done = stop
	}
	return n, eof
}

// Extent implements block.Mapper.
func (o *Overlay) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	i := o.seek(off)
	if i < len(o.j.writes) {
		at := int64(o.j.writes[i].target) << o.j.bits
		if at <= off {
			return block.Extent{Len: min(n, at+1<<o.j.bits-off, o.Size()-off)}, nil
		}
		n = min(n, at-off)
	}
	return block.ExtentAt(ctx, o.dev, off, n)
}
