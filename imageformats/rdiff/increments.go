package rdiff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"yester/origin"
)

// incFile is an increment of one path.
type incFile struct {
	name string // as on disk
	time int64
	kind kind
	gzip bool
}

// incDir is a directory of increments, by the names (unquoted) of the paths that
// they are of.
type incDir struct {
	version origin.Version
	settled bool
	of      map[string][]incFile // ascending by time
	n       int
}

// dirCache remembers directories of increments for as long as they don't change.
type dirCache struct {
	mu   sync.Mutex
	dirs map[string]*incDir
	n    int
}

// maxCached bounds the increments that are remembered, at some hundred bytes each.
const maxCached = 1 << 19

// increments returns what is in a directory of increments now; nil when there is no
// such directory.
func (r *Repository) increments(ctx context.Context, q *quoting, dir string) (*incDir, error) {
	if err := r.safe.check(ctx, r.folder, r.dir, dir); err != nil {
		return nil, ignoreMissing(err)
	}
	info, err := r.folder.Lstat(ctx, dir)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	c := &r.dirs
	c.mu.Lock()
	d := c.dirs[dir]
	c.mu.Unlock()
	if d != nil && d.settled && d.version == info.Version {
		return d, nil
	}
	d = &incDir{version: info.Version, settled: settled(info.Version, time.Now()), of: make(map[string][]incFile)}
	entries, err := r.folder.ReadDir(ctx, dir)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	for _, e := range entries {
		if e.Type.IsDir() {
			continue // a directory may be named like an increment
		}
		name, ok := q.unquote(e.Name)
		if !ok {
			continue
		}
		inc, ok := parseIncrement(name)
		if !ok || inc.kind == kindData {
			continue
		}
		d.of[inc.base] = append(d.of[inc.base], incFile{e.Name, inc.time, inc.kind, inc.gzip})
		d.n++
	}
	for _, list := range d.of {
		slices.SortStableFunc(list, func(a, b incFile) int {
			if c := cmpInt(a.time, b.time); c != 0 {
				return c
			}
			return rank(a.kind) - rank(b.kind)
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.dirs[dir]; old != nil {
		c.n -= old.n
	}
	if c.dirs == nil || c.n+d.n > maxCached {
		c.dirs, c.n = make(map[string]*incDir), 0
	}
	c.dirs[dir] = d
	c.n += d.n
	return d, nil
}

// rank orders increments of one time: a snapshot counts before a diff.
func rank(k kind) int {
	if k == kindSnapshot {
		return 0
	}
	return 1
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%s: %w", format, err)
}

// place is where the parts of a path lie: its file in the mirror, and its
// increments.
type place struct {
	mirror string // in the folder
	dir    string // in the folder
	base   string // of the increments' names, unquoted
}

// place finds where the parts of a path lie, whose record may give them other
// names.
func (r *Repository) place(q *quoting, path []byte, alt altNames) place {
	p := place{mirror: r.dir, dir: r.path(dataDir, incrementsDir)}
	if len(path) == 0 {
		return place{mirror: r.dir, dir: r.path(dataDir), base: incrementsDir}
	}
	for start := 0; ; {
		end := start
		for end < len(path) && path[end] != '/' {
			end++
		}
		name := string(path[start:end])
		quoted := q.quote(name)
		p.mirror = join(p.mirror, quoted)
		if end == len(path) {
			p.base = name
			break
		}
		p.dir = join(p.dir, quoted)
		start = end + 1
	}
	long := r.path(dataDir, longNamesDir)
	switch {
	case alt.mirror != "":
		p = place{mirror: join(long, q.quote(alt.mirror)), dir: long, base: alt.mirror}
	case alt.increment != "":
		p.dir, p.base = long, alt.increment
	}
	return p
}

// history is what the increments say of one path from some time on.
type history struct {
	dir      string
	diffs    []incFile // ascending; they lead from what follows down to the wanted time
	whole    *incFile  // the snapshot that they start from; nil: the mirror's file
	suspects []incFile // written by a session that hasn't come to its end
	broken   *incFile  // says that there was no file, where one must have been
}

// historyOf sorts out the increments of a path that matter at time t.
func historyOf(d *incDir, dir, base string, t, valid int64, suspended bool) history {
	h := history{dir: dir}
	if d == nil {
		return h
	}
	list := d.of[base]
	i, _ := slices.BinarySearchFunc(list, t, func(f incFile, t int64) int { return cmpInt(f.time, t) })
	last := int64(-1 << 63)
	for ; i < len(list); i++ {
		inc := list[i]
		if inc.time == last {
			continue // a snapshot of that time counts
		}
		last = inc.time
		if suspended && inc.time >= valid {
			h.suspects = append(h.suspects, inc)
			continue
		}
		switch inc.kind {
		case kindDiff:
			h.diffs = append(h.diffs, inc)
			continue
		case kindSnapshot:
			h.whole = &inc
		default:
			h.broken = &inc
		}
		return h
	}
	return h
}
