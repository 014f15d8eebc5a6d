package rdiff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// Tree is the tree of one point.
type Tree struct {
	repo   *Repository
	point  imageformats.RepositoryPoint
	time   int64
	x      *index  // the whole tree; nil with part
	part   *prefix // what was read of it so far; nil with x
	lost   bool    // there is no metadata: sizes of older versions are found by opening them
	owners owners

	xattrMu sync.Mutex
	xattrs  *xattrSet // nil until first asked for

	mu     sync.Mutex // of what follows
	kept   map[uint32]*shared
	order  []uint32 // of kept, the oldest first
	closed bool
}

// keepOpened is how many contents a tree keeps open for who asks for them next.
const keepOpened = 256

// OpenPoint implements imageformats.Repository. The Tree is a *Tree. Of large
// metadata no more is read than is asked for, so that damage further on shows then.
func (r *Repository) OpenPoint(ctx context.Context, p imageformats.RepositoryPoint) (guestfs.Tree, error) {
	return r.openPoint(ctx, p, true)
}

// openPoint opens a point; unless lazy is set, t.x is its whole tree.
func (r *Repository) openPoint(ctx context.Context, p imageformats.RepositoryPoint, lazy bool) (*Tree, error) {
	t := &Tree{repo: r, point: p, kept: make(map[uint32]*shared)}
	t.owners.numeric = r.opt.NumericIDs
	err := r.settle(ctx, func(l *listing) error {
		if t.part != nil {
			t.part.close()
			t.part = nil
		}
		i, err := l.locate(p)
		if err != nil {
			return err
		}
		t.time, t.lost = l.sessions[i].time, l.sessions[i].lost
		if lazy {
			if t.part, err = r.lazily(ctx, l, i, t); err != nil || t.part != nil {
				return err
			}
		}
		t.x, err = r.index(ctx, l, i)
		return err
	})
	if err != nil {
		if t.part != nil {
			t.part.close()
		}
		return nil, err
	}
	if t.lost {
		t.log().Warn("the metadata of this restore point is lost: names, attributes and times are those of the files in the repository")
	}
	if t.part == nil {
		t.warnImplied(t.x)
	}
	return t, nil
}

func (t *Tree) log() *slog.Logger { return t.repo.opt.Logger.With("point", stampUTC(t.time)) }

// warnImplied tells of directories in the whole tree that have no record.
func (t *Tree) warnImplied(x *index) {
	if x.implied > 0 {
		t.log().Warn("directories without metadata are shown with made-up attributes", "count", x.implied)
	}
}

// index builds the whole tree of the point sessions[i].
func (r *Repository) index(ctx context.Context, l *listing, i int) (*index, error) {
	s, err := r.state(ctx, l, i)
	if err != nil {
		return nil, err
	}
	return newIndex(s, nil, true)
}

// load builds the whole tree from what the repository holds now.
func (t *Tree) load(ctx context.Context) (x *index, err error) {
	err = t.repo.settle(ctx, func(l *listing) error {
		i, err := l.locate(t.point)
		if err == nil {
			x, err = t.repo.index(ctx, l, i)
		}
		return err
	})
	return x, err
}

// known returns the tree as far as it was read: every node that was ever told of is
// in it.
func (t *Tree) known() *index {
	if t.part != nil {
		return t.part.x.Load()
	}
	return t.x
}

// whole returns the whole tree.
func (t *Tree) whole(ctx context.Context) (*index, error) {
	if t.part != nil {
		if err := t.part.complete(ctx); err != nil {
			return nil, err
		}
	}
	return t.known(), nil
}

// noID is a file that the tree doesn't have.
func noID(id guestfs.ID) error {
	return fmt.Errorf("%s: no inode %d: %w", format, id.Ino, guestfs.ErrNotExist)
}

// node returns the number of the node that id names, and the tree that has it.
func (t *Tree) node(ctx context.Context, id guestfs.ID) (*index, uint32, error) {
	x := t.known()
	if id.Ino > uint64(len(x.nodes)) {
		var err error
		if x, err = t.whole(ctx); err != nil {
			return nil, 0, err
		}
	}
	if id.Sub != 0 || id.Ino == 0 || id.Ino > uint64(len(x.nodes)) {
		return nil, 0, noID(id)
	}
	return x, uint32(id.Ino - 1), nil
}

// id names a node; all names of a file have the id of the first.
func (x *index) id(n uint32) guestfs.ID { return guestfs.ID{Ino: uint64(x.leader(n)) + 1} }

// Root implements guestfs.Tree.
func (t *Tree) Root() guestfs.ID { return guestfs.ID{Ino: 1} }

// Attr implements guestfs.Tree. Times other than that of modification aren't
// recorded, and that neither of symbolic links and devices: they are shown as 1970.
func (t *Tree) Attr(ctx context.Context, id guestfs.ID) (guestfs.Attr, error) {
	x, n, err := t.node(ctx, id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	a := x.attr(n, &t.owners)
	if a.Size == noSize {
		c, err := t.content(ctx, n)
		if err != nil {
			return guestfs.Attr{}, err
		}
		a.Size = c.size()
		a.Blocks = (a.Size + 511) / 512
	}
	return a, nil
}

// dirSize is what a directory is shown to take, in bytes; its size isn't recorded.
const dirSize = 4096

// attr returns the attributes of a node.
func (x *index) attr(n uint32, who *owners) guestfs.Attr {
	rec, t := x.rec(x.nodes[n].rec)
	return recordAttr(rec, t, who)
}

// recordAttr returns the attributes that a record tells. Directories have one link,
// which means that their subdirectories aren't counted.
func recordAttr(rec *record, t *table, who *owners) guestfs.Attr {
	o := &t.owners[rec.owner]
	mtime := guestfs.Time{Sec: rec.mtime}
	a := guestfs.Attr{
		Mode: rec.mode, Nlink: 1, UID: who.uid(o.uid, o.uname), GID: who.gid(o.gid, o.gname),
		Atime: mtime, Mtime: mtime, Ctime: mtime,
	}
	switch rec.mode & guestfs.ModeType {
	case guestfs.ModeRegular:
		a.Size = rec.size
		a.Blocks = a.Size/512 + min(1, a.Size%512)
		if rec.links != 0 {
			a.Nlink = t.links.at(rec.links - 1).n
		}
	case guestfs.ModeSymlink:
		a.Size = rec.size & 0xffff
	case guestfs.ModeDir:
		a.Size = dirSize
	case guestfs.ModeChar, guestfs.ModeBlock:
		a.Major, a.Minor = uint32(rec.size>>32), uint32(rec.size)
	}
	return a
}

// dir returns the node of a directory, and the tree that has it.
func (t *Tree) dir(ctx context.Context, id guestfs.ID) (*index, uint32, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	x, n, err := t.node(ctx, id)
	if err != nil {
		return nil, 0, err
	}
	if rec, _ := x.rec(x.nodes[n].rec); rec.mode&guestfs.ModeType != guestfs.ModeDir {
		return nil, 0, guestfs.ErrNotDir
	}
	return x, n, nil
}

// Lookup implements guestfs.Tree.
func (t *Tree) Lookup(ctx context.Context, dir guestfs.ID, name string) (guestfs.ID, error) {
	x, d, err := t.dir(ctx, dir)
	if err != nil {
		return guestfs.ID{}, err
	}
	if t.part != nil {
		path := []byte(name)
		if p := x.path(x.nodes[d].rec); len(p) > 0 {
			path = slices.Concat(p, []byte{'/'}, path)
		}
		if err := t.part.upTo(ctx, path); err != nil {
			return guestfs.ID{}, err
		}
		x = t.known()
	}
	n, ok := x.entry(d, name)
	if !ok {
		if err := x.lostNames().unsure([]byte(name)); err != nil {
			return guestfs.ID{}, err
		}
		return guestfs.ID{}, guestfs.ErrNotExist
	}
	return x.id(n), nil
}

// ReadDir implements guestfs.Tree, by ascending names. Where metadata are lost, an
// error tells of entries that can't be.
func (t *Tree) ReadDir(ctx context.Context, dir guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	_, d, err := t.dir(ctx, dir)
	if err != nil {
		return err
	}
	x, err := t.whole(ctx)
	if err != nil {
		return err
	}
	nd := &x.nodes[d]
	for k := from; k < uint64(nd.n); k++ {
		if k&0xfff == 0xfff {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		n := x.children[nd.first+uint32(k)]
		rec, table := x.rec(x.nodes[n].rec)
		if !emit(guestfs.Dirent{Name: string(table.nameOf(rec)), ID: x.id(n), Type: rec.mode & guestfs.ModeType, Next: k + 1}) {
			return nil
		}
	}
	return x.lostNames().missing(x.path(nd.rec))
}

// ReadLink implements guestfs.Tree.
func (t *Tree) ReadLink(ctx context.Context, id guestfs.ID) (string, error) {
	x, n, err := t.node(ctx, id)
	if err != nil {
		return "", err
	}
	rec, table := x.rec(x.nodes[n].rec)
	if rec.mode&guestfs.ModeType != guestfs.ModeSymlink {
		return "", guestfs.ErrInvalid
	}
	return string(table.targetOf(rec)), nil
}

// Open implements guestfs.Tree.
func (t *Tree) Open(ctx context.Context, id guestfs.ID) (block.Reader, error) {
	n, err := t.regular(ctx, id)
	if err != nil {
		return nil, err
	}
	c, err := t.content(ctx, n)
	if err != nil {
		return nil, err
	}
	r := &reader{tree: t, node: n, size: c.size()}
	r.cur.Store(c)
	return r, nil
}

// regular returns the node of a regular file.
func (t *Tree) regular(ctx context.Context, id guestfs.ID) (uint32, error) {
	x, n, err := t.node(ctx, id)
	if err != nil {
		return 0, err
	}
	n = x.leader(n)
	rec, _ := x.rec(x.nodes[n].rec)
	switch rec.mode & guestfs.ModeType {
	case guestfs.ModeRegular:
		if rec.links != 0 {
			// Another name further on may be the one with the SHA-1.
			if _, err := t.whole(ctx); err != nil {
				return 0, err
			}
		}
		return n, nil
	case guestfs.ModeDir:
		return 0, guestfs.ErrIsDir
	}
	return 0, guestfs.ErrInvalid
}

// wanted says which version the leader n is.
func (t *Tree) wanted(n uint32) *wanted {
	x := t.known()
	nd := x.nodes[n].rec
	rec, table := x.rec(nd)
	return &wanted{path: table.pathOf(rec), alt: x.altOf(nd), time: t.time, size: rec.size, mtime: rec.mtime,
		digest: x.digestOf(n), lost: t.lost}
}

// altOf returns where the parts lie of a path whose name is too long.
func (s *state) altOf(r ref) altNames {
	k := len(s.base) - 1
	for s.base[k] > r {
		k--
	}
	return s.tables[k].alt[r-s.base[k]]
}

// content opens the leader n, or finds it opened.
func (t *Tree) content(ctx context.Context, n uint32) (*shared, error) {
	t.mu.Lock()
	c := t.kept[n]
	closed := t.closed
	t.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("%s: %w", format, errClosed)
	}
	if c != nil && c.fresh(ctx) == nil {
		// The point itself may be gone meanwhile.
		l, err := t.repo.listing(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := l.locate(t.point); err != nil {
			return nil, err
		}
		return c, nil
	}
	var opened *content
	err := t.repo.settle(ctx, func(l *listing) error {
		if opened != nil {
			opened.close()
			opened = nil
		}
		_, err := l.locate(t.point)
		if err != nil {
			return err
		}
		opened, err = t.repo.content(ctx, l, t.wanted(n))
		return err
	})
	if err != nil {
		if opened != nil {
			opened.close()
		}
		return nil, t.fault(ctx, n, err)
	}
	c = own(opened)
	t.keep(n, c)
	return c, nil
}

var errClosed = errors.New("the tree is closed")

func (t *Tree) keep(n uint32, c *shared) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	if _, again := t.kept[n]; !again {
		t.order = append(t.order, n)
	}
	t.kept[n] = c
	if len(t.order) > keepOpened {
		delete(t.kept, t.order[0])
		t.order = t.order[1:]
	}
}

// Info implements guestfs.Tree. Sizes are those of the files.
func (t *Tree) Info() guestfs.Info {
	x, err := t.whole(context.Background())
	if err != nil {
		x = t.known() // what can't be read isn't counted
	}
	return guestfs.Info{Type: format, Label: time.Unix(t.time, 0).UTC().Format(time.RFC3339), Size: x.size, BlockSize: 4096,
		Files: int64(len(x.nodes) - len(x.leaders)), Journal: guestfs.JournalNone}
}

// Close implements guestfs.Tree. Files that are still being read stay open.
func (t *Tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.part != nil {
		t.part.release()
	}
	t.kept, t.order = nil, nil
	return nil
}

// VerifyFile implements imageformats.Verifier.
func (t *Tree) VerifyFile(ctx context.Context, id guestfs.ID) (known bool, err error) {
	n, err := t.regular(ctx, id)
	if err != nil {
		return false, err
	}
	c, err := t.content(ctx, n)
	if err != nil {
		return true, err
	}
	defer runtime.KeepAlive(c)
	if c.digest == nil {
		// Without a sum, that it can be read at its recorded size is all there is.
		_, err := sumOf(ctx, c.r)
		return false, err
	}
	got, err := sumOf(ctx, c.r)
	if err != nil {
		return true, err
	}
	if got == *c.digest {
		c.verified.Store(true)
		return true, nil
	}
	return true, t.fault(ctx, n, c.mismatch(got))
}

// fault is err, about the content of the leader n. When that isn't what was
// recorded, the file of the repository that made it wrong is looked for: the first,
// from the newest version on, after which a version differs from its own SHA-1.
func (t *Tree) fault(ctx context.Context, n uint32, err error) error {
	var m *mismatch
	if !errors.As(err, &m) {
		return err
	}
	w := t.wanted(n)
	found := t.repo.settle(ctx, func(l *listing) error { return t.repo.findFault(ctx, l, w) })
	if found == nil || ctx.Err() != nil || !errors.Is(found, ondisk.ErrCorrupt) {
		return fmt.Errorf("%s at %s: %w", describe(w.path), stampUTC(t.time), err)
	}
	return fmt.Errorf("%s at %s: %w", describe(w.path), stampUTC(t.time), found)
}
