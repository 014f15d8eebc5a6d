package cache

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// TestHotFirst records a look at one version and takes it again at the next, with
// nothing kept but the hot map.
func TestHotFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := ebs(512 << 20)
		rng := rand.New(rand.NewPCG(3, 3))
		trace := make([]int64, 1000)
		for i := range trace {
			trace[i] = rng.Int64N(f.size - 100)
		}
		look := func(c *Cache, key string) time.Duration {
			o := f.object(key)
			o.Lineage = "vol-1"
			r := openReader(t, c, o, NewScheduler(Limits{}, nil))
			began := time.Now()
			for _, off := range trace {
				if _, err := r.ReadAt(make([]byte, 100), off); err != nil {
					t.Fatal(err)
				}
			}
			d := time.Since(began)
			mustClose(t, r)
			return d
		}
		c := openCache(t, t.TempDir(), 0)
		cold := look(c, "monday")
		f.forget()
		hot := look(c, "tuesday")
		n, again := f.fetches()
		t.Logf("%v without the map, %v with it: %.1f times; %d blocks", cold, hot, float64(cold)/float64(hot), n)
		if hot*4 > cold {
			t.Errorf("%v with the map, %v without", hot, cold)
		}
		if again > 0 {
			t.Errorf("%d blocks again", again)
		}
		if s := c.Stats(); s.PrefetchedUsed*10 < s.Prefetched*9 {
			t.Errorf("%+v", s)
		}
		mustClose(t, c)
	})
}

// TestHotSurvives saves the map now and then, for the case of a crash, and merges
// what two processes have seen.
func TestHotSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOrigin{size: 64 << 20, blockSize: 64 << 10}
		o := f.object("monday")
		o.Lineage = "vol-1"
		dir := t.TempDir()
		a, b := openCache(t, dir, 0), openCache(t, dir, 0)
		ra, rb := openReader(t, a, o, NewScheduler(Limits{}, nil)), openReader(t, b, o, NewScheduler(Limits{}, nil))
		read := func(r *Reader, blocks ...int64) {
			for _, n := range blocks {
				if _, err := r.ReadAt(make([]byte, 1), n*f.blockSize); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
		}
		known := func() (list []int64) {
			c := openCache(t, dir, 0)
			raw, err := c.store.Blob(hotName("vol-1"))
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range parseHot(raw, f.blockSize) {
				list = append(list, int64(h.n))
			}
			mustClose(t, c)
			return list
		}
		read(ra, 500, 3, 40)
		time.Sleep(2 * saveEvery) // a crash from here on loses nothing
		if got := known(); len(got) != 3 || got[0] != 500 || got[1] != 3 || got[2] != 40 {
			t.Errorf("kept %v", got)
		}
		read(rb, 700, 500)
		mustClose(t, rb)
		if got := known(); len(got) != 4 {
			t.Errorf("kept %v after another process", got)
		}
		read(ra, 900)
		mustClose(t, ra, a, b)
		if got := known(); len(got) != 5 {
			t.Errorf("kept %v of both", got)
		}
	})
}

// TestMergeHot looks at order, decay and bounds.
func TestMergeHot(t *testing.T) {
	look := func(blocks ...uint32) (list []touchedBlock) {
		for i, n := range blocks {
			list = append(list, touchedBlock{n, time.Duration(i) * time.Second})
		}
		return list
	}
	weight := func(m []hotBlock, n uint32) float64 {
		for _, h := range m {
			if h.n == n {
				return h.weight
			}
		}
		return 0
	}
	m := mergeHot(nil, look(9, 4, 7))
	if len(m) != 3 || m[0].n != 9 || m[1].n != 4 || m[2].n != 7 {
		t.Fatalf("%v", m)
	}
	for range 5 {
		m = mergeHot(m, look(4, 100, 101))
	}
	if weight(m, 9) >= leastHot || weight(m, 4) < 2 {
		t.Errorf("after five looks: %v", m)
	}
	for range 20 {
		m = mergeHot(m, look(4, 100, 101, 102, 103))
	}
	if weight(m, 9) != 0 || weight(m, 4) > mostWeight {
		t.Errorf("after twenty more: %v", m)
	}
	big := make([]touchedBlock, maxTouched)
	for i := range big {
		big[i] = touchedBlock{uint32(i * 3), time.Duration(i) * time.Millisecond}
	}
	m = mergeHot(mergeHot(nil, big), look(1, 2, 4))
	if len(m) != maxTouched {
		t.Errorf("%d entries", len(m))
	}
	// A short look hardly ages a large map.
	if w := weight(m, 3); w < 0.99 {
		t.Errorf("weight %v after a short look", w)
	}
	if n := len(encodeHot(m, 64<<10)); n > 8*maxTouched {
		t.Errorf("a record of %d bytes", n)
	}
}

// FuzzParseHot parses records that nobody has written.
func FuzzParseHot(f *testing.F) {
	f.Add(encodeHot([]hotBlock{{n: 3, at: time.Second, weight: 1}, {n: 1 << 31, at: time.Minute, weight: 2}}, 64<<10))
	f.Add([]byte(hotMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		list := parseHot(b, 64<<10)
		if len(list) == 0 {
			return
		}
		again := parseHot(encodeHot(list, 64<<10), 64<<10)
		if len(again) != len(list) || !bytes.Equal(encodeHot(list, 64<<10), encodeHot(again, 64<<10)) {
			t.Error("not the same when written again")
		}
	})
}
