package block

import (
	"context"
	"fmt"
	"io"
)

// Section is the part [off, off+n) of a Reader as a Reader of its own.
type Section struct {
	r   Reader
	off int64
	n   int64
}

// NewSection returns the n bytes of r from off on. A section that doesn't lie
// inside r is an error: a partition may be cut off by a truncated image, and its
// reader must decide what that means.
func NewSection(r Reader, off, n int64) (*Section, error) {
	if size := r.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return nil, fmt.Errorf("section of %#x bytes at %#x of %#x: %w", n, off, size, io.ErrUnexpectedEOF)
	}
	return &Section{r: r, off: off, n: n}, nil
}

// Size returns the section's length in bytes.
func (s *Section) Size() int64 { return s.n }

// ReadAt implements Reader.
func (s *Section) ReadAt(p []byte, off int64) (int, error) {
	return s.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements ContextReader.
func (s *Section) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := CheckRead(off, len(p), s.n)
	if n == 0 {
		return 0, eof
	}
	got, err := ReadAt(ctx, s.r, p[:n], s.off+off)
	if got == n {
		return n, eof
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF // the section promised these bytes
	}
	return got, err
}

// Extent implements Mapper.
func (s *Section) Extent(ctx context.Context, off, n int64) (Extent, error) {
	return ExtentAt(ctx, s.r, s.off+off, min(n, s.n-off))
}
