package rdiff

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/ondisk"
)

// Root implements imageformats.Repository. The root's record is the first of every
// file that has one.
func (r *Repository) Root(ctx context.Context, p imageformats.RepositoryPoint) (imageformats.Root, error) {
	if r.opt.NumericIDs {
		// Names in its ACLs may be recorded anywhere in the tree.
		return r.rootOf(ctx, p)
	}
	var root imageformats.Root
	err := r.settle(ctx, func(l *listing) error {
		i, err := l.locate(p)
		if err != nil {
			return err
		}
		root = imageformats.Root{Xattrs: make(map[string][]byte)}
		t, err := r.rootRecord(ctx, l, i)
		if err != nil {
			return err
		}
		who := owners{}
		root.Attr = recordAttr(t.records.at(0), t, &who)
		names := &aclNames{owners: &who, lost: make(map[string]bool)}
		s := &l.sessions[i]
		if err := r.rootBlock(ctx, &root, s.ea, parseEA); err != nil {
			return err
		}
		return r.rootBlock(ctx, &root, s.acl, func(lines [][]byte) ([]attribute, error) { return parseACL(lines, names) })
	})
	return root, err
}

// rootOf is Root by way of the whole tree.
func (r *Repository) rootOf(ctx context.Context, p imageformats.RepositoryPoint) (imageformats.Root, error) {
	root := imageformats.Root{Xattrs: make(map[string][]byte)}
	t, err := r.load(ctx, p)
	if err != nil {
		return root, err
	}
	defer t.Close()
	root.Attr = t.x.attr(0, &t.owners)
	attrs, err := t.all(ctx, 0)
	for _, a := range attrs {
		root.Xattrs[a.name] = a.value
	}
	return root, err
}

// rootRecord returns a table with the root's record alone.
func (r *Repository) rootRecord(ctx context.Context, l *listing, i int) (*table, error) {
	t := &table{name: dataDir}
	files, ok := l.chain(i)
	if !ok {
		info, err := r.folder.Lstat(ctx, r.dir)
		if err != nil {
			return nil, err
		}
		w := &lostWalk{r: r, l: l, time: l.sessions[i].time, t: t}
		w.add(nil, info, guestfs.ModeDir|info.Mode&0o7777, noSize, "")
		return t, nil
	}
	for k := len(files) - 1; k >= 0; k-- { // the point's own is the last
		m, err := r.openSession(ctx, files[k])
		if errors.Is(err, fs.ErrNotExist) {
			return nil, moved(err)
		}
		if err != nil {
			return nil, err
		}
		err = m.read(ctx, func(in io.Reader) error {
			s := newScanner(ctx, in, m.file.Name())
			if err := s.scan(); err != nil {
				return err
			}
			if len(s.path) == 0 && s.mode != 0 {
				t.add(&s.fields)
			}
			return nil
		})
		m.file.Close()
		if err != nil && err != io.EOF {
			return nil, err
		}
		if t.records.n > 0 {
			return t, nil
		}
	}
	t.add(&fields{mode: guestfs.ModeDir | 0o700, set: hasType | hasPerms}) // as newIndex makes one up
	return t, nil
}

// rootBlock adds the root's attributes from a file of attributes or ACLs.
func (r *Repository) rootBlock(ctx context.Context, root *imageformats.Root, f sessionFile, parse func([][]byte) ([]attribute, error)) error {
	if f.name == "" {
		return nil
	}
	m, err := r.openSession(ctx, f)
	if errors.Is(err, fs.ErrNotExist) {
		return moved(err)
	}
	if err != nil {
		return err
	}
	defer m.file.Close()
	return m.read(ctx, func(in io.Reader) error {
		b := blockScanner{scanner: scanner{ctx: ctx, in: bufio.NewReaderSize(in, 4096), name: m.file.Name()}}
		if err := b.next(); err != nil || len(b.filePath) > 0 {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		attrs, err := parse(b.lines)
		if err != nil {
			return ondisk.Corruptf(format, f.name, 0, "root: %v", err)
		}
		for _, a := range attrs {
			root.Xattrs[a.name] = a.value
		}
		return nil
	})
}
