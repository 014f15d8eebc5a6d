// Package block is the contract between the stages through which bytes flow:
// every origin, cache, image, volume and opened guest file is a Reader.
//
// A Reader may have more powers, found by assertion: ContextReader (a read that
// can be abandoned), Mapper (which ranges are holes, and in which host file the
// others lie) and Prefetcher (fetch ahead of the reader). Helpers in this package use a power where it is there and do
// the plain thing where it isn't, so callers never assert themselves.
package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Reader is a read-only run of bytes of known size, safe for parallel use.
//
// ReadAt follows io.ReaderAt strictly: n < len(p) comes with an error, which is
// io.EOF only when the read reached Size. A range that can't be read is an error,
// never zeros.
type Reader interface {
	io.ReaderAt
	Size() int64 // bytes; constant for the life of the Reader
}

// ContextReader is a Reader whose reads can be abandoned.
type ContextReader interface {
	// ReadAtContext is ReadAt that returns early, with ctx.Err() in the error's
	// chain, once ctx is done.
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
}

// Extent describes the bytes from a queried offset on.
type Extent struct {
	Len  int64    // length in bytes, at least 1
	Zero bool     // known to read as zeros: a hole, an unallocated block
	File *os.File // when not nil, the bytes are File's bytes [Off, Off+Len)
	Off  int64    // byte offset in File; meaningful only with File
	// Stamp tells one writing of those bytes from another: 0 where they never
	// change. A cache gives the place of what it has evicted to the same bytes
	// when they are fetched again, and in between it holds something else.
	Stamp uint64
}

// SamePlace reports whether now, the answer to the same question asked once more,
// is the place that e was. Bytes that were taken from e.File between the two
// questions are the Reader's only if it is: whoever reads there past the Reader
// (a splice) asks again afterwards, and reads plainly when the answer differs.
func (e Extent) SamePlace(now Extent) bool {
	return e.File != nil && now.File == e.File && now.Off == e.Off && now.Stamp == e.Stamp && now.Len >= e.Len
}

// Mapper answers what lies where, without reading the data itself.
type Mapper interface {
	// Extent describes the bytes that begin at off: one Extent of uniform kind,
	// at most n bytes long (n >= 1). off must lie in [0, Size). Neighbouring
	// extents of one kind may be reported apart. File, when set, stays open until
	// the Reader (or what it was opened from) is closed, and its bytes there don't
	// change for as long as the same question gets the same answer: see SamePlace.
	// Zero, once said, holds for good. Looking up may read metadata, hence ctx and the error.
	Extent(ctx context.Context, off, n int64) (Extent, error)
}

// ReadAt reads from r, abandonable where r supports that.
func ReadAt(ctx context.Context, r Reader, p []byte, off int64) (int, error) {
	if c, ok := r.(ContextReader); ok {
		return c.ReadAtContext(ctx, p, off)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return r.ReadAt(p, off)
}

// ReadFull fills p from off. Reaching the end first is io.ErrUnexpectedEOF, so
// that a structure that was cut off is never mistaken for a short one.
func ReadFull(ctx context.Context, r Reader, p []byte, off int64) error {
	n, err := ReadAt(ctx, r, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("read %d bytes at %#x of %#x: %w", len(p), off, r.Size(), io.ErrUnexpectedEOF)
	}
	return err
}

// ExtentAt asks r what begins at off, clipped to n bytes and to the end of r. A
// Reader that is no Mapper is one extent of data of unknown place.
func ExtentAt(ctx context.Context, r Reader, off, n int64) (Extent, error) {
	n = min(n, r.Size()-off)
	if off < 0 || n < 1 {
		return Extent{}, fmt.Errorf("extent at %#x of %#x: %w", off, r.Size(), io.EOF)
	}
	m, ok := r.(Mapper)
	if !ok {
		return Extent{Len: n}, nil
	}
	e, err := m.Extent(ctx, off, n)
	if err == nil && (e.Len < 1 || e.Len > n) {
		return Extent{}, fmt.Errorf("extent at %#x: length %d outside 1..%d", off, e.Len, n)
	}
	return e, err
}

// CheckRead clips a read of n bytes at off to a reader of the given size. It
// returns how many bytes can be read, and io.EOF when that is fewer than n.
// A negative offset is an error of its own.
func CheckRead(off int64, n int, size int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read at negative offset %d: %w", off, os.ErrInvalid)
	case off >= size:
		if n == 0 {
			return 0, nil
		}
		return 0, io.EOF
	case int64(n) > size-off:
		return int(size - off), io.EOF
	}
	return n, nil
}
