package cache

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"yester/internal/block"
	"yester/internal/readertest"
)

// TestConformance runs the suite of block.Reader over cached objects whose sizes
// end in a block and at its end, cold and then warm.
func TestConformance(t *testing.T) {
	for _, size := range []int64{5<<20 + 12345, 4 << 20} {
		f := &fakeOrigin{size: size, blockSize: 64 << 10}
		dir := t.TempDir()
		for range 2 {
			c := openCache(t, dir, 0)
			r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
			readertest.Run(t, r, truth{f}, 64<<10, 128<<10, size-size%(64<<10))
			mustClose(t, r, c)
		}
		if n, again := f.fetches(); again != 0 || int64(n) != (size+65535)/65536 {
			t.Errorf("%d fetches, %d of them again", n, again)
		}
	}
}

// TestSingleFlight lets many readers want the same blocks at once.
func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 4 << 20, blockSize: 256 << 10, latency: 20 * time.Millisecond}
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		var wg sync.WaitGroup
		want := make([]byte, f.size)
		truth{f}.ReadAt(want, 0)
		for i := range 64 {
			rng := rand.New(rand.NewPCG(uint64(i), 0))
			wg.Go(func() {
				for range 20 {
					p := make([]byte, 1+rng.IntN(300_000))
					off := rng.Int64N(f.size - int64(len(p)))
					if n, err := r.ReadAt(p, off); n != len(p) || err != nil || !bytes.Equal(p, want[off:off+int64(n)]) {
						t.Errorf("read at %#x: %d, %v", off, n, err)
					}
				}
			})
		}
		wg.Wait()
		if n, again := f.fetches(); again != 0 || n != 16 {
			t.Errorf("%d fetches of 16 blocks, %d of them again", n, again)
		}
		mustClose(t, r, c)
	})
}

// TestLeaving cancels a reader who waits: it leaves at once, and the block arrives
// all the same.
func TestLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 1 << 20, blockSize: 256 << 10, latency: time.Second}
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		began := time.Now()
		if _, err := r.ReadAtContext(ctx, make([]byte, 100), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if d := time.Since(began); d != 10*time.Millisecond {
			t.Errorf("left after %v", d)
		}
		time.Sleep(2 * time.Second)
		if _, err := r.ReadAt(make([]byte, 100), 0); err != nil {
			t.Error(err)
		}
		if n, _ := f.fetches(); n != 1 {
			t.Errorf("%d fetches", n)
		}
		mustClose(t, r, c)
	})
}

// TestOriginGone takes the origin away and brings it back.
func TestOriginGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 1 << 20, blockSize: 256 << 10, latency: 20 * time.Millisecond}
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		p := make([]byte, 100)
		if _, err := r.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		gone := errors.New("gone")
		f.setDown(gone)
		if _, err := r.ReadAt(p, 300<<10); !errors.Is(err, gone) {
			t.Errorf("error %v, want %v", err, gone)
		}
		if _, err := r.ReadAt(p, 5); err != nil {
			t.Errorf("what is cached: %v", err)
		}
		f.setDown(nil)
		if _, err := r.ReadAt(p, 300<<10); err != nil {
			t.Errorf("after it came back: %v", err)
		}
		if s := r.Stats(); s.Failed != 1 || s.Fetched != 2 {
			t.Errorf("%+v", s)
		}
		mustClose(t, r, c)
	})
}

// TestJoinedFailure lets a reader join a fetch that somebody else began before the
// origin came back: he must not get its error.
func TestJoinedFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 1 << 20, blockSize: 256 << 10, latency: time.Second}
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		f.setDown(errors.New("gone"))
		block.Prefetch(r, block.Range{Len: 1})
		time.Sleep(500 * time.Millisecond)
		f.setDown(nil)
		if _, err := r.ReadAt(make([]byte, 100), 0); err != nil {
			t.Error(err)
		}
		mustClose(t, r, c)
	})
}

// TestExtents looks at places and zeros, and reads through the places.
func TestExtents(t *testing.T) {
	f := &fakeOrigin{size: 8*64<<10 + 100, blockSize: 64 << 10}
	data := map[int64]bool{1: true, 5: true, 8: true}
	f.content = func(n int64, p []byte) {
		if data[n] {
			pattern(n, p)
		} else {
			clear(p)
		}
	}
	o := f.object("v1")
	o.Zero = func(_ context.Context, n int64) (bool, error) { return !data[n], nil }
	o.Next = func(_ context.Context, from int64) (int64, bool, error) {
		for n := from; n <= 8; n++ {
			if data[n] {
				return n, true, nil
			}
		}
		return 0, false, nil
	}
	c := openCache(t, t.TempDir(), 0)
	r := openReader(t, c, o, NewScheduler(Limits{}, nil))
	defer mustClose(t, r, c)
	kinds := func() (s string) {
		for off := int64(0); off < r.Size(); {
			e, err := block.ExtentAt(t.Context(), r, off, r.Size()-off)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case e.Zero:
				s += "z"
			case e.File != nil:
				s += "f"
			default:
				s += "?"
			}
			off += e.Len
		}
		return s
	}
	if k := kinds(); k != "z?z?z?" {
		t.Errorf("cold: %s", k)
	}
	readertest.Run(t, r, truth{f})
	if k := kinds(); k != "zfzfzf" {
		t.Errorf("warm: %s", k)
	}
	if n, again := f.fetches(); n != 3 || again != 0 {
		t.Errorf("%d fetches for 3 blocks that aren't zeros, %d again", n, again)
	}
	if ok, err := r.Complete(t.Context()); !ok || err != nil {
		t.Errorf("complete: %v, %v", ok, err)
	}
}

// TestHome opens two versions of a disk that differ in two of sixteen blocks.
func TestHome(t *testing.T) {
	f := &fakeOrigin{size: 1 << 20, blockSize: 64 << 10}
	c := openCache(t, t.TempDir(), 0)
	s := NewScheduler(Limits{}, nil)
	old := openReader(t, c, f.object("monday"), s)
	p := make([]byte, f.size)
	if _, err := old.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	f.forget()
	o := f.object("tuesday")
	o.Home = func(_ context.Context, n int64) (string, error) {
		if n == 3 || n == 9 {
			return "tuesday", nil
		}
		return "monday", nil
	}
	r := openReader(t, c, o, s)
	readertest.Run(t, r, truth{f})
	if n, _ := f.fetches(); n != 2 {
		t.Errorf("%d fetches for 2 changed blocks", n)
	}
	mustClose(t, r, old, c)
}

// TestTwoCaches lets two caches, as of two processes, read one directory.
func TestTwoCaches(t *testing.T) {
	f := &fakeOrigin{size: 4 << 20, blockSize: 64 << 10, latency: 5 * time.Millisecond}
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 2 {
		c := openCache(t, dir, 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		wg.Go(func() {
			p := make([]byte, f.size)
			want := make([]byte, f.size)
			truth{f}.ReadAt(want, 0)
			if _, err := r.ReadAt(p, 0); err != nil || !bytes.Equal(p, want) {
				t.Errorf("reader %d: %v", i, err)
			}
			mustClose(t, r, c)
		})
	}
	wg.Wait()
	if n, again := f.fetches(); n != 64 || again != 0 {
		t.Errorf("%d fetches of 64 blocks, %d of them again", n, again)
	}
}

// TestSmallBudget reads far more than fits.
func TestSmallBudget(t *testing.T) {
	f := &fakeOrigin{size: 6 << 20, blockSize: 64 << 10}
	c := openCache(t, t.TempDir(), 1<<20)
	r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
	readertest.Run(t, r, truth{f})
	mustClose(t, r, c)
}

// TestPlaceStays asks for a place and then reads far more than fits: what lies
// there stays until whoever has asked is surely done with it, and the same answer
// later means that it has stayed.
func TestPlaceStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 64 << 20, blockSize: 64 << 10}
		c := openCache(t, t.TempDir(), 4<<20)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		want, got := make([]byte, f.blockSize), make([]byte, f.blockSize)
		pattern(3, want)
		place := func() block.Extent {
			if _, err := r.ReadAt(got, 3*f.blockSize); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // it is kept after those who wait have been served
			e, err := r.Extent(t.Context(), 3*f.blockSize, f.blockSize)
			if err != nil || e.File == nil {
				t.Fatalf("%+v, %v", e, err)
			}
			return e
		}
		first := place()
		flood := func(from int64) {
			for n := from; n < from+160; n++ {
				if n%16 == 0 {
					time.Sleep(time.Second / 16) // they are written in time
				}
				if _, err := r.ReadAt(make([]byte, 10), n*f.blockSize); err != nil {
					t.Fatal(err)
				}
			}
		}
		flood(10)
		flood(200)
		if _, err := first.File.ReadAt(got, first.Off); err != nil || !bytes.Equal(got, want) {
			t.Error("evicted right after its place was answered")
		}
		time.Sleep(time.Minute)
		flood(400)
		flood(600)
		second := place()
		if first.SamePlace(second) {
			t.Error("the same answer for a block that was evicted and fetched again")
		}
		if n, again := f.fetches(); again == 0 {
			t.Errorf("nothing of %d blocks was evicted", n)
		}
		mustClose(t, r, c)
	})
}

// TestHomeGrown opens the next version of a disk that has grown, first in this
// process and then alone: what it has in common is kept with the smaller one, but
// for the block in which that ended.
func TestHomeGrown(t *testing.T) {
	f := &fakeOrigin{size: 1<<20 - 1000, blockSize: 64 << 10}
	g := &fakeOrigin{size: 2 << 20, blockSize: 64 << 10}
	dir := t.TempDir()
	o := g.object("tuesday")
	o.Home = func(context.Context, int64) (string, error) { return "monday", nil }
	o.HomeSize = func(key string) int64 { return map[string]int64{"monday": f.size}[key] }
	for round := range 2 {
		c := openCache(t, dir, 0)
		s := NewScheduler(Limits{}, nil)
		var old *Reader
		if round == 0 {
			old = openReader(t, c, f.object("monday"), s)
			if _, err := old.ReadAt(make([]byte, f.size), 0); err != nil {
				t.Fatal(err)
			}
		}
		r := openReader(t, c, o, s)
		readertest.Run(t, r, truth{g})
		if n, again := g.fetches(); n != 17 || again != 0 {
			t.Errorf("round %d: %d fetches, %d again; 15 of 32 blocks are in common", round, n, again)
		}
		mustClose(t, r)
		if old != nil {
			mustClose(t, old)
		}
		mustClose(t, c)
	}
}

// TestBlobs keeps small values from one run to the next.
func TestBlobs(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, 0)
	if v, ok := c.Blobs().Get("map/snap-1"); ok {
		t.Errorf("a value %q that nobody has set", v)
	}
	c.Blobs().Set("map/snap-1", []byte("which blocks"))
	mustClose(t, c)
	c = openCache(t, dir, 0)
	if v, ok := c.Blobs().Get("map/snap-1"); !ok || string(v) != "which blocks" {
		t.Errorf("%q, %v", v, ok)
	}
	mustClose(t, c)
}

// TestMappedIsNoStream asks where a file lies that is here, and for nothing more:
// what follows it on the disk is somebody else's.
func TestMappedIsNoStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 64 << 20, blockSize: 64 << 10}
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		const have = 2 << 20
		for off := int64(0); off < have; off += f.blockSize {
			block.Prefetch(r, block.Range{Off: off, Len: f.blockSize})
		}
		time.Sleep(time.Second)
		mustClose(t, r)
		// Another look, to which nobody has said what will be read.
		r = openReader(t, c, f.object("v1"), NewScheduler(Limits{}, nil))
		for off := int64(0); off < have; off += 16 << 10 {
			if e, err := r.Extent(t.Context(), off, 16<<10); err != nil || e.File == nil {
				t.Fatalf("%#x: %+v, %v", off, e, err)
			}
		}
		time.Sleep(time.Second)
		if n, _ := f.fetches(); int64(n) != have/f.blockSize {
			t.Errorf("%d blocks fetched for %d", n, have/f.blockSize)
		}
		// Who goes on from there and has to wait is followed.
		for off := int64(have); off < have+1<<20; off += 16 << 10 {
			if _, err := r.ReadAt(make([]byte, 16<<10), off); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if n, _ := f.fetches(); int64(n) <= (have+1<<20)/f.blockSize {
			t.Errorf("%d blocks fetched: nothing ahead of a stream", n)
		}
		mustClose(t, r, c)
	})
}
