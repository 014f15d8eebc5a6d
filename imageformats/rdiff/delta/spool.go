package delta

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// deriveKey returns the key of bytes that are made of the sources' in the way that
// what names, or "" if one of them has none. Its version changes when the bytes
// made of the same sources do.
func deriveKey(what string, sources ...Source) string {
	h := sha256.New()
	fmt.Fprintf(h, "yester rdiff %s 1\n", what)
	for _, s := range sources {
		if s.Key == "" {
			return ""
		}
		fmt.Fprintf(h, "%q %t\n", s.Key, s.Gzip)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// unlinked is a Spooler that keeps nothing: its files are gone once closed.
type unlinked struct{}

func (unlinked) Spool(_ context.Context, _ string, fill func(io.Writer) error) (File, error) {
	f, err := os.CreateTemp("", "yester-*")
	if err != nil {
		return nil, err
	}
	t := &temporary{f: f}
	err = os.Remove(f.Name())
	if err == nil {
		err = fill(t)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// temporary is an unlinked file.
type temporary struct {
	f    *os.File
	size int64
	room int64 // bytes that may be written before the next look at the disk
}

// roomStep is how many bytes are written between two looks at the free space.
const roomStep = 64 << 20

// Write implements io.Writer. A file may take up half of what is free when it is
// begun, as its size may be a hostile repository's invention.
func (t *temporary) Write(p []byte) (int, error) {
	if t.room < int64(len(p)) {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(t.f.Fd()), &st); err != nil {
			return 0, err
		}
		block := uint64(max(1, st.Bsize))
		free := min(st.Bavail, maxSize/block) * block
		if free < uint64(t.size) {
			return 0, fmt.Errorf("temporary file of %d bytes: it would take more than half of the free space of %s: %w", t.size, os.TempDir(), unix.ENOSPC)
		}
		t.room = roomStep
	}
	n, err := t.f.Write(p)
	t.size, t.room = t.size+int64(n), t.room-int64(n)
	return n, err
}

func (t *temporary) Size() int64  { return t.size }
func (t *temporary) Close() error { return t.f.Close() }

func (t *temporary) ReadAt(p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), t.size)
	if n == 0 {
		return 0, eof
	}
	if got, err := t.f.ReadAt(p[:n], off); got < n {
		return 0, fmt.Errorf("temporary file at %#x: %w", off, errors.Join(io.ErrUnexpectedEOF, err))
	}
	return n, eof
}

// Extent implements block.Mapper.
func (t *temporary) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	return block.Extent{Len: min(n, t.size-off), File: t.f, Off: off}, nil
}

// expand decompresses f, which s names, whole: into memory when it is small, else
// into a spooled file. The checksum has been verified when it returns. It returns
// early when the spool has it already.
//
// Checkpoints in the compressed file would do without the spooled file, but a
// read would decompress half a mebibyte, they take 3% of the size in memory, and
// the whole must be read once all the same, for the checksum.
func expand(ctx context.Context, s *Source, f File, spool Spooler) (_ File, err error) {
	out := newSink(ctx, spool, deriveKey("snapshot", *s), s.Name+", decompressed")
	defer func() {
		if err != nil {
			out.abort(err)
		}
	}()
	g, err := newGunzip(ctx, s.Name, f)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	if s.Size > maxHeld {
		out.spill()
	}
	buf := windows.Get().(*[windowSize]byte)
	defer windows.Put(buf)
	for {
		if file := out.found(); file != nil {
			return file, nil
		}
		n, err := g.Read(buf[:])
		if err == io.EOF {
			return out.finish()
		}
		if err != nil {
			return nil, err
		}
		if int64(n) > s.limit()-out.n {
			return nil, ondisk.Corruptf(format, s.Name, -1, "decompresses to more than %d bytes, the size its metadata record", s.limit())
		}
		if err := out.write(buf[:n]); err != nil {
			return nil, err
		}
	}
}
