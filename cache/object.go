package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"yester/cache/store"
)

// Object is something that is cached: one version of a disk, a snapshot, a file.
type Object struct {
	// Key names the object and its version: the same key, the same bytes.
	Key string
	// Lineage names what this is a version of (the volume, the disk, the path):
	// what was read of one version is likely to be read of the next. Empty: nothing
	// is remembered.
	Lineage string
	// Size is in bytes; BlockSize, the unit in which it is fetched, a power of two
	// from 64 KiB to 4 MiB.
	Size, BlockSize int64
	// Fetch fills p with block n: BlockSize bytes, fewer for the last block. It is
	// called in parallel, and ends early when ctx does. It has time-outs of its
	// own. Its bytes are believed: what the origin has checksums for, it has checked.
	Fetch func(ctx context.Context, n int64, p []byte) error
	// Zero reports whether block n is known to be zeros, which holds for good; nil:
	// none is. It may have to ask the origin.
	Zero func(ctx context.Context, n int64) (bool, error)
	// Home returns the key under which block n is kept, where another version has
	// the same block; nil: Key. It may have to ask the origin.
	Home func(ctx context.Context, n int64) (string, error)
	// HomeSize returns the size in bytes of the version that a key of Home's names;
	// nil, or 0: that of this one. Versions of a disk that has grown differ in it.
	HomeSize func(key string) int64
	// Next returns the first block from the given one on that isn't known to be
	// zeros; ok is false when there is none. nil: all may be data.
	Next func(ctx context.Context, from int64) (n int64, ok bool, err error)
}

const (
	minBlock = 64 << 10
	maxBlock = 4 << 20
)

func (o *Object) check() error {
	switch {
	case o.Key == "":
		return fmt.Errorf("cache: an object without a key: %w", os.ErrInvalid)
	case o.Size < 0:
		return fmt.Errorf("cache: %s: size %d: %w", o.Key, o.Size, os.ErrInvalid)
	case o.BlockSize < minBlock || o.BlockSize > maxBlock || o.BlockSize&(o.BlockSize-1) != 0:
		return fmt.Errorf("cache: %s: blocks of %d bytes, not a power of two from %d to %d: %w", o.Key, o.BlockSize, minBlock, maxBlock, os.ErrInvalid)
	case o.Fetch == nil:
		return fmt.Errorf("cache: %s: no way to fetch it: %w", o.Key, os.ErrInvalid)
	}
	return nil
}

// blocks returns how many blocks the object has.
func (o *Object) blocks() int64 { return (o.Size + o.BlockSize - 1) / o.BlockSize }

// length returns the length of block n in bytes.
func (o *Object) length(n int64) int64 { return min(o.BlockSize, o.Size-n*o.BlockSize) }

// objectID is what store.Object is opened by.
type objectID struct {
	key       string
	size      int64
	blockSize int64
}

// object is the blocks kept under one key, shared by all readers of them.
type object struct {
	id   objectID
	c    *Cache
	st   *store.Object
	refs int // guarded by Cache.mu

	counters
	early *bitmap // fetched before they were asked for, and not asked for since

	mu      sync.Mutex // guards flights
	flights map[int64]*flight
}

// object opens the blocks kept under id, or takes them when they are open.
func (c *Cache) object(id objectID) (*object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if o := c.objects[id]; o != nil {
		o.refs++
		return o, nil
	}
	st, err := c.store.Object(id.key, id.size, int(id.blockSize))
	if err != nil {
		return nil, err
	}
	o := &object{id: id, c: c, st: st, refs: 1, flights: make(map[int64]*flight), early: newBitmap(st.Blocks())}
	o.parent = &c.total
	c.objects[id] = o
	return o, nil
}

// put gives an object back.
func (c *Cache) put(o *object) error {
	c.mu.Lock()
	o.refs--
	last := o.refs == 0
	if last {
		delete(c.objects, o.id)
	}
	c.mu.Unlock()
	if last {
		c.kept.drop(o)
		return o.st.Close()
	}
	return nil
}

// has reports whether block n is present.
func (o *object) has(n int64) bool {
	b, ok := o.st.Get(n)
	if ok {
		b.Release()
	}
	return ok
}

// flight is a block on its way. It goes on when those who wait for it leave.
type flight struct {
	o    *object
	r    *Reader // whose Fetch it uses
	n    int64
	req  request
	made time.Time
	hint bool // begun by a hint

	done chan struct{} // closed when buf and err are set
	over chan struct{} // closed when it is kept, too
	// buf holds the block when err is nil; nil: it is present in the store, put
	// there by another process.
	buf []byte
	err error

	claim *store.Claim // of a block that has come and isn't kept yet; may be nil

	waiters int // guarded by object.mu; the flight itself is one
}

// errElsewhere is the end of a request for a block that another process fetches.
var errElsewhere = errors.New("another process fetches this block")

const (
	// elsewherePoll is how often a block that another process fetches is looked for.
	elsewherePoll = 10 * time.Millisecond
	// elsewhereMost is how long that is waited for: a process that was stopped
	// would otherwise stop all.
	elsewhereMost = 10 * time.Second
)

// fly returns a flight of block n, begun if there is none; the caller ends its
// part in it with leave. nil: the block is present. One that waits for its turn is
// moved up to class.
func (o *object) fly(r *Reader, n int64, class priority) (f *flight, began bool) {
	o.mu.Lock()
	if f := o.flights[n]; f != nil {
		f.waiters++
		o.mu.Unlock()
		f.r.sched.promote(&f.req, class)
		return f, false
	}
	// The flight that put it may have ended since the caller looked.
	if o.has(n) {
		o.mu.Unlock()
		return nil, false
	}
	f = &flight{o: o, r: r, n: n, done: make(chan struct{}), over: make(chan struct{}), waiters: 2, made: time.Now(), hint: class == ahead}
	f.req = request{class: class, size: o.length(n), owner: r, ctx: r.ctx, run: f.run, end: f.end}
	o.flights[n] = f
	o.mu.Unlock()
	r.flights.Add(1)
	if f.hint {
		r.hinting.Add(1)
	}
	if class != foreground && o.early.add(n) {
		o.add(cEarly, 1)
	}
	o.add(cInFlight, 1)
	r.sched.submit(&f.req)
	return f, true
}

func (o *object) length(n int64) int64 { return min(o.id.blockSize, o.id.size-n*o.id.blockSize) }

// leave ends a waiter's part; the last one gives the buffer back.
func (f *flight) leave() {
	f.o.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	f.o.mu.Unlock()
	if last && f.buf != nil {
		putBuffer(f.buf)
	}
}

// run fetches the block: a request's run. Those who wait are served at once; end
// keeps it.
func (f *flight) run() error {
	if err := f.r.ctx.Err(); err != nil {
		return errDropped
	}
	claim, present := f.o.st.TryClaim(f.n)
	switch {
	case present:
		return nil
	case claim == nil && time.Since(f.made) < elsewhereMost:
		return errElsewhere
	}
	buf := getBuffer(f.o.length(f.n))
	if err := f.r.o.Fetch(f.r.ctx, f.n, buf); err != nil {
		putBuffer(buf)
		if claim != nil {
			claim.Release()
		}
		return err
	}
	f.o.add(cFetched, 1)
	f.o.add(cFetchedBytes, int64(len(buf)))
	f.claim, f.buf = claim, buf
	close(f.done)
	return nil
}

// end keeps the block, and takes notice of how the request ended.
func (f *flight) end(err error) {
	if f.buf != nil {
		if err := f.o.st.Put(f.n, f.buf); err != nil {
			f.o.c.log.Warn("a block can't be cached", "object", f.o.id.key, "block", f.n, "err", err)
		}
	}
	if f.claim != nil {
		f.claim.Release()
	}
	if errors.Is(err, errElsewhere) {
		time.AfterFunc(elsewherePoll, func() { f.r.sched.submit(&f.req) })
		return
	}
	f.o.mu.Lock()
	delete(f.o.flights, f.n)
	f.o.mu.Unlock()
	if f.buf == nil {
		f.err = err
		if err != nil {
			if f.o.early.remove(f.n) {
				f.o.add(cEarly, -1)
			}
			f.o.add(cFailed, 1)
		}
		close(f.done)
	}
	close(f.over)
	f.o.add(cInFlight, -1)
	if f.hint {
		f.r.hinting.Add(-1)
	}
	f.leave()
	f.r.flights.Done()
}

// buffers hold blocks of up to 1<<i bytes.
var buffers [23]sync.Pool

func getBuffer(n int64) []byte {
	i := bufferClass(n)
	if b, ok := buffers[i].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, int64(1)<<i)
}

func putBuffer(b []byte) { buffers[bufferClass(int64(cap(b)))].Put(&b) }

// bufferClass is the log2 of the buffers in which n bytes, at most maxBlock, fit.
func bufferClass(n int64) int {
	i := 16
	for int64(1)<<i < n {
		i++
	}
	return i
}
