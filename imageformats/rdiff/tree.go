package rdiff

import (
	"context"
	"errors"
	"fmt"
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
	x      *index
	lost   bool // there is no metadata: sizes of older versions are found by opening them
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

// OpenPoint implements imageformats.Repository. The Tree is a *Tree.
func (r *Repository) OpenPoint(ctx context.Context, p imageformats.RepositoryPoint) (guestfs.Tree, error) {
	var t *Tree
	err := r.settle(ctx, func(l *listing) error {
		i, err := l.locate(p)
		if err != nil {
			return err
		}
		s, err := r.state(ctx, l, i)
		if err != nil {
			return err
		}
		x, err := newIndex(s)
		if err != nil {
			return err
		}
		_, known := l.chain(i)
		t = &Tree{repo: r, point: p, time: l.sessions[i].time, x: x, lost: !known, kept: make(map[uint32]*shared)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t.owners.numeric = r.opt.NumericIDs
	log := r.opt.Logger.With("point", stampUTC(t.time))
	if t.lost {
		log.Warn("the metadata of this restore point is lost: names, attributes and times are those of the files in the repository")
	}
	if x := t.x; x.implied > 0 {
		log.Warn("directories without metadata are shown with made-up attributes", "count", x.implied)
	}
	return t, nil
}

// noID is a file that the tree doesn't have.
func noID(id guestfs.ID) error {
	return fmt.Errorf("%s: no inode %d: %w", format, id.Ino, guestfs.ErrNotExist)
}

// node returns the number of the node that id names.
func (t *Tree) node(id guestfs.ID) (uint32, error) {
	if id.Sub != 0 || id.Ino == 0 || id.Ino > uint64(len(t.x.nodes)) {
		return 0, noID(id)
	}
	return uint32(id.Ino - 1), nil
}

// id names a node; all names of a file have the id of the first.
func (t *Tree) id(n uint32) guestfs.ID { return guestfs.ID{Ino: uint64(t.x.leader(n)) + 1} }

// Root implements guestfs.Tree.
func (t *Tree) Root() guestfs.ID { return guestfs.ID{Ino: 1} }

// Attr implements guestfs.Tree. Times other than that of modification aren't
// recorded, and that neither of symbolic links and devices: they are shown as 1970.
func (t *Tree) Attr(ctx context.Context, id guestfs.ID) (guestfs.Attr, error) {
	n, err := t.node(id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	a := t.x.attr(n, &t.owners)
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

// dir returns the node of a directory.
func (t *Tree) dir(ctx context.Context, id guestfs.ID) (uint32, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := t.node(id)
	if err != nil {
		return 0, err
	}
	if rec, _ := t.x.rec(t.x.nodes[n].rec); rec.mode&guestfs.ModeType != guestfs.ModeDir {
		return 0, guestfs.ErrNotDir
	}
	return n, nil
}

// Lookup implements guestfs.Tree.
func (t *Tree) Lookup(ctx context.Context, dir guestfs.ID, name string) (guestfs.ID, error) {
	d, err := t.dir(ctx, dir)
	if err != nil {
		return guestfs.ID{}, err
	}
	n, ok := t.x.entry(d, name)
	if !ok {
		return guestfs.ID{}, guestfs.ErrNotExist
	}
	return t.id(n), nil
}

// ReadDir implements guestfs.Tree, by ascending names.
func (t *Tree) ReadDir(ctx context.Context, dir guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	d, err := t.dir(ctx, dir)
	if err != nil {
		return err
	}
	nd := &t.x.nodes[d]
	for k := from; k < uint64(nd.n); k++ {
		if k&0xfff == 0xfff {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		n := t.x.children[nd.first+uint32(k)]
		rec, table := t.x.rec(t.x.nodes[n].rec)
		if !emit(guestfs.Dirent{Name: string(table.nameOf(rec)), ID: t.id(n), Type: rec.mode & guestfs.ModeType, Next: k + 1}) {
			return nil
		}
	}
	return nil
}

// ReadLink implements guestfs.Tree.
func (t *Tree) ReadLink(_ context.Context, id guestfs.ID) (string, error) {
	n, err := t.node(id)
	if err != nil {
		return "", err
	}
	rec, table := t.x.rec(t.x.nodes[n].rec)
	if rec.mode&guestfs.ModeType != guestfs.ModeSymlink {
		return "", guestfs.ErrInvalid
	}
	return string(table.targetOf(rec)), nil
}

// Open implements guestfs.Tree.
func (t *Tree) Open(ctx context.Context, id guestfs.ID) (block.Reader, error) {
	n, err := t.regular(id)
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
func (t *Tree) regular(id guestfs.ID) (uint32, error) {
	n, err := t.node(id)
	if err != nil {
		return 0, err
	}
	n = t.x.leader(n)
	switch rec, _ := t.x.rec(t.x.nodes[n].rec); rec.mode & guestfs.ModeType {
	case guestfs.ModeRegular:
		return n, nil
	case guestfs.ModeDir:
		return 0, guestfs.ErrIsDir
	}
	return 0, guestfs.ErrInvalid
}

// wanted says which version the leader n is.
func (t *Tree) wanted(n uint32) *wanted {
	nd := t.x.nodes[n].rec
	rec, table := t.x.rec(nd)
	return &wanted{path: table.pathOf(rec), alt: t.x.altOf(nd), time: t.time, size: rec.size, mtime: rec.mtime,
		digest: t.x.digestOf(n), lost: t.lost}
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
	return guestfs.Info{Type: format, Label: time.Unix(t.time, 0).UTC().Format(time.RFC3339), Size: t.x.size, BlockSize: 4096,
		Files: int64(len(t.x.nodes) - len(t.x.leaders)), Journal: guestfs.JournalNone}
}

// Close implements guestfs.Tree. Files that are still being read stay open.
func (t *Tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.kept, t.order = nil, nil
	return nil
}

// VerifyFile implements imageformats.Verifier.
func (t *Tree) VerifyFile(ctx context.Context, id guestfs.ID) (known bool, err error) {
	n, err := t.regular(id)
	if err != nil {
		return false, err
	}
	c, err := t.content(ctx, n)
	if err != nil {
		return true, err
	}
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
