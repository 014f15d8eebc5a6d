package copyout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// hostDir is a directory of the destination, open while files of it are under
// way. When the last reference goes it gets its attributes, its times last.
type hostDir struct {
	c      *copier
	parent *hostDir
	name   string   // relative to the destination; "." for itself
	source string   // in the tree
	root   *os.Root // nil in a dry run for a directory that doesn't exist
	fd     *os.File // the same directory, for what os.Root has no method for
	refs   atomic.Int32

	adopts bool // gets the attributes of id
	id     guestfs.ID
	attr   guestfs.Attr
	late   atomic.Bool // links will be made in it or below it at the end of the run

	inherits bool // new files in it get an ACL from it
}

// lateDir is a directory whose attributes wait for the end of the run.
type lateDir struct {
	name, source string
	id           guestfs.ID
	attr         guestfs.Attr
}

// errNotDirectory is about something in the destination that a directory of the
// tree would have to replace.
var errNotDirectory = errors.New("exists and is not a directory")

// errIsDirectory is about a directory in the place of something else.
var errIsDirectory = errors.New("a directory is in its place")

// checkName refuses the names that no directory entry may have. Whatever else the
// name is, it can only name an entry of the directory it is used in.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q can't be the name of a file: %w", name, ondisk.ErrCorrupt)
	}
	return nil
}

// openTop returns the destination itself. dest stays the caller's.
func (c *copier) openTop(dest *os.Root) (*hostDir, error) {
	d := &hostDir{c: c, name: "."}
	d.refs.Store(1)
	if dest == nil {
		return d, nil
	}
	var err error
	if d.root, err = dest.OpenRoot("."); err != nil {
		return nil, err
	}
	if d.fd, err = d.root.Open("."); err != nil {
		d.root.Close()
		return nil, err
	}
	d.inherits = inheritsACL(int(d.fd.Fd()))
	return d, nil
}

// enter opens the directory name in d, making it where it isn't there. The
// caller lets go of it with unref.
func (d *hostDir) enter(name string) (sub *hostDir, made bool, err error) {
	sub = &hostDir{c: d.c, parent: d, name: path.Join(d.name, name)}
	if d.root != nil {
		sub.root, sub.fd, made, err = openSub(d.root, name, !d.c.opt.DryRun)
		if err != nil {
			return nil, false, err
		}
		if sub.root != nil {
			sub.inherits = inheritsACL(int(sub.fd.Fd()))
		}
	}
	made = made || sub.root == nil
	sub.refs.Store(1)
	d.refs.Add(1)
	return sub, made, nil
}

// openSub opens the directory name of parent, which os.Root would follow a
// symbolic link for; this doesn't. Where there is none it is made, with access
// for its owner only until it has its attributes, or all results are nil.
func openSub(parent *os.Root, name string, make bool) (root *os.Root, fd *os.File, made bool, err error) {
	before, err := parent.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		if !make {
			return nil, nil, false, nil
		}
		if err = parent.Mkdir(name, 0o700); err == nil {
			made = true
			before, err = parent.Lstat(name)
		}
	}
	if err != nil {
		return nil, nil, false, err
	}
	if !before.IsDir() {
		return nil, nil, false, errNotDirectory
	}
	if root, err = parent.OpenRoot(name); err != nil {
		return nil, nil, false, err
	}
	if fd, err = root.Open("."); err == nil {
		var now os.FileInfo
		if now, err = fd.Stat(); err == nil && !os.SameFile(before, now) {
			err = errNotDirectory // a link took its place meanwhile
		}
		if err == nil {
			return root, fd, made, nil
		}
		fd.Close()
	}
	root.Close()
	return nil, nil, false, err
}

// adopt makes d get the attributes of the tree's directory id.
func (d *hostDir) adopt(id guestfs.ID, attr guestfs.Attr) {
	d.adopts, d.id, d.attr = true, id, attr
}

// open lets the user into a directory that was there already, until it gets the
// mode it has in the tree: that of an earlier run may forbid to change anything.
func (d *hostDir) open(made bool) error {
	if made || d.root == nil || d.c.euid == 0 || d.c.opt.DryRun {
		return nil
	}
	fi, err := d.fd.Stat()
	if err != nil || fi.Mode()&0o700 == 0o700 {
		return err
	}
	return d.fd.Chmod(fi.Mode().Perm() | 0o700)
}

// setLate puts the attributes of d and of those above it off to the end of the
// run: links are still to be made in it, which changes its times, and
// directories above it may not let anybody pass once they have their modes.
func (d *hostDir) setLate() {
	for ; d != nil; d = d.parent {
		d.late.Store(true)
	}
}

// unref lets go of d, and finishes it when it was the last to do so.
func (d *hostDir) unref(ctx context.Context) {
	for ; d != nil && d.refs.Add(-1) == 0; d = d.parent {
		if d.root == nil {
			continue
		}
		if d.adopts && d.late.Load() {
			d.c.mu.Lock()
			d.c.lateDirs = append(d.c.lateDirs, lateDir{d.name, d.source, d.id, d.attr})
			d.c.mu.Unlock()
		} else if !d.c.opt.DryRun {
			d.c.finishDir(ctx, d.fd, d.adopts, lateDir{d.name, d.source, d.id, d.attr})
		}
		d.fd.Close()
		d.root.Close()
	}
}

// finishDir gives a directory its attributes. It does so for a cancelled run,
// too, since a later one can't tell what it has made.
func (c *copier) finishDir(ctx context.Context, fd *os.File, adopts bool, d lateDir) {
	if adopts {
		if ctx.Err() != nil {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), metadataGrace)
			defer cancel()
		}
		t := target{fd: int(fd.Fd()), source: d.source, id: d.id, attr: &d.attr}
		if err := c.preserve(ctx, t); err != nil {
			c.failed(ctx, d.source, d.name, d.attr.Mode, err)
		}
	}
	if err := c.synct.dir(fd, d.name); err != nil {
		c.failed(ctx, d.source, d.name, d.attr.Mode, err)
	}
}

// finishLate gives the directories that waited for links their attributes. They
// are in the order in which they were let go of: children before their parents.
func (c *copier) finishLate(ctx context.Context, dest *os.Root) {
	for _, d := range c.lateDirs {
		root, fd, err := openPath(dest, d.name)
		if err != nil {
			c.failed(ctx, d.source, d.name, d.attr.Mode, err)
			continue
		}
		c.finishDir(ctx, fd, true, d)
		fd.Close()
		root.Close()
	}
}

// openPath opens a directory that was made earlier in the run. No step of the way
// follows a link.
func openPath(dest *os.Root, name string) (*os.Root, *os.File, error) {
	root, err := dest.OpenRoot(".")
	if err != nil {
		return nil, nil, err
	}
	fd, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, nil, err
	}
	if name == "." {
		return root, fd, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		sub, subfd, _, err := openSub(root, part, false)
		if err == nil && sub == nil {
			err = fs.ErrNotExist
		}
		root.Close()
		fd.Close()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		root, fd = sub, subfd
	}
	return root, fd, nil
}
