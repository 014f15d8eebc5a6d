package rdiff

import (
	"bytes"
	"context"
	"strings"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// lostNames is what of longNamesDir belongs to a point whose metadata are lost.
// Files lie there under numbers, and only metadata say whose they are.
type lostNames struct {
	quoting *quoting
	there   int            // numbers of paths that were there at the point
	moved   bool           // there are increments, of files that may be in the mirror under their own names
	dirs    map[string]int // of directories: how many of their files have a state that is unknown for that
}

// lostNames looks at the numbers in longNamesDir.
func (w *lostWalk) lostNames(ctx context.Context) (*lostNames, error) {
	out := &lostNames{quoting: w.l.quoting, dirs: make(map[string]int)}
	long := w.r.path(dataDir, longNamesDir)
	entries, err := w.dir(ctx, long)
	if err != nil {
		return nil, err
	}
	mirror := make(map[string]bool)
	for _, d := range entries {
		name, ok := w.l.quoting.unquote(d.Name)
		if !ok || name == nextFreeFile || strings.HasPrefix(name, tempPrefix) {
			continue
		}
		if _, is := parseIncrement(name); !is {
			mirror[name] = true
		}
	}
	incs, err := w.r.increments(ctx, w.l.quoting, long)
	if err != nil {
		return nil, err
	}
	if incs != nil {
		for base, list := range incs.of {
			inc := w.first(list)
			if inc == nil {
				continue
			}
			out.moved = out.moved || !mirror[base]
			delete(mirror, base)
			if inc.kind != kindMissing {
				out.there++
			}
		}
	}
	out.there += len(mirror)
	return out, nil
}

// first returns the increment that says what a path was at the point; nil when
// none does, so that it is as in the mirror.
func (w *lostWalk) first(list []incFile) *incFile {
	for i := range list {
		if t := list[i].time; t >= w.time && !(w.l.suspended && t >= w.l.valid) {
			return &list[i]
		}
	}
	return nil
}

// long reports whether rdiff-backup may keep what is of this name in longNamesDir.
func (n *lostNames) long(name []byte) bool {
	return len(n.quoting.quote(string(name)))+longSuffix > longName
}

// unsure returns an error when a path that wasn't found may have been there all the
// same. n may be nil: nothing is lost.
func (n *lostNames) unsure(path []byte) error {
	if n == nil || n.there == 0 && len(n.dirs) == 0 {
		return nil
	}
	for name := range bytes.SplitSeq(path, []byte{'/'}) {
		if n.long(name) {
			return ondisk.Corruptf(format, longNamesDir, -1, "%s: the metadata that say whether it was there are lost", describe(path))
		}
	}
	return nil
}

// missing returns an error when entries of the directory path can't be told. What
// lies in longNamesDir may be of any directory: the root stands for all.
func (n *lostNames) missing(path []byte) error {
	switch {
	case n == nil:
		return nil
	case len(path) == 0 && n.there > 0:
		return ondisk.Corruptf(format, longNamesDir, -1, "%d files with long names can't be placed: the metadata that name them are lost", n.there)
	case n.dirs[string(path)] > 0:
		return ondisk.Corruptf(format, longNamesDir, -1, "the state of %d long names in %s is unknown: the metadata that tell it are lost",
			n.dirs[string(path)], describe(path))
	}
	return nil
}

// any returns an error when any path of the point can't be told.
func (n *lostNames) any() error {
	if n == nil || n.there > 0 {
		return n.missing(nil)
	}
	for dir := range n.dirs {
		return n.missing([]byte(dir))
	}
	return nil
}

// lostNames returns what can't be told of the paths of a point; nil when its
// metadata are there.
func (s *state) lostNames() *lostNames { return s.tables[0].lost }

// hides reports whether e, which is as in the mirror by what the increments beside
// it say, may have increments in longNamesDir that say otherwise. A directory is
// kept all the same, for what is below it.
func (n *lostNames) hides(path []byte, e *lostEntry, mode uint32) bool {
	i := bytes.LastIndexByte(path, '/')
	if e.kind != kindNone || !n.moved || !n.long(path[i+1:]) {
		return false
	}
	n.dirs[string(path[:max(i, 0)])]++
	return mode&guestfs.ModeType != guestfs.ModeDir
}
