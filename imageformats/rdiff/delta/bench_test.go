package delta

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"yester/internal/block"
)

// workload is a history of a large file, as rdiff-backup stores it: the mirror
// and the compressed deltas, made by rdiff.
type workload struct {
	size      int64
	count     int
	blockSize int // rdiff-backup's, about the root of the size
	change    func(rng *rand.Rand, b []byte) []byte
}

var workloads = map[string]workload{
	// A database or a disk image: pages are rewritten, seldom something moves.
	"200MiB,30": {200 << 20, 30, 12_800, func(rng *rand.Rand, b []byte) []byte {
		for range 60 {
			at := rng.IntN(len(b)/4096-4) * 4096
			copy(b[at:], random(rng, 4096*(1+rng.IntN(4))))
		}
		at := rng.IntN(len(b) - 1000)
		copy(b[at+1:], b[at:len(b)-1]) // a byte inserted, the last one lost
		return b
	}},
	// A fifth is written anew each time, all over the file: 315 MB of literals.
	"100MiB,15,fifth": {100 << 20, 15, 8_960, func(rng *rand.Rand, b []byte) []byte {
		const piece = 1 << 16
		for range len(b) / 5 / piece {
			copy(b[rng.IntN(len(b)-piece):], random(rng, piece))
		}
		return b
	}},
}

// make writes the history into dir and returns the sources of the oldest version.
func (w workload) make(b *testing.B, dir string) (base Source, deltas []Source) {
	rng := rand.New(rand.NewPCG(1, 1))
	data := random(rng, int(w.size))
	path := func(i int) string { return filepath.Join(dir, fmt.Sprint("version", i)) }
	put := func(name string, b2 []byte) {
		if err := os.WriteFile(name, b2, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	put(path(0), data)
	for i := 1; i <= w.count; i++ {
		data = w.change(rng, data)
		put(path(i), data)
		sig, d := filepath.Join(dir, "signature"), filepath.Join(dir, fmt.Sprintf("%d.diff", i))
		runTool(b, "rdiff", "-f", "-H", "md4", "-R", "rollsum", "-b", fmt.Sprint(w.blockSize), "signature", path(i-1), sig)
		runTool(b, "rdiff", "-f", "delta", sig, path(i), d)
		plain, err := os.ReadFile(d)
		if err != nil {
			b.Fatal(err)
		}
		put(d+".gz", pack(plain))
		os.Remove(d)
		if i > 1 {
			os.Remove(path(i - 1))
		}
		deltas = append(deltas, onHost(d+".gz", w.size))
	}
	return onHost(path(0), w.size), deltas
}

// BenchmarkOldest opens the oldest version of large files and reads it.
func BenchmarkOldest(b *testing.B) {
	for _, name := range []string{"200MiB,30", "100MiB,15,fifth"} {
		w := workloads[name]
		dir := b.TempDir()
		var base Source
		var deltas []Source
		b.Run(name, func(b *testing.B) {
			if deltas == nil {
				base, deltas = w.make(b, dir)
			}
			var opt Options
			open := func(b *testing.B) *Content {
				c, err := Compose(context.Background(), base, deltas, opt)
				if err != nil {
					b.Fatal(err)
				}
				return c
			}
			first := func(b *testing.B) {
				b.ReportAllocs()
				p := make([]byte, 4096)
				var c *Content
				stop := peak()
				for b.Loop() {
					c = open(b)
					if err := block.ReadFull(b.Context(), c, p, w.size/2); err != nil {
						b.Fatal(err)
					}
					c.Close()
				}
				b.ReportMetric(float64(stop())/1e6, "peakMB")
				b.ReportMetric(float64(c.Segments()), "segments")
			}
			b.Run("open", first)
			opt.Spool = &spool{dir: dir}
			b.Run("reopen", first) // the literals are in the spool
			c := open(b)
			defer c.Close()
			b.Run("all", func(b *testing.B) {
				p := make([]byte, 1<<20)
				b.SetBytes(w.size)
				for b.Loop() {
					for off := int64(0); off < w.size; off += int64(len(p)) {
						if err := block.ReadFull(b.Context(), c, p, off); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
			b.Run("rand4K", func(b *testing.B) {
				p := make([]byte, 4096)
				rng := rand.New(rand.NewPCG(1, 1))
				for b.Loop() {
					if err := block.ReadFull(b.Context(), c, p, rng.Int64N(w.size-4096)); err != nil {
						b.Fatal(err)
					}
				}
			})
			want, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("version", w.count)))
			if err != nil {
				b.Fatal(err)
			}
			check(b, c, want)
		})
	}
}

// peak samples the heap until the returned function is called, which gives the
// most that was in use, in bytes, beyond what was at the start.
func peak() func() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	start, most := m.HeapInuse, uint64(0)
	end, ended := make(chan bool), make(chan bool)
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse)
			}
		}
	}()
	return func() uint64 {
		close(end)
		<-ended
		return most - min(start, most)
	}
}
