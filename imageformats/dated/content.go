package dated

import (
	"context"
	"errors"
	"sync/atomic"

	"yester/guestfs"
	"yester/internal/block"
	"yester/origin"
)

// content is a regular file of a tree, in the version it had when it was opened. A
// rotation moves it to another path, where it is found again.
type content struct {
	tree    *tree
	id      guestfs.ID
	version origin.Version
	handle  atomic.Pointer[origin.Handle]
}

var (
	_ block.ContextReader = (*content)(nil)
	_ block.Mapper        = (*content)(nil)
)

// Size implements block.Reader.
func (c *content) Size() int64 { return c.version.Size }

// ReadAt implements block.Reader.
func (c *content) ReadAt(p []byte, off int64) (int, error) {
	return c.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader.
func (c *content) ReadAtContext(ctx context.Context, p []byte, off int64) (n int, err error) {
	err = c.anywhere(ctx, func(h *origin.Handle) error {
		n, err = h.ReadAtContext(ctx, p, off)
		return err
	})
	return n, err
}

// Extent implements block.Mapper.
func (c *content) Extent(ctx context.Context, off, n int64) (e block.Extent, err error) {
	err = c.anywhere(ctx, func(h *origin.Handle) error {
		e, err = h.Extent(ctx, off, n)
		return err
	})
	return e, err
}

// anywhere calls do, and once more at the file's new place when it has been moved.
func (c *content) anywhere(ctx context.Context, do func(*origin.Handle) error) error {
	err := do(c.handle.Load())
	if !errors.Is(err, origin.ErrChanged) {
		return err
	}
	_, name, info, ferr := c.tree.find(ctx, c.id)
	// A rename changes the time of the last change of the inode, no more.
	now := info.Version
	now.Ctime = c.version.Ctime
	if ferr != nil || now != c.version {
		return err
	}
	h := c.tree.repo.handles.Reader(name, info.Version)
	if err = do(h); err == nil {
		c.handle.Store(h)
	}
	return err
}
