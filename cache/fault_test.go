package cache

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"yester/internal/block"
)

// TestFaults reads through two caches on one small directory, with readers who
// leave, splice or hint, while the origin fails, throttles and dawdles: whatever
// is read is right, and errors are the origin's.
func TestFaults(t *testing.T) {
	f := &fakeOrigin{size: 12 << 20, blockSize: 64 << 10}
	broken := errors.New("connection reset")
	var asked, throttled atomic.Int64
	o := f.object("v1")
	o.Lineage = "vol-1"
	o.Zero = func(_ context.Context, n int64) (bool, error) { return n%10 == 9, nil }
	o.Fetch = func(ctx context.Context, n int64, p []byte) error {
		asked.Add(1)
		switch rand.IntN(20) {
		case 0:
			for i := range p {
				p[i] = 0xEE // half a body
			}
			return broken
		case 1:
			throttled.Add(1)
			return errSlowDown
		case 2:
			if !sleep(ctx, time.Duration(rand.IntN(20))*time.Millisecond) {
				return ctx.Err()
			}
		}
		pattern(n, p)
		return nil
	}
	want := make([]byte, f.size)
	truth{f}.ReadAt(want, 0)
	for n := int64(9); n < f.size/f.blockSize; n += 10 {
		clear(want[n*f.blockSize:][:f.blockSize])
	}
	dir := t.TempDir()
	var caches [2]*Cache
	var readers [2]*Reader
	for i := range caches {
		caches[i] = openCache(t, dir, 4<<20)
		readers[i] = openReader(t, caches[i], o, NewScheduler(Limits{PerSecond: 20_000}, isSlowDown))
	}
	var wg sync.WaitGroup
	var right, spliced, failed atomic.Int64
	for i := range 8 {
		r := readers[i%2]
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 5))
			p := make([]byte, 200<<10)
			for range 400 {
				q := p[:1+rng.IntN(len(p))]
				off := rng.Int64N(f.size - int64(len(q)))
				switch rng.IntN(8) {
				case 0:
					block.Prefetch(r, block.Range{Off: off, Len: 512 << 10})
					continue
				case 1: // as fusefs does
					e, err := r.Extent(t.Context(), off, int64(len(q)))
					if err != nil || e.File == nil {
						continue
					}
					q = q[:e.Len]
					if _, err := e.File.ReadAt(q, e.Off); err != nil {
						t.Error(err)
					}
					if now, err := r.Extent(t.Context(), off, e.Len); err != nil || !e.SamePlace(now) {
						continue
					}
					spliced.Add(1)
				default:
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rng.IntN(200))*time.Millisecond)
					_, err := r.ReadAtContext(ctx, q, off)
					cancel()
					switch {
					case errors.Is(err, broken), errors.Is(err, context.DeadlineExceeded):
						failed.Add(1)
						continue
					case err != nil:
						t.Error(err)
						continue
					}
					right.Add(1)
				}
				if !bytes.Equal(q, want[off:][:len(q)]) {
					t.Errorf("wrong bytes at %#x", off)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d reads right, %d spliced, %d failed; %d requests, %d throttled", right.Load(), spliced.Load(), failed.Load(), asked.Load(), throttled.Load())
	if right.Load() < 500 || spliced.Load() == 0 {
		t.Error("hardly anything was read")
	}
	mustClose(t, readers[0], readers[1], caches[0], caches[1])
}
