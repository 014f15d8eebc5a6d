// Package decoded keeps what was decompressed: the clusters, grains and chunks of
// compressed images. One bounded cache serves the whole process, so that memory
// doesn't grow with the number of images that are open.
package decoded

import (
	"container/list"
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
)

// Budget is how many bytes of decoded units the process keeps: a few hundred of
// the largest clusters in use (2 MiB) would be too many for a mount's memory, and
// this holds a thousand of the usual 64 KiB.
const Budget = 64 << 20

// shared is the process's cache.
var shared = newCache(Budget)

// cache is an LRU of decoded units, by their bytes.
type cache struct {
	mu    sync.Mutex
	max   int64
	bytes int64
	at    map[key]*list.Element // of *unit
	lru   list.List             // front: used last
}

type key struct {
	owner uint64
	n     int64
}

// unit is a decoded unit, or one that is being decoded.
type unit struct {
	key  key
	done chan struct{} // closed once data and err are set
	data []byte
	err  error
}

func newCache(max int64) *cache { return &cache{max: max, at: make(map[key]*list.Element)} }

// find returns the unit of k; made is true when it was not there, and the caller
// must decode it and call put.
func (c *cache) find(k key) (u *unit, made bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.at[k]; ok {
		c.lru.MoveToFront(e)
		return e.Value.(*unit), false
	}
	u = &unit{key: k, done: make(chan struct{})}
	c.at[k] = c.lru.PushFront(u)
	return u, true
}

// put ends the decoding of a unit that find made. A failure isn't kept: a later
// read tries again.
func (c *cache) put(u *unit, data []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u.data, u.err = data, err
	close(u.done)
	e := c.at[u.key]
	if e == nil || e.Value.(*unit) != u {
		return // forgotten meanwhile
	}
	if err != nil {
		c.lru.Remove(e)
		delete(c.at, u.key)
		return
	}
	c.bytes += int64(len(data))
	for e := c.lru.Back(); e != nil && c.bytes > c.max; {
		prev := e.Prev()
		if old := e.Value.(*unit); old != u && old.decoded() {
			c.bytes -= int64(len(old.data))
			c.lru.Remove(e)
			delete(c.at, old.key)
		}
		e = prev
	}
}

// forget drops every unit of owner.
func (c *cache) forget(owner uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.lru.Front(); e != nil; {
		next := e.Next()
		if u := e.Value.(*unit); u.key.owner == owner {
			if u.decoded() {
				c.bytes -= int64(len(u.data))
			}
			c.lru.Remove(e)
			delete(c.at, u.key)
		}
		e = next
	}
}

func (u *unit) decoded() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

var owners atomic.Uint64

// Units are the decoded units of one image, numbered by the image as it likes.
// They are safe for parallel use.
type Units struct {
	owner  uint64
	decode func(ctx context.Context, n int64) ([]byte, error)
	last   atomic.Int64 // the unit that was asked for last
	// What is decoded ahead runs under ctx, which Close ends, and is counted in
	// ahead, which Close waits for: nothing reads the image's file afterwards.
	ctx    context.Context
	cancel context.CancelFunc
	ahead  sync.WaitGroup
}

// New returns units that decode decodes; what it returns must never change
// afterwards. It must be safe for parallel use. Close forgets them.
func New(decode func(ctx context.Context, n int64) ([]byte, error)) *Units {
	u := &Units{owner: owners.Add(1), decode: decode}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	u.last.Store(-2)
	return u
}

// Close drops what is kept of the units. Nobody may be using them any more.
func (u *Units) Close() {
	u.cancel()
	u.ahead.Wait()
	shared.forget(u.owner)
}

// Get returns the bytes of unit n, decoded once however many ask at a time. They
// must not be written to.
func (u *Units) Get(ctx context.Context, n int64) ([]byte, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v, made := shared.find(key{u.owner, n})
		if made {
			data, err := u.decode(ctx, n)
			shared.put(v, data, err)
			return data, err
		}
		select {
		case <-v.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		// The one who decoded it may have been interrupted: that is not our error.
		if v.err == nil || ctx.Err() != nil {
			return v.data, v.err
		}
		if isInterrupted(v.err) {
			continue
		}
		return nil, v.err
	}
}

// ahead bounds how many units are being decoded beyond what readers wait for.
var ahead = make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))

// Ahead decodes the units ns in the background, as far as processors are free. A
// reader that goes through units in order calls it with those that come next.
func (u *Units) Ahead(ns ...int64) {
	for _, n := range ns {
		select {
		case ahead <- struct{}{}:
		default:
			return
		}
		v, made := shared.find(key{u.owner, n})
		if !made {
			<-ahead
			continue
		}
		u.ahead.Go(func() {
			data, err := u.decode(u.ctx, n)
			shared.put(v, data, err)
			<-ahead
		})
	}
}

// Sequential notes that unit n is being read and reports whether the one before
// it was the last: then what comes after is worth decoding ahead.
func (u *Units) Sequential(n int64) bool {
	last := u.last.Swap(n)
	return last == n-1 || last == n
}

// ReadAt fills p with the bytes at off of what units of unitSize bytes make up,
// numbered from 0 on; units are decoded in parallel where p spans several. The
// last may be shorter. The caller has clipped p to the whole's size.
func (u *Units) ReadAt(ctx context.Context, p []byte, off, unitSize int64) error {
	first, last := off/unitSize, (off+int64(len(p))-1)/unitSize
	for n := first; n <= last; n++ {
		// As one is done, the next is begun: so many are free at a time.
		for next := n + 1; next <= min(last, n+int64(cap(ahead))+1); next++ {
			u.Ahead(next)
		}
		data, err := u.Get(ctx, n)
		if err != nil {
			return err
		}
		in := max(0, off-n*unitSize)
		at := n*unitSize + in - off
		want := min(int64(len(p))-at, unitSize-in)
		if int64(len(data)) < in+want {
			return errShort
		}
		copy(p[at:at+want], data[in:])
	}
	return nil
}

var errShort = errors.New("a decoded unit is shorter than the image says")

func isInterrupted(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
