package ebs_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"yester/imageformats/ebs"
	"yester/internal/ebsfake"
)

// history is a volume over days: versions[day][block], 0 for never written.
type history struct {
	versions [][]uint64
}

// newHistory makes days of a volume that begins with blocks/2 written ones, of
// which share changes each day, and which grows at half time.
func newHistory(days int, blocks int64, share float64) *history {
	rng := rand.New(rand.NewPCG(1, 2))
	h := &history{}
	now := make([]uint64, blocks)
	version := uint64(1)
	for n := range now {
		if n%2 == 0 {
			now[n] = version
		}
	}
	for day := range days {
		if day == days/2 {
			now = append(now, make([]uint64, 2048)...)
		}
		for range int(float64(len(now)) * share) {
			version++
			n := rng.IntN(len(now))
			if now[n] = version; rng.IntN(10) == 0 {
				now[n] = 0
			}
		}
		h.versions = append(h.versions, append([]uint64(nil), now...))
	}
	return h
}

func (h *history) image(day int) *ebsfake.Generated {
	v := h.versions[day]
	return &ebsfake.Generated{Blocks: int64(len(v)), VersionOf: func(n int64) uint64 { return v[n] }}
}

func (h *history) add(t *testing.T, s *ebsfake.Server, volume string, tags map[string]string) {
	t.Helper()
	for day := range h.versions {
		add(t, s, ebsfake.Snapshot{ID: fmt.Sprintf("snap-%03x", day), VolumeID: volume, Lineage: "one", Image: h.image(day), Tags: tags,
			StartTime: time.Date(2026, 10, 1+day, 3, 0, 0, 0, time.UTC)})
	}
}

// TestLineage looks at thirty points of a volume in several orders. A cache by
// Home must always have the right bytes, and hold each content once per run of
// days in which it stood there.
func TestLineage(t *testing.T) {
	const days, blocks = 30, 8192 // and a second region from half time on
	const stride = 5
	h := newHistory(days, blocks, 0.05)
	want := map[[2]uint64]bool{} // block and version: what must be fetched
	for _, v := range h.versions {
		for n, version := range v {
			if version != 0 && n%stride == 0 {
				want[[2]uint64{uint64(n), version}] = true
			}
		}
	}
	forward := make([]int, days)
	for i := range forward {
		forward[i] = i
	}
	shuffled := rand.New(rand.NewPCG(3, 4)).Perm(days)
	for name, tt := range map[string]struct {
		order []int
		tags  map[string]string
		vol   string
	}{
		"forward":  {order: forward, vol: "vol-0a"},
		"shuffled": {order: shuffled, vol: "vol-0a"},
		"copies":   {order: shuffled, vol: "vol-ffffffff", tags: map[string]string{"Name": "web01", "aws:backup:source-resource": "vol-0a:x"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := fake(t, ebsfake.Settings{})
			h.add(t, s, tt.vol, tt.tags)
			var kept blobs
			type place struct {
				home  string
				block int
			}
			held := map[place]uint64{} // versions: the cache
			fetched := 0
			c := client(t, ebs.Config{Blobs: &kept})
			ctx := context.Background()
			for i, day := range tt.order {
				if i == days/2 { // another run
					c.Close()
					c = client(t, ebs.Config{Blobs: &kept})
				}
				d := open(t, c, fmt.Sprintf("snap-%03x", day))
				for n := 0; n < len(h.versions[day]); n += stride {
					version := h.versions[day][n]
					zero, err := d.Zero(ctx, int64(n))
					if err != nil || zero != (version == 0) {
						t.Fatalf("day %d block %d: Zero %v, %v", day, n, zero, err)
					}
					if zero {
						continue
					}
					home, err := d.Home(ctx, int64(n))
					if err != nil {
						t.Fatal(err)
					}
					key := place{home, n}
					switch got, ok := held[key]; {
					case !ok:
						fetched++
						held[key] = version
					case got != version:
						t.Fatalf("day %d block %d: under %s lies version %d, want %d", day, n, home, got, version)
					}
				}
				d.Close()
			}
			if fetched != len(want) {
				t.Errorf("%d blocks fetched, %d would do", fetched, len(want))
			}
			counts := s.Counts()
			t.Logf("%d blocks for %d points; %d lists, %d comparisons", fetched, days, counts["ListSnapshotBlocks"], counts["ListChangedBlocks"])
			// Per point and region one comparison with each neighbour, and no more.
			if max := int64(2 * 2 * days); counts["ListChangedBlocks"] > max {
				t.Errorf("%d comparisons, want at most %d", counts["ListChangedBlocks"], max)
			}
		})
	}
}

// TestNextDay: the first look at a later point costs two lists, and what it reads
// is this point's.
func TestNextDay(t *testing.T) {
	h := newHistory(2, 8192, 0.05)
	s := fake(t, ebsfake.Settings{})
	h.add(t, s, "vol-0a", nil)
	c := client(t, ebs.Config{})
	ctx := context.Background()
	one, two := open(t, c, "snap-000"), open(t, c, "snap-001")
	for _, d := range []*ebs.Disk{one, two} {
		if _, err := d.Zero(ctx, 10); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Home(ctx, 10); err != nil {
			t.Fatal(err)
		}
	}
	var changed, same int64
	p, want := make([]byte, ebs.BlockSize), make([]byte, ebs.BlockSize)
	img := h.image(1)
	for n := range int64(8192) {
		home, err := two.Home(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		if (home == one.Key()) != (h.versions[0][n] == h.versions[1][n]) || home != one.Key() && home != two.Key() {
			t.Fatalf("block %d: home %s", n, home)
		}
		if home == one.Key() {
			same++
			continue
		}
		if changed++; changed%16 == 0 {
			if err := two.Fetch(ctx, n, p); err != nil {
				t.Fatal(err)
			}
			if img.Block(n, want); !bytes.Equal(p, want) {
				t.Fatalf("block %d is wrong", n)
			}
		}
	}
	if changed == 0 || same == 0 {
		t.Fatalf("%d changed, %d the same", changed, same)
	}
	if counts := s.Counts(); counts["ListChangedBlocks"] != 1 {
		t.Errorf("%d comparisons, want 1", counts["ListChangedBlocks"])
	}
}

// TestNoComparison: where AWS won't compare, each snapshot is its own home, and
// nothing fails.
func TestNoComparison(t *testing.T) {
	h := newHistory(2, 4096, 0.05)
	for name, spoil := range map[string]func(*ebsfake.Server){
		"denied":    func(s *ebsfake.Server) { s.SetSettings(ebsfake.Settings{Deny: []string{"ebs:ListChangedBlocks"}}) },
		"unrelated": func(s *ebsfake.Server) { s.Replace("snap-001", func(s *ebsfake.Snapshot) { s.Lineage = "other" }) },
		"deleted":   func(s *ebsfake.Server) { s.Remove("snap-000") },
	} {
		t.Run(name, func(t *testing.T) {
			s := fake(t, ebsfake.Settings{})
			h.add(t, s, "vol-0a", nil)
			c := client(t, ebs.Config{})
			one, two := open(t, c, "snap-000"), open(t, c, "snap-001")
			ctx := context.Background()
			if _, err := one.Home(ctx, 0); err != nil {
				t.Fatal(err)
			}
			spoil(s)
			for n := range int64(100) {
				if home, err := two.Home(ctx, n); err != nil || home != two.Key() {
					t.Fatalf("home %s, %v", home, err)
				}
			}
			if n := s.Counts()["ListChangedBlocks"]; n > 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}
