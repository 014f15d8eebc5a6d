package delta

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/gzip"

	"yester/internal/block"
	"yester/internal/ondisk"
)

const (
	// windowSize is how many bytes are read or decompressed at a time.
	windowSize = 64 << 10
	// windowsAhead bounds what is decompressed of one delta before it is asked for.
	windowsAhead = 16
)

var windows = sync.Pool{New: func() any { return new([windowSize]byte) }}

// serial reads f from its start on. It remembers an error of f's own, which a
// decompressor on top would disguise.
type serial struct {
	ctx context.Context
	f   block.Reader
	off int64
	err error
}

func (s *serial) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), s.f.Size()-s.off)]
	if len(p) == 0 {
		return 0, io.EOF
	}
	if err := block.ReadFull(s.ctx, s.f, p, s.off); err != nil {
		s.err = err
		return 0, err
	}
	s.off += int64(len(p))
	return len(p), nil
}

// decompressor is the reusable part of a gunzip.
type decompressor struct {
	buf *bufio.Reader
	z   gzip.Reader
}

var decompressors = sync.Pool{New: func() any { return &decompressor{buf: bufio.NewReaderSize(nil, windowSize)} }}

// gunzip reads a gzip file (RFC 1952) of one or more members from its start on.
// At the end it has verified each member's CRC and length.
type gunzip struct {
	name string
	raw  serial
	d    *decompressor
}

func newGunzip(ctx context.Context, name string, f block.Reader) (*gunzip, error) {
	g := &gunzip{name: name, raw: serial{ctx: ctx, f: f}, d: decompressors.Get().(*decompressor)}
	g.d.buf.Reset(&g.raw)
	if err := g.member(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// member begins a member, which must be there. The library goes from member to
// member by itself, but takes a header cut off within its name for the file's end.
func (g *gunzip) member() error {
	err := g.d.z.Reset(g.d.buf)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return g.fail(err)
	}
	g.d.z.Multistream(false)
	return nil
}

// Read implements io.Reader; it fills p unless the end comes first.
func (g *gunzip) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k, err := g.d.z.Read(p[n:])
		n += k
		if err == nil {
			continue
		}
		if err != io.EOF {
			return 0, g.fail(err)
		}
		if _, err := g.d.buf.Peek(1); err == io.EOF {
			if n == 0 {
				return 0, io.EOF
			}
			return n, nil // the next call finds the end again
		}
		if err := g.member(); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// fail names the file, and tells damage from a file that can't be read.
func (g *gunzip) fail(err error) error {
	if g.raw.err != nil {
		return fmt.Errorf("%s: %s: %w", format, g.name, g.raw.err)
	}
	return ondisk.Corruptf(format, g.name+": gzip", -1, "%v, having read %#x bytes of %#x", err, g.raw.off-int64(g.d.buf.Buffered()), g.raw.f.Size())
}

// Close gives back the buffers.
func (g *gunzip) Close() error {
	g.d.buf.Reset(nil)
	decompressors.Put(g.d)
	g.d = nil
	return nil
}

// newPlainInput reads a delta that is stored as it is. Literals that nobody wants
// are passed over.
func newPlainInput(ctx context.Context, name string, f block.Reader, buf []byte) *input {
	var at int64
	in := &input{name: name}
	in.fetch = func() ([]byte, error) {
		n := min(int64(len(buf)), f.Size()-at)
		if n <= 0 {
			return nil, io.EOF
		}
		if err := block.ReadFull(ctx, f, buf[:n], at); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", format, name, err)
		}
		at += n
		return buf[:n], nil
	}
	in.seek = func(off int64) error {
		if off > f.Size() {
			return in.corrupt("literal", in.off, "the delta is cut off at %#x", f.Size())
		}
		at = off
		return nil
	}
	return in
}

// window is a part of a decompressed delta, or why there is none.
type window struct {
	buf *[windowSize]byte
	n   int
	err error
}

// ahead decompresses the deltas that will be asked for next, on other processors.
type ahead struct {
	ctx    context.Context
	cancel context.CancelFunc
	deltas []Source
	begun  int // deltas[begun:] have been begun
	width  int // how many at a time
	ch     []chan window
	wg     sync.WaitGroup
}

func newAhead(ctx context.Context, deltas []Source) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	return &ahead{ctx: ctx, cancel: cancel, deltas: deltas, begun: len(deltas), ch: make([]chan window, len(deltas)),
		width: min(max(2, runtime.GOMAXPROCS(0)), 8)}
}

// close ends what is under way. No source's file is in use afterwards.
func (a *ahead) close() {
	a.cancel()
	a.wg.Wait()
}

// input returns the stream of the compressed delta i. It is called for falling i.
func (a *ahead) input(i int) *input {
	for a.begun > 0 && a.begun > i-a.width+1 {
		a.begun--
		if s := &a.deltas[a.begun]; s.Gzip {
			ch := make(chan window, windowsAhead)
			a.ch[a.begun] = ch
			a.wg.Go(func() {
				if err := a.decompress(s, ch); err != nil {
					a.send(ch, window{err: err})
				}
			})
		}
	}
	ch := a.ch[i]
	var last *[windowSize]byte
	return &input{name: a.deltas[i].Name, fetch: func() ([]byte, error) {
		if last != nil {
			windows.Put(last)
			last = nil
		}
		select {
		case w := <-ch:
			if w.err != nil {
				return nil, w.err
			}
			last = w.buf
			return w.buf[:w.n], nil
		case <-a.ctx.Done():
			return nil, a.ctx.Err()
		}
	}}
}

// send hands w over and reports whether it is wanted still.
func (a *ahead) send(ch chan<- window, w window) bool {
	select {
	case ch <- w:
		return true
	case <-a.ctx.Done():
		return false
	}
}

// decompress sends the windows of s and returns why there are no more: io.EOF.
func (a *ahead) decompress(s *Source, ch chan<- window) error {
	f, err := s.open(a.ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := newGunzip(a.ctx, s.Name, f)
	if err != nil {
		return err
	}
	defer g.Close()
	for {
		buf := windows.Get().(*[windowSize]byte)
		n, err := g.Read(buf[:])
		if err != nil {
			windows.Put(buf)
			return err
		}
		if !a.send(ch, window{buf: buf, n: n}) {
			return a.ctx.Err()
		}
	}
}
