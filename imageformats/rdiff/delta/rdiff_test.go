package delta

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"yester/internal/readertest"
)

// edit returns a later version of b, as people and programs change files.
func edit(rng *rand.Rand, b []byte, size int) []byte {
	b = bytes.Clone(b)
	for range 1 + rng.IntN(4) {
		at, n := rng.IntN(len(b)+1), rng.IntN(1+size/8)
		end := min(len(b), at+n)
		switch rng.IntN(8) {
		case 0, 1: // overwritten
			copy(b[at:], random(rng, n))
		case 2: // inserted
			b = append(b[:at:at], append(random(rng, n), b[at:]...)...)
		case 3: // deleted
			b = append(b[:at:at], b[end:]...)
		case 4: // moved
			part := bytes.Clone(b[at:end])
			b = append(b[:at:at], b[end:]...)
			to := rng.IntN(len(b) + 1)
			b = append(b[:to:to], append(part, b[to:]...)...)
		case 5: // copied
			b = append(b, b[at:end]...)
		case 6: // cut off
			if rng.IntN(3) == 0 {
				b = b[:at]
			}
		case 7: // emptied, or begun anew
			if rng.IntN(6) == 0 {
				b = random(rng, rng.IntN(2)*n)
			}
		}
	}
	return b
}

// chain is the versions of a file, the newest first, with the deltas that rdiff
// makes of them as rdiff-backup asks it to.
type chain struct {
	versions [][]byte
	deltas   []string // deltas[i] makes versions[i+1] of versions[i]
	base     string   // versions[0]
}

func makeChain(t testing.TB, dir string, versions [][]byte, blockSize int, compressed func(i int) bool) chain {
	t.Helper()
	c := chain{versions: versions}
	file := func(i int) string { return filepath.Join(dir, fmt.Sprintf("version.%d", i)) }
	for i, v := range versions {
		if err := os.WriteFile(file(i), v, 0o600); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue
		}
		sig, d := filepath.Join(dir, "signature"), filepath.Join(dir, fmt.Sprintf("f.%d.diff", i))
		runTool(t, "rdiff", "-f", "-H", "md4", "-R", "rollsum", "-b", fmt.Sprint(blockSize), "signature", file(i-1), sig)
		runTool(t, "rdiff", "-f", "delta", sig, file(i), d)
		if compressed(i) {
			b, err := os.ReadFile(d)
			if err != nil {
				t.Fatal(err)
			}
			d += ".gz"
			if err := os.WriteFile(d, pack(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.deltas = append(c.deltas, d)
	}
	c.base = file(0)
	return c
}

// sources returns what Compose needs for versions[i].
func (c *chain) sources(i int) (base Source, deltas []Source) {
	for k := range i {
		deltas = append(deltas, onHost(c.deltas[k], int64(len(c.versions[k+1]))))
	}
	return onHost(c.base, int64(len(c.versions[0]))), deltas
}

// TestRdiff composes chains that rdiff made and compares every version with what
// it was.
func TestRdiff(t *testing.T) {
	for i, c := range []struct {
		size, block, versions int
	}{
		{300, 64, 8}, {9_000, 64, 12}, {200_000, 448, 10}, {6 << 18, 1216, 4},
	} {
		t.Run(fmt.Sprintf("%d bytes", c.size), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(i), 5))
			versions := [][]byte{random(rng, c.size)}
			for range c.versions {
				versions = append(versions, edit(rng, versions[len(versions)-1], c.size))
			}
			ch := makeChain(t, t.TempDir(), versions, c.block, func(int) bool { return rng.IntN(2) == 0 })
			sp := &spool{dir: t.TempDir()}
			for v, want := range versions {
				base, deltas := ch.sources(v)
				for _, opt := range []Options{{}, {Spool: sp}, {maxSegments: 12}} {
					check(t, must(t, base, deltas, opt), want)
				}
				if v == c.versions/2 || v == c.versions {
					readertest.Run(t, must(t, base, deltas, Options{}), readertest.Bytes(want), int64(c.block))
				}
			}
		})
	}
}

// TestPatch lets rdiff itself apply the encoder's deltas, so that what the other
// tests take for truth is.
func TestPatch(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(3, 3))
	old, d, out := filepath.Join(dir, "old"), filepath.Join(dir, "delta"), filepath.Join(dir, "new")
	for range 12 {
		b := random(rng, 1+rng.IntN(100_000))
		e := randomDelta(rng, len(b), 1+rng.IntN(60))
		if err := os.WriteFile(old, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d, e, 0o600); err != nil {
			t.Fatal(err)
		}
		runTool(t, "rdiff", "-f", "patch", old, d, out)
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		want, err := patch(b, e)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("patch: %v, or other bytes than rdiff's", err)
		}
		var l ledger
		check(t, must(t, l.source("base", b, false), []Source{l.source("d", e, true)}, Options{}), got)
	}
}

// randomDelta makes a delta of valid commands over a version of size bytes.
func randomDelta(rng *rand.Rand, size, commands int) []byte {
	e := newEncoder(rng)
	for range commands {
		if size == 0 || rng.IntN(3) == 0 {
			e.literal(random(rng, 1+rng.IntN(1<<rng.IntN(11))))
			continue
		}
		start := rng.IntN(size)
		e.copy(int64(start), int64(1+rng.IntN(min(size-start, 1<<rng.IntN(16)))))
	}
	return e.end()
}
