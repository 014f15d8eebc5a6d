package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/splice"
	"golang.org/x/sys/unix"

	"yester/internal/block"
)

const (
	// spliceFrom is the size in bytes from which a read is spliced from the host
	// file's page cache instead of copied through a buffer: below, the two extra
	// system calls cost more than the copy.
	spliceFrom = 32 << 10

	// maxPieces bounds how many host ranges one spliced reply may consist of.
	maxPieces = 16

	pageSize = 4096
)

// Read implements fuse.RawFileSystem.
func (f *rawFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.stats.begin()
	defer f.stats.end()
	ctx := request{cancel}
	n := nodeID(in.NodeId)
	pl, err := f.locate(ctx, n)
	if err != nil {
		return nil, f.fail("read", n, "", err)
	}
	defer pl.release()
	r, err := pl.reader(ctx)
	if err != nil {
		return nil, f.fail("read", n, "", err)
	}
	size := r.Size()
	off, want := int64(in.Offset), int64(min(int(in.Size), len(buf)))
	if off < 0 || off >= size {
		return fuse.ReadResultData(nil), fuse.OK
	}
	want = min(want, size-off)
	f.stats.reads.Add(1)
	f.stats.bytes.Add(want)
	if want >= spliceFrom {
		res, err := f.spliced(ctx, r, off, want)
		if err != nil {
			return nil, f.fail("read", n, "", err)
		}
		if res != nil {
			f.stats.spliced.Add(want)
			f.cache.drop.read(n, cachePlace{node: uint64(n)}, off, want)
			return res, fuse.OK
		}
	}
	if err := block.ReadFull(ctx, r, buf[:want], off); err != nil {
		// Also a short read: the kernel would fill up what is missing with zeros.
		return nil, f.fail("read", n, "", err)
	}
	if off == 0 && want == size && size <= pushFile {
		f.cache.push.missed(n)
	}
	// As a vector: go-fuse would first try to splice plain data.
	return fuse.ReadResultVector([][]byte{buf[:want]}), fuse.OK
}

// spliced answers a read from the host files in which the bytes lie, without
// copying them through this process. It returns nil when they don't lie in files,
// or in too many pieces.
func (f *rawFS) spliced(ctx context.Context, r block.Reader, off, n int64) (fuse.ReadResult, error) {
	var pieces [maxPieces]block.Extent
	count, pages := 0, int64(0)
	for at := int64(0); at < n; count++ {
		if count == maxPieces {
			return nil, nil
		}
		e, err := block.ExtentAt(ctx, r, off+at, n-at)
		if err != nil {
			return nil, err
		}
		if e.Zero {
			if f.zeros == nil {
				return nil, nil
			}
			e.Len = min(e.Len, zeroLen)
			e.File, e.Off = f.zeros, 0
		}
		if e.File == nil {
			return nil, nil
		}
		pieces[count] = e
		pages += (e.Off%pageSize + e.Len + pageSize - 1) / pageSize
		at += e.Len
	}
	// A pipe holds a page or a part of one in each of its slots. go-fuse splices
	// the header and then ours into a pipe that it sizes by the bytes alone, and
	// takes what doesn't fit for the end of the file, which must never happen.
	if slots := pipeSlots(n + pageSize + 16); pages+1 > slots {
		return nil, nil
	}
	pair, err := splice.Get()
	if err != nil {
		return nil, nil //nolint:nilerr // no pipe to be had: copy
	}
	if err := pair.Grow(int(n) + pageSize + 16); err != nil {
		splice.Done(pair)
		return nil, nil //nolint:nilerr // an unprivileged user's pipes are small: copy
	}
	at := off
	for _, e := range pieces[:count] {
		err := load(pair, e)
		var now block.Extent
		if err == nil {
			// Asked once more: an image that was written to since the first time says
			// so now, and what has been loaded may be the new bytes; and a cache may
			// have given up the place meanwhile, even for the same block again.
			now, err = block.ExtentAt(ctx, r, at, e.Len)
		}
		if err != nil {
			splice.Drop(pair)
			return nil, err
		}
		if e.File != f.zeros && !e.SamePlace(now) {
			splice.Drop(pair)
			return nil, nil // read plainly
		}
		at += e.Len
	}
	return fuse.ReadResultPipe(pair, int(n)), nil
}

// pipeSlots returns how many slots a pipe of n bytes has: F_SETPIPE_SZ rounds up
// to a power of two of pages (fs/pipe.c, round_pipe_size).
func pipeSlots(n int64) int64 {
	slots := int64(16) // a new pipe's
	for slots*pageSize < n {
		slots *= 2
	}
	return slots
}

// load splices one extent into the pipe, all of it or an error.
func load(pair *splice.Pair, e block.Extent) error {
	fd := e.File.Fd()
	for e.Len > 0 {
		n, err := pair.LoadFromAt(fd, int(e.Len), e.Off)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("%s at %#x: %w", e.File.Name(), e.Off, err)
		case n == 0:
			return fmt.Errorf("%s: cut off at %#x: %w", e.File.Name(), e.Off, io.ErrUnexpectedEOF)
		}
		e.Off += int64(n)
		e.Len -= int64(n)
	}
	return nil
}

// zeroLen is the length of the run of zeros that holes are spliced from.
const zeroLen = 1 << 20

// zeroFile returns a file of zeroLen zeros that nobody can change, or nil.
func zeroFile() *os.File {
	fd, err := unix.MemfdCreate("yester-zeros", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "zeros")
	if err := f.Truncate(zeroLen); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
		if err == nil {
			return f
		}
	}
	f.Close()
	return nil
}

// Lseek implements fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE, by the extents.
func (f *rawFS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f.stats.begin()
	defer f.stats.end()
	ctx := request{cancel}
	n := nodeID(in.NodeId)
	pl, err := f.locate(ctx, n)
	if err != nil {
		return f.fail("lseek", n, "", err)
	}
	defer pl.release()
	r, err := pl.reader(ctx)
	if err != nil {
		return f.fail("lseek", n, "", err)
	}
	off, size := int64(in.Offset), r.Size()
	if off < 0 || off >= size {
		return fuse.Status(syscall.ENXIO)
	}
	hole := in.Whence == unix.SEEK_HOLE
	for off < size {
		if err := ctx.Err(); err != nil {
			return fuse.EINTR
		}
		e, err := block.DataAt(ctx, r, off, size-off)
		if err != nil {
			return f.fail("lseek", n, "", err)
		}
		if e.Zero == hole {
			out.Offset = uint64(off)
			return fuse.OK
		}
		off += e.Len
	}
	if hole {
		out.Offset = uint64(size)
		return fuse.OK
	}
	return fuse.Status(syscall.ENXIO)
}
