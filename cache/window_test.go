package cache

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// run lets a window run against an origin whose throughput grows with the requests
// in flight up to knee, 1 ms for each request from there on, for so many epochs; of
// every three of those, one is slow for a reason that has nothing to do with it.
func run(w *window, knee, epochs int, rng *rand.Rand) {
	now := time.Unix(1_000_000, 0)
	for range epochs {
		each := time.Millisecond * time.Duration(max(knee, w.now())) / time.Duration(w.now())
		if rng.IntN(3) == 0 {
			each = each * 5 / 3
		}
		for range max(epochLeast, 2*w.now()) {
			now = now.Add(each)
			w.done(now, 1<<19)
		}
	}
}

// TestWindowDelays is a window beside delays that come and go: it stays above the
// size that brings the whole throughput, and not far above, nearly always.
func TestWindowDelays(t *testing.T) {
	for _, knee := range []int{4, 12, 33, 50} {
		low, high, n := 0, 0, 0
		for seed := range uint64(100) {
			w := window{size: firstWindow, most: 64}
			rng := rand.New(rand.NewPCG(seed, 2))
			for epochs := range 10 {
				run(&w, knee, 40, rng)
				got := w.now()
				if w.rate != 0 {
					got = int(w.prev) // another is being tried
				}
				n++
				if got < knee*9/10 {
					low++
				}
				if epochs > 5 && got > 2*knee+4 {
					high++
				}
			}
		}
		t.Logf("%d requests fill it: of %d windows %d were smaller, %d larger by far", knee, n, low, high)
		if low > n/20 || high > n/20 {
			t.Errorf("%d requests fill it: of %d windows %d were smaller, %d larger by far", knee, n, low, high)
		}
	}
}

// TestSlowEnd has requests whose ends take long: to the origin they are over, so
// others run meanwhile, up to what their buffers may take.
func TestSlowEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, limit = 4 << 20, maxLanded / (4 << 20)
		s := NewScheduler(Limits{Interactive: 1, Bulk: 2}, nil)
		var mu sync.Mutex
		ran, ended, most := 0, 0, 0
		release := make(chan struct{})
		var all sync.WaitGroup
		for i := range 3 * limit {
			class := foreground
			if i%3 == 0 {
				class = ahead
			}
			all.Add(1)
			s.submit(&request{class: class, size: size, ctx: t.Context(), run: func() error {
				time.Sleep(time.Millisecond)
				mu.Lock()
				ran++
				most = max(most, ran-ended)
				mu.Unlock()
				return nil
			}, end: func(error) {
				<-release
				mu.Lock()
				ended++
				mu.Unlock()
				all.Done()
			}})
		}
		time.Sleep(10 * time.Second)
		mu.Lock()
		if ran < limit || ran > limit+4 { // those that were under way have run, too
			t.Errorf("%d have run while none ended, want %d", ran, limit)
		}
		mu.Unlock()
		close(release)
		all.Wait()
		synctest.Wait()
		if ran != 3*limit || s.landed != 0 || s.buffers != 0 || s.running != [classes]int{} {
			t.Errorf("%d ran; %d bytes landed, %d in flight, %v running at the end", ran, s.landed, s.buffers, s.running)
		}
	})
}
