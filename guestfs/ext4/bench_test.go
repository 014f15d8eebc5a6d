package ext4

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"yester/guestfs"
	"yester/internal/treetest"
)

// benchTree is a filesystem with a directory of 30,000 files and one file of
// 64 MiB, and the IDs of these.
func benchTree(b *testing.B) (f *FS, dir guestfs.ID, files []guestfs.Dirent, large guestfs.ID) {
	treetest.Need(b, "mkfs.ext4", "mount", "truncate")
	image := mkfs(b, "400M", "-N", "40000")
	mnt, unmount := treetest.Mount(b, image, "ext4", "")
	if err := os.Mkdir(mnt+"/d", 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range 30_000 {
		if err := os.WriteFile(fmt.Sprintf("%s/d/document number %d.txt", mnt, i), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	data := make([]byte, 64<<20)
	for i := range data {
		data[i] = byte(i * 7)
	}
	if err := os.WriteFile(mnt+"/large", data, 0o644); err != nil {
		b.Fatal(err)
	}
	unmount()
	f = openImage(b, image).(*FS)
	ctx := context.Background()
	dir, err := f.Lookup(ctx, f.Root(), "d")
	if err != nil {
		b.Fatal(err)
	}
	if large, err = f.Lookup(ctx, f.Root(), "large"); err != nil {
		b.Fatal(err)
	}
	err = f.ReadDir(ctx, dir, 0, func(e guestfs.Dirent) bool {
		files = append(files, e)
		return true
	})
	if err != nil || len(files) != 30_000 {
		b.Fatalf("%d files, %v", len(files), err)
	}
	return f, dir, files, large
}

func BenchmarkTree(b *testing.B) {
	f, dir, files, large := benchTree(b)
	ctx := context.Background()
	b.Run("Attr/one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := f.Attr(ctx, files[0].ID); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Attr/30000 in sequence", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			// By number, as a walk after a fresh copy meets them.
			if _, err := f.Attr(ctx, files[i%len(files)].ID); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Lookup/30000 entries", func(b *testing.B) {
		b.ReportAllocs()
		rng := rand.New(rand.NewPCG(1, 1))
		for b.Loop() {
			e := &files[rng.IntN(len(files))]
			if id, err := f.Lookup(ctx, dir, e.Name); err != nil || id != e.ID {
				b.Fatal(err)
			}
		}
	})
	b.Run("Lookup/missing", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := f.Lookup(ctx, dir, "no such document"); err != guestfs.ErrNotExist {
				b.Fatal(err)
			}
		}
	})
	b.Run("ReadDir/per entry", func(b *testing.B) {
		b.ReportAllocs()
		n := 0
		for n < b.N {
			if err := f.ReadDir(ctx, dir, 0, func(guestfs.Dirent) bool { n++; return true }); err != nil {
				b.Fatal(err)
			}
		}
	})
	r, err := f.Open(ctx, large)
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{4 << 10, 128 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("Read/%dKiB at random", size>>10), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			p := make([]byte, size)
			rng := rand.New(rand.NewPCG(1, 1))
			for b.Loop() {
				if _, err := r.ReadAt(p, rng.Int64N(r.Size()-int64(size))&^4095); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("Open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := f.Open(ctx, large); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Extent", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.(*file).Extent(ctx, 1<<20, 1<<20); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkParallel reads attributes and looks names up from all processors.
func BenchmarkParallel(b *testing.B) {
	f, dir, files, _ := benchTree(b)
	ctx := context.Background()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
		for pb.Next() {
			e := &files[rng.IntN(len(files))]
			if _, err := f.Lookup(ctx, dir, e.Name); err != nil {
				b.Fatal(err)
			}
			if _, err := f.Attr(ctx, e.ID); err != nil {
				b.Fatal(err)
			}
		}
	})
}
