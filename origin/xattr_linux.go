package origin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxXattr is the kernel's limit for a value and for a list of names
// (include/uapi/linux/limits.h, XATTR_SIZE_MAX, XATTR_LIST_MAX).
const maxXattr = 64 << 10

// ListXattr implements XattrReader.
func (d *Dir) ListXattr(_ context.Context, name string) (names []string, err error) {
	err = d.beneath(name, func(path string) error {
		buf := make([]byte, maxXattr)
		n, err := unix.Llistxattr(path, buf)
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		if err != nil {
			return err
		}
		names = strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
		return nil
	})
	return names, err
}

// Xattr implements XattrReader.
func (d *Dir) Xattr(_ context.Context, name, attr string) (value []byte, err error) {
	err = d.beneath(name, func(path string) error {
		buf := make([]byte, maxXattr)
		n, err := unix.Lgetxattr(path, attr, buf)
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP),
			errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL): // a name that can't be one
			return ErrNoXattr
		case err != nil:
			return err
		}
		value = buf[:n:n]
		return nil
	})
	return value, err
}

// beneath calls do with a path to name that can't lead out of the folder: its
// directory is opened first, and the last element is not followed by do.
func (d *Dir) beneath(name string, do func(path string) error) error {
	dir, base := path.Split(path.Clean(name))
	f, err := d.root.OpenFile(filepath.FromSlash("./"+dir), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := do(fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), base)); err != nil {
		return &os.PathError{Op: "xattr", Path: name, Err: err}
	}
	return nil
}
