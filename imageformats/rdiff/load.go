package rdiff

import (
	"context"
	"errors"
	"fmt"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"weak"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/origin"
)

// metaInput is an opened metadata file.
type metaInput struct {
	file origin.File
	gzip bool
}

// openSession opens one of a session's files.
func (r *Repository) openSession(ctx context.Context, f sessionFile) (metaInput, error) {
	file, err := r.open(ctx, r.path(dataDir, f.name))
	if err != nil {
		return metaInput{}, fmt.Errorf("%s: %w", format, err)
	}
	return metaInput{file, f.gzip}, nil
}

// read calls fn with the decompressed text. What fn has read is right when read
// returns without an error: gzip's checksum comes last.
func (m *metaInput) read(ctx context.Context, fn func(io.Reader) error) error {
	plain := io.Reader(&sectionReader{ctx: ctx, r: m.file})
	if !m.gzip {
		return fn(plain)
	}
	z, err := newGunzip(plain)
	if err != nil {
		return ondisk.Corruptf(format, m.file.Name(), 0, "%v", err)
	}
	defer z.Close()
	return fn(z)
}

// sectionReader reads a block.Reader from its start, abandonably; each read may
// have another context.
type sectionReader struct {
	ctx context.Context
	r   block.Reader
	off int64
}

func (s *sectionReader) Read(p []byte) (int, error) {
	n, err := block.ReadAt(s.ctx, s.r, p, s.off)
	s.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// corruptGzip gives an error of decompressing the class it belongs to.
func corruptGzip(err error) error {
	var flated flate.CorruptInputError
	if errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &flated) {
		return fmt.Errorf("%w: %w", err, ondisk.ErrCorrupt)
	}
	return err
}

// tableCache shares tables between the points that need them, for as long as any
// of those is open, and keeps the last few beyond that: neighbouring points, which
// are often read one after the other, have most of their tables in common.
type tableCache struct {
	mu     sync.Mutex
	known  map[string]weak.Pointer[table]
	recent [keepTables]*table
	next   int
}

// keepTables is one more than the files between two whole ones.
const keepTables = 11

func (c *tableCache) get(key string) *table {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.known[key]; ok {
		return p.Value()
	}
	return nil
}

func (c *tableCache) put(key string, t *table) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = make(map[string]weak.Pointer[table])
	}
	for k, p := range c.known {
		if p.Value() == nil {
			delete(c.known, k)
		}
	}
	c.known[key] = weak.Make(t)
	c.recent[c.next%keepTables] = t
	c.next++
}

// versionKey names a file in one version.
func versionKey(f origin.File) string { return fmt.Sprintf("%s %+v", f.Name(), f.Version()) }

// table returns the metadata file m in memory.
func (r *Repository) table(ctx context.Context, m *metaInput) (*table, error) {
	key := versionKey(m.file)
	if t := r.tables.get(key); t != nil {
		return t, nil
	}
	var t *table
	err := m.read(ctx, func(in io.Reader) (err error) {
		if m.gzip && m.file.Size() >= defaultLazy {
			ahead := newReadAhead(in)
			defer ahead.stop()
			in = ahead
		}
		t, err = readTable(ctx, in, m.file.Name())
		return err
	})
	if err == nil {
		err = m.file.Check(ctx)
	}
	if err != nil {
		return nil, err
	}
	r.tables.put(key, t)
	return t, nil
}

// errMoved means that a file that had been listed wasn't there any more.
var errMoved = errors.New("the repository was changed meanwhile")

// maxRetries is how often something is begun again because a session got in
// between; sessions are hours apart.
const maxRetries = 4

// settle calls fn with what dataDir holds, and again whenever that changes while
// fn runs.
func (r *Repository) settle(ctx context.Context, fn func(*listing) error) error {
	for try := 0; ; try++ {
		// The first time what was listed last will do: whether it still holds is asked
		// afterwards.
		l, err := r.last(), error(nil)
		if l == nil || try > 0 {
			l, err = r.listing(ctx)
		}
		if err != nil {
			return err
		}
		err = fn(l)
		now, nowErr := r.listing(ctx)
		if nowErr != nil {
			return nowErr
		}
		if now.same(l) && !(errors.Is(err, errMoved) && try < maxRetries) {
			return err
		}
		if try == maxRetries {
			return fmt.Errorf("%s: %w: %w", format, errMoved, origin.ErrChanged)
		}
	}
}

// same reports whether two listings are of the same state.
func (l *listing) same(o *listing) bool {
	if l == o {
		return true
	}
	if l.version == o.version && l.settled && o.settled {
		return true
	}
	if len(l.sessions) != len(o.sessions) || l.valid != o.valid || l.suspended != o.suspended {
		return false
	}
	for i := range l.sessions {
		if l.sessions[i] != o.sessions[i] {
			return false
		}
	}
	return true
}

// state loads the metadata of the point sessions[i].
func (r *Repository) state(ctx context.Context, l *listing, i int) (*state, error) {
	files, ok := l.chain(i)
	if !ok {
		t, err := r.lostTable(ctx, l, i)
		if err != nil {
			return nil, err
		}
		return newState([]*table{t}), nil
	}
	tables, err := r.sessionTables(ctx, files)
	if err != nil {
		return nil, err
	}
	return newState(tables), nil
}

// sessionTables returns metadata files in memory, several at a time.
func (r *Repository) sessionTables(ctx context.Context, files []sessionFile) ([]*table, error) {
	tables := make([]*table, len(files))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for k, f := range files {
		g.Go(func() error {
			m, err := r.openSession(ctx, f)
			if errors.Is(err, fs.ErrNotExist) {
				return moved(err)
			}
			if err != nil {
				return err
			}
			defer m.file.Close()
			tables[k], err = r.table(ctx, &m)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return tables, nil
}
