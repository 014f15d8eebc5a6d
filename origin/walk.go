package origin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
)

// maxDepth bounds how deep Walk descends: deeper than any backup product nests
// its folders, and an end to a maze of directories.
const maxDepth = 12

// WalkFolder is Folder.Walk by means of Folder's other methods. Symbolic links to
// files are visited as files where they stay inside; links to folders are not
// followed.
func WalkFolder(ctx context.Context, f Folder, enter func(dir string) bool, visit func(Entry), unreadable func(name string, err error)) error {
	w := walker{ctx, f, enter, visit, unreadable}
	entries, err := f.ReadDir(ctx, ".")
	if err != nil {
		return err
	}
	return w.walk(".", entries, 0)
}

type walker struct {
	ctx        context.Context
	folder     Folder
	enter      func(dir string) bool
	visit      func(Entry)
	unreadable func(name string, err error)
}

func (w *walker) walk(dir string, entries []DirEntry, depth int) error {
	for _, e := range entries {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		name := path.Join(dir, e.Name)
		switch e.Type {
		case fs.ModeDir:
			if w.enter != nil && !w.enter(name) {
				continue
			}
			if depth+1 >= maxDepth {
				w.unreadable(name, fmt.Errorf("nested deeper than %d folders", maxDepth))
				continue
			}
			below, err := w.folder.ReadDir(w.ctx, name)
			if err != nil && w.ctx.Err() == nil {
				w.unreadable(name, err)
			}
			if err := w.walk(name, below, depth+1); err != nil {
				return err
			}
		case 0, fs.ModeSymlink:
			found, err := w.folder.Stat(w.ctx, name)
			switch {
			case err == nil:
				w.visit(found)
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrNotRegular):
				// A dangling link, a link to a folder, or gone since it was listed.
			case w.ctx.Err() == nil:
				w.unreadable(name, err)
			}
		}
	}
	return w.ctx.Err()
}
