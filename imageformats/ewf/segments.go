package ewf

import (
	"fmt"
	"path"
	"strings"
)

// SplitName takes the name of a segment apart by [Segment file extensions]:
// "web01.E02" is segment 2 of "web01". After E99 come EAA to EZZ, FAA to ZZZ. Any
// file with an extension of three letters from E on looks like a segment; ok says
// no more than that.
func SplitName(name string) (base string, number int, ok bool) {
	ext := strings.ToUpper(path.Ext(name))
	if len(ext) != 4 {
		return "", 0, false
	}
	base = name[:len(name)-len(ext)]
	a, b, c := ext[1], ext[2], ext[3]
	switch {
	case a == 'E' && isDigit(b) && isDigit(c):
		number = int(b-'0')*10 + int(c-'0')
	case 'E' <= a && a <= 'Z' && isLetter(b) && isLetter(c):
		number = 100 + int(a-'E')*26*26 + int(b-'A')*26 + int(c-'A')
	}
	return base, number, number > 0
}

func isDigit(c byte) bool  { return '0' <= c && c <= '9' }
func isLetter(c byte) bool { return 'A' <= c && c <= 'Z' }

// Segments picks from names, a folder's, the segments of the set whose first is
// named first, in order. How many there should be only the last one tells, when
// it is read; it is an error here when one between E01 and E99 is missing, or two
// names claim one number.
func Segments(first string, names []string) ([]string, error) {
	base, n, ok := SplitName(first)
	if !ok || n != 1 {
		return nil, fmt.Errorf("ewf: %q isn't named as the first segment (.E01)", first)
	}
	byNumber := map[int]string{1: first}
	last := 1 // of those with digits: letters may be another file's extension
	for _, name := range names {
		b, n, ok := SplitName(name)
		if !ok || b != base || name == first {
			continue
		}
		if other := byNumber[n]; other != "" && n < 100 {
			return nil, fmt.Errorf("ewf: %q and %q are both segment %d", other, name, n)
		}
		byNumber[n] = name
		if n < 100 {
			last = max(last, n)
		}
	}
	var segments []string
	for n := 1; n <= maxSegments; n++ {
		name := byNumber[n]
		if name == "" {
			if n <= last {
				return nil, fmt.Errorf("ewf: segment %d of %q is missing; there are segments up to %d", n, base, last)
			}
			break
		}
		segments = append(segments, name)
	}
	return segments, nil
}
