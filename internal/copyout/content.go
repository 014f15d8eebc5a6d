package copyout

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/sparse"
)

const (
	// bufSize is how much is read at a time, in bytes.
	bufSize = 1 << 20
	// segment is what one goroutine copies of a large file, in bytes, and
	// segments how many of them are under way at a time: the reads of a remote
	// source overlap.
	segment  = 8 << 20
	segments = 4
	// minMapped is how long a file must be for its holes and its place to be asked
	// for, instead of just reading it, in bytes.
	minMapped = 64 << 10
	// minRange is the least that is worth a copy_file_range(2) of its own, and
	// minHole a seek instead of zeros that are looked for, in bytes.
	minRange = 256 << 10
	minHole  = 64 << 10
	// holeUnit is the granularity at which zeros become holes: the block size of
	// nearly every host filesystem, in bytes.
	holeUnit = 4096
)

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// content writes all of r to the empty file f.
func (c *copier) content(ctx context.Context, f *os.File, r block.Reader) error {
	size := r.Size()
	if size == 0 {
		return nil
	}
	if size < minMapped {
		return c.small(ctx, f, r, int(size))
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	if size <= segment {
		return c.part(ctx, f, r, 0, size)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(segments)
	for off := int64(0); off < size && ctx.Err() == nil; {
		// A hole of any length costs nothing.
		if e, err := block.ExtentAt(ctx, r, off, size-off); err == nil && e.Zero {
			off += e.Len
			c.opt.Progress.bytesDone(e.Len)
			continue
		}
		// Segments end at multiples of their size, so that they start at the host's
		// block boundaries.
		from, to := off, min(size, (off/segment+1)*segment)
		g.Go(func() error { return c.part(ctx, f, r, from, to) })
		off = to
	}
	return g.Wait()
}

// small writes all of r, of less than minMapped bytes, to the empty file f. Only
// where a hole may be at its end must its length be set.
func (c *copier) small(ctx context.Context, f *os.File, r block.Reader, size int) error {
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	p := buf[:size]
	if err := block.ReadFull(ctx, r, p, 0); err != nil {
		return fmt.Errorf("read at 0: %w", err)
	}
	if p[size-1] == 0 {
		if err := f.Truncate(int64(size)); err != nil {
			return err
		}
	}
	if err := writeSparse(f, p, 0); err != nil {
		return err
	}
	c.opt.Progress.bytesDone(int64(size))
	return nil
}

// part copies the bytes [off, end) of r to the same place in f, which reads as
// zeros there.
func (c *copier) part(ctx context.Context, f *os.File, r block.Reader, off, end int64) error {
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	for off < end {
		var n int64
		if end-off >= minMapped {
			e, err := block.DataAt(ctx, r, off, end-off)
			switch {
			case err != nil:
				return err
			case e.Zero && (e.Len >= minHole || off+e.Len == end):
				n = e.Len
			case e.File != nil && e.Stamp == 0 && e.Len >= minRange && !c.noCopyRange.Load():
				if n, err = c.copyRange(ctx, f, off, e); err != nil {
					return err
				}
			}
		}
		if n == 0 {
			n = min(bufSize, end-off)
			if rest := (off + n) % holeUnit; n == bufSize && rest != 0 {
				n -= rest // back to the boundaries at which holes can be
			}
			p := buf[:n]
			if err := block.ReadFull(ctx, r, p, off); err != nil {
				return fmt.Errorf("read at %#x: %w", off, err)
			}
			if err := writeSparse(f, p, off); err != nil {
				return err
			}
		}
		off += n
		c.opt.Progress.bytesDone(n)
	}
	if off != end { // a reader that gives more than it was asked for
		return fmt.Errorf("copied up to %#x instead of %#x: %w", off, end, ondisk.ErrCorrupt)
	}
	return nil
}

// writeSparse writes p to f at off, leaving out aligned units that are all zeros.
func writeSparse(f *os.File, p []byte, off int64) error {
	unit := func(i int) int { // end of the unit that p[i] lies in
		return min(len(p), i+holeUnit-int((off+int64(i))%holeUnit))
	}
	for i := 0; i < len(p); {
		if sparse.Zero(p[i:unit(i)]) {
			i = unit(i)
			continue
		}
		j := unit(i)
		for j < len(p) && !sparse.Zero(p[j:unit(j)]) {
			j = unit(j)
		}
		if _, err := f.WriteAt(p[i:j], off+int64(i)); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// rangeStep bounds one copy_file_range(2), in bytes, so that a cancelled run
// ends soon.
const rangeStep = 64 << 20

// copyRange lets the kernel copy the extent e to f at off. It returns how many
// bytes are done, which is none when this doesn't work between these files; the
// caller reads and writes what is left, and finds out what is wrong with it.
func (c *copier) copyRange(ctx context.Context, f *os.File, off int64, e block.Extent) (done int64, err error) {
	from, to := e.Off, off
	for done < e.Len && ctx.Err() == nil {
		n, err := unix.CopyFileRange(int(e.File.Fd()), &from, int(f.Fd()), &to, int(min(e.Len-done, rangeStep)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
			return done, &os.PathError{Op: "copy_file_range", Path: f.Name(), Err: err}
		case err != nil:
			c.noCopyRange.Store(true)
			return done, nil
		case n == 0: // the file was cut off
			return done, nil
		}
		done += int64(max(n, 0))
	}
	return done, ctx.Err()
}
