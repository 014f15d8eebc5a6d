package delta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"yester/internal/block"
	"yester/internal/readertest"
)

// synthetic makes a chain of random valid deltas over a base. versions[0] is the
// base; a version larger than limit is followed by a small one.
func synthetic(rng *rand.Rand, count, limit int) (versions, deltas [][]byte) {
	versions = [][]byte{random(rng, rng.IntN(limit))}
	for range count {
		old := versions[len(versions)-1]
		commands := 1 + rng.IntN(30)
		var d, v []byte
		for d == nil || len(v) > limit {
			d = randomDelta(rng, len(old), commands)
			if rng.IntN(20) == 0 {
				d = newEncoder(rng).end() // nothing left
			}
			v, _ = patch(old, d)
			commands = 1 + commands/2
		}
		versions, deltas = append(versions, v), append(deltas, d)
	}
	return versions, deltas
}

// TestSynthetic composes chains of arbitrary commands, compressed and not, with
// all the ways in which they can be kept, and counts files left open.
func TestSynthetic(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 80 {
		var l ledger
		versions, deltas := synthetic(rng, rng.IntN(12), 130_000)
		base := l.source("base", versions[0], rng.IntN(4) == 0)
		var sources []Source
		for i, d := range deltas {
			s := l.source(fmt.Sprint("diff", i), d, rng.IntN(2) == 0)
			if rng.IntN(2) == 0 {
				s.Size = int64(len(versions[i+1]))
			}
			sources = append(sources, s)
		}
		for _, limit := range []int{0, 1, 20, 100} {
			c, err := Compose(t.Context(), base, sources, Options{maxSegments: limit})
			if err != nil {
				t.Fatal(err)
			}
			check(t, c, versions[len(versions)-1])
			if limit > 0 && c.Segments() > limit {
				t.Fatalf("%d segments, of at most %d", c.Segments(), limit)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			l.none(t)
		}
	}
}

// TestReader runs the conformance suite over contents of every kind of storage.
func TestReader(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	dir := t.TempDir()
	b := random(rng, 6<<18)
	e := newEncoder(nil)
	for off := int64(0); off < int64(len(b)); off += 256 << 10 {
		e.copy(int64(len(b))-off-150_000, 150_000).literal(random(rng, 180_000))
	}
	d := e.end()
	want, err := patch(b, d)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plainBase, packedBase := write("base", b), write("base.gz", pack(b))
	plain, packed := write("diff", d), write("diff.gz", pack(d))
	for _, base := range []string{plainBase, packedBase} {
		for _, diff := range []string{plain, packed} {
			t.Run(filepath.Base(base)+","+filepath.Base(diff), func(t *testing.T) {
				c := must(t, onHost(base, int64(len(b))), []Source{onHost(diff, int64(len(want)))}, Options{})
				check(t, c, want)
				readertest.Run(t, c, readertest.Bytes(want), 150_000, 330_000)
				for off := int64(0); off < c.Size(); {
					x, err := block.ExtentAt(t.Context(), c, off, c.Size())
					if err != nil || x.File == nil {
						t.Fatalf("extent at %#x: %+v, %v; want one in a file", off, x, err)
					}
					off += x.Len
				}
			})
		}
	}
	t.Run("no deltas", func(t *testing.T) {
		readertest.Run(t, must(t, onHost(plainBase, -1), nil, Options{}), readertest.Bytes(b))
		readertest.Run(t, must(t, onHost(packedBase, -1), nil, Options{}), readertest.Bytes(b))
	})
	t.Run("empty", func(t *testing.T) {
		readertest.Run(t, must(t, onHost(write("empty", nil), 0), nil, Options{}), readertest.Bytes(nil))
		var l ledger
		readertest.Run(t, must(t, l.source("base", b, false), []Source{l.source("diff", newEncoder(nil).end(), true)}, Options{}), readertest.Bytes(nil))
		l.none(t)
	})
}

// TestOnlyWhatIsNeeded checks that a base is left alone, even a damaged one, when
// no byte comes from it, and newer deltas too.
func TestOnlyWhatIsNeeded(t *testing.T) {
	var l ledger
	text := []byte("all of it is said here")
	fail := func(name string) Source {
		return Source{Name: name, Size: -1, Open: func(context.Context) (File, error) {
			t.Errorf("%s was opened", name)
			return nil, os.ErrNotExist
		}}
	}
	c := must(t, fail("base"), []Source{fail("newest"), l.source("newer", newEncoder(nil).literal(text).end(), false),
		l.source("wanted", newEncoder(nil).copy(4, 5).copy(0, 22).end(), true)}, Options{})
	check(t, c, []byte("of itall of it is said here"))
}

// TestFiles checks which files stay open: none for a small content, those that
// bytes lie in for a large one.
func TestFiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	var l ledger
	old := random(rng, 100)
	var deltas []Source
	want := old
	for i := range 40 {
		p := random(rng, 70_000)
		d := newEncoder(nil).literal(p).copy(0, int64(len(want))).end()
		want = append(p, want...)
		deltas = append(deltas, l.source(fmt.Sprint("diff", i), d, false))
	}
	c := must(t, l.source("base", old, false), deltas, Options{})
	check(t, c, want)
	if n := l.open.Load(); n != maxInPlace+1 {
		t.Errorf("%d files are open, want %d deltas and the base", n, maxInPlace)
	}
	c.Close()
	l.none(t)
	small := must(t, l.source("base", old, false), []Source{l.source("d", newEncoder(nil).copy(3, 5).literal([]byte("x")).copy(0, 90).end(), false)}, Options{})
	l.none(t)
	check(t, small, append(append(bytes.Clone(old[3:8]), 'x'), old[:90]...))
}

// TestMultiplying doubles the segments with each increment until they are more
// than may be held: the content is right all the same.
func TestMultiplying(t *testing.T) {
	var l ledger
	base := []byte("0123456789abcdef")
	want := base
	var deltas []Source
	for i := range 18 {
		n := int64(len(want))
		e := newEncoder(nil)
		if i < 16 {
			e.copy(1, n-1).copy(0, n)
		} else {
			e.copy(n/2, n/2).copy(0, n/2)
		}
		d := e.end()
		want, _ = patch(want, d)
		s := l.source(fmt.Sprint("diff", i), d, i%2 == 0)
		s.Size = int64(len(want))
		deltas = append(deltas, s)
	}
	c := must(t, l.source("base", base, false), deltas, Options{})
	check(t, c, want)
	if c.Segments() > maxSegments {
		t.Errorf("%d segments", c.Segments())
	}
	whole := c.Segments()
	for _, limit := range []int{2, 3, 1000} {
		c := must(t, l.source("base", base, false), deltas, Options{maxSegments: limit, Spool: &spool{dir: t.TempDir()}})
		check(t, c, want)
		if c.Segments() > limit {
			t.Errorf("%d segments, of at most %d and %d without a limit", c.Segments(), limit, whole)
		}
	}
}

// TestBomb asks for exbibytes in few bytes: composing costs nothing, and writing
// out is refused at once.
func TestBomb(t *testing.T) {
	var l ledger
	var deltas []Source
	n := int64(1000)
	for range 40 {
		deltas = append(deltas, l.source("diff", newEncoder(nil).copy(0, n).copy(0, n).end(), true))
		n *= 2
	}
	deltas = append(deltas, l.source("end", newEncoder(nil).copy(n-10, 10).copy(500, 7).end(), true))
	base := l.source("base", bytes.Repeat([]byte("0123456789"), 100), false)
	check(t, must(t, base, deltas, Options{}), []byte("01234567890123456"))
	_, err := Compose(t.Context(), base, deltas, Options{maxSegments: 1, maxUnknown: 1 << 20})
	wantCorrupt(t, err, "beyond the 1048576 it may have")
	if got := (Options{}).withLimits(&Source{Size: 1 << 30}, []Source{{Size: 1 << 33}, {Size: -1}}).maxUnknown; got != 1<<37 {
		t.Errorf("a version of unknown size may have %#x bytes beside one of 8 GiB, want 128 GiB", got)
	}
	l.none(t)
}

// TestCancelled ends a composition that waits for its source.
func TestCancelled(t *testing.T) {
	var l ledger
	ctx, cancel := context.WithCancel(t.Context())
	waiting := Source{Name: "slow", Gzip: true, Size: -1, Open: func(ctx context.Context) (File, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	if _, err := Compose(ctx, l.source("base", nil, false), []Source{waiting}, Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want context.Canceled", err)
	}
	l.none(t)
}

// TestUnreadable checks that a source that can't be read isn't called corrupt.
func TestUnreadable(t *testing.T) {
	var l ledger
	broken := errors.New("input/output error")
	for _, compressed := range []bool{false, true} {
		s := Source{Name: "bad", Gzip: compressed, Size: -1, Open: func(context.Context) (File, error) {
			l.open.Add(1)
			return &failing{memory{Bytes: make(readertest.Bytes, 100), l: &l}, broken}, nil
		}}
		good := l.source("good", newEncoder(nil).copy(0, 5).end(), true)
		for _, f := range []func() (*Content, error){
			func() (*Content, error) { return Compose(t.Context(), good, []Source{s}, Options{}) },
			func() (*Content, error) { return Compose(t.Context(), s, []Source{good}, Options{}) },
		} {
			if _, err := f(); !errors.Is(err, broken) {
				t.Errorf("error %v, want the source's", err)
			}
			l.none(t)
		}
	}
}

type failing struct {
	memory
	err error
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) { return 0, f.err }

var _ io.ReaderAt = (*failing)(nil)
