package cache

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"yester/internal/block"
)

// TestHydrateResumes stops in the middle and goes on in another process, with
// zeros that cost nothing, and an origin that fails meanwhile.
func TestHydrateResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 64 << 20, blockSize: 64 << 10, latency: 20 * time.Millisecond, content: func(int64, []byte) {}}
		o := f.object("v1")
		o.Zero = func(_ context.Context, n int64) (bool, error) { return n%2 == 1, nil }
		dir := t.TempDir()
		c := openCache(t, dir, 0)
		r := openReader(t, c, o, NewScheduler(Limits{}, nil))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		err := r.Hydrate(ctx, HydrateOptions{})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if ok, err := r.Complete(t.Context()); ok || err != nil {
			t.Errorf("complete: %v, %v", ok, err)
		}
		mustClose(t, r, c)
		some, _ := f.fetches()
		if some == 0 || some >= 512 {
			t.Fatalf("%d blocks", some)
		}
		c = openCache(t, dir, 0)
		r = openReader(t, c, o, NewScheduler(Limits{}, nil))
		f.setDown(errors.New("gone"))
		time.AfterFunc(10*time.Second, func() { f.setDown(nil); f.forget() })
		var last Progress
		if err := r.Hydrate(t.Context(), HydrateOptions{Progress: func(p Progress) { last = p }}); err != nil {
			t.Fatal(err)
		}
		if last.Blocks != 1024 || last.Total != 1024 || last.Fetched == 0 || last.Fetched > 512 || last.Bytes != last.Fetched*f.blockSize {
			t.Errorf("%+v", last)
		}
		if n, again := f.fetches(); again != 0 || n > 512 {
			t.Errorf("%d blocks after the restart, %d again; %d before", n, again, some)
		}
		if ok, err := r.Complete(t.Context()); !ok || err != nil {
			t.Errorf("complete: %v, %v", ok, err)
		}
		mustClose(t, r, c)
	})
}

// TestHydratePaces holds hydration to a bandwidth, and then altogether.
func TestHydratePaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 64 << 20, blockSize: 64 << 10, latency: 20 * time.Millisecond, content: func(int64, []byte) {}}
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- r.Hydrate(t.Context(), HydrateOptions{Bandwidth: 4 << 20}) }()
		time.Sleep(4 * time.Second)
		n, _ := f.fetches()
		if got := float64(n) * 64 / 1024 / 16; got < 0.95 || got > 1.05 {
			t.Errorf("%.2f of the bandwidth", got)
		}
		r.PauseHydration(true)
		time.Sleep(time.Second)
		before, _ := f.fetches()
		time.Sleep(time.Minute)
		if after, _ := f.fetches(); after != before {
			t.Errorf("%d blocks while paused", after-before)
		}
		r.PauseHydration(false)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(began) - 61*time.Second; d < 14*time.Second || d > 18*time.Second {
			t.Errorf("took %v, want about 16 s", d)
		}
		mustClose(t, r, c)
	})
}

// TestHydrateBudget hydrates what doesn't fit.
func TestHydrateBudget(t *testing.T) {
	f := &fakeOrigin{size: 32 << 20, blockSize: 256 << 10}
	c := openCache(t, t.TempDir(), 8<<20)
	r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
	if err := r.Hydrate(t.Context(), HydrateOptions{}); !errors.Is(err, ErrBudget) {
		t.Errorf("error %v, want %v", err, ErrBudget)
	}
	if n, _ := f.fetches(); n > 32 {
		t.Errorf("%d blocks fetched for a cache of 32", n)
	}
	mustClose(t, r, c)
}

// TestSequential reads through a disk as a copy of its image does.
func TestSequential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := ebs(256 << 20)
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		began := time.Now()
		p := make([]byte, 32<<10)
		for off := int64(0); off < f.size; off += int64(len(p)) {
			if _, err := r.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		share := float64(f.size) / time.Since(began).Seconds() / float64(f.total)
		t.Logf("%.1f %% of the bandwidth", 100*share)
		if share < 0.8 {
			t.Errorf("%.1f %% of the bandwidth", 100*share)
		}
		if _, again := f.fetches(); again != 0 {
			t.Errorf("%d blocks again", again)
		}
		mustClose(t, r, c)
	})
}

// TestSmallReads reads little here and there: nothing is read ahead.
func TestSmallReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 64 << 20, blockSize: 64 << 10}
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		for _, n := range []int64{0, 1, 300, 301, 302, 900, 5, 6} {
			if _, err := r.ReadAt(make([]byte, 4096), n*f.blockSize); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if n, _ := f.fetches(); n != 8 {
			t.Errorf("%d blocks fetched for 8", n)
		}
		mustClose(t, r, c)
	})
}

// TestHugeObject opens 16 TiB and reads all over it: what is kept in memory for
// its 33 million blocks is bounded.
func TestHugeObject(t *testing.T) {
	f := &fakeOrigin{size: 16 << 40, blockSize: 512 << 10, content: func(int64, []byte) {}}
	o := f.object("v1")
	o.Lineage = "vol-1"
	c := openCache(t, t.TempDir(), 0)
	r := openReader(t, c, o, NewScheduler(Limits{}, nil))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools keep is given up at the second
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range int64(64) {
		off := i * (f.size / 64)
		block.Prefetch(r, block.Range{Off: off + 1<<20, Len: 1})
		if _, err := r.ReadAt(make([]byte, 10), off); err != nil {
			t.Fatal(err)
		}
	}
	if after := heap(); after > before+64<<20 {
		t.Errorf("%d MiB of memory", (after-before)>>20)
	}
	mustClose(t, r, c)
}

// TestHintsBounded asks for far more than can be fetched soon, as an initiator may.
func TestHintsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 16 << 40, blockSize: 64 << 10, latency: time.Second, content: func(int64, []byte) {}}
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		for i := range int64(10) {
			block.Prefetch(r, block.Range{Off: i << 40, Len: f.size})
			synctest.Wait()
		}
		if n := r.Stats().InFlight; n < 64 || n > maxHints {
			t.Errorf("%d blocks wait", n)
		}
		mustClose(t, r, c)
	})
}
