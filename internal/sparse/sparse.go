// Package sparse walks the data of a block.Reader without its holes: what image
// writers need to keep their output as sparse as their input.
package sparse

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"yester/internal/block"
)

// ahead is how many chunks are read before they are asked for, so that a slow
// source and the writer work side by side.
const ahead = 4

// Options tune Scan.
type Options struct {
	// Chunk is the size in bytes of the pieces handed out, and their alignment;
	// a power of two. The last piece of the source may be shorter.
	Chunk int
	// Progress, when set, is called with the number of bytes of the source that
	// are dealt with, data and holes; ascending, and with the size at the end.
	Progress func(done int64)
}

// piece is a chunk on its way from a reading goroutine.
type piece struct {
	off  int64
	data []byte
	err  error
}

// Scan calls emit with each chunk of src that isn't all zeros, in ascending
// order. Holes that src knows of (block.Mapper) are skipped without reading, the
// rest is read and looked at. data is emit's until it returns. Scan stops at the
// first error and returns it.
func Scan(ctx context.Context, src block.Reader, opt Options, emit func(off int64, data []byte) error) error {
	if opt.Chunk < 1 || opt.Chunk&(opt.Chunk-1) != 0 {
		return fmt.Errorf("sparse: chunk of %d bytes is no power of two", opt.Chunk)
	}
	ctx, cancel := context.WithCancel(ctx)
	free := make(chan []byte, ahead+1)
	for range ahead + 1 {
		free <- nil // allocated when first used
	}
	queue := make(chan chan piece, ahead)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(queue)
		produce(ctx, src, opt.Chunk, free, queue)
	}()
	// The producer and its readers must be gone when Scan returns: src may be
	// closed next.
	defer func() {
		cancel()
		for c := range queue {
			<-c
		}
		<-done
	}()
	for c := range queue {
		p := <-c
		if p.err != nil {
			return p.err
		}
		if opt.Progress != nil {
			opt.Progress(p.off)
		}
		if !Zero(p.data) {
			if err := emit(p.off, p.data); err != nil {
				return err
			}
		}
		free <- p.data[:cap(p.data)]
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if opt.Progress != nil {
		opt.Progress(src.Size())
	}
	return nil
}

// produce queues every chunk that may hold data, and starts its reading.
func produce(ctx context.Context, src block.Reader, chunk int, free chan []byte, queue chan chan piece) {
	size := src.Size()
	step := int64(chunk)
	for off := int64(0); off < size; {
		hole, err := zeroRun(ctx, src, off, size-off)
		if err != nil {
			c := make(chan piece, 1)
			c <- piece{err: fmt.Errorf("map at %#x: %w", off, err)}
			select {
			case queue <- c:
			case <-ctx.Done():
			}
			return
		}
		if off+hole == size {
			return
		}
		if hole = hole &^ (step - 1); hole > 0 {
			off += hole // off stays a multiple of the chunk
			continue
		}
		var buf []byte
		select {
		case buf = <-free:
		case <-ctx.Done():
			return
		}
		if buf == nil {
			buf = make([]byte, chunk)
		}
		c := make(chan piece, 1)
		at := off
		go func() {
			b := buf[:min(step, size-at)]
			err := block.ReadFull(ctx, src, b, at)
			if err != nil {
				err = fmt.Errorf("read %d bytes at %#x: %w", len(b), at, err)
			}
			c <- piece{at, b, err}
		}()
		select {
		case queue <- c:
		case <-ctx.Done():
			<-c
			return
		}
		off += step
	}
}

// zeroRun returns how many bytes from off on src knows to be zeros.
func zeroRun(ctx context.Context, src block.Reader, off, n int64) (int64, error) {
	var run int64
	for run < n {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		e, err := block.ExtentAt(ctx, src, off+run, n-run)
		if err != nil {
			return 0, err
		}
		if !e.Zero {
			break
		}
		run += e.Len
	}
	return run, nil
}

var zeros [64 << 10]byte

// Zero reports whether b holds zeros only.
func Zero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// WriteAt writes all of b to w at off. An io.WriterAt that writes less than it
// was given without an error is found out.
func WriteAt(w io.WriterAt, b []byte, off int64) error {
	n, err := w.WriteAt(b, off)
	if err == nil && n != len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("write %d bytes at %#x: %w", len(b), off, err)
	}
	return nil
}

// WriteData writes those runs of b to w at off that aren't zeros. grain is the
// least run of zeros, in bytes and aligned to it within b, that is left out; w
// must read as zeros there.
func WriteData(w io.WriterAt, b []byte, off int64, grain int) error {
	for i := 0; i < len(b); {
		if Zero(b[i:min(i+grain, len(b))]) {
			i += grain
			continue
		}
		j := i + grain
		for j < len(b) && !Zero(b[j:min(j+grain, len(b))]) {
			j += grain
		}
		if err := WriteAt(w, b[i:min(j, len(b))], off+int64(i)); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// Hole reports whether r is known (block.Mapper) to be zeros in [off, off+n): all
// of it, without reading. What lies beyond the end of r counts as zeros.
func Hole(ctx context.Context, r block.Reader, off, n int64) (bool, error) {
	for end := min(off+n, r.Size()); off < end; {
		e, err := block.ExtentAt(ctx, r, off, end-off)
		if err != nil || !e.Zero {
			return false, err
		}
		off += e.Len
	}
	return true, nil
}

// HoleInBoth reports whether Hole holds for a and for b.
func HoleInBoth(ctx context.Context, a, b block.Reader, off, n int64) (bool, error) {
	hole, err := Hole(ctx, a, off, n)
	if err != nil || !hole {
		return false, err
	}
	return Hole(ctx, b, off, n)
}
