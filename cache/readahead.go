package cache

import (
	"slices"
	"sync"

	"yester/internal/block"
)

const (
	// streamCount is how many sequential readers of one object are told apart.
	streamCount = 8
	// streamAfter is how much must be read in sequence, in bytes, before what
	// follows on the disk is read ahead: metadata that lie close together are no
	// stream.
	streamAfter = 384 << 10
	// maxHints bounds the blocks that wait to be asked for ahead of a reader, and
	// those that were and are on their way. What goes beyond is a hint that came too
	// early; an initiator may ask for a whole disk at once.
	maxHints = 4096
)

// streams are the sequential readers of an object, by the disk's own order. They
// are for what reads without telling: whoever knows better (a filesystem, which
// reads along its files) says so by Prefetch, and isn't followed here.
type streams struct {
	mu   sync.Mutex // guards the order of list
	list [streamCount]*block.Ahead
}

// find returns the stream that a read at off belongs to, or one that begins anew.
func (s *streams) find(off int64) *block.Ahead {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := 0
	for i < len(s.list)-1 && s.list[i] != nil && !s.list[i].Follows(off) {
		i++
	}
	a := s.list[i]
	if a == nil || !a.Follows(off) {
		a = &block.Ahead{After: streamAfter}
	}
	copy(s.list[1:i+1], s.list[:i])
	s.list[0] = a
	return a
}

// going reports whether a read at off goes on with a stream that has begun.
func (s *streams) going(off int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.list[:], func(a *block.Ahead) bool { return a != nil && a.Follows(off) })
}

// noteRead takes notice of a read, and reads ahead if it is one of a sequence.
func (r *Reader) noteRead(off, n int64) {
	first, last := off/r.o.BlockSize, (off+n-1)/r.o.BlockSize
	if r.hinted.count.Load() > 0 && r.hinted.has(first) && r.hinted.has(last) {
		return
	}
	if g, ok := r.streams.find(off).Note(off, n, r.o.Size); ok {
		r.hints.add(r, g)
	}
}

// hints are the ranges that were asked for ahead, for the goroutine that begins
// their flights: finding out which are needed may have to wait for the origin.
type hints struct {
	mu     sync.Mutex
	ranges []block.Range
	blocks int64 // in ranges
	wake   chan struct{}
}

// add takes a range into the list; it never waits.
func (h *hints) add(r *Reader, ranges ...block.Range) {
	h.mu.Lock()
	for _, g := range ranges {
		n := g.Len/r.o.BlockSize + 1
		if h.blocks+n > maxHints {
			break
		}
		h.blocks += n
		h.ranges = append(h.ranges, g)
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Prefetch implements block.Prefetcher.
func (r *Reader) Prefetch(ranges []block.Range) bool {
	var want []block.Range
	for _, g := range ranges {
		g, ok := g.Clip(r.o.Size)
		if !ok {
			continue
		}
		g.Len = min(g.Len, maxHints/2*r.o.BlockSize)
		for n := g.Off / r.o.BlockSize; n <= (g.Off+g.Len-1)/r.o.BlockSize; n++ {
			r.hinted.add(n)
		}
		want = append(want, g)
	}
	if len(want) > 0 {
		r.hints.add(r, want...)
	}
	return true
}

// hintLoop begins the flights of hinted ranges.
func (r *Reader) hintLoop() {
	for {
		select {
		case <-r.hints.wake:
		case <-r.ctx.Done():
			return
		}
		r.hints.mu.Lock()
		ranges := r.hints.ranges
		r.hints.ranges, r.hints.blocks = nil, 0
		r.hints.mu.Unlock()
		for _, g := range ranges {
			for n := g.Off / r.o.BlockSize; n <= (g.Off+g.Len-1)/r.o.BlockSize; n++ {
				if r.ctx.Err() != nil {
					return
				}
				if r.hinting.Load() >= maxHints {
					break
				}
				r.fetchEarly(n, ahead, nil)
			}
		}
	}
}

// fetchEarly begins a flight of block n unless it is present, zeros, or on its way
// already. landed, if not nil, is called once that flight has ended, and only if
// one was begun or joined, which the result says. What goes wrong is left to
// whoever asks for the block.
func (r *Reader) fetchEarly(n int64, class priority, landed func(error)) bool {
	o, err := r.home(r.ctx, n)
	if err != nil || o.has(n) {
		return false
	}
	if zero, err := r.zero(r.ctx, n); zero || err != nil {
		return false
	}
	f, _ := o.fly(r, n, class)
	if f == nil {
		return false
	}
	if landed == nil {
		f.leave()
		return true
	}
	go func() {
		<-f.over
		err := f.err
		f.leave()
		landed(err)
	}()
	return true
}
