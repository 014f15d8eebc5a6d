package rdiff

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// defaultLazy is from what size on, in bytes as stored, a whole metadata file is
// read no further than what is asked for needs: below it, all of it takes a few
// milliseconds.
const defaultLazy = 128 << 10

// maxSteps is after how many times of reading on the rest is read at once: each
// time what was read so far is put in order anew.
const maxSteps = 8

// manyRecords is after how many records of one look-up the rest is read too when
// that is less than littleLeft bytes, as stored: by all processors it takes less time
// than putting the tree together again for the next look-up.
const (
	manyRecords = 4096
	littleLeft  = 256 << 10
)

// prefix is the tree of a point up to some path. Paths come in order, so a node of
// it has the number that it has in the whole tree.
//
// What it shows was not compared with the checksum at the metadata's end yet, as in
// History. Contents are compared with their own SHA-1.
type prefix struct {
	tree *Tree
	x    atomic.Pointer[index] // never nil
	done atomic.Bool           // x is the whole tree

	mu    sync.Mutex // of what follows
	input metaInput
	zip   io.ReadCloser // nil: stored as it is
	text  *switched     // of the metadata
	src   *sectionReader
	scan  *scanner
	whole *table // what was read of the whole metadata file
	diffs []*table
	bound []byte // the last path that was read
	steps int
}

// switched is a reader that can be replaced by another one.
type switched struct{ io.Reader }

// lazily opens the metadata of the point sessions[i] without reading the whole one;
// nil when that is in memory already, is small, or isn't there.
func (r *Repository) lazily(ctx context.Context, l *listing, i int, t *Tree) (*prefix, error) {
	files, ok := l.chain(i)
	if !ok {
		return nil, nil
	}
	m, err := r.openSession(ctx, files[0])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, moved(err)
	}
	if err != nil {
		return nil, err
	}
	if m.file.Size() < r.lazyFrom || r.tables.get(versionKey(m.file)) != nil {
		m.file.Close()
		return nil, nil
	}
	p := &prefix{tree: t, input: m, src: &sectionReader{ctx: ctx, r: m.file}, whole: &table{name: m.file.Name()}}
	p.diffs, err = r.sessionTables(ctx, files[1:])
	p.text = &switched{p.src}
	if err == nil && m.gzip {
		if p.zip, err = newGunzip(p.src); err == nil {
			p.text.Reader = p.zip
		}
	}
	if err == nil {
		p.scan = newScanner(ctx, p.text, m.file.Name())
		err = p.read(ctx, func([]byte) bool { return true })
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// close lets go of the metadata file.
func (p *prefix) close() {
	if p.zip != nil {
		p.zip.Close()
		p.zip = nil
	}
	if p.input.file != nil {
		p.input.file.Close()
		p.input.file = nil
	}
}

// release is close for when the tree is no longer used.
func (p *prefix) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.close()
}

// read reads records until enough says so of the last one, or to the end when it
// is nil, and puts the tree together that they make.
func (p *prefix) read(ctx context.Context, enough func(last []byte) bool) error {
	p.src.ctx, p.scan.ctx = ctx, ctx
	toEnd, whole := false, false
	for n := 1; !whole; n++ {
		if !toEnd && (enough == nil || n > manyRecords && p.input.file.Size()-p.src.off < littleLeft) {
			toEnd = true // so that nothing is lost that is read ahead
			if p.zip != nil {
				ahead := newReadAhead(p.zip)
				defer ahead.stop()
				p.text.Reader = ahead
			}
		}
		switch err := p.scan.scan(); err {
		case nil:
		case io.EOF:
			whole = true
			continue
		default:
			return err
		}
		if err := p.whole.take(p.scan); err != nil {
			return err
		}
		if !toEnd && enough(p.scan.path) {
			break
		}
	}
	if err := p.input.file.Check(ctx); err != nil {
		return err
	}
	bound := slices.Clone(p.scan.path)
	x, err := newIndex(newState(append([]*table{p.whole.view()}, p.diffs...)), bound, whole)
	if err != nil {
		return err
	}
	p.bound = bound
	p.x.Store(x)
	if whole {
		p.tree.repo.tables.put(versionKey(p.input.file), x.tables[0])
		p.finish()
	}
	return nil
}

// finish notes that x is the whole tree.
func (p *prefix) finish() {
	p.done.Store(true)
	p.close()
	p.scan, p.whole, p.diffs, p.src = nil, nil, nil, nil
	p.tree.warnImplied(p.x.Load())
}

// upTo reads on until the tree shows whether path exists, and what it is.
func (p *prefix) upTo(ctx context.Context, path []byte) error {
	return p.extend(ctx, func(last []byte) bool { return comparePaths(last, path) >= 0 })
}

// complete reads all of the tree.
func (p *prefix) complete(ctx context.Context) error {
	return p.extend(ctx, nil)
}

func (p *prefix) extend(ctx context.Context, enough func(last []byte) bool) error {
	if p.done.Load() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done.Load() || enough != nil && enough(p.bound) {
		return nil
	}
	if p.steps++; p.steps > maxSteps {
		enough = nil
	}
	if p.input.file != nil {
		err := p.read(ctx, enough)
		if err == nil {
			return nil
		}
		p.close() // what was read last may be in the middle of a record
		if ctx.Err() != nil {
			return err
		}
	}
	// A session may have replaced the metadata file meanwhile; or it is damaged, which
	// is found again then.
	x, err := p.tree.load(ctx)
	if err != nil {
		return err
	}
	p.x.Store(x)
	p.finish()
	return nil
}

// view returns what t holds now, for as long as t grows.
func (t *table) view() *table {
	v := *t
	v.text.parts = slices.Clone(t.text.parts)
	v.records.parts = slices.Clone(t.records.parts)
	v.digests.parts = slices.Clone(t.digests.parts)
	v.links.parts = slices.Clone(t.links.parts)
	v.alt, v.apple, v.byOwner = maps.Clone(t.alt), maps.Clone(t.apple), nil
	return &v
}
