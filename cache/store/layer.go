package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// groupBlocks is how many blocks share a lock of this process and a piece of
	// its memory (about 400 bytes).
	groupBlocks = 16
	// chunkGroups is how many groups a piece of the look-up table covers.
	chunkGroups = 64
	// maxGroups is from how many groups on an object forgets those not in use: 13 MiB.
	maxGroups = 32 << 10

	// leaseTime is for how long after its last use a process keeps others from
	// evicting a block. Longer saves locking; a block that was used so recently
	// is none of the least used.
	leaseTime = 2 * time.Second
	// leaseWait bounds the wait for a process that evicts the block: it punches
	// one hole. After that the block counts as absent.
	leaseWait = 100 * time.Millisecond
)

// ready, in a slot's word, says that the block is present, verified and leased;
// the other bits count its pins.
const ready = 1 << 31

// slot is what this process knows of a block.
type slot struct {
	// word is what Get needs: pins are added first and ready is looked at in the
	// sum, and ready is taken away only by a swap with a word without pins. So
	// whoever saw ready has the block until the pin is given back.
	word atomic.Uint32
	used atomic.Uint32 // last use, Unix seconds
	// Under the group's lock:
	seen   atomic.Uint64 // id of the entry whose bytes were verified; 0 is none; read without the lock, too
	stored uint32        // last use as the index has it
}

// group is a run of groupBlocks blocks.
type group struct {
	mu    sync.Mutex
	first int64
	dead  bool   // no longer in the table: look again
	held  uint32 // bit per block: its lease is locked (shared)
	slots [groupBlocks]slot
}

type chunk [chunkGroups]atomic.Pointer[group]

// layer is an object's blocks in one place: the directory, or memory.
type layer struct {
	header
	s     *Store
	mem   bool
	seed  uint32 // checksum of the identity, with which those of blocks begin
	index *file
	parts []*file

	top     []atomic.Pointer[chunk]
	mu      sync.Mutex       // guards active and the filling of the table
	active  map[int64]*group // those that hold leases
	groups  int
	pending atomic.Int64 // Puts not yet known to be on disk
	write   sync.Mutex   // of blocks: the kernel lets one at a time write to a file, and holds a thread for each that waits
	buffers sync.Pool    // of *[]byte, a block each, for verifying
}

func newLayer(s *Store, h header, index *file, parts []*file, mem bool) *layer {
	groups := h.blocks()/groupBlocks + 1
	return &layer{
		header: h, s: s, mem: mem, index: index, parts: parts,
		seed:   crc32.Checksum(h.encode(), castagnoli),
		top:    make([]atomic.Pointer[chunk], groups/chunkGroups+1),
		active: make(map[int64]*group),
	}
}

// close drops the leases and closes the files.
func (l *layer) close() {
	l.release(0)
	_ = l.index.Close()
	for _, p := range l.parts {
		_ = p.Close()
	}
}

// find returns the group of block n, nil when there is none yet.
func (l *layer) find(n int64) *group {
	g := n / groupBlocks
	c := l.top[g/chunkGroups].Load()
	if c == nil {
		return nil
	}
	return c[g%chunkGroups].Load()
}

// lockGroup returns the group of block n, made if need be, with its lock held.
func (l *layer) lockGroup(n int64) *group {
	for {
		g := l.find(n)
		if g == nil {
			g = l.makeGroup(n)
		}
		g.mu.Lock()
		if !g.dead {
			return g
		}
		g.mu.Unlock()
	}
}

func (l *layer) makeGroup(n int64) *group {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.find(n); g != nil {
		return g
	}
	i := n / groupBlocks
	at := &l.top[i/chunkGroups]
	if at.Load() == nil {
		at.Store(new(chunk))
	}
	g := &group{first: i * groupBlocks}
	at.Load()[i%chunkGroups].Store(g)
	l.groups++
	return g
}

// length returns the length of block n in bytes.
func (l *layer) length(n int64) int64 {
	return min(int64(l.blockSize), l.size-n*int64(l.blockSize))
}

// place returns the file and the offset of block n.
func (l *layer) place(n int64) (*file, int64) {
	off := n * int64(l.blockSize)
	return l.parts[off/partSize], off % partSize
}

func (l *layer) entryOff(n int64) int64 { return headerSize + n*entrySize }

// entry reads the entry of block n; an index cut off before it has none.
func (l *layer) entry(n int64) (entry, error) {
	var p [entrySize]byte
	if _, err := l.index.ReadAt(p[:], l.entryOff(n)); err != nil && err != io.EOF {
		return entry{}, err
	}
	return parseEntry(p[:]), nil
}

// writeEntry sets the entry of block n. The caller holds its lease.
func (l *layer) writeEntry(n int64, e entry) error {
	var p [entrySize]byte
	e.encode(p[:])
	return l.index.writeAt(p[:], l.entryOff(n))
}

// sum returns the checksum of block n: of what object it is of, which block it
// is, and its bytes, so that bytes in a wrong place don't pass either.
func (l *layer) sum(n int64, p []byte) uint32 {
	var at [8]byte
	binary.LittleEndian.PutUint64(at[:], uint64(n))
	return crc32.Update(crc32.Update(l.seed, castagnoli, at[:]), castagnoli, p)
}

// lease takes the shared lock on block n, which keeps every process from evicting
// it. The caller has g locked.
func (l *layer) lease(g *group, n int64) bool {
	bit := uint32(1) << (n - g.first)
	if g.held&bit != 0 {
		return true
	}
	ok, err := l.index.lockWithin(leaseWait, unix.F_RDLCK, leaseBase+n, 1)
	if err != nil {
		l.s.warn("the cache can't be locked", err)
	}
	if !ok || err != nil {
		return false
	}
	if g.held == 0 {
		l.mu.Lock()
		l.active[g.first] = g
		l.mu.Unlock()
	}
	g.held |= bit
	return true
}

// idle gives block n's lease back if it has no pins, and reports whether it had
// none. The caller has g locked.
func (l *layer) idle(g *group, n int64) bool {
	sl := &g.slots[n-g.first]
	if !sl.word.CompareAndSwap(ready, 0) && sl.word.Load() != 0 {
		return false
	}
	if g.held&(1<<(n-g.first)) == 0 {
		return true
	}
	if used := sl.used.Load(); used > sl.stored {
		// A hint for the choice of what to evict: a failure to write it is no loss.
		var p [4]byte
		binary.LittleEndian.PutUint32(p[:], used)
		if l.index.writeAt(p[:], l.entryOff(n)+usedOff) == nil {
			sl.stored = used
		}
	}
	l.index.unlock(leaseBase+n, 1)
	g.held &^= 1 << (n - g.first)
	return true
}

// release gives back the leases of blocks not used for that many seconds.
func (l *layer) release(age uint32) {
	l.mu.Lock()
	active := make([]*group, 0, len(l.active))
	for _, g := range l.active {
		active = append(active, g)
	}
	l.mu.Unlock()
	now := l.s.now.Load()
	for _, g := range active {
		g.mu.Lock()
		for i := range g.slots {
			if g.held&(1<<i) != 0 && g.slots[i].used.Load()+age <= now {
				l.idle(g, g.first+int64(i))
			}
		}
		if g.held == 0 {
			l.mu.Lock()
			if l.active[g.first] == g {
				delete(l.active, g.first)
			}
			l.mu.Unlock()
		}
		g.mu.Unlock()
	}
	l.forget()
}

// forget drops the groups without leases once there are too many.
func (l *layer) forget() {
	l.mu.Lock()
	many := l.groups > maxGroups
	l.mu.Unlock()
	if !many {
		return
	}
	for i := range l.top {
		c := l.top[i].Load()
		if c == nil {
			continue
		}
		for j := range c {
			g := c[j].Load()
			if g == nil {
				continue
			}
			g.mu.Lock()
			if g.held == 0 {
				g.dead = true
				c[j].Store(nil)
				l.mu.Lock()
				l.groups--
				l.mu.Unlock()
			}
			g.mu.Unlock()
		}
	}
}

// get pins block n if it is present and its bytes are right.
func (l *layer) get(n int64) (Block, bool) {
	if g := l.find(n); g != nil {
		sl := &g.slots[n%groupBlocks]
		if sl.word.Add(1)&ready != 0 {
			return l.block(n, sl), true
		}
		sl.word.Add(^uint32(0))
	}
	return l.getSlow(n)
}

func (l *layer) block(n int64, sl *slot) Block {
	if now := l.s.now.Load(); sl.used.Load() != now {
		sl.used.Store(now)
	}
	f, off := l.place(n)
	return Block{File: f.File, Off: off, Len: l.length(n), ID: sl.seen.Load(), word: &sl.word}
}

// getSlow leases and verifies the block.
func (l *layer) getSlow(n int64) (Block, bool) {
	// A look without the lease proves nothing but that it isn't worth one: blocks
	// that aren't there cost no memory, and no lock.
	if e, err := l.entry(n); err != nil || !e.present(l.s.boot) {
		return Block{}, false
	}
	g := l.lockGroup(n)
	defer g.mu.Unlock()
	sl := &g.slots[n-g.first]
	if !l.lease(g, n) {
		return Block{}, false
	}
	e, err := l.entry(n)
	if err != nil || !e.present(l.s.boot) {
		l.idle(g, n)
		return Block{}, false
	}
	sl.word.Add(1) // keeps the lease while the group isn't locked
	if sl.seen.Load() != e.id() {
		g.mu.Unlock()
		good := l.verify(n, e)
		g.mu.Lock()
		if !good {
			sl.word.Add(^uint32(0))
			l.drop(g, n, e)
			return Block{}, false
		}
		sl.seen.Store(e.id())
	}
	sl.stored = e.used
	sl.word.Or(ready)
	return l.block(n, sl), true
}

// verify reports whether the bytes of block n are those of the entry.
func (l *layer) verify(n int64, e entry) bool {
	b, _ := l.buffers.Get().(*[]byte)
	if b == nil {
		p := make([]byte, l.blockSize)
		b = &p
	}
	defer l.buffers.Put(b)
	p := (*b)[:l.length(n)]
	f, off := l.place(n)
	if _, err := f.ReadAt(p, off); err != nil {
		return false
	}
	return l.sum(n, p) == e.sum
}

// drop forgets a block whose bytes are not those of the entry e. Another process
// that reads it now has to see for itself, and whoever fetches it puts it right.
func (l *layer) drop(g *group, n int64, e entry) {
	l.s.log.Warn("a cached block is damaged, and will be fetched again", "object", l.key, "block", n)
	if now, err := l.entry(n); err == nil && now.id() == e.id() {
		_, _ = l.clear(g, n)
	}
}

// clear makes block n absent and gives its space back, unless it is in use here
// or elsewhere, which is answered with false. The caller has g locked.
func (l *layer) clear(g *group, n int64) (bool, error) {
	sl, bit := &g.slots[n-g.first], uint32(1)<<(n-g.first)
	if !sl.word.CompareAndSwap(ready, 0) && sl.word.Load() != 0 {
		return false, nil
	}
	ok, err := l.index.lock(unix.F_WRLCK, leaseBase+n, 1)
	if !ok || err != nil {
		return false, err // a shared lock that was held is held still
	}
	// Without a lease in active, nothing else need be told.
	defer func() { g.held &^= bit; l.index.unlock(leaseBase+n, 1) }()
	sl.seen.Store(0)
	e, err := l.entry(n)
	if err != nil {
		return false, err
	}
	// First the entry, then the bytes: a reader that knows the entry from before
	// must never find it over a hole.
	if e.state != stateAbsent {
		if err := l.writeEntry(n, entry{state: stateEvicting}); err != nil {
			return false, err
		}
	}
	f, off := l.place(n)
	// Whole pages, also at the end of the object.
	if err := f.punch(off, int64(l.blockSize)); err != nil || e.state == stateAbsent {
		return err == nil, err
	}
	return true, l.writeEntry(n, entry{})
}

// put stores block n. The caller knows that the bytes are right.
func (l *layer) put(n int64, p []byte) error {
	e := entry{sum: l.sum(n, p), gen: rand.Uint32(), used: l.s.now.Load(), state: volatileState(l.s.boot)}
	g := l.lockGroup(n)
	defer g.mu.Unlock()
	sl := &g.slots[n-g.first]
	if sl.word.Load()&ready != 0 {
		return nil
	}
	if !l.lease(g, n) {
		return errBusy
	}
	sl.word.Add(1) // keeps the lease while the group isn't locked
	g.mu.Unlock()
	f, off := l.place(n)
	l.write.Lock()
	err := f.writeAt(p, off)
	l.write.Unlock()
	g.mu.Lock()
	if err == nil {
		err = l.writeEntry(n, e)
	}
	if err != nil {
		sl.word.Add(^uint32(0))
		_, _ = l.clear(g, n) // gives back what was written of it
		return fmt.Errorf("store block %d of %s: %w", n, l.key, err)
	}
	sl.seen.Store(e.id())
	sl.stored = e.used
	sl.used.Store(e.used)
	sl.word.Or(ready)
	if l.mem {
		sl.word.Add(^uint32(0))
		return nil
	}
	l.pending.Add(1)
	l.s.commits.add(commit{l, g, n, e.id()}, len(p)) // which gives the pin back
	return nil
}

// Block is where the bytes of a present block lie: File's [Off, Off+Len). They
// stay, unchanged, until Release.
type Block struct {
	File *os.File
	Off  int64 // bytes
	Len  int64 // bytes
	// ID tells this writing of the block from any other, before and after; it is
	// never 0.
	ID   uint64
	word *atomic.Uint32
}

// Release gives the block back. It is called once.
func (b Block) Release() { b.word.Add(^uint32(0)) }
