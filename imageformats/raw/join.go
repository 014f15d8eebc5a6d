package raw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"

	"yester/internal/block"
)

// Joined is a disk that was split into files: its parts' bytes one after the
// other. It is a block.ContextReader and a block.Mapper.
type Joined struct {
	parts []block.Reader
	start []int64 // where each part begins; one more at the end, the size
}

// Join puts parts together in the given order. Their sizes may differ.
func Join(parts []block.Reader) (*Joined, error) {
	j := &Joined{start: []int64{0}}
	for i, p := range parts {
		size, end := p.Size(), j.Size()
		if size < 0 || size > math.MaxInt64-end {
			return nil, fmt.Errorf("raw: part %d of %d bytes after %d: too large", i, size, end)
		}
		if size > 0 {
			j.parts = append(j.parts, p)
			j.start = append(j.start, end+size)
		}
	}
	return j, nil
}

// Size returns the sum of the parts' sizes, bytes.
func (j *Joined) Size() int64 { return j.start[len(j.start)-1] }

// part returns the number of the part that holds off, which lies before the end.
func (j *Joined) part(off int64) int {
	i, found := slices.BinarySearch(j.start, off)
	if !found {
		i--
	}
	return i
}

// ReadAt implements block.Reader.
func (j *Joined) ReadAt(p []byte, off int64) (int, error) {
	return j.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader.
func (j *Joined) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), j.Size())
	done := 0
	for done < n {
		i := j.part(off + int64(done))
		at := off + int64(done) - j.start[i]
		m := int(min(int64(n-done), j.parts[i].Size()-at))
		got, err := block.ReadAt(ctx, j.parts[i], p[done:done+m], at)
		done += got
		if got < m {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // the part promised these bytes
			}
			return done, fmt.Errorf("raw: part %d at %#x: %w", i, at, err)
		}
	}
	return n, eof
}

// Extent implements block.Mapper.
func (j *Joined) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if off < 0 || off >= j.Size() {
		return block.Extent{}, fmt.Errorf("raw: extent at %#x of %#x: %w", off, j.Size(), io.EOF)
	}
	i := j.part(off)
	return block.ExtentAt(ctx, j.parts[i], off-j.start[i], min(n, j.start[i+1]-off))
}

// Prefetch implements block.Prefetcher.
func (j *Joined) Prefetch(ranges []block.Range) bool {
	of := make([][]block.Range, len(j.parts))
	for _, g := range ranges {
		g, ok := g.Clip(j.Size())
		for ok && g.Len > 0 {
			i := j.part(g.Off)
			n := min(g.Len, j.start[i+1]-g.Off)
			of[i] = append(of[i], block.Range{Off: g.Off - j.start[i], Len: n})
			g.Off, g.Len = g.Off+n, g.Len-n
		}
	}
	useful := false
	for i, p := range j.parts {
		useful = block.Prefetch(p, of[i]...) || useful
	}
	return useful
}

var partName = regexp.MustCompile(`^(.+)\.([0-9]{2,5})$`)

// SplitName takes the name of a part apart: "disk.raw.001" is part 1 of
// "disk.raw". Parts are numbered with two to five digits; ok is false for other
// names.
func SplitName(name string) (base string, number int, ok bool) {
	m := partName.FindStringSubmatch(name)
	if m == nil {
		return "", 0, false
	}
	number, err := strconv.Atoi(m[2])
	return m[1], number, err == nil
}

// Parts picks from names, a folder's, the parts of the disk whose first part is
// named first, in order. It is an error when a number is missing between the
// first and the last, when two names claim one number, or when first is no first
// part: numbering begins at 0 or 1.
func Parts(first string, names []string) ([]string, error) {
	base, start, ok := SplitName(first)
	if !ok || start > 1 {
		return nil, fmt.Errorf("raw: %q isn't named as the first part of a split disk (.000 or .001)", first)
	}
	byNumber := map[int]string{}
	last := start
	for _, name := range names {
		b, number, ok := SplitName(name)
		if !ok || b != base || number < start {
			continue
		}
		if other, dup := byNumber[number]; dup && other != name {
			return nil, fmt.Errorf("raw: %q and %q are both part %d", other, name, number)
		}
		byNumber[number] = name
		last = max(last, number)
	}
	byNumber[start] = first
	parts := make([]string, 0, len(byNumber))
	for i := start; i <= last; i++ {
		name, ok := byNumber[i]
		if !ok {
			return nil, fmt.Errorf("raw: part %d of %q is missing; there are parts up to %d", i, base, last)
		}
		parts = append(parts, name)
	}
	return parts, nil
}
