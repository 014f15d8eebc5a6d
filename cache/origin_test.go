package cache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// fakeOrigin is an origin whose time is simulated: a request takes a latency and
// then its share of a bandwidth. With testing/synctest, all of it is exact.
type fakeOrigin struct {
	size, blockSize int64
	content         func(n int64, p []byte) // nil: pattern
	latency         time.Duration
	perConn, total  int64 // bytes a second; 0: no limit
	perSecond       int   // requests a second before it throttles; 0: no limit

	mu       sync.Mutex // guards what follows
	active   int        // transfers under way
	most     int        // requests in flight at most
	inFlight int
	asked    map[int64]int // fetches of each block
	order    []int64       // blocks in the order in which they were asked for
	starts   []time.Time   // of order
	refused  int
	down     error // answers all with it
	tokens   float64
	refilled time.Time
}

var errSlowDown = errors.New("slow down")

// noise is random bytes, of which every block has a part of its own.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<20)
	rng := rand.NewPCG(1, 7)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
})

// pattern fills p with the bytes of block n.
func pattern(n int64, p []byte) {
	for i := 0; i < len(p); i += copy(p[i:], noise()[(int(n)*7919+i)%4096:]) {
	}
}

func (f *fakeOrigin) fetch(ctx context.Context, n int64, p []byte) error {
	f.mu.Lock()
	if f.asked == nil {
		f.asked = make(map[int64]int)
	}
	f.asked[n]++
	f.order = append(f.order, n)
	f.starts = append(f.starts, time.Now())
	f.inFlight++
	f.most = max(f.most, f.inFlight)
	down := f.down
	slow := false
	if f.perSecond > 0 {
		now := time.Now()
		if f.refilled.IsZero() {
			f.refilled, f.tokens = now, float64(f.perSecond)/10
		}
		f.tokens = min(float64(f.perSecond)/10, f.tokens+now.Sub(f.refilled).Seconds()*float64(f.perSecond))
		f.refilled = now
		if f.tokens < 1 {
			slow = true
			f.refused++
		} else {
			f.tokens--
		}
	}
	f.mu.Unlock()
	defer func() { f.mu.Lock(); f.inFlight--; f.mu.Unlock() }()
	if !sleep(ctx, max(f.latency, time.Microsecond)) {
		return ctx.Err()
	}
	switch {
	case down != nil:
		return down
	case slow:
		return errSlowDown
	}
	if err := f.transfer(ctx, len(p)); err != nil {
		return err
	}
	if f.content != nil {
		f.content(n, p)
	} else {
		pattern(n, p)
	}
	return nil
}

// transfer takes the time of n bytes.
func (f *fakeOrigin) transfer(ctx context.Context, n int) error {
	if f.perConn == 0 {
		return nil
	}
	f.mu.Lock()
	f.active++
	f.mu.Unlock()
	defer func() { f.mu.Lock(); f.active--; f.mu.Unlock() }()
	for quantum := 16 << 10; n > 0; n -= quantum {
		f.mu.Lock()
		speed := f.perConn
		if f.total > 0 {
			speed = min(speed, f.total/int64(f.active))
		}
		f.mu.Unlock()
		if !sleep(ctx, time.Duration(float64(min(n, quantum))/float64(speed)*float64(time.Second))) {
			return ctx.Err()
		}
	}
	return nil
}

// fetches returns how many blocks were asked for, and how many of them again.
func (f *fakeOrigin) fetches() (n, again int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.asked {
		n += k
		again += k - 1
	}
	return n, again
}

func (f *fakeOrigin) setDown(err error) { f.mu.Lock(); f.down = err; f.mu.Unlock() }

func (f *fakeOrigin) forget() { f.mu.Lock(); f.asked, f.order, f.starts = nil, nil, nil; f.mu.Unlock() }

// object describes the origin to the cache.
func (f *fakeOrigin) object(key string) Object {
	return Object{Key: key, Size: f.size, BlockSize: f.blockSize, Fetch: f.fetch}
}

func isSlowDown(err error) bool { return errors.Is(err, errSlowDown) }

// truth is what the origin holds, as a block.Reader.
type truth struct{ f *fakeOrigin }

func (t truth) Size() int64 { return t.f.size }

func (t truth) ReadAt(p []byte, off int64) (int, error) {
	b := make([]byte, t.f.blockSize)
	n := 0
	for n < len(p) && off+int64(n) < t.f.size {
		at := off + int64(n)
		k := at / t.f.blockSize
		q := b[:min(t.f.blockSize, t.f.size-k*t.f.blockSize)]
		if t.f.content != nil {
			t.f.content(k, q)
		} else {
			pattern(k, q)
		}
		n += copy(p[n:], q[at-k*t.f.blockSize:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// openCache opens a cache in a folder of its own.
func openCache(t testing.TB, dir string, budget int64) *Cache {
	t.Helper()
	c, err := Open(Config{Dir: dir, Budget: budget, Logger: slog.New(slog.NewTextHandler(logTo{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type logTo struct{ t testing.TB }

func (l logTo) Write(p []byte) (int, error) { l.t.Log(string(p)); return len(p), nil }

func openReader(t testing.TB, c *Cache, o Object, s *Scheduler) *Reader {
	t.Helper()
	r, err := c.Open(o, s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustClose(t testing.TB, list ...interface{ Close() error }) {
	t.Helper()
	for _, c := range list {
		if err := c.Close(); err != nil {
			t.Error(fmt.Errorf("close: %w", err))
		}
	}
}
