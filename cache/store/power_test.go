package store

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const (
	sector      = 512
	powerBlocks = 32
)

// recorder notes what is done to the files of objects, in order.
type recorder struct {
	mu  sync.Mutex
	ops []change
}

func (r *recorder) hook(c change) error {
	if !strings.HasPrefix(c.file.name, objectPrefix) {
		return nil
	}
	c.data = bytes.Clone(c.data)
	r.mu.Lock()
	r.ops = append(r.ops, c)
	r.mu.Unlock()
	return nil
}

// crash writes what a disk may hold after the power failed at that point of the
// record. Each sector of a file has the content of some moment between the file's
// last sync and the failure, chosen for itself, so that files, blocks and entries
// tear everywhere; and so does the file's length.
func crash(t *testing.T, r *rand.Rand, ops []change, dir string) {
	t.Helper()
	synced := map[string]int{}
	names := map[string]bool{}
	for i, op := range ops {
		names[op.file.name] = true
		if op.kind == dataSync {
			synced[op.file.name] = i
		}
	}
	for name := range names {
		// How much of what wasn't synced the disk had taken differs a lot.
		late := []float64{0.05, 0.5, 0.95}[r.IntN(3)]
		cut := func() int {
			if from := synced[name]; r.Float64() > late {
				return from + r.IntN(len(ops)-from+1)
			}
			return len(ops)
		}
		content := make([]byte, powerBlocks*blk+(1<<16))
		cuts := make([]int, len(content)/sector)
		for i := range cuts {
			cuts[i] = cut()
		}
		size, sizeCut := int64(0), cut()
		for i, op := range ops {
			if op.file.name != name {
				continue
			}
			from, to := op.off, op.off+int64(len(op.data))
			switch op.kind {
			case punch:
				to = op.off + op.n
			case truncate:
				from, to = op.n, int64(len(content))
				if i < sizeCut {
					size = op.n
				}
			case write:
				if i < sizeCut {
					size = max(size, to)
				}
			}
			for at := from; at < to; {
				end := min(to, (at/sector+1)*sector)
				if i < cuts[at/sector] {
					if op.kind == write {
						copy(content[at:end], op.data[at-from:end-from])
					} else {
						clear(content[at:end])
					}
				}
				at = end
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), content[:min(size, int64(len(content)))], 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// quickDir is a directory whose syncs cost nothing, where there is one.
func quickDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "yester-store-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestPowerFailure records a run, and looks at what is left of it when the power
// fails at many moments.
func TestPowerFailure(t *testing.T) {
	for _, c := range []struct {
		name     string
		budget   int64
		reboot   string
		damaged  bool // damage is to be expected, and seen
		failures int
	}{
		// After a reboot, what wasn't known to be on disk doesn't count; so without
		// eviction nothing that counts is ever damaged.
		{name: "ordered", reboot: "another boot", failures: 15},
		{name: "evicting", reboot: "another boot", budget: 26 * blk, failures: 15},
		// As if the boot could not be told from the one before: all hangs on the
		// checksums.
		{name: "checksums alone", budget: 26 * blk, reboot: "a boot", damaged: true, failures: 15},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{}
			s := open(t, tempDir(t), Options{Budget: c.budget, boot: "a boot", hook: rec.hook})
			r := rand.New(rand.NewPCG(7, 7))
			size := int64(powerBlocks*blk - 1000)
			objects := []*Object{object(t, s, "a", size, blk), object(t, s, "b", size, blk)}
			for i := range 250 {
				o, n := objects[r.IntN(2)], r.Int64N(powerBlocks)
				if !check(t, o, n) {
					put(t, o, n)
				}
				if i%20 == 0 {
					if err := s.Sync(); err != nil {
						t.Fatal(err)
					}
				}
				s.releaseIdle(0)
			}
			s.Close()

			punched := 0
			for _, op := range rec.ops {
				if op.kind == punch {
					punched++
				}
			}
			if (punched > 0) != (c.budget > 0) {
				t.Fatalf("%d blocks were evicted", punched)
			}
			var blocks int64
			damaged := 0
			for range c.failures {
				dir := quickDir(t)
				crash(t, r, rec.ops[:r.IntN(len(rec.ops))], dir)
				var said logs
				after := open(t, dir, Options{boot: c.reboot, Logger: said.logger()})
				blocks += checkAll(t, after)
				damaged += said.count("damaged")
				// It is a good cache from here on.
				for _, key := range []string{"a", "b"} {
					o := object(t, after, key, size, blk)
					for n := range int64(powerBlocks) {
						put(t, o, n)
						if !check(t, o, n) {
							t.Fatal("a block can't be put again")
						}
					}
				}
				after.Close()
			}
			if blocks == 0 {
				t.Error("nothing was left to check")
			}
			if c.damaged != (damaged > 0) && c.name != "evicting" {
				t.Errorf("%d damaged blocks were found", damaged)
			}
			t.Logf("%d blocks good, %d damaged and dropped", blocks, damaged)
		})
	}
}
