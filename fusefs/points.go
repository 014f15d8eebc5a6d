package fusefs

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"yester/restorepoint"
)

// relistAfter is how old a listing of the source may be before a look at the
// mount's upper directories makes a new one. It is also how long the kernel may
// keep their entries.
const relistAfter = time.Second

// latestName is the directory beside the dated ones that is the newest point at
// each look.
const latestName = "latest"

// slot is a restore point under one name in the mount: its own, or "latest". It
// keeps its number for the life of the mount.
type slot struct {
	num   uint16
	point restorepoint.Point // never changes: another point gets another slot
	// inoBase is what the inode numbers of the point's files are shown above: the
	// same for a point and its "latest", different for different points, so that
	// no tool takes the files of two dates for one.
	inoBase uint64

	open     opener
	interned interner
	gone     chan struct{} // closed once the point no longer is what it was
}

// isTree reports whether the point is a directory tree, and its own directory
// that tree's root.
func (s *slot) isTree() bool { return s.point.Kind == restorepoint.KindTree }

// stale reports whether the point has vanished from the source or changed there.
func (s *slot) stale() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// machine is one machine's points as the mount shows them.
type machine struct {
	name   string
	num    uint64 // inode number in slot 0
	order  []*slot
	byID   map[string]*slot
	latest *slot // made when "latest" is first looked up; see catalogue.latest
}

// catalogue keeps the mount's upper directories in step with the source.
type catalogue struct {
	src       *restorepoint.Source
	only      string // the machine that is shown alone at the root; "" for all
	onlyPoint string // the point of it that is shown alone; "" for all
	log       *slog.Logger

	// listing is held while the source is listed, which takes its time on a
	// network filesystem; what is known already can be had meanwhile.
	listing sync.Mutex

	mu       sync.Mutex
	listed   time.Time
	err      error // of the last listing; the one before stays in force
	machines []*machine
	byName   map[string]*machine
	changed  time.Time
	full     bool // the numbers have run out, and that has been said

	// slots are all that there are, by number; the first is nil. The list is
	// lengthened with mu held, and read without: every request looks into it.
	slots atomic.Pointer[[]*slot]
}

// maxSlots is what 16 bits of a node id can tell apart.
const maxSlots = 1 << 16

// refresh lists the source again when the last listing is older than age.
func (c *catalogue) refresh(ctx context.Context, age time.Duration) error {
	c.listing.Lock()
	defer c.listing.Unlock()
	c.mu.Lock()
	fresh, err := !c.listed.IsZero() && time.Since(c.listed) < age, c.err
	c.mu.Unlock()
	if fresh {
		return err
	}
	cat, err := c.src.List(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.listed, c.err = time.Now(), err
		return err
	}
	c.takeLocked(cat)
	return nil
}

// take brings the upper directories in step with a listing.
func (c *catalogue) take(cat *restorepoint.Catalogue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeLocked(cat)
}

func (c *catalogue) takeLocked(cat *restorepoint.Catalogue) {
	c.listed, c.err = time.Now(), nil
	names := cat.Machines()
	if c.only != "" {
		names = []string{c.only}
	}
	for _, name := range names {
		m := c.byName[name]
		if m == nil {
			m = &machine{name: name, num: firstMachine + uint64(len(c.machines)), byID: map[string]*slot{}}
			c.machines = append(c.machines, m)
			c.byName[name] = m
			c.changed = c.listed
		}
		c.update(m, cat.Of(name))
	}
	for _, m := range c.machines {
		if len(cat.Of(m.name)) == 0 {
			c.update(m, nil)
		}
	}
}

// update brings m in step with a new listing of its points.
func (c *catalogue) update(m *machine, points []restorepoint.Point) {
	order := make([]*slot, 0, len(points))
	byID := make(map[string]*slot, len(points))
	for _, p := range points {
		if c.onlyPoint != "" && p.ID != c.onlyPoint {
			continue
		}
		s := m.byID[p.ID]
		if s == nil || s.point.Key() != p.Key() {
			if s != nil {
				c.drop(s)
			}
			if s = c.newSlot(p, nil); s == nil {
				continue
			}
			c.changed = c.listed
		}
		order = append(order, s)
		byID[p.ID] = s
	}
	for id, s := range m.byID {
		if byID[id] == nil {
			c.drop(s)
			c.changed = c.listed
		}
	}
	m.order, m.byID = order, byID
	if l := m.latest; l != nil {
		if n := newest(m.order); n == nil || n.point.Key() != l.point.Key() {
			// Not dropped: who is inside the old "latest" may go on reading it.
			m.latest = nil
		}
	}
}

// newSlot gives p a slot; the alias of an existing one when of is not nil. It
// returns nil when the numbers have run out.
func (c *catalogue) newSlot(p restorepoint.Point, of *slot) *slot {
	slots := []*slot{nil}
	if l := c.slots.Load(); l != nil {
		slots = *l
	}
	if len(slots) >= maxSlots {
		if !c.full {
			c.log.Error("the mount has seen too many points and shows no new ones: unmount it and mount again", "points", len(slots))
		}
		c.full = true
		return nil
	}
	s := &slot{num: uint16(len(slots)), point: p, gone: make(chan struct{})}
	s.inoBase = uint64(s.num-1) << slotShift
	if of != nil {
		s.inoBase, s.gone = of.inoBase, of.gone
	}
	slots = append(slots, s)
	c.slots.Store(&slots)
	return s
}

// drop marks a slot stale and lets go of what it holds open.
func (c *catalogue) drop(s *slot) {
	close(s.gone)
	for _, t := range c.all() {
		if t.gone == s.gone {
			t.retire(time.Now(), true)
		}
	}
}

func newest(order []*slot) *slot {
	for _, s := range slices.Backward(order) {
		if !s.point.Secondary {
			return s
		}
	}
	return nil
}

// slot returns the slot of that number, nil when there is none.
func (c *catalogue) slot(num uint16) *slot {
	if slots := c.slots.Load(); slots != nil && int(num) < len(*slots) {
		return (*slots)[num]
	}
	return nil
}

// machineAt returns the machine whose directory has that inode number in slot 0.
func (c *catalogue) machineAt(ino uint64) *machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ino == rootIno && c.only != "" {
		return c.byName[c.only]
	}
	if i := ino - firstMachine; ino >= firstMachine && i < uint64(len(c.machines)) {
		return c.machines[i]
	}
	return nil
}

// lookupPoint finds a point of m by name; "latest" is the newest one's alias.
func (c *catalogue) lookupPoint(m *machine, name string) *slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name != latestName {
		return m.byID[name]
	}
	return c.latestLocked(m)
}

// latestLocked returns the alias of m's newest point, nil when it has none; c.mu is
// held.
func (c *catalogue) latestLocked(m *machine) *slot {
	if m.latest == nil {
		if n := newest(m.order); n != nil {
			m.latest = c.newSlot(n.point, n)
		}
	}
	return m.latest
}

// lookupMachine finds a machine's directory by name.
func (c *catalogue) lookupMachine(name string) *machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.only != "" {
		return nil
	}
	return c.byName[name]
}

// upperEntry is an entry of a directory above the points.
type upperEntry struct {
	name   string
	id     nodeID
	cookie uint64 // ascending, at least 1, and the same in all listings
}

// list returns the entries of a directory above the points; false when ino is
// none.
func (c *catalogue) list(ino uint64) ([]upperEntry, bool) {
	m := c.machineAt(ino)
	if m != nil {
		c.lookupPoint(m, latestName)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []upperEntry
	switch {
	case m != nil:
		for _, s := range m.order {
			out = append(out, upperEntry{s.point.ID, makeID(s.num, spaceLayout, pointIno), uint64(s.num)})
		}
		if m.latest != nil {
			out = append(out, upperEntry{latestName, makeID(m.latest.num, spaceLayout, pointIno), uint64(m.latest.num)})
		}
		slices.SortFunc(out, func(a, b upperEntry) int { return cmp.Compare(a.cookie, b.cookie) })
	case ino == rootIno:
		for _, m := range c.machines {
			if len(m.order) > 0 {
				out = append(out, upperEntry{m.name, makeID(0, spaceLayout, m.num), m.num - firstMachine + 1})
			}
		}
	default:
		return nil, false
	}
	return out, true
}

// all returns every slot there is.
func (c *catalogue) all() []*slot {
	if slots := c.slots.Load(); slots != nil {
		return (*slots)[1:]
	}
	return nil
}

func (s *slot) String() string { return fmt.Sprintf("%s/%s", s.point.Machine, s.point.ID) }
