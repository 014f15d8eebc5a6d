package ext4

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"yester/internal/treetest"
)

// TestFastCommit copies images in which fast commits follow the log. The kernel
// stamps directories with the time of its recovery and doesn't count links to
// the directories it makes there, so these fields are not compared.
func TestFastCommit(t *testing.T) {
	treetest.Need(t, "mkfs.ext4", "mount", "truncate")
	for _, c := range []struct{ name, args string }{
		{"default", "-O fast_commit -J size=16"},
		{"1k", "-b 1024 -O fast_commit -J size=4"},
		{"inline", "-O fast_commit,inline_data -J size=16"},
		{"no-csum", "-O fast_commit,^metadata_csum -J size=16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fastSeen = 0
			checkDirty(t, strings.Fields(c.args), "", fastChurn, 6, treetest.FieldMtime|treetest.FieldCtime|treetest.FieldAtime|treetest.FieldDirSize)
			if fastSeen == 0 {
				t.Error("no copy had fast commits")
			}
		})
	}
}

// fastChurn makes changes that are eligible for fast commits, one fsync each.
func fastChurn(t *testing.T, dir string, rng *rand.Rand, round int) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(format string, args ...any) string { return dir + "/" + fmt.Sprintf(format, args...) }
	if round == 0 {
		for i := range 40 {
			must(os.WriteFile(path("old%d", i), make([]byte, 100+i*1000), 0o644))
		}
		must(os.Mkdir(path("sub"), 0o755))
	}
	unix.Sync()
	data := make([]byte, 20_000)
	for i := range data {
		data[i] = byte(rng.Uint32()) | 1
	}
	if round%2 == 1 {
		must(os.Mkdir(path("dir%d", round), 0o750))
		must(os.Symlink("short target", path("short%d", round)))
		must(os.Symlink(strings.Repeat("long/", 40), path("long%d", round)))
		must(unix.Mknod(path("dev%d", round), unix.S_IFBLK|0o600, int(unix.Mkdev(8, 17))))
		must(os.WriteFile(path("dir%d/inside", round), data[:5000], 0o600))
	}
	for i := range 12 {
		f, err := os.OpenFile(path("old%d", rng.IntN(40)), os.O_RDWR|os.O_CREATE, 0o644)
		must(err)
		switch i % 6 {
		case 0:
			_, err = f.WriteAt(data[:1+rng.IntN(len(data))], int64(rng.IntN(100_000)))
		case 1:
			_, err = f.Seek(0, 2)
			must(err)
			_, err = f.Write(data[:rng.IntN(9000)])
		case 2:
			name := path("new%d-%d", round, i)
			must(os.WriteFile(name, data[:rng.IntN(12000)], 0o640))
			_ = os.Chmod(name, 0o600)
		case 3:
			a, b := path("old%d", rng.IntN(40)), path("sub/renamed%d-%d", round, i)
			_ = os.Rename(a, b)
		case 4:
			_ = os.Link(f.Name(), path("sub/link%d-%d", round, i))
		case 5:
			_ = os.Remove(path("old%d", rng.IntN(40)))
			err = f.Truncate(int64(rng.IntN(3000)))
		}
		must(err)
		must(f.Sync())
		must(f.Close())
	}
}

// TestFastRanges lays ranges over each other at random and compares the result
// with the same done block by block.
func TestFastRanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		const blocks = 60
		var want [blocks]run // n is 0 where nothing is known
		c := &fastInode{}
		for k := range 1 + rng.IntN(20) {
			start := rng.Uint64N(blocks)
			r := fastRange{start: start, end: start + 1 + rng.Uint64N(blocks-start), phys: uint64(k+1) * 1000, hole: rng.IntN(4) == 0}
			c.fresh = append(c.fresh, r)
			for b := r.start; b < r.end; b++ {
				want[b] = run{phys: r.phys + b - r.start, n: 1, zero: r.hole}
			}
			if rng.IntN(3) == 0 {
				c.settle()
			}
		}
		for b := range uint64(blocks) {
			r, ok, limit := c.mapFast(b)
			if ok != (want[b].n > 0) || ok && (r.phys != want[b].phys || r.zero != want[b].zero) {
				t.Fatalf("block %d: %v, %v, want %v", b, r, ok, want[b])
			}
			for i := range r.n {
				if ok && (b+i >= blocks || want[b+i].phys != r.phys+i) {
					t.Fatalf("block %d: a run of %d is too long", b, r.n)
				}
			}
			if !ok && limit < blocks && (want[limit].n == 0 || limit <= b) {
				t.Fatalf("block %d: limit %d", b, limit)
			}
		}
	}
}
