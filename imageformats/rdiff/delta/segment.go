package delta

import (
	"cmp"
	"errors"
	"slices"
	"sort"
)

// segment says where n bytes of a version lie.
type segment struct {
	off  int64 // in the version
	n    int64 // bytes, at least 1
	at   int64 // in what from names
	from int32
}

// Values of segment.from, an index into Content.files.
const (
	fromBelow    int32 = iota // the next-newer version; in the end, the base
	fromLiterals              // the literals kept of all deltas
	fromFiles                 // from here on: deltas whose literals are read in place
)

// maxSegments bounds each of the lists of segments, so that composing takes no
// more than 64 MiB: three lists are there at a time (what is composed, the delta's
// commands, the result) at 32 bytes each, and one of ranges at 16. librsync's
// blocks being as large as the root of the file, a file would have to exceed
// 256 GiB and be shuffled whole to have as many; made-up deltas whose copies
// overlap double them with each increment.
const maxSegments = 1 << 19

var errManySegments = errors.New("too many segments")

// segments is a list in ascending order of off. Ranges of the version that nobody
// needs are left out.
type segments struct {
	list []segment
	max  int
}

// add appends s, or lengthens the last segment by it.
func (m *segments) add(s segment) error {
	if k := len(m.list) - 1; k >= 0 {
		last := &m.list[k]
		if last.from == s.from && last.off+last.n == s.off && last.at+last.n == s.at {
			last.n += s.n
			return nil
		}
	}
	if len(m.list) >= m.max {
		return errManySegments
	}
	m.list = append(m.list, s)
	return nil
}

// find returns the index of the segment that holds offset off, or of the first
// one after it.
func find(list []segment, off int64) int {
	return sort.Search(len(list), func(i int) bool { return list[i].off+list[i].n > off })
}

// errUncovered can't come of commands that were checked: it is here so that a
// mistake is an error and not wrong bytes.
var errUncovered = errors.New("a copied range isn't in the version it is copied from")

// substitute replaces what upper takes from the version below by where lower, that
// version's own list, says it lies.
func substitute(upper, lower []segment, limit int) ([]segment, error) {
	out := segments{max: limit, list: make([]segment, 0, min(len(upper)+len(lower)/2, limit))}
	i := 0
	for _, s := range upper {
		if s.from != fromBelow {
			if err := out.add(s); err != nil {
				return nil, err
			}
			continue
		}
		// What is copied mostly follows what was copied before.
		if i >= len(lower) || s.at < lower[i].off || s.at >= lower[i].off+lower[i].n {
			i = find(lower, s.at)
		}
		for {
			if i >= len(lower) || lower[i].off > s.at {
				return nil, errUncovered
			}
			l := lower[i]
			skip := s.at - l.off
			n := min(s.n, l.n-skip)
			if err := out.add(segment{off: s.off, n: n, at: l.at + skip, from: l.from}); err != nil {
				return nil, err
			}
			s.off, s.at, s.n = s.off+n, s.at+n, s.n-n
			if n == l.n-skip {
				i++
			}
			if s.n == 0 {
				break
			}
		}
	}
	return out.list, nil
}

// span is a range of a version.
type span struct{ off, end int64 }

// needed returns the ranges of the version below that list takes bytes from,
// ascending and apart from each other.
func needed(list []segment) []span {
	var spans []span
	for _, s := range list {
		if s.from != fromBelow {
			continue
		}
		if k := len(spans) - 1; k >= 0 && spans[k].end == s.at {
			spans[k].end += s.n
			continue
		}
		spans = append(spans, span{s.at, s.at + s.n})
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.off, b.off) })
	k := 0
	for i, s := range spans {
		if i > 0 && s.off <= spans[k-1].end {
			spans[k-1].end = max(spans[k-1].end, s.end)
			continue
		}
		spans[k] = s
		k++
	}
	return spans[:k]
}
