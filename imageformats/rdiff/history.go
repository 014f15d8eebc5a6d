package rdiff

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"

	"golang.org/x/sync/errgroup"

	"yester/guestfs"
	"yester/imageformats"
	"yester/origin"
)

// pathFacts is what the metadata files say of one path, by their names.
type pathFacts struct {
	tables map[string]*table // with the path's record alone, if it has one
	blocks map[string]string // its lines in files of attributes and ACLs
}

// History implements imageformats.Historian. Every metadata file is read as far as
// the path; nothing else is looked at, and no point is put together.
func (r *Repository) History(ctx context.Context, path string, emit func(imageformats.PathVersion) bool) error {
	if path != "" {
		if err := checkPath([]byte(path)); err != nil {
			return fmt.Errorf("%s: %q: %w: %w", format, path, err, guestfs.ErrNotExist)
		}
	}
	var versions []imageformats.PathVersion
	err := r.settle(ctx, func(l *listing) error {
		facts, err := r.facts(ctx, l, []byte(path))
		if err != nil {
			return err
		}
		versions, err = r.versions(ctx, l, []byte(path), facts)
		return err
	})
	if err != nil {
		return err
	}
	for _, v := range versions {
		if !emit(v) {
			break
		}
	}
	return nil
}

// facts reads what all metadata files say of path.
func (r *Repository) facts(ctx context.Context, l *listing, path []byte) (*pathFacts, error) {
	type result struct {
		table *table
		lines string
	}
	var files []sessionFile
	for i, s := range l.sessions {
		if s.meta.name != "" && (i < l.points || s.meta.kind == kindSnapshot && l.needs(i)) {
			files = append(files, s.meta)
		}
	}
	metas := len(files)
	for _, s := range l.sessions[:l.points] {
		for _, f := range []sessionFile{s.ea, s.acl} {
			if f.name != "" {
				files = append(files, f)
			}
		}
	}
	results := make([]result, len(files))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, f := range files {
		g.Go(func() (err error) {
			m, err := r.openSession(ctx, f)
			if errors.Is(err, fs.ErrNotExist) {
				return moved(err)
			}
			if err != nil {
				return err
			}
			defer m.file.Close()
			if i < metas {
				results[i].table, err = r.recordOf(ctx, &m, path)
			} else {
				results[i].lines, err = linesOf(ctx, &m, path)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := &pathFacts{tables: make(map[string]*table), blocks: make(map[string]string)}
	for i, f := range files {
		out.tables[f.name], out.blocks[f.name] = results[i].table, results[i].lines
	}
	return out, nil
}

// needs reports whether a session after the valid ones holds what the last of
// these are a difference from.
func (l *listing) needs(i int) bool {
	return l.points > 0 && i == l.points && l.sessions[l.points-1].meta.kind == kindDiff
}

// recordOf returns a table with nothing but the record of path.
func (r *Repository) recordOf(ctx context.Context, m *metaInput, path []byte) (*table, error) {
	out := &table{name: m.file.Name()}
	if t := r.tables.get(versionKey(m.file)); t != nil {
		if i, ok := t.find(path); ok {
			// The record refers to its table: as good as a copy.
			return t.only(i), nil
		}
		return out, nil
	}
	err := m.read(ctx, func(in io.Reader) error {
		s := newScanner(ctx, in, m.file.Name())
		s.want = append([]byte{}, path...)
		for {
			err := s.scan()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			switch c := comparePaths(s.path, path); {
			case c == 0:
				out.add(&s.fields)
				return nil
			case c > 0:
				return nil
			}
		}
	})
	return out, err
}

// only returns a table with record i of t alone, which shares t's texts.
func (t *table) only(i uint32) *table {
	out := &table{name: t.name, text: t.text, digests: t.digests, links: t.links, owners: t.owners}
	out.records.add(*t.records.at(i))
	return out
}

// linesOf returns the lines of path in a file of attributes or ACLs.
func linesOf(ctx context.Context, m *metaInput, path []byte) (lines string, err error) {
	err = m.read(ctx, func(in io.Reader) error {
		b := blockScanner{scanner: scanner{ctx: ctx, in: bufio.NewReaderSize(in, 64<<10), name: m.file.Name()}}
		for {
			err := b.next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if bytes.Equal(b.filePath, path) {
				lines = string(bytes.Join(b.lines, []byte("\n")))
				return nil
			}
		}
	})
	return lines, err
}

// versions puts the facts in the order of the points.
func (r *Repository) versions(ctx context.Context, l *listing, path []byte, facts *pathFacts) ([]imageformats.PathVersion, error) {
	who := &owners{numeric: r.opt.NumericIDs}
	var out []imageformats.PathVersion
	var last struct {
		rec   *record
		t     *table
		attrs [2]string
	}
	seen := false
	var unknown bool // the state before
	for i := range l.sessions[:l.points] {
		s, err := r.stateOf(ctx, l, i, facts)
		if err != nil {
			return nil, err
		}
		var rec *record
		var t *table
		if rf, ok := s.find(path); ok {
			rec, t = s.rec(rf)
		}
		attrs := [2]string{facts.blocks[l.sessions[i].ea.name], facts.blocks[l.sessions[i].acl.name]}
		p := l.point(i)
		if rec == nil {
			if err := s.lostNames().unsure(path); err != nil {
				if !unknown {
					out = append(out, imageformats.PathVersion{First: p, Err: err})
				}
				v := &out[len(out)-1]
				v.Last = p
				v.Points++
				unknown = true
				continue
			}
		}
		if rec == nil && !seen {
			unknown = false
			continue // not there yet
		}
		var changed imageformats.Change
		switch {
		case !seen:
		case rec == nil && last.rec == nil:
		case rec == nil:
			changed = imageformats.ChangeRemoved
		case last.rec == nil:
			changed = imageformats.ChangeAdded
		default:
			if changed = sameFile(last.rec, last.t, rec, t); changed&imageformats.ChangeType == 0 && attrs != last.attrs {
				changed |= imageformats.ChangeXattrs
			}
		}
		if seen && changed == 0 && !unknown {
			v := &out[len(out)-1]
			v.Last = p
			v.Points++
			if rec != nil && v.SHA1 == "" && rec.digest != 0 {
				v.SHA1 = versionOf(rec, t, t.digests.at(rec.digest-1), who).SHA1
			}
			last.rec, last.t, last.attrs = rec, t, attrs
			continue
		}
		v := imageformats.PathVersion{Missing: true}
		if rec != nil {
			var digest *[20]byte
			if rec.digest != 0 {
				digest = t.digests.at(rec.digest - 1)
			}
			v = versionOf(rec, t, digest, who)
		}
		if !seen && i > 0 && !unknown {
			changed = imageformats.ChangeAdded
		}
		v.First, v.Last, v.Points, v.Changed = p, p, 1, changed
		out = append(out, v)
		last.rec, last.t, last.attrs = rec, t, attrs
		seen, unknown = true, false
	}
	return out, nil
}

// stateOf is state with the path's records alone.
func (r *Repository) stateOf(ctx context.Context, l *listing, i int, facts *pathFacts) (*state, error) {
	files, ok := l.chain(i)
	if !ok {
		return r.state(ctx, l, i)
	}
	tables := make([]*table, len(files))
	for k, f := range files {
		if tables[k] = facts.tables[f.name]; tables[k] == nil {
			return nil, fmt.Errorf("%s: %s: %w", format, f.name, origin.ErrChanged)
		}
	}
	return newState(tables), nil
}
