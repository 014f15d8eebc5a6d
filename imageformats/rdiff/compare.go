package rdiff

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"yester/guestfs"
	"yester/imageformats"
	"yester/origin"
)

// sameFile tells in what two records of one path differ. Link counts of
// directories aren't recorded.
func sameFile(a *record, at *table, b *record, bt *table) imageformats.Change {
	var c imageformats.Change
	if a.mode&guestfs.ModeType != b.mode&guestfs.ModeType {
		return imageformats.ChangeType
	}
	if a.mode != b.mode {
		c |= imageformats.ChangeMode
	}
	if oa, ob := &at.owners[a.owner], &bt.owners[b.owner]; oa.uid != ob.uid || oa.gid != ob.gid {
		c |= imageformats.ChangeOwner
	}
	if a.mtime != b.mtime {
		c |= imageformats.ChangeMtime
	}
	switch a.mode & guestfs.ModeType {
	case guestfs.ModeSymlink:
		if !bytes.Equal(at.targetOf(a), bt.targetOf(b)) {
			c |= imageformats.ChangeContent
		}
	case guestfs.ModeChar, guestfs.ModeBlock:
		if a.size != b.size {
			c |= imageformats.ChangeContent
		}
	case guestfs.ModeRegular:
		known := a.digest != 0 && b.digest != 0
		switch {
		case a.size != b.size, known && *at.digests.at(a.digest - 1) != *bt.digests.at(b.digest - 1):
			c |= imageformats.ChangeContent
		case !known && a.mtime != b.mtime && a.size != 0:
			c |= imageformats.ChangeContent // as rdiff-backup takes it
		}
		if linksOf(a, at) != linksOf(b, bt) {
			c |= imageformats.ChangeLinks
		}
	}
	return c
}

func linksOf(r *record, t *table) uint32 {
	if r.links == 0 {
		return 1
	}
	return t.links.at(r.links - 1).n
}

// load opens a point with its whole tree.
func (r *Repository) load(ctx context.Context, p imageformats.RepositoryPoint) (*Tree, error) {
	return r.openPoint(ctx, p, false)
}

// Diff implements imageformats.Differ. Paths whose names were lost with the metadata
// of one of the points are told of by an error, after all others.
func (r *Repository) Diff(ctx context.Context, from, to imageformats.RepositoryPoint, path string, emit func(imageformats.PathDiff) bool) error {
	a, err := r.load(ctx, from)
	if err != nil {
		return err
	}
	b, err := r.load(ctx, to)
	if err != nil {
		return err
	}
	xa, err := a.attributes(ctx)
	if err != nil {
		return err
	}
	xb, err := b.attributes(ctx)
	if err != nil {
		return err
	}
	for pair, err := range pairs(ctx, a.x, b.x, []byte(path)) {
		if err != nil {
			return err
		}
		d := imageformats.PathDiff{}
		switch {
		case pair.b < 0:
			if b.x.lostNames().unsure(a.x.path(a.x.nodes[pair.a].rec)) != nil {
				continue
			}
			d.Changed = imageformats.ChangeRemoved
		case pair.a < 0:
			if a.x.lostNames().unsure(b.x.path(b.x.nodes[pair.b].rec)) != nil {
				continue
			}
			d.Changed = imageformats.ChangeAdded
		default:
			d.Changed = a.differs(b, xa, xb, uint32(pair.a), uint32(pair.b))
		}
		if d.Changed == 0 {
			continue
		}
		if pair.a >= 0 {
			d.Old = a.x.attr(uint32(pair.a), &a.owners)
			d.Path = string(a.x.path(a.x.nodes[pair.a].rec))
		}
		if pair.b >= 0 {
			d.New = b.x.attr(uint32(pair.b), &b.owners)
			d.Path = string(b.x.path(b.x.nodes[pair.b].rec))
		}
		if !emit(d) {
			return nil
		}
	}
	return errors.Join(a.x.lostNames().any(), b.x.lostNames().any())
}

// differs compares node i with node j of another point.
func (t *Tree) differs(b *Tree, xa, xb *xattrSet, i, j uint32) imageformats.Change {
	var c imageformats.Change
	li, lj := t.x.leader(i), b.x.leader(j)
	ra, ta := t.x.rec(t.x.nodes[i].rec)
	rb, tb := b.x.rec(b.x.nodes[j].rec)
	if ra != rb {
		c = sameFile(ra, ta, rb, tb)
		// The digest of a file with several names is recorded with one of them.
		da, db := t.x.digestOf(li), b.x.digestOf(lj)
		if da != nil && db != nil && ra.size == rb.size {
			if c &^= imageformats.ChangeContent; *da != *db {
				c |= imageformats.ChangeContent
			}
		}
	}
	if c&imageformats.ChangeType == 0 && !slices.EqualFunc(xa.of[li], xb.of[lj], func(x, y attribute) bool {
		return x.name == y.name && bytes.Equal(x.value, y.value)
	}) {
		c |= imageformats.ChangeXattrs
	}
	return c
}

// pair is a path of two points: its nodes, or -1.
type pair struct{ a, b int }

// pairs yields the paths at or below path that two points have, in order.
func pairs(ctx context.Context, a, b *index, path []byte) func(func(pair, error) bool) {
	return func(yield func(pair, error) bool) {
		i, endI := a.span(path)
		j, endJ := b.span(path)
		for n := 0; i < endI || j < endJ; n++ {
			if n&0xffff == 0 {
				if err := ctx.Err(); err != nil {
					yield(pair{}, err)
					return
				}
			}
			c := 0
			switch {
			case i == endI:
				c = 1
			case j == endJ:
				c = -1
			default:
				ra, ta := a.rec(a.nodes[i].rec)
				rb, tb := b.rec(b.nodes[j].rec)
				if ra != rb { // the same record is of the same path
					c = comparePaths(ta.pathOf(ra), tb.pathOf(rb))
				}
			}
			p := pair{-1, -1}
			if c <= 0 {
				p.a = i
				i++
			}
			if c >= 0 {
				p.b = j
				j++
			}
			if !yield(p, nil) {
				return
			}
		}
	}
}

// span returns the nodes at and below path: they follow one another.
func (x *index) span(path []byte) (from, to int) {
	if len(path) == 0 {
		return 0, len(x.nodes)
	}
	at := func(i int) int { return comparePaths(x.path(x.nodes[i].rec), path) }
	from, _ = searchNodes(len(x.nodes), func(i int) bool { return at(i) >= 0 })
	to, _ = searchNodes(len(x.nodes), func(i int) bool {
		p := x.path(x.nodes[i].rec)
		below := bytes.HasPrefix(p, path) && (len(p) == len(path) || p[len(path)] == '/')
		return !below && at(i) >= 0
	})
	return from, max(from, to)
}

func searchNodes(n int, ok func(int) bool) (int, bool) {
	lo, hi := 0, n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if ok(mid) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo, lo < n
}

// Deleted implements imageformats.Differ. Where metadata are differences, what is
// in one and not in the next point was deleted; only at the others, every ten
// sessions, whole points are compared.
func (r *Repository) Deleted(ctx context.Context, path string, emit func(imageformats.DeletedPath) bool) error {
	l, err := r.listing(ctx)
	if err != nil {
		return err
	}
	who := &owners{numeric: r.opt.NumericIDs}
	for i := l.points - 2; i >= 0; i-- {
		more, err := r.deletedAt(ctx, l, i, []byte(path), who, emit)
		if err != nil {
			return fmt.Errorf("deleted after %s: %w", stampUTC(l.sessions[i].time), err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// deletedAt finds what was deleted after the point i.
func (r *Repository) deletedAt(ctx context.Context, l *listing, i int, path []byte, who *owners, emit func(imageformats.DeletedPath) bool) (more bool, err error) {
	var next, this *state
	err = r.settle(ctx, func(now *listing) error {
		j, ok := now.find(l.sessions[i].time)
		k, ok2 := now.find(l.sessions[i+1].time)
		if !ok || !ok2 {
			return fmt.Errorf("%s: %w", format, origin.ErrChanged)
		}
		if next, err = r.state(ctx, now, k); err != nil {
			return err
		}
		this, err = r.state(ctx, now, j)
		return err
	})
	if err != nil {
		return false, err
	}
	more = true
	check := func(rec *record, t *table) bool {
		p := t.pathOf(rec)
		if rec.mode == 0 || !below(p, path) {
			return true
		}
		if _, there := next.find(p); there || next.lostNames().unsure(p) != nil {
			return true
		}
		more = emit(imageformats.DeletedPath{Path: string(p), LastSeen: l.point(i), FirstMissing: l.point(i + 1), Attr: recordAttr(rec, t, who)})
		return more
	}
	if last := this.tables[len(this.tables)-1]; len(this.tables) > 1 {
		for k := range uint32(last.records.n) {
			if !check(last.records.at(k), last) {
				break
			}
		}
		return more, ctx.Err()
	}
	refs, err := this.merged()
	if err != nil {
		return false, err
	}
	for k, rf := range refs {
		if k&0xfff == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		if rec, t := this.rec(rf); !check(rec, t) {
			break
		}
	}
	return more, ctx.Err()
}

// below reports whether p is below the directory path.
func below(p, path []byte) bool {
	return len(path) == 0 && len(p) > 0 || len(p) > len(path) && p[len(path)] == '/' && bytes.HasPrefix(p, path)
}

// versionOf returns what a record says of its path.
func versionOf(rec *record, t *table, digest *[20]byte, who *owners) imageformats.PathVersion {
	v := imageformats.PathVersion{Attr: recordAttr(rec, t, who)}
	if rec.mode&guestfs.ModeType == guestfs.ModeSymlink {
		v.Target = string(t.targetOf(rec))
	}
	if digest != nil {
		v.SHA1 = hex.EncodeToString(digest[:])
	}
	return v
}
