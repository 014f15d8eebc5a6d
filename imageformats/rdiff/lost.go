package rdiff

import (
	"context"
	"errors"
	"io/fs"
	"sort"
	"strings"

	"yester/guestfs"
	"yester/internal/ondisk"
	"yester/origin"
)

// lostTable makes metadata of what lies in the repository, for a point whose own
// are lost: which paths there are, say the increments and the mirror; their
// attributes are those of the files themselves, which rdiff-backup gives the ones
// of what they stand for. Owners are numbers, links and attributes are lost, and a
// size is known only where the file is whole. What has too long a name for either
// tree isn't found: t.lost tells of it.
func (r *Repository) lostTable(ctx context.Context, l *listing, i int) (*table, error) {
	w := &lostWalk{r: r, l: l, time: l.sessions[i].time, t: &table{name: dataDir}}
	info, err := r.folder.Lstat(ctx, r.dir)
	if err != nil {
		return nil, err
	}
	w.add(nil, info, guestfs.ModeDir|info.Mode&0o7777, noSize, "")
	if w.t.lost, err = w.lostNames(ctx); err != nil {
		return nil, err
	}
	if err := w.walk(ctx, nil, r.dir, r.path(dataDir, incrementsDir)); err != nil {
		return nil, err
	}
	return w.t, nil
}

type lostWalk struct {
	r    *Repository
	l    *listing
	time int64
	t    *table
}

// lostEntry is a name in a directory.
type lostEntry struct {
	inMirror bool // its file in the mirror counts
	mirror   string
	incs     string // its directory of increments
	file     string // the increment that its attributes are of; empty: the mirror's
	kind     kind
	gzip     bool
}

// walk adds what the directory path held.
func (w *lostWalk) walk(ctx context.Context, path []byte, mirror, incs string) error {
	if strings.Count(string(path), "/") > maxPath/8 {
		return ondisk.Corruptf(format, describe(path), -1, "nested too deep")
	}
	found, err := w.list(ctx, path, mirror, incs)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(found))
	for name := range found {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if w.t.records.n >= maxRecords || w.t.text.full() {
			return ondisk.Corruptf(format, describe(path), -1, "more than %d paths", maxRecords)
		}
		sub := []byte(name)
		if len(path) > 0 {
			sub = append(append(append([]byte(nil), path...), '/'), name...)
		}
		if checkPath(sub) != nil {
			continue // no session has written such a name
		}
		if err := w.entry(ctx, sub, found[name]); err != nil {
			return err
		}
	}
	return nil
}

// list returns the names that the directory path had, or may have had.
func (w *lostWalk) list(ctx context.Context, path []byte, mirror, incs string) (map[string]*lostEntry, error) {
	found := make(map[string]*lostEntry)
	get := func(name string) *lostEntry {
		e := found[name]
		if e == nil {
			q := w.l.quoting.quote(name)
			e = &lostEntry{mirror: join(mirror, q), incs: join(incs, q)}
			found[name] = e
		}
		return e
	}
	entries, err := w.dir(ctx, mirror)
	if err != nil {
		return nil, err
	}
	for _, d := range entries {
		name, ok := w.l.quoting.unquote(d.Name)
		unfinished := w.l.suspended && strings.HasPrefix(d.Name, tempPrefix)
		if !ok || unfinished || len(path) == 0 && d.Name == dataDir {
			continue
		}
		get(name).inMirror = true
	}
	entries, err = w.dir(ctx, incs)
	if err != nil {
		return nil, err
	}
	for _, d := range entries {
		if name, ok := w.l.quoting.unquote(d.Name); ok && d.Type.IsDir() {
			get(name)
		}
	}
	dir, err := w.r.increments(ctx, w.l.quoting, incs)
	if err != nil || dir == nil {
		return found, err
	}
	for name, list := range dir.of {
		if inc := w.first(list); inc != nil {
			e := get(name)
			e.kind, e.file, e.gzip, e.inMirror = inc.kind, join(incs, inc.name), inc.gzip, false
		}
	}
	return found, nil
}

// dir lists a directory that may not be there, or not be one.
func (w *lostWalk) dir(ctx context.Context, name string) ([]origin.DirEntry, error) {
	if err := w.r.safe.check(ctx, w.r.folder, w.r.dir, name); err != nil {
		return nil, ignoreMissing(err)
	}
	entries, err := w.r.folder.ReadDir(ctx, name)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	return entries, nil
}

// entry adds one path, and what is below it.
func (w *lostWalk) entry(ctx context.Context, path []byte, e *lostEntry) error {
	file := e.file
	switch {
	case e.kind == kindMissing:
		return nil
	case e.kind == kindNone && !e.inMirror:
		// Increments of what was below it later; it wasn't there itself.
		return nil
	case e.kind == kindNone:
		file = e.mirror
	}
	info, err := w.r.folder.Lstat(ctx, file)
	if errors.Is(err, fs.ErrNotExist) {
		return errMoved
	}
	if err != nil {
		return err
	}
	if w.t.lost.hides(path, e, info.Mode) {
		return nil
	}
	mode, size, target := info.Mode, info.Version.Size, ""
	switch {
	case e.kind == kindDir:
		mode = guestfs.ModeDir | mode&0o7777
	case e.kind == kindDiff, e.kind == kindSnapshot && e.gzip:
		size = noSize
		mode = guestfs.ModeRegular | mode&0o7777
	case mode&guestfs.ModeType == guestfs.ModeSymlink:
		if target, err = w.r.folder.ReadLink(ctx, file); err != nil {
			return err
		}
	}
	w.add(path, info, mode, size, target)
	if mode&guestfs.ModeType != guestfs.ModeDir {
		return nil
	}
	return w.walk(ctx, path, e.mirror, e.incs)
}

// add adds a record.
func (w *lostWalk) add(path []byte, info origin.Info, mode uint32, size int64, target string) {
	mtime := info.Version.Mtime / 1e9
	if info.Version.Mtime%1e9 < 0 {
		mtime--
	}
	w.t.add(&fields{path: path, mode: mode, size: size, mtime: mtime, uid: info.UID, gid: info.GID,
		target: []byte(target), major: info.Major, minor: info.Minor})
}
