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
	"sync"
	"testing"
)

// large makes a chain with literals and a snapshot that are too large for memory.
func large(l *ledger) (base Source, deltas []Source, want []byte) {
	rng := rand.New(rand.NewPCG(8, 8))
	want = random(rng, 1_200_000)
	base = l.source("base.snapshot", want, true)
	base.Key = "base"
	for i := range 4 {
		p := random(rng, 300_000)
		d := newEncoder(nil).copy(0, 300_000).literal(p).copy(300_000, int64(len(want))-300_000).end()
		want, _ = patch(want, d)
		s := l.source(fmt.Sprint("diff", i), d, true)
		s.Key, s.Size = s.Name, int64(len(want))
		deltas = append(deltas, s)
	}
	return base, deltas, want
}

// TestSpool checks that what is spooled is found again, and is made anew when a
// source is another one.
func TestSpool(t *testing.T) {
	var l ledger
	base, deltas, want := large(&l)
	sp := &spool{dir: t.TempDir()}
	for range 2 {
		check(t, must(t, base, deltas, Options{Spool: sp}), want)
	}
	if sp.filled != 2 || sp.hits != 2 {
		t.Errorf("literals and snapshot were filled %d times and found %d times, want 2 and 2", sp.filled, sp.hits)
	}
	deltas[1].Key = "changed"
	check(t, must(t, base, deltas, Options{Spool: sp}), want)
	if sp.filled != 3 || sp.hits != 3 {
		t.Errorf("with another delta: filled %d times, found %d times, want 3 and 3", sp.filled, sp.hits)
	}
	base.Key, deltas[0].Key = "", ""
	check(t, must(t, base, deltas, Options{Spool: sp}), want)
	if sp.filled != 3 || sp.hits != 3 {
		t.Errorf("without a key something was shared: filled %d times, found %d times", sp.filled, sp.hits)
	}
	l.none(t)
	t.Run("parallel", func(t *testing.T) {
		sp := &spool{dir: t.TempDir()}
		base, deltas, _ := large(&l)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				c, err := Compose(t.Context(), base, deltas, Options{Spool: sp})
				if err != nil {
					t.Error(err)
					return
				}
				check(t, c, want)
				c.Close()
			})
		}
		wg.Wait()
		if sp.filled != 2 {
			t.Errorf("filled %d times, want 2", sp.filled)
		}
	})
	l.none(t)
}

// TestSpoolKept checks that nothing is kept of what failed or was interrupted.
func TestSpoolKept(t *testing.T) {
	var l ledger
	base, deltas, _ := large(&l)
	sp := &spool{dir: t.TempDir()}
	bad := bytes.Clone(deltas[0].stored(t))
	bad[len(bad)-6] ^= 1 // the CRC of the delta that is read last
	deltas[0] = l.stored("bad.gz", bad, true)
	deltas[0].Key = "bad"
	_, err := Compose(t.Context(), base, deltas, Options{Spool: sp})
	wantCorrupt(t, err, "bad.gz", "checksum")
	packed := bytes.Clone(base.stored(t))
	packed[len(packed)-6] ^= 1
	base = l.stored("badbase.gz", packed, true)
	base.Key = "badbase"
	for _, size := range []int64{-1, 1_200_000} {
		base.Size = size
		_, err = Compose(t.Context(), base, nil, Options{Spool: sp})
		wantCorrupt(t, err, "badbase.gz", "checksum")
	}
	if names, _ := filepath.Glob(sp.dir + "/*"); len(names) != 0 {
		t.Errorf("the spool keeps %q", names)
	}
	l.none(t)
}

// stored returns the bytes of a source that lies in memory.
func (s Source) stored(t *testing.T) []byte {
	f, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return f.(*memory).Bytes
}

// TestSpoolFails checks what becomes of a spooler's errors and of a file in the
// spool that isn't what was put there.
func TestSpoolFails(t *testing.T) {
	var l ledger
	base, deltas, want := large(&l)
	full := errors.New("no space")
	for name, f := range map[string]spoolFunc{
		"at once": func(func(io.Writer) error) (File, error) { return nil, full },
		"writing": func(fill func(io.Writer) error) (File, error) { return nil, fill(failWriter{full}) },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Compose(t.Context(), base, deltas, Options{Spool: f}); !errors.Is(err, full) {
				t.Errorf("literals: error %v, want the spooler's", err)
			}
			if _, err := Compose(t.Context(), base, nil, Options{Spool: f}); !errors.Is(err, full) {
				t.Errorf("snapshot: error %v, want the spooler's", err)
			}
			l.none(t)
		})
	}
	sp := &spool{dir: t.TempDir()}
	must(t, base, deltas, Options{Spool: sp})
	names, _ := filepath.Glob(sp.dir + "/*")
	for _, n := range names {
		st, err := os.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(n, st.Size()-1); err != nil {
			t.Fatal(err)
		}
		_, err = Compose(t.Context(), base, deltas, Options{Spool: sp})
		wantCorrupt(t, err)
		if err := os.Truncate(n, st.Size()); err != nil {
			t.Fatal(err)
		}
		l.none(t)
	}
	if len(names) != 2 || len(want) == 0 {
		t.Errorf("the spool has %q", names)
	}
}

type spoolFunc func(fill func(io.Writer) error) (File, error)

func (f spoolFunc) Spool(_ context.Context, _ string, fill func(io.Writer) error) (File, error) {
	return f(fill)
}

type failWriter struct{ err error }

func (w failWriter) Write([]byte) (int, error) { return 0, w.err }
