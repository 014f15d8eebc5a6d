package store

import (
	"errors"
	"io"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// scanBuffer is how much of an index is read at once, in bytes.
const scanBuffer = 64 << 10

// entries yields the entries that aren't absent, in order.
func (l *layer) entries() iter.Seq2[int64, entry] { return entries(l.index.File, l.blocks()) }

// entries yields those entries of an index for so many blocks that aren't absent.
// It passes over the holes, so that a large index with few entries costs little.
// An index that can't be read any further ends there: what isn't seen is not held.
func entries(f *os.File, blocks int64) iter.Seq2[int64, entry] {
	return func(yield func(int64, entry) bool) {
		buf := make([]byte, scanBuffer)
		end := headerSize + blocks*entrySize
		for off := int64(headerSize); off < end; {
			data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				return // holes to the end
			}
			if err == nil {
				off = max(off, data&^(entrySize-1))
			}
			p := buf[:max(0, min(int64(len(buf)), end-off))]
			n, err := f.ReadAt(p, off)
			for i := 0; i+entrySize <= n; i += entrySize {
				if e := parseEntry(p[i:]); e.state != stateAbsent {
					if !yield((off-headerSize)/entrySize+int64(i/entrySize), e) {
						return
					}
				}
			}
			if n < len(p) || err != nil && err != io.EOF {
				return
			}
			off += int64(n)
		}
	}
}
