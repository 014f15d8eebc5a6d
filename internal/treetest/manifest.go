// Package treetest is the conformance suite of guestfs.Tree: Check verifies that
// a tree keeps the contract and agrees with itself, Compare that it shows what
// a Manifest says, and Host makes a Manifest of a directory that the kernel
// shows, such as a loop mount of the same image.
package treetest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"yester/guestfs"
)

// Entry is what is known of one path. Fields that Fields doesn't name are not
// compared.
type Entry struct {
	Path   string // "/" or "/a/b", raw bytes
	Ino    uint64
	Attr   guestfs.Attr
	Target string            // of a symbolic link
	Xattrs map[string]string // values in the form of getxattr(2)
	SHA256 string            // of a regular file's content, hex
	Fields Field
}

// Field says which parts of an Entry are known.
type Field uint

// The parts of an Entry. The type and the permission bits of Attr.Mode count as
// one.
const (
	FieldIno Field = 1 << iota
	FieldMode
	FieldOwner
	FieldNlink
	FieldSize // of regular files and symbolic links
	FieldDirSize
	FieldBlocks
	FieldRdev
	FieldAtime
	FieldMtime
	FieldCtime
	FieldBtime
	FieldTarget
	FieldXattrs
	FieldContent
	fieldEnd

	FieldAll = fieldEnd - 1
)

// Manifest is a tree by path.
type Manifest map[string]*Entry

// Skip makes Host pass over path, given relative to its root with a leading '/'.
type Skip func(path string) bool

// Host walks dir on this host, without crossing into other filesystems, and
// returns what stat, listxattr, getxattr, readlink and read show of it.
func Host(dir string, skip Skip) (Manifest, error) {
	m := make(Manifest)
	var top unix.Stat_t
	if err := unix.Lstat(dir, &top); err != nil {
		return nil, fmt.Errorf("stat %s: %w", dir, err)
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := "/" + strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")
		if skip != nil && skip(rel) {
			return fs.SkipDir
		}
		e, err := hostEntry(path)
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		e.Path = rel
		m[rel] = e
		return nil
	})
	return m, err
}

func hostEntry(path string) (*Entry, error) {
	// Extended attributes and links first: nothing may disturb the access time
	// that is compared, and a read-only mount doesn't.
	var st unix.Statx_t
	const want = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, want, &st); err != nil {
		return nil, fmt.Errorf("statx: %w", err)
	}
	e := &Entry{Ino: st.Ino, Fields: FieldAll, Attr: guestfs.Attr{
		Mode: uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid,
		Major: st.Rdev_major, Minor: st.Rdev_minor,
		Size: int64(st.Size), Blocks: int64(st.Blocks),
		Atime: statxTime(st.Atime), Mtime: statxTime(st.Mtime), Ctime: statxTime(st.Ctime),
	}}
	if st.Mask&unix.STATX_BTIME != 0 {
		e.Attr.Btime = statxTime(st.Btime)
	} else {
		e.Fields &^= FieldBtime
	}
	var err error
	if e.Xattrs, err = hostXattrs(path); err != nil {
		return nil, err
	}
	switch {
	case e.Attr.IsSymlink():
		if e.Target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	case e.Attr.IsRegular():
		if e.SHA256, err = hostHash(path); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func statxTime(t unix.StatxTimestamp) guestfs.Time {
	return guestfs.Time{Sec: t.Sec, Nsec: t.Nsec}
}

func hostXattrs(path string) (map[string]string, error) {
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	buf, value := (*bp)[:64<<10], (*bp)[64<<10:128<<10] // the largest that the kernel returns
	n, err := unix.Llistxattr(path, buf)
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	xattrs := make(map[string]string)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s: %w", name, err)
		}
		xattrs[name] = string(value[:n])
	}
	return xattrs, nil
}

func hostHash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	for {
		n, err := f.Read(*bp)
		h.Write((*bp)[:n])
		if n == 0 && err != nil {
			if err != io.EOF {
				return "", err
			}
			return hex.EncodeToString(h.Sum(nil)), nil
		}
	}
}
