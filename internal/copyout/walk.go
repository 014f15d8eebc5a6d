package copyout

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// batch is how many entries of a directory are held at a time.
const batch = 1024

// directory copies what is in the tree's directory id into d.
func (c *copier) directory(ctx context.Context, d *hostDir, id guestfs.ID, source string, depth int) {
	// A directory has one name. One that is met again is a loop, or a tree that
	// unfolds to any size; both are damage.
	if c.dirs[id] {
		c.failed(ctx, source, d.name, guestfs.ModeDir, fmt.Errorf("directory has another name already: %w", ondisk.ErrCorrupt))
		return
	}
	c.dirs[id] = true
	if depth >= maxDepth {
		c.failed(ctx, source, d.name, guestfs.ModeDir, fmt.Errorf("nested deeper than %d directories: %w", maxDepth, ondisk.ErrUnsupported))
		return
	}
	entries := make([]guestfs.Dirent, 0, 16)
	for from, more := uint64(0), true; more && ctx.Err() == nil; {
		entries, more = entries[:0], false
		err := c.tree.ReadDir(ctx, id, from, func(e guestfs.Dirent) bool {
			entries = append(entries, e)
			more = len(entries) == batch
			return !more
		})
		for _, e := range entries {
			if ctx.Err() != nil {
				return
			}
			c.entry(ctx, d, path.Join(source, e.Name), e, depth)
			from = e.Next
		}
		if err != nil {
			c.failed(ctx, source, d.name, guestfs.ModeDir, err)
			return
		}
	}
}

// entry copies e into d: a directory at once, anything else by a worker.
func (c *copier) entry(ctx context.Context, d *hostDir, source string, e guestfs.Dirent, depth int) {
	if err := checkName(e.Name); err != nil {
		c.failed(ctx, source, d.name, e.Type, err)
		return
	}
	kind := e.Type
	if kind == 0 || kind == guestfs.ModeDir {
		attr, err := c.tree.Attr(ctx, e.ID)
		if err == nil && kind != 0 && attr.Mode&guestfs.ModeType != kind {
			err = typeError(kind, attr.Mode)
		}
		if err != nil {
			c.failed(ctx, source, path.Join(d.name, e.Name), e.Type, err)
			return
		}
		if kind = attr.Mode & guestfs.ModeType; kind == guestfs.ModeDir {
			c.subdirectory(ctx, d, source, e, attr, depth)
			return
		}
	}
	d.refs.Add(1)
	select {
	case c.jobs <- job{dir: d, id: e.ID, name: e.Name, path: source, kind: kind}:
	case <-ctx.Done():
		d.unref(ctx)
	}
}

func (c *copier) subdirectory(ctx context.Context, d *hostDir, source string, e guestfs.Dirent, attr guestfs.Attr, depth int) {
	dest := path.Join(d.name, e.Name)
	sub, made, err := d.enter(e.Name)
	if err != nil {
		if errors.Is(err, errNotDirectory) && c.opt.Overwrite == Never {
			c.report(Event{Action: Exists, Source: source, Dest: dest, Mode: attr.Mode})
		} else {
			c.failed(ctx, source, dest, attr.Mode, err)
		}
		return
	}
	sub.source = source
	if made || c.opt.Overwrite != Never {
		sub.adopt(e.ID, attr)
		if err := sub.open(made); err != nil {
			c.failed(ctx, source, dest, attr.Mode, err)
		}
	}
	c.report(Event{Action: Copied, Source: source, Dest: dest, Mode: attr.Mode})
	c.directory(ctx, sub, e.ID, source, depth+1)
	sub.unref(ctx)
}

func typeError(entry, inode uint32) error {
	return fmt.Errorf("directory entry is of type %#o, its inode of %#o: %w",
		entry, inode&guestfs.ModeType, ondisk.ErrCorrupt)
}

// work copies one file that isn't a directory.
func (c *copier) work(ctx context.Context, j job) {
	if ctx.Err() != nil {
		return
	}
	dest := path.Join(j.dir.name, j.name)
	attr, err := c.tree.Attr(ctx, j.id)
	if err == nil && attr.Mode&guestfs.ModeType != j.kind {
		err = typeError(j.kind, attr.Mode)
	}
	if err != nil {
		c.failed(ctx, j.path, dest, j.kind, err)
		return
	}
	if attr.Nlink > 1 && !c.first(j, dest) {
		return
	}
	action, err := c.file(ctx, j, &attr)
	if attr.Nlink > 1 {
		c.settle(j.id, err == nil && action == Copied)
	}
	if err != nil {
		c.failed(ctx, j.path, dest, attr.Mode, err)
		return
	}
	e := Event{Action: action, Source: j.path, Dest: dest, Mode: attr.Mode}
	if attr.IsRegular() {
		e.Size = attr.Size
	}
	c.report(e)
}

// file copies one file, unless what lies in its place is to stay.
func (c *copier) file(ctx context.Context, j job, attr *guestfs.Attr) (Action, error) {
	var target string
	if attr.IsSymlink() {
		var err error
		if target, err = c.tree.ReadLink(ctx, j.id); err != nil {
			return "", err
		}
	}
	old, err := j.dir.existing(j.name)
	if err != nil {
		return "", err
	}
	if old != nil {
		if action, err := c.decide(j, attr, target, old); err != nil || action != Copied {
			return action, err
		}
	}
	if c.opt.DryRun {
		return Copied, nil
	}
	if attr.IsRegular() {
		return c.regular(ctx, j, attr, old != nil)
	}
	return c.special(ctx, j, attr, target, old != nil)
}

// noReplaceUnsupported are the errors that say that a rename which must not replace
// anything isn't to be had on this filesystem.
func noReplaceUnsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}
