package iscsi

import (
	"context"
	"io"
	"sync/atomic"

	"yester/internal/block"
	"yester/iscsi/scsi"
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
// asked at each read: see holds.
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
}

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

// Prefetch implements scsi.Prefetcher.
func (l *located) Prefetch(off, n int64) {
	if p, ok := l.Reader.(scsi.Prefetcher); ok {
		p.Prefetch(off, n)
	}
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
// answer has been given once, so it is at hand.
func (l *located) holds(off int64, e block.Extent) bool {
	now, err := block.ExtentAt(context.Background(), l.Reader, off, 1)
	return err == nil && now.File == e.File && now.Off == e.Off
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
