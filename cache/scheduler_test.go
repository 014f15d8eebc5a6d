package cache

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"yester/internal/block"
)

// ebs is an origin in the proportions of the fake of EBS, 25 ms a request, 64 MiB/s
// a connection, 500 MiB/s in all, with an eighth of the bytes.
func ebs(size int64) *fakeOrigin {
	return &fakeOrigin{size: size, blockSize: 64 << 10, latency: 25 * time.Millisecond, perConn: 8 << 20, total: 500 << 17,
		content: func(n int64, p []byte) { p[0] = byte(n) }}
}

// TestHydrationSpeed hydrates with nothing else going on: simulated time, so the
// share of the origin's bandwidth is exact.
func TestHydrationSpeed(t *testing.T) {
	for name, c := range map[string]struct {
		f    *fakeOrigin
		full float64 // bytes a second
	}{
		"fast":  {ebs(256 << 20), 500 << 17},
		"slow":  {&fakeOrigin{size: 32 << 20, blockSize: 64 << 10, latency: 25 * time.Millisecond, perConn: 8 << 20, total: 3 << 20, content: func(int64, []byte) {}}, 3 << 20},
		"small": {&fakeOrigin{size: 128 << 20, blockSize: 64 << 10, latency: 25 * time.Millisecond, perConn: 64 << 20, total: 50 << 20, content: func(int64, []byte) {}}, 50 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := openCache(t, t.TempDir(), 0)
				r := openReader(t, ca, c.f.object("v1"), NewScheduler(Limits{}, nil))
				began := time.Now()
				if err := r.Hydrate(t.Context(), HydrateOptions{}); err != nil {
					t.Fatal(err)
				}
				share := float64(c.f.size) / time.Since(began).Seconds() / c.full
				t.Logf("%.1f %% of the bandwidth; at most %d in flight", 100*share, c.f.most)
				if share < 0.9 {
					t.Errorf("only %.1f %%", 100*share)
				}
				if _, again := c.f.fetches(); again != 0 {
					t.Errorf("%d blocks again", again)
				}
				mustClose(t, r, ca)
			})
		})
	}
}

// TestForegroundUnderHydration measures reads alone and under full hydration.
func TestForegroundUnderHydration(t *testing.T) {
	p99 := func(hydrate bool, readers, reads int, pause time.Duration) (d time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			f := ebs(512 << 20)
			c := openCache(t, t.TempDir(), 0)
			r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			if hydrate {
				go func() { done <- r.Hydrate(ctx, HydrateOptions{}) }()
				time.Sleep(time.Second)
			}
			taken := make(chan time.Duration, 1000)
			var wg sync.WaitGroup
			for i := range readers {
				rng := rand.New(rand.NewPCG(uint64(i), 1))
				wg.Go(func() {
					for range reads / readers {
						n := rng.Int64N(f.size / f.blockSize)
						for range 100 { // nearly always something that isn't there
							if !r.own.has(n) {
								break
							}
							n = rng.Int64N(f.size / f.blockSize)
						}
						began := time.Now()
						if _, err := r.ReadAt(make([]byte, 4096), n*f.blockSize); err != nil {
							t.Error(err)
						}
						taken <- time.Since(began)
						time.Sleep(pause)
					}
				})
			}
			wg.Wait()
			close(taken)
			var all []time.Duration
			for d := range taken {
				all = append(all, d)
			}
			slices.Sort(all)
			d = all[len(all)*99/100]
			cancel()
			if hydrate {
				<-done
			}
			mustClose(t, r, c)
		})
		return d
	}
	for _, readers := range []int{1, 4} {
		for pause, reads := range map[time.Duration]int{0: 160, 300 * time.Millisecond: 24 * readers} {
			alone, with := p99(false, readers, reads, pause), p99(true, readers, reads, pause)
			t.Logf("%d readers, %v between reads: p99 %v alone, %v under hydration: %.2f", readers, pause, alone, with, float64(with)/float64(alone))
			if float64(with) > 1.5*float64(alone) {
				t.Errorf("more than 1.5 times")
			}
		}
	}
}

// TestThrottled hydrates from an origin that allows 200 requests a second.
func TestThrottled(t *testing.T) {
	for _, limits := range []Limits{{PerSecond: 800}, {}} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeOrigin{size: 200 << 20, blockSize: 64 << 10, latency: 25 * time.Millisecond, perSecond: 200, content: func(int64, []byte) {}}
			c := openCache(t, t.TempDir(), 0)
			r := openReader(t, c, f.object("v1"), NewScheduler(limits, isSlowDown))
			began := time.Now()
			errs := make(chan error, 1)
			go func() { // somebody reads meanwhile, and sees no error
				rng := rand.New(rand.NewPCG(1, 1))
				for time.Since(began) < 10*time.Second {
					if _, err := r.ReadAt(make([]byte, 10), rng.Int64N(f.size-10)); err != nil {
						errs <- err
						return
					}
					time.Sleep(4 * time.Second)
				}
				errs <- nil
			}()
			if err := r.Hydrate(t.Context(), HydrateOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := <-errs; err != nil {
				t.Error(err)
			}
			rate := float64(f.size/f.blockSize) / time.Since(began).Seconds()
			t.Logf("from %v/s: %.1f blocks a second, %d refused", limits.PerSecond, rate, f.refused)
			if rate < 180 {
				t.Errorf("%.1f blocks a second, want 180 at least", rate)
			}
			if f.refused > 3200/20 {
				t.Errorf("%d requests refused", f.refused)
			}
			mustClose(t, r, c)
		})
	}
}

// TestYield has the origin full of background work when somebody comes: he is
// served before any other request is begun.
func TestYield(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := ebs(256 << 20)
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Hydrate(ctx, HydrateOptions{}) }()
		time.Sleep(100 * time.Millisecond)
		// One that waits its turn, at the end of the queue.
		n := f.size/f.blockSize - 1
		block.Prefetch(r, block.Range{Off: n * f.blockSize, Len: 1})
		f.mu.Lock()
		asked := len(f.order)
		f.mu.Unlock()
		if _, err := r.ReadAt(make([]byte, 1), n*f.blockSize); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		if len(f.order) <= asked || f.order[asked] != n {
			t.Errorf("asked for %v before block %d", f.order[asked:], n)
		}
		during := len(f.order) - asked - 1
		f.mu.Unlock()
		t.Logf("%d background requests begun during the read", during)
		if during > 8 {
			t.Errorf("%d background requests begun meanwhile", during)
		}
		cancel()
		<-done
		mustClose(t, r, c)
	})
}

// TestPromotion wants a block that waits in the background's queue.
func TestPromotion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 64 << 20, blockSize: 64 << 10, latency: 100 * time.Millisecond}
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{Bulk: 2}, nil))
		block.Prefetch(r, block.Range{Len: f.size})
		synctest.Wait()
		began := time.Now()
		if _, err := r.ReadAt(make([]byte, 1), 500*f.blockSize); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 110*time.Millisecond {
			t.Errorf("took %v", d)
		}
		if n, again := f.fetches(); again != 0 || n > 8 {
			t.Errorf("%d fetches, %d again", n, again)
		}
		if s := r.Stats(); s.PrefetchedUsed != 1 || s.Prefetched < 500 {
			t.Errorf("%+v", s)
		}
		mustClose(t, r, c)
	})
}

// TestRateAfterRest is throttled just after a rest: what got through is what was
// asked for while something was.
func TestRateAfterRest(t *testing.T) {
	b := rate{limit: 950}
	now := time.Unix(1_000_000, 0)
	b.success(now)
	now = now.Add(5 * time.Second)
	for range 160 { // 400 a second
		b.success(now)
		now = now.Add(2500 * time.Microsecond)
	}
	b.throttle(now)
	if b.ceiling < 360 || b.ceiling > 440 {
		t.Errorf("a ceiling of %.0f requests/s, of 400 that got through", b.ceiling)
	}
}
