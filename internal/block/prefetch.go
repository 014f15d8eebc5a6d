package block

import "sync"

// Range is a run of bytes.
type Range struct {
	Off int64 // of the first byte
	Len int64 // bytes
}

// Prefetcher is a Reader that can fetch ahead of its reader, because its bytes
// lie far away.
type Prefetcher interface {
	// Prefetch hints that ranges will be read soon, the first of them first. It
	// returns at once, promises nothing, and takes any range: what doesn't lie in
	// the Reader is passed over. It is false when hints are of no use, which stays
	// so for the life of the Reader: callers ask once, without ranges, and spare
	// themselves the work of finding out what to hint.
	Prefetch(ranges []Range) bool
}

// Prefetch passes a hint to r. It is false where r has no use for hints.
func Prefetch(r Reader, ranges ...Range) bool {
	p, ok := r.(Prefetcher)
	return ok && p.Prefetch(ranges)
}

// Prefetch implements Prefetcher.
func (s *Section) Prefetch(ranges []Range) bool {
	p, ok := s.r.(Prefetcher)
	if !ok {
		return false
	}
	moved := make([]Range, 0, len(ranges))
	for _, g := range ranges {
		if g, ok := g.Clip(s.n); ok {
			moved = append(moved, Range{Off: s.off + g.Off, Len: g.Len})
		}
	}
	return p.Prefetch(moved)
}

// Clip returns the part of g that lies in [0, size); false when there is none.
func (g Range) Clip(size int64) (Range, bool) {
	if g.Off < 0 || g.Len < 1 || g.Off >= size {
		return Range{}, false
	}
	return Range{Off: g.Off, Len: min(g.Len, size-g.Off)}, true
}

// Windows of Ahead, bytes.
const (
	// aheadFirst is the first window: what a reader who stops early has wasted.
	aheadFirst = 1 << 20
	// aheadMost is the largest: 64 MiB are two tenths of a second at 2.5 Gbit/s,
	// more than any origin needs to be kept busy.
	aheadMost = 64 << 20
	// aheadStep is the part of the window that is asked for at once, and aheadLeast
	// the least, in bytes: were it half of it, what is on its way would have come, and
	// the origin lie idle, before there is more to ask for.
	aheadStep  = 8
	aheadLeast = 512 << 10
	// aheadSlack is how far a read may lie from where the last one ended and still
	// belong to the same stream: the kernel sends several at once, in any order.
	aheadSlack = 1 << 20
)

// Ahead finds out whether reads are sequential and how far to read ahead of
// them: by twice what has been read in a row, and a little more. The zero value is
// ready; it is safe for parallel use.
type Ahead struct {
	// After is how many bytes must have been read in sequence before anything is
	// read ahead; 0 begins with a first read at offset 0. Set before use.
	After int64

	mu    sync.Mutex
	begun bool
	start int64 // where the stream began
	pos   int64 // where it has got to
	run   int64 // bytes read in sequence
	until int64 // end of what was hinted
}

// Note takes notice of a read of n bytes at off of something size bytes long. It
// returns what to read ahead now, if anything.
func (a *Ahead) Note(off, n, size int64) (Range, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	end := off + n
	if !a.follows(off) {
		a.start, a.pos, a.run, a.until = off, end, n, end
		if first := !a.begun && off == 0 && a.After == 0; !first {
			a.begun = true
			return Range{}, false
		}
		a.begun = true
	} else if end > a.pos {
		a.run += n
		a.pos = end
	}
	// Of reads out of order run knows some: as few as half of what was read.
	read := min(a.pos-a.start, 2*a.run)
	window := min(aheadFirst+2*max(read-a.After, 0), aheadMost)
	if a.run < a.After || a.until-a.pos > window-max(window/aheadStep, aheadLeast) {
		return Range{}, false
	}
	from := max(a.until, a.pos)
	to := min(a.pos+window, size)
	if to <= from {
		return Range{}, false
	}
	a.until = to
	return Range{Off: from, Len: to - from}, true
}

// Follows reports whether a read at off would go on with the stream.
func (a *Ahead) Follows(off int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.follows(off)
}

func (a *Ahead) follows(off int64) bool {
	return a.begun && off >= a.pos-aheadSlack && off <= a.pos+aheadSlack
}
