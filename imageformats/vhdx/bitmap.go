package vhdx

import (
	"context"
	"fmt"
	"math/bits"
	"sync/atomic"
)

const (
	mapPageSize  = 4096            // bytes of a sector bitmap
	sectorsPage  = mapPageSize * 8 // sectors told of by one page: 16 MiB of disk, or 128
	mapPages     = 256             // slots: 1 MiB at most
	stateUnknown = 0               // of a bitmap page
	stateFull    = 1               // all its sectors are in the file
	stateEmpty   = 2               // none is
	stateMixed   = 3               // to be looked up
	statesWord   = 16              // two bits each
)

// mapPage is a page of the sector bitmap, which runs through all of the disk.
type mapPage struct {
	no   uint64
	bits [mapPageSize / 8]uint64 // the first sector is the lowest bit
}

// mapCache remembers of every page of a disk's sector bitmap whether it is all
// alike, and keeps some of those that aren't. At most two bits for each 16 MiB
// of disk, a megabyte for 64 TiB.
type mapCache struct {
	pages  []atomic.Pointer[mapPage]
	states []atomic.Uint32
}

func newMapCache(sectors uint64) mapCache {
	n := (sectors + sectorsPage - 1) / sectorsPage
	return mapCache{
		pages:  make([]atomic.Pointer[mapPage], min(mapPages, n)),
		states: make([]atomic.Uint32, (n+statesWord-1)/statesWord),
	}
}

func (c *mapCache) state(no uint64) uint32 {
	return c.states[no/statesWord].Load() >> (no % statesWord * 2) & 3
}

// setState stores a state once; racing readers of one page store the same.
func (c *mapCache) setState(no uint64, state uint32) {
	c.states[no/statesWord].Or(state << (no % statesWord * 2))
}

// sectorRun returns whether the sector at off, in the partially present block no,
// is in the file, and for how many bytes from off on, n at most, it goes on so.
func (l *layer) sectorRun(ctx context.Context, no uint64, off, n int64) (set bool, count int64, err error) {
	end := off + n
	for at := off; at < end; {
		here, alike, err := l.pageRun(ctx, no, at, end)
		switch {
		case at > off && (err != nil || here != set):
			return set, at - off, nil // the next look-up tells the rest
		case err != nil:
			return false, 0, err
		}
		set = here
		at = alike
	}
	return set, n, nil
}

// pageRun is sectorRun within one page of the bitmap: it returns the offset, end
// at most, up to which the sectors are alike.
func (l *layer) pageRun(ctx context.Context, no uint64, off, end int64) (set bool, to int64, err error) {
	sector := off / l.sectorSize
	pageNo := uint64(sector / sectorsPage)
	pageEnd := int64(pageNo+1) * sectorsPage * l.sectorSize
	switch l.maps.state(pageNo) {
	case stateFull:
		return true, min(end, pageEnd), nil
	case stateEmpty:
		return false, min(end, pageEnd), nil
	}
	slot := &l.maps.pages[pageNo%uint64(len(l.maps.pages))]
	page := slot.Load()
	if page == nil || page.no != pageNo {
		if page, err = l.readBitmap(ctx, no, pageNo); err != nil {
			return false, 0, err
		}
		state := uint32(stateMixed)
		if set, n := page.run(0, sectorsPage); n == sectorsPage {
			state = stateEmpty
			if set {
				state = stateFull
			}
		}
		l.maps.setState(pageNo, state)
		if state == stateMixed {
			slot.Store(page)
		}
	}
	set, n := page.run(sector%sectorsPage, sectorsPage)
	return set, min(end, (sector+n)*l.sectorSize), nil
}

// readBitmap reads page pageNo of the sector bitmap, which tells of block no.
func (l *layer) readBitmap(ctx context.Context, no, pageNo uint64) (*mapPage, error) {
	chunk := no >> l.ratioShift
	idx := chunk<<l.ratioShift + chunk + 1<<l.ratioShift // behind the chunk's payload blocks
	e, err := l.entry(ctx, idx)
	if err != nil {
		return nil, err
	}
	if e.state() != fullyPresent {
		return nil, l.corrupt(l.entryName(idx), l.entryOff(idx), "no sector bitmap, but block %d is partially present", no)
	}
	at := int64(e.offsetMB())<<20 + int64(pageNo%(bitmapBits/sectorsPage))*mapPageSize
	var b [mapPageSize]byte
	if at+mapPageSize > l.fileSize {
		return nil, l.corrupt(l.entryName(idx), l.entryOff(idx), "the sector bitmap at %#x lies past the end of the file (%#x)", at, l.fileSize)
	}
	if err := l.read(ctx, b[:], at); err != nil {
		return nil, fmt.Errorf("vhdx: %ssector bitmap of block %d at %#x: %w", l.prefix(), no, at, err)
	}
	page := &mapPage{no: pageNo}
	for i := range page.bits {
		page.bits[i] = le.Uint64(b[i*8:])
	}
	return page, nil
}

// run returns whether bit i is set and how many bits from it on, before bit end,
// are alike.
func (p *mapPage) run(i, end int64) (set bool, n int64) {
	set = p.bits[i/64]>>(i%64)&1 != 0
	for j := i; j < end; {
		w := p.bits[j/64]
		if set {
			w = ^w
		}
		w >>= j % 64 // zeros come in at the top, and count as alike
		alike := int64(bits.TrailingZeros64(w))
		if left := 64 - j%64; alike < left {
			return set, min(j+alike, end) - i
		} else {
			j += left
		}
	}
	return set, end - i
}
