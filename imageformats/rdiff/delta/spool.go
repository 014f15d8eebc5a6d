package delta

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

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
	err = os.Remove(f.Name())
	if err == nil {
		err = fill(f)
	}
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekCurrent)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &temporary{f, size}, nil
}

// temporary is an unlinked file.
type temporary struct {
	f    *os.File
	size int64
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
	out := newSink(ctx, spool, deriveKey("snapshot", *s))
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

// maxUnknown is the least size in bytes that an intermediate version may have
// when the metadata don't give one and it must be written out; a version grown to
// more than maxGrowth times that below it is refused as well. A few commands can
// ask for an exbibyte.
const (
	maxUnknown = 1 << 30
	maxGrowth  = 16
)

// apply writes out the version that s yields over the newer ones.
func apply(ctx context.Context, base Source, newer []Source, s Source, opt Options) (File, error) {
	under, err := Compose(ctx, base, newer, opt)
	if err != nil {
		return nil, err
	}
	defer under.Close()
	limit := s.limit()
	if s.Size < 0 {
		limit = max(maxUnknown, maxGrowth*min(under.Size(), maxSize/maxGrowth))
	}
	inputs := append([]Source{base, s}, newer...)
	out := newSink(ctx, opt.Spool, deriveKey("applied", inputs...))
	a := newAhead(ctx, []Source{s})
	defer a.close()
	if err := applyInto(ctx, out, under, &s, a, limit); err != nil {
		out.abort(err)
		return nil, err
	}
	f, err := out.finish()
	if err != nil {
		return nil, fmt.Errorf("%s: %s, applied: %w", format, s.Name, err)
	}
	return f, nil
}

func applyInto(ctx context.Context, out *sink, under *Content, s *Source, a *ahead, limit int64) error {
	var in *input
	if s.Gzip {
		in = a.input(0)
	} else {
		f, err := s.open(ctx)
		if err != nil {
			return err
		}
		defer f.Close()
		in = newPlainInput(ctx, s.Name, f, make([]byte, windowSize))
	}
	buf := make([]byte, windowSize)
	size, err := in.commands(limit, func(c command) error {
		if c.literal {
			return in.pass(c.n, out.write)
		}
		if err := (reach{c.start + c.n, s.Name, c.at}).check(under.Size(), under.name); err != nil {
			return err
		}
		for done := int64(0); done < c.n; {
			b := buf[:min(int64(len(buf)), c.n-done)]
			if err := block.ReadFull(ctx, under, b, c.start+done); err != nil {
				return err
			}
			if err := out.write(b); err != nil {
				return err
			}
			done += int64(len(b))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.checkSize(size)
}
