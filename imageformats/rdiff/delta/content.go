package delta

import (
	"context"
	"fmt"

	"yester/internal/block"
)

// Content is what a file held at one time, as a block.Reader, ContextReader and
// Mapper. It is safe for parallel use and has no lock.
type Content struct {
	name  string
	list  []segment // without gaps from 0 to Size
	files []File    // by segment.from; nil where nothing refers to it
}

// Size returns the length of the content in bytes.
func (c *Content) Size() int64 {
	if len(c.list) == 0 {
		return 0
	}
	last := c.list[len(c.list)-1]
	return last.off + last.n
}

// Segments returns of how many ranges of stored files the content is made up.
func (c *Content) Segments() int { return len(c.list) }

// Close closes the files that the content is read from. It isn't safe while a
// read is under way.
func (c *Content) Close() error {
	var first error
	for _, f := range c.files {
		if f == nil {
			continue
		}
		if err := f.Close(); first == nil {
			first = err
		}
	}
	c.files = nil
	return first
}

// ReadAt implements block.Reader.
func (c *Content) ReadAt(p []byte, off int64) (int, error) {
	return c.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader. A read that fails in part returns
// no bytes.
func (c *Content) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), c.Size())
	if n == 0 {
		return 0, eof
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	for i, done := find(c.list, off), 0; done < n; i++ {
		s := &c.list[i]
		skip := off + int64(done) - s.off
		b := p[done:n][:min(int64(n-done), s.n-skip)]
		if err := block.ReadFull(ctx, c.files[s.from], b, s.at+skip); err != nil {
			return 0, fmt.Errorf("%s: %s: content at %#x: %w", format, c.name, s.off+skip, err)
		}
		done += len(b)
	}
	return n, eof
}

// Extent implements block.Mapper: what lies plainly in the mirror, a snapshot, an
// uncompressed delta or a spooled file is reported with its place there.
func (c *Content) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if off < 0 || off >= c.Size() || n < 1 {
		return block.Extent{}, fmt.Errorf("%s: %s: extent of %d bytes at %#x of %#x", format, c.name, n, off, c.Size())
	}
	s := &c.list[find(c.list, off)]
	skip := off - s.off
	return block.ExtentAt(ctx, c.files[s.from], s.at+skip, min(n, s.n-skip))
}

// hold reads the whole content into memory and closes its files.
func (c *Content) hold(ctx context.Context) error {
	b := make(held, c.Size())
	if err := block.ReadFull(ctx, c, b, 0); err != nil {
		return err
	}
	if err := c.Close(); err != nil {
		return err
	}
	c.files = []File{b}
	c.list = nil
	if len(b) > 0 {
		c.list = []segment{{n: int64(len(b))}}
	}
	return nil
}

// held is a File in memory.
type held []byte

func (h held) Size() int64  { return int64(len(h)) }
func (h held) Close() error { return nil }

func (h held) ReadAt(p []byte, off int64) (int, error) {
	n, err := block.CheckRead(off, len(p), h.Size())
	if n > 0 {
		copy(p, h[off:])
	}
	return n, err
}
