package cache

import (
	"math"
	"sync"
	"time"
)

// maxTouched bounds what one look records, and what is kept of all: 16 GiB of
// blocks of 512 KiB, more than a boot or a restore reads.
const maxTouched = 32 << 10

// lineage is what the process knows of the versions of one thing: the hot map of
// former looks, and the look that is going on. All readers of a lineage share it.
type lineage struct {
	c         *Cache
	name      string
	blockSize int64
	refs      int // guarded by Cache.mu
	base      []hotBlock

	mu      sync.Mutex // guards what follows
	began   time.Time
	touched []touchedBlock
	known   map[uint32]struct{} // those in touched
	kept    []hotBlock          // what this look is merged into
	last    []byte              // what was saved last
	saved   int                 // how many of touched it has
}

// touchedBlock is a block that a look has used, and when, since it began.
type touchedBlock struct {
	n  uint32
	at time.Duration
}

// look is a Reader's part in a lineage.
type look struct {
	l    *lineage
	seen *bitmap
}

// hotName is the name of the record in which the store keeps a hot map.
func hotName(lineage string) string { return "hot " + lineage }

// look begins a Reader's part in a lineage.
func (c *Cache) look(name string, blockSize, blocks int64) *look {
	c.mu.Lock()
	l := c.lineages[name]
	if l == nil {
		l = &lineage{c: c, name: name, blockSize: blockSize, began: time.Now(), known: make(map[uint32]struct{})}
		l.last = l.load()
		l.base = parseHot(l.last, blockSize)
		l.kept = l.base
		c.lineages[name] = l
	}
	l.refs++
	c.mu.Unlock()
	if l.blockSize != blockSize {
		// Its blocks have other numbers: neither use the map nor add to it.
		return &look{l: l} // only to be ended
	}
	return &look{l: l, seen: newBitmap(blocks)}
}

// endLook ends it; with the last one the lineage is saved.
func (c *Cache) endLook(k *look) {
	c.mu.Lock()
	k.l.refs--
	last := k.l.refs == 0
	if last {
		delete(c.lineages, k.l.name)
	}
	c.mu.Unlock()
	if last {
		k.l.save()
	}
}

// touch records the first use of block n.
func (k *look) touch(n int64) {
	if k.seen == nil || n >= math.MaxUint32 || k.seen.has(n) || !k.seen.add(n) {
		return
	}
	l := k.l
	l.mu.Lock()
	if _, dup := l.known[uint32(n)]; !dup && len(l.touched) < maxTouched {
		l.known[uint32(n)] = struct{}{}
		l.touched = append(l.touched, touchedBlock{uint32(n), time.Since(l.began)})
	}
	l.mu.Unlock()
}

// load reads the record; nil when there is none.
func (l *lineage) load() []byte {
	b, err := l.c.store.Blob(hotName(l.name))
	if err != nil {
		return nil // a map that can't be read is one that was never made
	}
	return b
}

// save merges the look so far into the map that is kept.
func (l *lineage) save() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.saved == len(l.touched) {
		return
	}
	if now := l.load(); string(now) != string(l.last) {
		// Another process has saved its look meanwhile.
		l.kept = parseHot(now, l.blockSize)
	}
	b := encodeHot(mergeHot(l.kept, l.touched), l.blockSize)
	if err := l.c.store.SetBlob(hotName(l.name), b); err != nil {
		l.c.log.Warn("what was read can't be remembered", "lineage", l.name, "err", err)
		return
	}
	l.last, l.saved = b, len(l.touched)
}

// prefetchHot begins to fetch what the last looks of the lineage have used.
func (r *Reader) prefetchHot() {
	if r.look.seen == nil || len(r.look.l.base) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		p := r.pump(r.ctx, hot)
		defer p.wait()
		for _, h := range r.look.l.base {
			if h.weight < leastHot || int64(h.n) >= r.o.blocks() {
				continue
			}
			if _, ok := p.fetch(int64(h.n)); !ok {
				return
			}
		}
	}()
}
