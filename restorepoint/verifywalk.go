package restorepoint

import (
	"context"
	"fmt"
	"strings"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// walker goes through a tree, reads all metadata and hands the regular files over.
type walker struct {
	*verification
	point    *Point
	volume   string
	tree     guestfs.Tree
	fault    func(Fault)
	check    func(task) error
	versions map[identity]bool // that were checked; nil: there are no others

	seen map[guestfs.ID]bool
}

// splitPath returns the names of a path that is relative to the root.
func splitPath(p string) []string {
	if p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

// walk checks id, and what is below it. The error is that the work was ended.
func (v *verification) walk(ctx context.Context, w *walker, path string, id guestfs.ID, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	bad := func(err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.fault(Fault{Point: *w.point, Volume: w.volume, Path: "/" + path, Err: err})
		return nil
	}
	if w.seen == nil {
		w.seen = make(map[guestfs.ID]bool)
	}
	again := w.seen[id]
	w.seen[id] = true
	attr, err := w.tree.Attr(ctx, id)
	if err != nil {
		return bad(err)
	}
	if again {
		if attr.IsDir() {
			return bad(fmt.Errorf("directory has another name already: %w", ondisk.ErrCorrupt))
		}
		return nil
	}
	if w.versions != nil && !attr.IsDir() {
		version := identity{w.volume, id, attr.Size, attr.Mtime, attr.Ctime}
		if w.versions[version] {
			return nil
		}
		w.versions[version] = true
	}
	if err := w.attributes(ctx, id, &attr); err != nil {
		if err := bad(err); err != nil {
			return err
		}
	}
	switch {
	case attr.IsRegular():
		return w.check(task{point: w.point, tree: w.tree, vol: w.volume, path: path, id: id, size: attr.Size, done: func() {}})
	case !attr.IsDir():
		return nil
	case depth >= maxCompareDepth:
		return bad(fmt.Errorf("nested deeper than %d directories: %w", maxCompareDepth, ondisk.ErrUnsupported))
	}
	entries, err := guestfs.ReadDir(ctx, w.tree, id, maxCompareEntries)
	if err != nil {
		if err := bad(err); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if err := v.walk(ctx, w, joinPath(path, e.Name), e.ID, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// attributes reads what there is beside the content.
func (w *walker) attributes(ctx context.Context, id guestfs.ID, attr *guestfs.Attr) error {
	if attr.IsSymlink() {
		if _, err := w.tree.ReadLink(ctx, id); err != nil {
			return err
		}
	}
	names, err := w.tree.ListXattr(ctx, id)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := w.tree.Xattr(ctx, id, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
