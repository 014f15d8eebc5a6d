package fusefs

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"yester/guestfs"
	"yester/guestfs/guestview"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/restorepoint"
)

// opener holds a point open while it is used, and for a while after.
type opener struct {
	mu   sync.Mutex
	cur  *openPoint
	turn chan struct{} // of who opens; made on first use
}

// openPoint is an opened restore point as the mount shows it.
type openPoint struct {
	*restorepoint.Opened
	refs    int       // guarded by opener.mu
	retired bool      // guarded by opener.mu: close once refs is 0
	used    time.Time // guarded by opener.mu: last release

	view    viewState
	readers [readerCache]atomic.Pointer[cachedReader]
}

// viewState is the guest view, once it has been asked for.
type viewState struct {
	mu   sync.Mutex
	done atomic.Bool
	view *guestview.View
	err  error // why there is none, for good
}

// readerCache is how many opened files a point keeps: without OPEN requests, each
// READ would otherwise find its file anew.
const readerCache = 512

type cachedReader struct {
	id nodeID
	r  block.Reader
}

// acquire returns the opened point; release must be called when its use ends.
func (f *rawFS) acquire(ctx context.Context, s *slot) (*openPoint, error) {
	o := &s.open
	o.mu.Lock()
	if s.stale() {
		o.mu.Unlock()
		return nil, errStale
	}
	if o.cur != nil {
		o.cur.refs++
		p := o.cur
		o.mu.Unlock()
		return p, nil
	}
	if o.turn == nil {
		o.turn = make(chan struct{}, 1)
	}
	o.mu.Unlock()

	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	o.mu.Lock()
	if o.cur != nil {
		o.cur.refs++
		p := o.cur
		o.mu.Unlock()
		return p, nil
	}
	o.mu.Unlock()
	f.closeLeastUsed(maxOpen - 1)
	opened, err := f.cat.src.OpenPoint(ctx, s.point)
	if err != nil {
		return nil, err
	}
	p := &openPoint{Opened: opened, refs: 1, used: time.Now()}
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.stale() { // since then: nobody would close it any more
		p.Close()
		return nil, errStale
	}
	o.cur = p
	return p, nil
}

// closeLeastUsed closes points that aren't in use, the longest unused first,
// until at most n are open or all the others are in use.
func (f *rawFS) closeLeastUsed(n int) {
	type candidate struct {
		s    *slot
		used time.Time
	}
	var open []candidate
	for _, s := range f.cat.all() {
		if used, ok := s.lastUse(); ok {
			open = append(open, candidate{s, used})
		}
	}
	slices.SortFunc(open, func(a, b candidate) int { return a.used.Compare(b.used) })
	for _, c := range open[:max(0, len(open)-n)] {
		c.s.retire(c.used, false)
	}
}

// release ends a use of p that acquire began.
func (s *slot) release(p *openPoint) {
	o := &s.open
	o.mu.Lock()
	p.refs--
	p.used = time.Now()
	shut := p.retired && p.refs == 0
	o.mu.Unlock()
	if shut {
		p.Close()
	}
}

// retire closes the point if it is open and was last used before t; when it is
// in use right now, only if force is set, and then at the end of the last use.
func (s *slot) retire(before time.Time, force bool) {
	o := &s.open
	o.mu.Lock()
	p := o.cur
	if p == nil || !force && (p.refs > 0 || p.used.After(before)) {
		o.mu.Unlock()
		return
	}
	o.cur, p.retired = nil, true
	shut := p.refs == 0
	o.mu.Unlock()
	if shut {
		p.Close()
	}
}

// lastUse returns when the point was last used; false when it isn't open.
func (s *slot) lastUse() (time.Time, bool) {
	s.open.mu.Lock()
	defer s.open.mu.Unlock()
	if s.open.cur == nil {
		return time.Time{}, false
	}
	if s.open.cur.refs > 0 {
		return time.Now(), true
	}
	return s.open.cur.used, true
}

// guestView returns the guest view; nil without an error when the point has none.
func (p *openPoint) guestView(ctx context.Context) (*guestview.View, error) {
	v := &p.view
	if v.done.Load() {
		return v.view, v.err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.done.Load() {
		return v.view, v.err
	}
	view, err := p.GuestView(ctx)
	switch {
	case err == nil:
		v.view = view
	case errors.Is(err, restorepoint.ErrChanged):
		return nil, err
	case errors.Is(err, ondisk.ErrCorrupt), errors.Is(err, ondisk.ErrUnsupported):
		v.err = err
	case errors.Is(err, guestview.ErrNoRoot):
	default: // may go away: the next look tries again
		return nil, err
	}
	v.done.Store(true)
	return v.view, v.err
}

// tree returns the tree that lies in a space, in which the kernel knows a node
// already: that there is no such tree can't be, unless the source has changed.
func (p *openPoint) tree(ctx context.Context, space uint8) (guestfs.Tree, error) {
	if p.Tree != nil {
		return p.Tree, nil
	}
	if space <= spaceViewLast {
		v, err := p.guestView(ctx)
		if err != nil {
			return nil, err
		}
		if v == nil {
			return nil, errStale
		}
		return v, nil
	}
	vols, err := p.Volumes(ctx)
	if i := int(space) - spaceVolume; i < len(vols) {
		return vols[i].Tree(ctx)
	}
	if err == nil {
		err = errStale
	}
	return nil, err
}

// node names an inode of a tree by a node id. base is the space the tree was
// entered by: spaceView, or a volume's.
func (pl *place) node(base uint8, id guestfs.ID) nodeID {
	space, inner := base, id
	if base == spaceView && pl.p.Tree == nil {
		var mount int
		if mount, inner = pl.p.view.view.Split(id); mount < maxViewMounts {
			space += uint8(mount)
		} else {
			inner.Sub = 1 // intern it
		}
	}
	if inner.Sub == 0 && inner.Ino < internedBit {
		return makeID(pl.slot.num, space, inner.Ino)
	}
	return makeID(pl.slot.num, base, pl.slot.interned.number(internedID{base, id}))
}

// inode is the reverse of node.
func (pl *place) inode(n nodeID) (id guestfs.ID, ok bool) {
	switch {
	case n.ino()&internedBit != 0:
		known, ok := pl.slot.interned.id(n.ino())
		return known.ID, ok
	case n.space() <= spaceViewLast && pl.p.Tree == nil:
		return pl.p.view.view.Join(int(n.space()-spaceView), guestfs.ID{Ino: n.ino()}), true
	}
	return guestfs.ID{Ino: n.ino()}, true
}
