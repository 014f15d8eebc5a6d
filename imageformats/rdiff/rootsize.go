package rdiff

import (
	"context"
	"errors"
	"io/fs"
)

// RootSize implements imageformats.RootSizer: whatever was in the root at any time
// is in the mirror, or has increments.
func (r *Repository) RootSize(ctx context.Context) (entries, names int, err error) {
	l, err := r.listing(ctx)
	if err != nil {
		return 0, 0, err
	}
	seen := make(map[string]bool)
	add := func(dir string, base func(name string) string) {
		list, rerr := r.folder.ReadDir(ctx, dir)
		if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) { // there may be no increments yet
			err = rerr
		}
		for _, e := range list {
			name, ok := l.quoting.unquote(e.Name)
			if !ok {
				name = e.Name // not the mirror's, but it doesn't matter to count it
			}
			seen[base(name)] = true
		}
	}
	add(r.dir, func(name string) string { return name })
	add(r.path(dataDir, incrementsDir), func(name string) string {
		if inc, ok := parseIncrement(name); ok {
			return inc.base
		}
		return name // the directory of a directory's
	})
	for name := range seen {
		names += len(name)
	}
	entries = len(seen)
	// Names that are too long to be on the disk have numbers there, wherever they
	// belong.
	add(r.path(dataDir, longNamesDir), func(name string) string { return "/" + name })
	long := len(seen) - entries
	return entries + long, names + long*longName, err
}
