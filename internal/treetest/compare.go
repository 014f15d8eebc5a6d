package treetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"

	"yester/guestfs"
	"yester/internal/block"
)

// maxDiffs ends a comparison whose point has been made.
const maxDiffs = 40

// Compare fails t for everything in which tree differs from want.
func Compare(t testing.TB, tree guestfs.Tree, want Manifest) {
	t.Helper()
	diffs, err := Diff(context.Background(), tree, want)
	if err != nil {
		t.Errorf("walk: %v", err)
	}
	for i, d := range diffs {
		if i == maxDiffs {
			t.Errorf("… and %d more differences", len(diffs)-i)
			break
		}
		t.Error(d)
	}
}

// Diff returns everything in which tree differs from want, as text. The error is
// of the walk itself.
func Diff(ctx context.Context, tree guestfs.Tree, want Manifest) ([]string, error) {
	var diffs []string
	found := make(map[string]bool)
	err := Walk(ctx, tree, func(n Node) error {
		found[n.Path] = true
		w := want[n.Path]
		if w == nil {
			diffs = append(diffs, fmt.Sprintf("%q: not expected", n.Path))
			return nil
		}
		for _, d := range diffNode(ctx, tree, n, w) {
			diffs = append(diffs, fmt.Sprintf("%q (inode %d): %s", n.Path, n.ID.Ino, d))
		}
		return nil
	}, func(path string, err error) {
		diffs = append(diffs, fmt.Sprintf("%q: read directory: %v", path, err))
	})
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if !found[path] {
			diffs = append(diffs, fmt.Sprintf("%q: missing", path))
		}
	}
	return diffs, err
}

func diffNode(ctx context.Context, tree guestfs.Tree, n Node, w *Entry) (diffs []string) {
	bad := func(format string, args ...any) { diffs = append(diffs, fmt.Sprintf(format, args...)) }
	a, err := tree.Attr(ctx, n.ID)
	if err != nil {
		bad("attributes: %v", err)
		return diffs
	}
	if w.Fields&FieldMode != 0 && n.Type != 0 && n.Type != w.Attr.Mode&guestfs.ModeType {
		bad("entry type %#o, want %#o", n.Type, w.Attr.Mode&guestfs.ModeType)
	}
	check := func(f Field, what string, got, want any) {
		if w.Fields&f != 0 && got != want {
			bad("%s %v, want %v", what, got, want)
		}
	}
	check(FieldIno, "inode", n.ID.Ino, w.Ino)
	check(FieldMode, "mode", fmt.Sprintf("%#o", a.Mode), fmt.Sprintf("%#o", w.Attr.Mode))
	check(FieldOwner, "uid", a.UID, w.Attr.UID)
	check(FieldOwner, "gid", a.GID, w.Attr.GID)
	check(FieldNlink, "nlink", a.Nlink, w.Attr.Nlink)
	if a.IsDir() {
		check(FieldDirSize, "size", a.Size, w.Attr.Size)
	} else {
		check(FieldSize, "size", a.Size, w.Attr.Size)
	}
	check(FieldBlocks, "blocks", a.Blocks, w.Attr.Blocks)
	check(FieldRdev, "device", [2]uint32{a.Major, a.Minor}, [2]uint32{w.Attr.Major, w.Attr.Minor})
	check(FieldAtime, "atime", a.Atime, w.Attr.Atime)
	check(FieldMtime, "mtime", a.Mtime, w.Attr.Mtime)
	check(FieldCtime, "ctime", a.Ctime, w.Attr.Ctime)
	check(FieldBtime, "btime", a.Btime, w.Attr.Btime)
	if a.IsSymlink() && w.Fields&FieldTarget != 0 {
		if target, err := tree.ReadLink(ctx, n.ID); err != nil || target != w.Target {
			bad("target %q, want %q (error: %v)", target, w.Target, err)
		}
	}
	if w.Fields&FieldXattrs != 0 {
		got, err := xattrs(ctx, tree, n.ID)
		if err != nil {
			bad("extended attributes: %v", err)
		} else if !maps.Equal(got, w.Xattrs) {
			bad("extended attributes %q, want %q", clipMap(got), clipMap(w.Xattrs))
		}
	}
	if a.IsRegular() && w.Fields&FieldContent != 0 {
		if sum, err := contentHash(ctx, tree, n.ID); err != nil || sum != w.SHA256 {
			bad("content sha256 %s, want %s (error: %v)", sum, w.SHA256, err)
		}
	}
	return diffs
}

// clipMap shortens long values for a message.
func clipMap(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		if len(v) > 64 {
			v = fmt.Sprintf("%s… (%d bytes)", v[:32], len(v))
		}
		out[k] = v
	}
	return out
}

func xattrs(ctx context.Context, tree guestfs.Tree, id guestfs.ID) (map[string]string, error) {
	names, err := tree.ListXattr(ctx, id)
	if err != nil {
		return nil, err
	}
	m := make(map[string]string)
	for _, name := range names {
		v, err := tree.Xattr(ctx, id, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("%s is listed twice", name)
		}
		m[name] = string(v)
	}
	return m, nil
}

// bufferSize is how much of a file is read and hashed at once, in bytes.
const bufferSize = 512 << 10

var (
	buffers = sync.Pool{New: func() any {
		b := make([]byte, bufferSize)
		return &b
	}}
	zeros [bufferSize]byte
)

// contentHash reads a file the way a copy does: data by reads, holes by Extent,
// so that sparse giants cost nothing but hashing.
func contentHash(ctx context.Context, tree guestfs.Tree, id guestfs.ID) (string, error) {
	r, err := tree.Open(ctx, id)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	buf := *bp
	for off := int64(0); off < r.Size(); {
		e, err := block.ExtentAt(ctx, r, off, r.Size()-off)
		if err != nil {
			return "", fmt.Errorf("extent at %#x: %w", off, err)
		}
		for end := off + e.Len; off < end; {
			n := min(end-off, int64(len(buf)))
			if e.Zero {
				h.Write(zeros[:n])
			} else {
				got, err := block.ReadAt(ctx, r, buf[:n], off)
				if int64(got) != n {
					return "", fmt.Errorf("%d of %d bytes at %#x: %w", got, n, off, err)
				}
				if err != nil && err != io.EOF {
					return "", err
				}
				h.Write(buf[:n])
			}
			off += n
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
