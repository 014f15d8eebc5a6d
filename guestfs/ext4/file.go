package ext4

import (
	"context"
	"fmt"
	"io"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// file is the content of an inode whose data lie in blocks. It implements
// block.Reader, block.ContextReader and block.Mapper, and reads past the metadata
// cache straight from the device.
type file struct {
	fs    *FS
	in    *inode
	ahead *block.Ahead // nil unless the device lies far away
}

var (
	_ block.ContextReader = (*file)(nil)
	_ block.Mapper        = (*file)(nil)
)

// Size implements block.Reader.
func (r *file) Size() int64 { return r.in.size }

// ReadAt implements block.Reader.
func (r *file) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader.
func (r *file) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), r.in.size)
	if r.ahead != nil && n > 0 {
		r.readAhead(ctx, off, int64(n))
	}
	for done := 0; done < n; {
		s, err := r.stretch(ctx, off+int64(done), int64(n-done))
		if err != nil {
			return done, err
		}
		q := p[done : done+int(s.n)]
		if s.zero {
			clear(q)
		} else if got, err := block.ReadAt(ctx, r.fs.dev, q, s.pos); got < len(q) {
			if err == nil || err == io.EOF {
				return done + got, ondisk.Corruptf(format, r.in.name(), s.pos, "data lie past the end of the device (%#x)", r.fs.dev.Size())
			}
			return done + got, fmt.Errorf("ext4: inode %d at %#x: %w", r.in.ino, off+int64(done), err)
		}
		done += int(s.n)
	}
	if n == 0 && eof == nil {
		return 0, ctx.Err()
	}
	return n, eof
}

// Extent implements block.Mapper.
func (r *file) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	n = min(n, r.in.size-off)
	if off < 0 || n < 1 {
		return block.Extent{}, fmt.Errorf("ext4: inode %d: extent at %#x of %#x: %w", r.in.ino, off, r.in.size, io.EOF)
	}
	if r.ahead != nil && n <= maxReadNoted && r.ahead.Follows(off) {
		// Going on from what was read: whoever asks splices. Who only looks where a
		// file lies has nothing fetched.
		r.readAhead(ctx, off, n)
	}
	s, err := r.stretch(ctx, off, n)
	if err != nil {
		return block.Extent{}, err
	}
	if s.zero {
		return block.Extent{Len: s.n, Zero: true}, nil
	}
	return block.ExtentAt(ctx, r.fs.dev, s.pos, s.n)
}

// stretch is a part of a file that one request can read.
type stretch struct {
	pos  int64 // byte offset on the device
	n    int64 // bytes
	zero bool
}

// maxMerge limits the look-ups behind one stretch, so that asking what lies in a
// huge sparse file of many small holes stays cheap.
const maxMerge = 1024

// stretch returns what begins at off, at most n bytes: all the runs that follow
// one another on the device as one.
func (r *file) stretch(ctx context.Context, off, n int64) (stretch, error) {
	bits := r.fs.sb.blockBits
	in := off & (1<<bits - 1) // offset in the first block
	m, err := r.fs.mapBlock(ctx, r.in, uint64(off)>>bits)
	if err != nil {
		return stretch{}, err
	}
	s := stretch{n: clipBytes(m.n, bits, in, n), zero: m.zero}
	if !m.zero {
		s.pos = int64(m.phys)<<bits + in
	}
	for range maxMerge {
		if s.n >= n {
			break
		}
		next, err := r.fs.mapBlock(ctx, r.in, uint64(off+s.n)>>bits)
		if err != nil || next.zero != m.zero || !m.zero && next.phys != m.phys+m.n {
			break // an error will be met again where it belongs
		}
		s.n += clipBytes(next.n, bits, 0, n-s.n)
		m = next
	}
	return s, nil
}

// clipBytes is the bytes of n blocks without the first skip, at most limit.
func clipBytes(n uint64, bits uint, skip, limit int64) int64 {
	if n > 1<<33 { // more than there can be: don't overflow
		return limit
	}
	return min(int64(n)<<bits-skip, limit)
}
