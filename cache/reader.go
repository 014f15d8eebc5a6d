package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"yester/internal/block"
)

// Reader is an object seen through the cache. Reads of blocks that aren't present
// wait for them; all others are reads of a host file. It implements block.Reader,
// ContextReader, Mapper and Prefetcher.
type Reader struct {
	c     *Cache
	o     Object
	sched *Scheduler
	own   *object

	ctx    context.Context // of what is fetched; ends with the Reader
	cancel context.CancelFunc

	mu     sync.RWMutex // guards homes, closed and hydrating
	homes  map[string]*object
	closed bool

	flights sync.WaitGroup // begun by this Reader
	work    sync.WaitGroup // goroutines that begin them

	look    *look   // nil without a lineage
	hinted  *bitmap // blocks that somebody above knows to ask for in time
	streams streams
	hints   hints
	hinting atomic.Int64 // flights begun by hints that haven't ended
	begun   atomic.Bool  // something was read: prefetch by the hot map
	paused  pause
}

var (
	_ block.Reader        = (*Reader)(nil)
	_ block.ContextReader = (*Reader)(nil)
	_ block.Mapper        = (*Reader)(nil)
	_ block.Prefetcher    = (*Reader)(nil)
)

// Open returns o seen through the cache. Requests to the origin go through s,
// which all objects of that origin share. Nothing is fetched before the first read.
func (c *Cache) Open(o Object, s *Scheduler) (*Reader, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	own, err := c.object(objectID{o.Key, o.Size, o.BlockSize})
	if err != nil {
		return nil, err
	}
	r := &Reader{
		c: c, o: o, sched: s, own: own,
		homes: map[string]*object{o.Key: own}, hinted: newBitmap(o.blocks()),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.hints.wake = make(chan struct{}, 1)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		r.cancel()
		return nil, errors.Join(ErrClosed, c.put(own))
	}
	c.readers[r] = struct{}{}
	c.mu.Unlock()
	if o.Lineage != "" {
		r.look = c.look(o.Lineage, o.BlockSize, o.blocks())
	}
	r.work.Add(1)
	go func() { defer r.work.Done(); r.hintLoop() }()
	return r, nil
}

// Close ends what the Reader has under way and gives the object back. What was
// answered by Extent is no longer valid. Nobody may read any more.
func (r *Reader) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	homes := r.homes
	r.homes = nil
	r.mu.Unlock()
	r.cancel()
	r.work.Wait()
	r.sched.drop(r, errDropped)
	r.flights.Wait()
	if r.look != nil {
		r.c.endLook(r.look)
	}
	r.c.mu.Lock()
	delete(r.c.readers, r)
	r.c.mu.Unlock()
	var errs []error
	for _, o := range homes {
		errs = append(errs, r.c.put(o))
	}
	return errors.Join(errs...)
}

// Size returns the object's size in bytes.
func (r *Reader) Size() int64 { return r.o.Size }

// home returns where block n is kept.
func (r *Reader) home(ctx context.Context, n int64) (*object, error) {
	if r.o.Home == nil || r.own.has(n) {
		return r.own, nil
	}
	key, err := r.o.Home(ctx, n)
	if err != nil {
		return nil, err
	}
	if key == r.o.Key || key == "" {
		return r.own, nil
	}
	r.mu.RLock()
	o := r.homes[key]
	r.mu.RUnlock()
	if o != nil {
		return r.homeOf(o, n), nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	if o := r.homes[key]; o != nil {
		return r.homeOf(o, n), nil
	}
	size := r.o.Size
	if r.o.HomeSize != nil {
		if s := r.o.HomeSize(key); s > 0 {
			size = s
		}
	}
	o, err = r.c.object(objectID{key, size, r.o.BlockSize})
	if err != nil {
		return nil, err
	}
	r.homes[key] = o
	return r.homeOf(o, n), nil
}

// homeOf returns o, or the Reader's own object where o can't have the same block n:
// it lies past its end, or has another length there.
func (r *Reader) homeOf(o *object, n int64) *object {
	if n < o.st.Blocks() && o.length(n) == r.o.length(n) {
		return o
	}
	return r.own
}

func (r *Reader) zero(ctx context.Context, n int64) (bool, error) {
	if r.o.Zero == nil {
		return false, nil
	}
	return r.o.Zero(ctx, n)
}

// ReadAt implements block.Reader.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadAtContext(context.Background(), p, off)
}

// parallel is how many blocks of one read are asked for at once.
const parallel = 64

// ReadAtContext implements block.ContextReader. A read that fails in one place
// fails as a whole.
func (r *Reader) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), r.o.Size)
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, eof
	}
	p = p[:n]
	r.noteRead(off, int64(n))
	span := parallel * r.o.BlockSize
	for done := int64(0); done < int64(n); {
		at := off + done
		part := min(int64(n)-done, span-at%r.o.BlockSize)
		if err := r.readBlocks(ctx, p[done:done+part], at); err != nil {
			return 0, err
		}
		done += part
	}
	return n, eof
}

// landing is a part of a read that waits for a flight.
type landing struct {
	f     *flight
	began bool
	n     int64
	p     []byte
	in    int64 // offset in the block
}

// readBlocks reads up to parallel blocks: what is present at once, and the rest
// when all that is missing has been asked for.
func (r *Reader) readBlocks(ctx context.Context, p []byte, off int64) (err error) {
	var few [4]landing
	waits := few[:0]
	defer func() {
		for _, w := range waits {
			w.f.leave()
		}
	}()
	for len(p) > 0 {
		n, in := off/r.o.BlockSize, off%r.o.BlockSize
		part := min(int64(len(p)), r.o.BlockSize-in)
		f, began, err := r.readNow(ctx, n, p[:part], in)
		if err != nil {
			return err
		}
		if f != nil {
			waits = append(waits, landing{f, began, n, p[:part], in})
		}
		p, off = p[part:], off+part
	}
	for i := range waits {
		if err := r.wait(ctx, &waits[i]); err != nil {
			return err
		}
	}
	return nil
}

// readNow reads a part of block n if it is present or zeros, or else returns the
// flight that brings it.
func (r *Reader) readNow(ctx context.Context, n int64, p []byte, in int64) (f *flight, began bool, err error) {
	o, err := r.home(ctx, n)
	if err != nil {
		return nil, false, err
	}
	for {
		if b, ok := o.st.Get(n); ok {
			_, err := b.File.ReadAt(p, b.Off+in)
			b.Release()
			if err != nil {
				return nil, false, fmt.Errorf("cache: block %d of %s: %w", n, o.id.key, err)
			}
			r.touch(o, n, true)
			return nil, false, nil
		}
		zero, err := r.zero(ctx, n)
		if err != nil {
			return nil, false, fmt.Errorf("cache: block %d of %s: %w", n, r.o.Key, err)
		}
		if zero {
			clear(p)
			return nil, false, nil
		}
		if f, began := o.fly(r, n, foreground); f != nil {
			r.touch(o, n, false)
			return f, began, nil
		}
	}
}

// wait fills a part of a read when its block has come.
func (r *Reader) wait(ctx context.Context, w *landing) error {
	for {
		select {
		case <-w.f.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		switch {
		case w.f.err != nil && !w.began && r.ctx.Err() == nil:
			// It was begun for somebody else, and perhaps long ago: the origin may be
			// back since.
		case w.f.err != nil:
			return fmt.Errorf("cache: block %d of %s: %w", w.n, r.o.Key, w.f.err)
		case w.f.buf != nil:
			copy(w.p, w.f.buf[w.in:])
			return nil
		}
		f, began, err := r.readNow(ctx, w.n, w.p, w.in)
		if err != nil || f == nil {
			return err
		}
		w.f.leave()
		w.f, w.began = f, began
	}
}

// touch takes notice of a use of block n.
func (r *Reader) touch(o *object, n int64, hit bool) {
	if hit {
		o.add(cHits, 1)
	} else {
		o.add(cMisses, 1)
	}
	if o.early.count.Load() > 0 && o.early.remove(n) {
		o.add(cEarlyUsed, 1)
	}
	if r.look == nil {
		return
	}
	r.look.touch(n)
	if !r.begun.Load() && !r.begun.Swap(true) {
		r.prefetchHot()
	}
}

// maxMapped is the longest question in bytes that Extent takes for one about what
// is going to be read: what a mount or a target reads at once.
const maxMapped = 4 << 20

// Extent implements block.Mapper: one block, or a run of zeros, at a time.
func (r *Reader) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if off < 0 || off >= r.o.Size || n < 1 {
		return block.Extent{}, fmt.Errorf("cache: extent of %d bytes at %#x of %#x: %w", n, off, r.o.Size, os.ErrInvalid)
	}
	n = min(n, r.o.Size-off)
	num, in := off/r.o.BlockSize, off%r.o.BlockSize
	part := min(n, r.o.BlockSize-in)
	o, err := r.home(ctx, num)
	if err != nil {
		return block.Extent{}, err
	}
	if b, ok := o.st.Get(num); ok {
		e := block.Extent{Len: part, File: b.File, Off: b.Off + in, Stamp: b.ID}
		if n > maxMapped {
			b.Release() // a map of the whole, not somebody who reads there
			return e, nil
		}
		r.touch(o, num, true)
		if r.streams.going(off) {
			// What is here already begins no stream: it may be the end of a file.
			r.noteRead(off, part)
		}
		if !r.c.kept.keep(o, num, b) {
			return block.Extent{Len: part}, nil
		}
		return e, nil
	}
	zero, err := r.zero(ctx, num)
	if err != nil || !zero {
		return block.Extent{Len: part}, err
	}
	e := block.Extent{Len: part, Zero: true}
	if e.Len < n && r.o.Next != nil {
		next, ok, err := r.o.Next(ctx, num+1)
		switch {
		case err != nil: // met again where it belongs
		case !ok:
			e.Len = n
		default:
			e.Len = min(n, max(next, num+1)*r.o.BlockSize-off)
		}
	}
	return e, nil
}

// Whole gives the host file of an object of which every block is present, for
// whoever can hand on whole files. It stays as it is until released.
func (r *Reader) Whole(ctx context.Context) (f *os.File, release func(), err error) {
	w, err := r.own.st.File(ctx)
	if err != nil {
		return nil, nil, err
	}
	return w.File, w.Release, nil
}

// Complete reports whether every block that isn't known to be zeros is present.
func (r *Reader) Complete(ctx context.Context) (bool, error) {
	for n, err := range r.allocated(ctx) {
		if err != nil {
			return false, err
		}
		o, err := r.home(ctx, n)
		if err != nil {
			return false, err
		}
		if !o.has(n) {
			return false, nil
		}
	}
	return true, nil
}

// Stats returns the figures of the object itself: what other versions keep for it
// counts there.
func (r *Reader) Stats() ObjectStats {
	return ObjectStats{Key: r.o.Key, Size: r.o.Size, BlockSize: r.o.BlockSize, Figures: r.own.figures()}
}

// sleep waits for d, and is false when ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Blocks returns how many blocks the object has, zeros included.
func (r *Reader) Blocks() int64 { return r.o.blocks() }
