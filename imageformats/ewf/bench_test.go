package ewf

import "testing"

// BenchmarkRead reads 64 MiB in order, and at random.
func BenchmarkRead(b *testing.B) {
	for _, level := range []string{"none", "fast"} {
		path := acquire(b, disk(64<<20), "-f", "encase6", "-c", level)
		img, err := openSet(b, path)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("seq1M/"+level, func(b *testing.B) {
			p := make([]byte, 1<<20)
			b.SetBytes(int64(len(p)))
			for i := 0; b.Loop(); i++ {
				if _, err := img.ReadAt(p, int64(i%63)<<20+12288); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("rand4K/"+level, func(b *testing.B) {
			p := make([]byte, 4096)
			for i := 0; b.Loop(); i++ {
				if _, err := img.ReadAt(p, int64(uint32(i)*2654435761%16383)<<12); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
