package rdiff

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/origin"
)

// reader is a file as one who opened it reads it. It sums up what is read from the
// start on in order, and compares the sum at the end.
type reader struct {
	tree *Tree
	node uint32 // a leader
	size int64
	cur  atomic.Pointer[shared]

	mu  sync.Mutex // of what follows
	sum hash.Hash  // nil when there is nothing to compare with, or nothing left to
	at  int64      // bytes summed up
}

// Size implements block.Reader.
func (r *reader) Size() int64 { return r.size }

// ReadAt implements block.Reader.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader.
func (r *reader) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), r.size)
	if n == 0 {
		return 0, eof
	}
	s, err := r.use(ctx, func(s *shared) error { return block.ReadFull(ctx, s.r, p[:n], off) })
	if err != nil {
		return 0, err
	}
	if !s.verified.Load() {
		if err := r.hash(ctx, s, p[:n], off); err != nil {
			return 0, err
		}
	}
	return n, eof
}

// use calls fn with the content, opened anew when its files have been replaced
// since: what the file held at the point is the same, wherever it lies now.
func (r *reader) use(ctx context.Context, fn func(*shared) error) (*shared, error) {
	for try := 0; ; try++ {
		s := r.cur.Load()
		err := fn(s)
		runtime.KeepAlive(s)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, origin.ErrChanged) || try == maxRetries {
			return nil, fmt.Errorf("%s: %w", describe(r.tree.wanted(r.node).path), err)
		}
		s, err = r.tree.content(ctx, r.node)
		if err != nil {
			return nil, err
		}
		if s.size() != r.size {
			return nil, fmt.Errorf("%w: %w", origin.ErrChanged, ondisk.ErrCorrupt)
		}
		r.cur.Store(s)
	}
}

// hash adds p, which was read at off, to the sum.
func (r *reader) hash(ctx context.Context, s *shared, p []byte, off int64) error {
	if s.digest == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if off != r.at && !(off < r.at && off+int64(len(p)) > r.at) {
		return nil
	}
	if r.at == 0 {
		r.sum = sha1.New()
	}
	r.sum.Write(p[r.at-off:])
	r.at = off + int64(len(p))
	if r.at < r.size {
		return nil
	}
	r.at = 0 // whoever reads it all again has it compared again
	var got [20]byte
	r.sum.Sum(got[:0])
	if got == *s.digest {
		s.verified.Store(true)
		return nil
	}
	return r.tree.fault(ctx, r.node, s.mismatch(got))
}

// Extent implements block.Mapper. Of a content that was put together, the places in
// files are told once it has been compared with its SHA-1, as what is read there
// isn't summed up; the mirror's own files are for the kernel.
func (r *reader) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if off < 0 || off >= r.size || n < 1 {
		return block.Extent{}, fmt.Errorf("extent at %#x of %#x: %w", off, r.size, io.EOF)
	}
	var e block.Extent
	s, err := r.use(ctx, func(s *shared) (err error) {
		e, err = block.ExtentAt(ctx, s.r, off, n)
		return err
	})
	if err != nil {
		return block.Extent{}, err
	}
	if !s.mirror && s.digest != nil && !s.verified.Load() {
		return block.Extent{Len: e.Len}, nil
	}
	if e.File != nil {
		s.lent.Store(true)
	}
	return e, nil
}
