package iscsi

import (
	"context"
	"io"
	"sync/atomic"

	"yester/internal/block"
)

// Geometry of what is remembered of extents: 4,096 windows of 4 MiB cover 16 GiB
// of hot disk in at most three MiB of memory.
const (
	windowSize    = 4 << 20
	windowSlots   = 4096
	windowExtents = 16
	// wholeProbe is how much must lie in one host file before it is asked whether
	// all of the disk does: the question is cheap only where nothing is remote.
	wholeProbe = 64 << 20
)

// located is a Reader with a memory of its extents. They never change
// (block.Mapper), so what was looked up once, on a worker that may wait, is then
// known without waiting. Whether somebody has written to the file all the same is
// asked at each read: see holds. What lies in a cache may move, which shows in the
// same way; and what has no place yet may get one, so windows with such parts are
// looked up again now and then.
type located struct {
	block.Reader
	size  int64
	whole atomic.Pointer[block.Extent]
	asked atomic.Bool
	maps  bool                    // Reader knows its extents
	slots atomic.Pointer[windows] // made by the first read: most targets are never read
}

type windows [windowSlots]atomic.Pointer[window]

type window struct {
	start   int64
	extents []block.Extent // from start on, without gaps; may end early
	// plainReads counts the reads of parts without a place.
	plainReads atomic.Uint32
}

// relearnAfter is how many reads of parts without a place make a window be looked
// up again: each look costs about as much as one of them.
const relearnAfter = 16

func newLocated(r block.Reader) *located {
	l := &located{Reader: r, size: r.Size()}
	_, l.maps = r.(block.Mapper)
	return l
}

// ReadAtContext implements block.ContextReader.
func (l *located) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return block.ReadAt(ctx, l.Reader, p, off)
}

// Extent implements block.Mapper.
func (l *located) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	return block.ExtentAt(ctx, l.Reader, off, n)
}

// Prefetch implements scsi.Prefetcher, which a PRE-FETCH command asks for.
func (l *located) Prefetch(off, n int64) {
	block.Prefetch(l.Reader, block.Range{Off: off, Len: n})
}

// What is known about a range.
type knowledge int

const (
	unknown  knowledge = iota // learn may find out
	plain                     // neither in one place nor all zeros: read it
	inPlace                   // a hole, or in one host file
	someFile                  // begins in a host file and goes on elsewhere
)

// lookup says, without waiting, what is known of the n bytes at off. The extent
// begins at off; it covers the range when they are inPlace.
func (l *located) lookup(off, n int64) (block.Extent, knowledge) {
	if !l.maps {
		return block.Extent{}, plain
	}
	if w := l.whole.Load(); w != nil && n <= w.Len-off {
		return block.Extent{Len: w.Len - off, File: w.File, Off: w.Off + off}, inPlace
	}
	slots := l.slots.Load()
	if slots == nil {
		return block.Extent{}, unknown
	}
	w := slots[off/windowSize%windowSlots].Load()
	if w == nil || w.start != off-off%windowSize {
		return block.Extent{}, unknown
	}
	at := w.start
	for i := range w.extents {
		e := w.extents[i]
		if off >= at+e.Len {
			at += e.Len
			continue
		}
		skip := off - at
		e.Len -= skip
		e.Off += skip
		switch {
		case e.File == nil && !e.Zero:
			if w.plainReads.Add(1)%relearnAfter == 0 {
				return e, unknown
			}
			return e, plain
		case e.Len >= n:
			return e, inPlace
		case e.File != nil:
			return e, someFile
		}
		return e, plain
	}
	return block.Extent{}, plain
}

// holds reports whether the bytes at off still lie where they were remembered to.
// A Reader that sees that a file was written to since it was opened no longer says
// where its bytes are; asked after the bytes were read, that is in time. The
// answer has been given once, so it is at hand. n is what was read; a cache that
// has moved or lost it makes the window be looked up again.
func (l *located) holds(off, n int64, e block.Extent) bool {
	for n > 0 {
		now, err := block.ExtentAt(context.Background(), l.Reader, off, n)
		if err != nil {
			return false
		}
		e.Len = now.Len // of the remembered place, as much as one answer covers
		if !e.SamePlace(now) {
			l.forget(off)
			return false
		}
		off, n, e.Off = off+now.Len, n-now.Len, e.Off+now.Len
	}
	return true
}

// forget drops the window of off.
func (l *located) forget(off int64) {
	l.whole.Store(nil)
	if slots := l.slots.Load(); slots != nil {
		slots[off/windowSize%windowSlots].Store(nil)
	}
}

// learn looks up the window of off; it may wait. Failures are left for the read
// itself to find.
func (l *located) learn(ctx context.Context, off int64) {
	if !l.maps {
		return
	}
	if !l.asked.Swap(true) {
		l.askWhole(ctx)
		if l.whole.Load() != nil {
			return
		}
	}
	w := &window{start: off - off%windowSize}
	end := min(w.start+windowSize, l.size)
	for at := w.start; at < end && len(w.extents) < windowExtents; {
		e, err := block.ExtentAt(ctx, l.Reader, at, end-at)
		if err != nil {
			return
		}
		w.extents = append(w.extents, e)
		at += e.Len
	}
	slots := l.slots.Load()
	if slots == nil {
		l.slots.CompareAndSwap(nil, new(windows))
		slots = l.slots.Load()
	}
	slots[off/windowSize%windowSlots].Store(w)
}

func (l *located) askWhole(ctx context.Context) {
	probe := min(l.size, wholeProbe)
	e, err := block.ExtentAt(ctx, l.Reader, 0, probe)
	if err != nil || e.File == nil || e.Len != probe {
		return
	}
	if probe < l.size {
		e, err = block.ExtentAt(ctx, l.Reader, 0, l.size)
		if err != nil || e.File == nil || e.Len != l.size {
			return
		}
	}
	l.whole.Store(&e)
}

var _ io.ReaderAt = (*located)(nil)
