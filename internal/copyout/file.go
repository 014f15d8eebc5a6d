package copyout

import (
	"context"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// regular copies a regular file.
func (c *copier) regular(ctx context.Context, j job, attr *guestfs.Attr, replace bool) (action Action, err error) {
	r, err := c.tree.Open(ctx, j.id)
	if err != nil {
		return "", err
	}
	if r.Size() != attr.Size {
		return "", fmt.Errorf("%d bytes long by its attributes, %d by its content: %w", attr.Size, r.Size(), ondisk.ErrCorrupt)
	}
	var f *os.File
	tmp, err := temp(func(name string) (err error) {
		f, err = j.dir.create(name)
		return err
	})
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			f.Close()
			j.dir.root.Remove(tmp)
		}
	}()
	if err = c.content(ctx, f, r); err != nil {
		return "", err
	}
	if err = c.preserve(ctx, target{fd: int(f.Fd()), dir: j.dir, name: tmp, source: j.path, id: j.id, attr: attr}); err != nil {
		return "", err
	}
	if err = c.synct.file(f, path.Join(j.dir.name, j.name), replace); err != nil {
		return "", err
	}
	if err = f.Close(); err != nil { // where NFS reports that the server is full
		return "", err
	}
	return j.dir.place(tmp, j.name, replace)
}

// special makes a symbolic link, FIFO, socket or device node.
func (c *copier) special(ctx context.Context, j job, attr *guestfs.Attr, linkTarget string, replace bool) (action Action, err error) {
	kind := attr.Mode & guestfs.ModeType
	tmp, err := temp(func(name string) error {
		switch kind {
		case guestfs.ModeSymlink:
			return j.dir.root.Symlink(linkTarget, name)
		case guestfs.ModeFifo, guestfs.ModeSocket, guestfs.ModeBlock, guestfs.ModeChar:
			dev := unix.Mkdev(attr.Major, attr.Minor)
			if err := unix.Mknodat(int(j.dir.fd.Fd()), name, kind|0o600, int(dev)); err != nil {
				return &os.PathError{Op: "mknod", Path: name, Err: err}
			}
			return nil
		}
		return fmt.Errorf("file of type %#o: %w", kind, ondisk.ErrCorrupt)
	})
	if err != nil {
		if os.IsPermission(err) && (kind == guestfs.ModeBlock || kind == guestfs.ModeChar) && c.euid != 0 {
			err = fmt.Errorf("only root can make device nodes: %w", err)
		}
		return "", err
	}
	defer func() {
		if err != nil {
			j.dir.root.Remove(tmp)
		}
	}()
	if err = c.preserve(ctx, target{fd: -1, dir: j.dir, name: tmp, source: j.path, id: j.id, attr: attr}); err != nil {
		return "", err
	}
	return j.dir.place(tmp, j.name, replace)
}
