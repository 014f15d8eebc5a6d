package restorepoint

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"time"

	"yester/imageformats"
	"yester/origin"
	"yester/restorepoint/layout"
)

// scope is a part of the source within which images belong together: what lies
// there now, or what one of the storage system's snapshots shows. A parent, an
// extent or a machine's disk is looked for in its own scope only, since the same
// names mean other bytes in the others.
type scope struct {
	dir  string // "." or the snapshot's folder
	base string // the folder whose past a snapshot shows
	// Of a snapshot; name is empty for what lies there now.
	name     string
	time     time.Time
	from     TimeFrom
	snapshot layout.StorageSnapshot

	files map[string]origin.Entry // all regular files, by name
}

// rel returns the name that a file of the scope has, or had, outside the snapshot.
func (c *scope) rel(name string) string {
	if c.name == "" {
		return name
	}
	return path.Join(c.base, strings.TrimPrefix(name, c.dir+"/"))
}

// inside returns the file in the scope that rel would turn into name.
func (c *scope) inside(name string) string {
	if c.name == "" {
		return name
	}
	if c.base != "." {
		below, ok := strings.CutPrefix(name, c.base+"/")
		if !ok {
			return ""
		}
		name = below
	}
	return path.Join(c.dir, name)
}

// provenance says where the scope comes from; empty for what lies there now.
func (c *scope) provenance() string {
	if c.name == "" {
		return ""
	}
	return c.snapshot.String(c.name)
}

// holder is a folder of storage snapshots.
type holder struct {
	dir  string // relative to the source: "ds1/.snapshot"
	base string // "ds1"
}

// holderDepth is how deep below the source hidden folders of snapshots are looked
// for: the source is a datastore, or holds some, or is a folder of one; in all
// deeper folders of a volume they would show the same again.
const holderDepth = 2

// ownHolder recognises a source that is itself a folder of storage snapshots.
func (s *Source) ownHolder() (holder, bool) {
	root := filepath.ToSlash(s.dir.Path())
	for _, name := range layout.SnapshotHolders {
		if strings.HasSuffix(root, "/"+name) {
			return holder{dir: ".", base: "."}, true
		}
	}
	return holder{}, false
}

// holders finds the folders of storage snapshots of the folders that a walk has
// gone through, in its order: they answer to their names also where listings don't
// show them. It fails only with the context.
func (s *Source) holders(ctx context.Context, walked []string) (found []holder, err error) {
	if h, ok := s.ownHolder(); ok {
		return []holder{h}, nil
	}
	below := func(dir string) bool {
		for _, h := range found {
			if h.base == "." || dir == h.base || strings.HasPrefix(dir, h.base+"/") {
				return true
			}
		}
		return false
	}
	for _, dir := range walked {
		if dir != "." && strings.Count(dir, "/") >= holderDepth || below(dir) {
			continue
		}
		for _, name := range layout.SnapshotHolders {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			at := path.Join(dir, name)
			if info, err := s.dir.Lstat(ctx, at); err == nil && fs.FileMode(info.Mode&0o170000) == 0o040000 {
				found = append(found, holder{dir: at, base: dir})
				break
			}
		}
	}
	return found, nil
}

// snapshotScopes lists the snapshots of a holder: those in which there are disk
// images or machines, and the names of the others, which are directory trees.
func (s *Source) snapshotScopes(ctx context.Context, h holder) (scopes []*scope, trees []string, err error) {
	entries, err := s.dir.ReadDir(ctx, h.dir)
	if err != nil {
		return nil, nil, err
	}
	at := h.dir
	if at == "." {
		at = filepath.ToSlash(s.dir.Path())
	}
	for _, e := range entries {
		if e.Type != fs.ModeDir {
			continue
		}
		c := &scope{dir: path.Join(h.dir, e.Name), base: h.base, name: e.Name, from: FromName, files: map[string]origin.Entry{}}
		c.snapshot = layout.ParseStorageSnapshot(at, e.Name, s.opt.Location)
		images, some := s.looksLikeImages(ctx, c.dir)
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		switch {
		case images:
			if c.time = c.snapshot.Time; c.time.IsZero() {
				info, err := s.dir.Lstat(ctx, c.dir)
				if err != nil {
					continue // gone since it was listed
				}
				c.time, c.from = info.Mtime.UTC(), FromMtime
			}
			scopes = append(scopes, c)
		case some:
			trees = append(trees, e.Name)
		}
	}
	return scopes, trees, nil
}

// How far looksLikeImages looks: backup products nest no deeper before the first
// image; and a volume of files must not be searched as a whole.
const lookDepth, lookFolders, lookEntries = 3, 200, 4096

// looksLikeImages tells a volume of disk images from one of plain files, by the
// names in its upper folders, and whether there is anything at all.
func (s *Source) looksLikeImages(ctx context.Context, dir string) (images, some bool) {
	level := []string{dir}
	folders := 0
	for range lookDepth {
		var next []string
		for _, d := range level {
			if folders++; folders > lookFolders || ctx.Err() != nil {
				return false, some
			}
			entries, err := s.dir.ReadDir(ctx, d)
			if err != nil {
				continue
			}
			for _, e := range entries[:min(len(entries), lookEntries)] {
				some = true
				switch {
				case e.Type == 0 && imageformats.IsImageName(e.Name):
					return true, true
				case e.Type == fs.ModeDir && !layout.IsSnapshotHolder(e.Name):
					next = append(next, path.Join(d, e.Name))
				}
			}
		}
		level = next
	}
	return false, some
}

// maxWalk bounds how deep walk descends, as origin's Walk does.
const maxWalk = 12

// walk calls visit for every regular file below dir, which origin's Walk doesn't
// begin at.
func (s *Source) walk(ctx context.Context, dir string, depth int, visit func(origin.Entry), unreadable func(string, error)) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	entries, err := s.dir.ReadDir(ctx, dir)
	if err != nil {
		unreadable(dir, err)
		return nil
	}
	for _, de := range entries {
		name := path.Join(dir, de.Name)
		switch {
		case de.Type == fs.ModeDir && layout.IsSnapshotHolder(name):
		case de.Type == fs.ModeDir && depth >= maxWalk:
			unreadable(name, errTooDeep)
		case de.Type == fs.ModeDir:
			if err := s.walk(ctx, name, depth+1, visit, unreadable); err != nil {
				return err
			}
		case de.Type == 0, de.Type == fs.ModeSymlink:
			e, err := s.dir.Stat(ctx, name)
			if err == nil {
				visit(e)
			} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, origin.ErrNotRegular) {
				unreadable(name, err)
			}
		}
	}
	return nil
}

var errTooDeep = errors.New("nested too deep")
