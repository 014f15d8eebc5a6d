package ebs_test

import (
	"bytes"
	"log/slog"
	"testing"

	"yester/cache"
	"yester/imageformats/ebs"
	"yester/internal/block"
	"yester/internal/ebsfake"
)

// cached opens a snapshot through a cache.
func cached(t testing.TB, c *cache.Cache, d *ebs.Disk, s *cache.Scheduler) *cache.Reader {
	t.Helper()
	r, err := c.Open(cache.Object{
		Key: d.Key(), Lineage: d.Snapshot().Volume, Size: d.Size(), BlockSize: ebs.BlockSize,
		Fetch: d.Fetch, Zero: d.Zero, Home: d.Home, HomeSize: d.HomeSize, Next: d.Next,
	}, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// TestCached reads two days of a volume through a cache while the service has its
// faults: every byte is right, no reader sees an error, and of the second day
// nothing is fetched but what differs.
func TestCached(t *testing.T) {
	const blocks = 192
	h := newHistory(2, blocks, 0.1)
	s := fake(t, ebsfake.Settings{Faults: ebsfake.Faults{
		Seed: 1, InternalError: 0.05, Throttle: 0.02, Reset: 0.05, ExpiredToken: 0.01, Truncate: 0.02, BadChecksum: 0.02, BadData: 0.02, MaxRow: 4,
	}})
	h.add(t, s, "vol-0a", nil)
	ca, err := cache.Open(cache.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ca.Close() })
	sched := cache.NewScheduler(cache.Limits{PerSecond: 800}, nil)
	c := client(t, ebs.Config{Blobs: ca.Blobs(), Throttled: func(string) { sched.Throttled() }})
	var fetched int64
	for day := range 2 {
		d := open(t, c, []string{"snap-000", "snap-001"}[day])
		r := cached(t, ca, d, sched)
		if day == 1 {
			// What is the same is known once the comparison is there.
			for n := range int64(blocks) {
				if _, err := d.Home(t.Context(), n); err != nil {
					t.Fatal(err)
				}
			}
		}
		img := h.image(day)
		got, want := make([]byte, blocks*ebs.BlockSize), make([]byte, ebs.BlockSize)
		if err := block.ReadFull(t.Context(), r, got, 0); err != nil {
			t.Fatal(err)
		}
		var need int64
		for n := range int64(blocks) {
			clear(want)
			if img.Written(n) {
				img.Block(n, want)
			}
			if !bytes.Equal(got[n*ebs.BlockSize:][:ebs.BlockSize], want) {
				t.Fatalf("day %d: block %d is wrong", day, n)
			}
			if img.Written(n) && (day == 0 || h.versions[0][n] != h.versions[1][n]) {
				need++
			}
		}
		now := ca.Stats().Fetched
		t.Logf("day %d: %d blocks fetched, %d needed", day, now-fetched, need)
		if now-fetched != need {
			t.Errorf("day %d: %d blocks fetched, %d needed", day, now-fetched, need)
		}
		fetched = now
	}
}
