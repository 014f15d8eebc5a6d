package copyout

import (
	"context"
	"errors"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"yester/guestfs"
)

// firstLink is the name under which a file with several names was met first.
type firstLink struct {
	dest string // relative to the destination
	ok   bool   // it was copied
}

// deferredLink is another name of such a file, made when everything else is
// done: only then is it certain that there is something to link to.
type deferredLink struct {
	id   guestfs.ID
	dir  string // relative to the destination
	name string
	path string // in the tree
}

// first reports whether j is the first name of its file. Other names are put off.
func (c *copier) first(j job, dest string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.links[j.id]; ok {
		c.deferred = append(c.deferred, deferredLink{j.id, j.dir.name, j.name, j.path})
		j.dir.setLate()
		return false
	}
	c.links[j.id] = &firstLink{dest: dest}
	return true
}

func (c *copier) settle(id guestfs.ID, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.links[id].ok = ok
}

// linkDeferred makes the names that were put off. Where the first name's file
// wasn't copied, or the host can't link, they become files of their own.
func (c *copier) linkDeferred(ctx context.Context, dest *os.Root) {
	var at, from openDir
	defer at.close()
	defer from.close()
	for _, l := range c.deferred {
		if ctx.Err() != nil {
			return
		}
		to := path.Join(l.dir, l.name)
		attr, err := c.tree.Attr(ctx, l.id)
		if err == nil {
			err = at.open(dest, l.dir, c.opt.DryRun)
		}
		if err != nil {
			c.failed(ctx, l.path, to, attr.Mode, err)
			continue
		}
		j := job{id: l.id, name: l.name, path: l.path,
			dir: &hostDir{c: c, name: l.dir, source: path.Dir(l.path), root: at.root, fd: at.fd}}
		action, err := c.link(ctx, dest, &from, j, &attr)
		if err != nil {
			c.failed(ctx, l.path, to, attr.Mode, err)
			continue
		}
		e := Event{Action: action, Source: l.path, Dest: to, Mode: attr.Mode}
		if attr.IsRegular() {
			e.Size = attr.Size
		}
		c.report(e)
	}
}

// link makes j another name of its file's first one, or copies it.
func (c *copier) link(ctx context.Context, dest *os.Root, from *openDir, j job, attr *guestfs.Attr) (Action, error) {
	first := c.links[j.id]
	if !first.ok || c.opt.DryRun {
		action, err := c.file(ctx, j, attr)
		if err == nil && action == Copied {
			first.ok, first.dest = true, path.Join(j.dir.name, j.name)
		}
		return action, err
	}
	old, err := j.dir.existing(j.name)
	if err != nil {
		return "", err
	}
	if old != nil {
		// The target is not looked at: a link with several names has one as well.
		if action, err := c.decide(j, attr, "", old); err != nil || action != Copied {
			return action, err
		}
	}
	if err := from.open(dest, path.Dir(first.dest), false); err != nil {
		return "", err
	}
	tmp, err := temp(func(name string) error {
		err := unix.Linkat(int(from.fd.Fd()), path.Base(first.dest), int(j.dir.fd.Fd()), name, 0)
		if err != nil {
			return &os.LinkError{Op: "link", Old: first.dest, New: name, Err: err}
		}
		return nil
	})
	if errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) {
		c.lost("hard links", j.path, err)
		return c.file(ctx, j, attr)
	}
	if err != nil {
		return "", err
	}
	// Where both names are the same file already, rename(2) leaves both.
	defer j.dir.root.Remove(tmp)
	return j.dir.place(tmp, j.name, old != nil)
}

// openDir is the directory that was opened last: names of one directory come in
// a row.
type openDir struct {
	name string
	root *os.Root
	fd   *os.File
}

func (o *openDir) open(dest *os.Root, name string, mayMiss bool) error {
	if o.root != nil && o.name == name {
		return nil
	}
	o.close()
	if dest == nil && mayMiss {
		return nil
	}
	root, fd, err := openPath(dest, name)
	if err != nil {
		if mayMiss && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	o.name, o.root, o.fd = name, root, fd
	return nil
}

func (o *openDir) close() {
	if o.root != nil {
		o.fd.Close()
		o.root.Close()
		o.root, o.fd = nil, nil
	}
}
