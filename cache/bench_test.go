package cache

import (
	"math/rand/v2"
	"testing"
	"time"

	"yester/internal/block"
)

// BenchmarkPresent reads what is in the cache: what it costs to look.
func BenchmarkPresent(b *testing.B) {
	f := &fakeOrigin{size: 64 << 20, blockSize: 512 << 10}
	c := openCache(b, b.TempDir(), 0)
	o := f.object("v1")
	o.Lineage = "vol-1"
	r := openReader(b, c, o, NewScheduler(Limits{}, nil))
	if err := r.Hydrate(b.Context(), HydrateOptions{}); err != nil {
		b.Fatal(err)
	}
	for name, size := range map[string]int{"4K": 4 << 10, "128K": 128 << 10} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(size))
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, size)
				rng := rand.New(rand.NewPCG(1, rand.Uint64()))
				for pb.Next() {
					if _, err := r.ReadAt(p, rng.Int64N((f.size-int64(size))/4096)*4096); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
	b.Run("Extent", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if e, err := block.ExtentAt(b.Context(), r, int64(i%500)*(128<<10), 128<<10); err != nil || e.File == nil {
				b.Fatal(e, err)
			}
		}
	})
	mustClose(b, r, c)
}

// BenchmarkHydrate fetches from an origin that takes no time, and from one that
// takes 25 ms: what this machine can take in.
func BenchmarkHydrate(b *testing.B) {
	for name, latency := range map[string]time.Duration{"at once": 0, "25 ms": 25 * time.Millisecond} {
		b.Run(name, func(b *testing.B) {
			f := &fakeOrigin{size: 512 << 20, blockSize: 512 << 10, latency: latency, content: func(int64, []byte) {}}
			b.SetBytes(f.size)
			for b.Loop() {
				c := openCache(b, b.TempDir(), 0)
				r := openReader(b, c, f.object("v1"), NewScheduler(Limits{}, nil))
				if err := r.Hydrate(b.Context(), HydrateOptions{}); err != nil {
					b.Fatal(err)
				}
				mustClose(b, r, c)
			}
		})
	}
}
