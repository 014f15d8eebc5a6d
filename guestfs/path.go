package guestfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"yester/internal/block"
)

const (
	// maxLinks bounds how many symbolic links one path leads through, as Linux
	// does (MAXSYMLINKS, include/linux/namei.h).
	maxLinks = 40
	// maxPath bounds what is left to walk of a path while links are put in. Linux
	// takes 4096 bytes a path; a few links of that length must fit.
	maxPath = 64 << 10
)

// Errors of paths.
var (
	// ErrLoop: a path leads through too many symbolic links.
	ErrLoop = errors.New("too many levels of symbolic links")
	// ErrTooLong: a path grows too long, or a file is larger than its reader takes.
	ErrTooLong = errors.New("too long")
)

// Resolve finds the file that path names within tree. The path is walked from the
// root whether it begins with a slash or not, and so is an absolute symbolic
// link: nothing leads out of the tree, "..", too, stays at the root. A symbolic
// link at the end of the path is followed when follow is set, or when a slash
// comes after it.
func Resolve(ctx context.Context, tree Tree, path string, follow bool) (ID, error) {
	w, err := walk(ctx, tree, path, follow)
	if err != nil {
		return ID{}, fmt.Errorf("%q: %w", path, err)
	}
	return w.at(), nil
}

// RealPath is Resolve that follows every link and returns the path that it leads
// to as well: absolute, without links, "." and "..".
func RealPath(ctx context.Context, tree Tree, path string) (string, ID, error) {
	w, err := walk(ctx, tree, path, true)
	if err != nil {
		return "", ID{}, fmt.Errorf("%q: %w", path, err)
	}
	names := make([]string, len(w.steps))
	for i, s := range w.steps {
		names[i] = s.name
	}
	return "/" + strings.Join(names, "/"), w.at(), nil
}

// walker is a place in a tree, together with how it was reached: a Tree doesn't
// know the parent of a directory.
type walker struct {
	root  ID
	steps []step
}

type step struct {
	name string
	id   ID
	mode uint32
}

func (w *walker) at() ID {
	if len(w.steps) == 0 {
		return w.root
	}
	return w.steps[len(w.steps)-1].id
}

func (w *walker) isDir() bool {
	return len(w.steps) == 0 || w.steps[len(w.steps)-1].mode&ModeType == ModeDir
}

func walk(ctx context.Context, tree Tree, path string, follow bool) (*walker, error) {
	w := &walker{root: tree.Root()}
	links := 0
	for path != "" {
		if len(path) > maxPath {
			return nil, ErrTooLong
		}
		name, rest, slash := strings.Cut(path, "/")
		path = rest
		if name == "" {
			continue
		}
		if !w.isDir() {
			return nil, ErrNotDir
		}
		switch name {
		case ".":
			continue
		case "..":
			w.steps = w.steps[:max(0, len(w.steps)-1)]
			continue
		}
		id, err := tree.Lookup(ctx, w.at(), name)
		if err != nil {
			return nil, err
		}
		attr, err := tree.Attr(ctx, id)
		if err != nil {
			return nil, err
		}
		if attr.IsSymlink() && (slash || follow) {
			if links++; links > maxLinks {
				return nil, ErrLoop
			}
			target, err := tree.ReadLink(ctx, id)
			if err != nil {
				return nil, err
			}
			if target == "" { // Linux, too, refuses it
				return nil, fmt.Errorf("empty symbolic link: %w", ErrNotExist)
			}
			if target[0] == '/' {
				w.steps = w.steps[:0]
			}
			if slash {
				target += "/"
			}
			path = target + rest
			continue
		}
		w.steps = append(w.steps, step{name, id, attr.Mode})
		if slash && !w.isDir() {
			return nil, ErrNotDir
		}
	}
	return w, nil
}

// ReadFile returns the content of the regular file id, which may be limit bytes
// long at most; a longer one is an error that matches ErrTooLong, never cut off.
func ReadFile(ctx context.Context, tree Tree, id ID, limit int64) ([]byte, error) {
	r, err := tree.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	if r.Size() > limit {
		return nil, fmt.Errorf("%d bytes, at most %d are read: %w", r.Size(), limit, ErrTooLong)
	}
	b := make([]byte, r.Size())
	if err := block.ReadFull(ctx, r, b, 0); err != nil {
		return nil, err
	}
	return b, nil
}

// ReadDir returns the entries of dir sorted by name, limit of them at most; more
// are an error that matches ErrTooLong. As for Tree.ReadDir, an error comes with
// the entries that could be read.
func ReadDir(ctx context.Context, tree Tree, dir ID, limit int) ([]Dirent, error) {
	var entries []Dirent
	more := false
	err := tree.ReadDir(ctx, dir, 0, func(e Dirent) bool {
		more = len(entries) == limit
		if !more {
			entries = append(entries, e)
		}
		return !more
	})
	if err == nil && more {
		err = fmt.Errorf("more than %d directory entries: %w", limit, ErrTooLong)
	}
	slices.SortFunc(entries, func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) })
	return entries, err
}
