package ebs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"yester/internal/ondisk"
)

// pages is a lister over what written says, of limit blocks a page.
func pages(blocks int64, limit int, written func(int64) bool) lister {
	return func(_ context.Context, from int64, token string) (page, error) {
		if token != "" {
			fmt.Sscan(token, &from)
		}
		var p page
		for ; from < blocks && len(p.blocks) < limit; from++ {
			if written(from) {
				p.blocks = append(p.blocks, from)
				p.tokens = append(p.tokens, "AAUBAcuWqOCnDBuKle11s7IIX6jp6FYcC/q8oT93913HhvLvA+3JRrSybp/0")
			}
		}
		if from < blocks {
			p.next = fmt.Sprint(from)
		}
		p.expiry = time.Now().Add(time.Hour).Unix()
		return p, nil
	}
}

func at(f func(context.Context)) { go f(context.Background()) }

// TestMapMemory: a volume of 16 TiB that is written to the last block.
func TestMapMemory(t *testing.T) {
	const blocks = 32 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	held := newTokens()
	// One page in eight is enough to fill what is kept of tokens, and takes less time.
	count := 0
	m := newRangeMap(blocks, pages(blocks, maxResults, func(int64) bool { return true }), func(p page) {
		if count++; count%8 == 0 || p.next == "" {
			held.learn(p)
		}
	})
	if err := m.fill(context.Background(), span{0, blocks}); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	if set, whole := m.count(); set != blocks || !whole {
		t.Fatalf("%d blocks, whole %v", set, whole)
	}
	t.Logf("%d MiB", grown>>20)
	if grown > 150<<20 {
		t.Errorf("map and tokens take %d MiB", grown>>20)
	}
	if token, _ := held.get(blocks - 1); len(token) != 60 {
		t.Errorf("the last token is %q", token)
	}
	if p, ok := m.encode(); !ok || len(p) > 100 {
		t.Errorf("encoded in %d bytes", len(p))
	}
}

// TestMapCodes: what is encoded comes back, partly known or whole.
func TestMapCodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		blocks := rng.Int64N(100_000) + 1
		share := rng.Float64()
		bits := make([]bool, blocks)
		for n := range bits {
			bits[n] = rng.Float64() < share
		}
		m := newRangeMap(blocks, pages(blocks, 1+rng.IntN(5000), func(n int64) bool { return bits[n] }), nil)
		for range rng.IntN(4) {
			if err := m.ensure(context.Background(), rng.Int64N(blocks), true, at); err != nil {
				t.Fatal(err)
			}
		}
		d := newRangeMap(blocks, nil, nil)
		if p, ok := m.encode(); ok {
			if err := d.decode(p); err != nil {
				t.Fatal(err)
			}
			if _, again := m.encode(); again {
				t.Error("encoded twice")
			}
			p[len(p)/2] ^= 1
			if err := newRangeMap(blocks, nil, nil).decode(p); err == nil {
				t.Error("a damaged map is believed")
			}
		}
		for n := range blocks {
			set, known := m.has(n)
			set2, known2 := d.has(n)
			if set != set2 || known != known2 || known && set != bits[n] {
				t.Fatalf("block %d of %d: %v %v, decoded %v %v, is %v", n, blocks, set, known, set2, known2, bits[n])
			}
		}
	}
}

// TestBadLists: lists that make no sense are errors, and end.
func TestBadLists(t *testing.T) {
	for name, list := range map[string]lister{
		"backwards":    func(context.Context, int64, string) (page, error) { return page{blocks: []int64{5, 4}}, nil },
		"twice":        func(context.Context, int64, string) (page, error) { return page{blocks: []int64{5, 5}}, nil },
		"past the end": func(context.Context, int64, string) (page, error) { return page{blocks: []int64{100}}, nil },
		"negative":     func(context.Context, int64, string) (page, error) { return page{blocks: []int64{-1}}, nil },
		"before": func(_ context.Context, from int64, _ string) (page, error) {
			return page{blocks: []int64{1}, next: "x"}, nil
		},
		"endless": func(context.Context, int64, string) (page, error) { return page{next: "x"}, nil },
	} {
		m := newRangeMap(100, list, nil)
		if err := m.ensure(context.Background(), 50, true, at); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTokenStore: what is learnt in pieces comes back; the oldest goes first.
func TestTokenStore(t *testing.T) {
	s := newTokens()
	token := func(n int64, round int) string {
		if n%3 == 0 { // not all are base64
			return fmt.Sprintf("t%d=%d", n, round)
		}
		return strings.Repeat("A", 48) + fmt.Sprintf("%04d%04d%04d", n%10000, round, n/10000)
	}
	learn := func(round int, from, to int64) {
		p := page{expiry: time.Now().Add(time.Hour).Unix()}
		for n := from; n < to; n += 2 {
			p.blocks = append(p.blocks, n)
			p.tokens = append(p.tokens, token(n, round))
		}
		s.learn(p)
	}
	learn(1, 0, 100)
	learn(1, 200, 300)
	learn(2, 100, 200)
	learn(3, 50, 250)
	learn(1, 8000, 9000)
	for n := int64(0); n < 9000; n += 2 {
		round := 0
		switch {
		case n < 50, n >= 250 && n < 300, n >= 8000:
			round = 1
		case n < 250:
			round = 3
		}
		want := ""
		if round > 0 {
			want = token(n, round)
		}
		if got, _ := s.get(n); got != want {
			t.Fatalf("token %d is %q, want %q", n, got, want)
		}
		if got, _ := s.get(n + 1); got != "" {
			t.Fatalf("block %d has a token", n+1)
		}
	}
	p, ok := s.encode(0)
	if !ok {
		t.Fatal("nothing to encode")
	}
	other := newTokens()
	if err := other.decode(0, p); err != nil {
		t.Fatal(err)
	}
	if got, save := other.get(60); got != token(60, 3) || save {
		t.Errorf("decoded %q, save %v", got, save)
	}
	if err := other.decode(0, append(bytes.Clone(p), 0)); err == nil {
		t.Error("a damaged blob is believed")
	}
	s.refuse(60, token(60, 3))
	if got, _ := s.get(60); got != "" {
		t.Error("a refused token is given out")
	}
	s.refuse(62, token(62, 1)) // an older one's refusal
	if got, _ := s.get(62); got != token(62, 3) {
		t.Error("a token is refused for an older one")
	}
	learn(4, 60, 62)
	if got, _ := s.get(60); got != token(60, 4) {
		t.Error("a refused token isn't replaced")
	}
	s.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if got, _ := s.get(64); got != "" {
		t.Error("an expired token is given out")
	}
	if err := newTokensAt(s.now).decode(0, p); err == nil {
		t.Error("an expired blob is believed")
	}
	s = newTokens()
	s.limit = 1000
	learn(1, 0, 30)
	learn(1, regionBlocks, regionBlocks+30)
	s.get(0)
	learn(1, 2*regionBlocks, 2*regionBlocks+30)
	if a, _ := s.get(0); a == "" {
		t.Error("what was used last is gone")
	}
	if b, _ := s.get(regionBlocks); b != "" {
		t.Error("what was used longest ago stays")
	}
}

func newTokensAt(now func() time.Time) *tokens {
	s := newTokens()
	s.now = now
	return s
}

// FuzzBlobs: whatever lies in the cache, decoding it neither panics nor takes
// more room than the volume gives it.
func FuzzBlobs(f *testing.F) {
	m := newRangeMap(70_000, pages(70_000, 100, func(n int64) bool { return n%7 < 3 }), nil)
	for _, n := range []int64{0, 60_000} {
		if err := m.ensure(context.Background(), n, true, at); err != nil {
			f.Fatal(err)
		}
	}
	p, _ := m.encode()
	f.Add(p)
	s := newTokens()
	tokenPage, _ := pages(100, 10, func(int64) bool { return true })(context.Background(), 0, "")
	s.learn(tokenPage)
	p, _ = s.encode(0)
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		// The checksum would keep all but the seeds out.
		for _, q := range [][]byte{p, resealed(p)} {
			m := newRangeMap(70_000, nil, nil)
			if m.decode(q) == nil {
				for n := int64(0); n < m.blocks; n += 97 {
					m.has(n)
					m.next(n)
				}
			}
			s := newTokens()
			if s.decode(3, q) == nil {
				for n := int64(3 * regionBlocks); n < 4*regionBlocks; n++ {
					if token, _ := s.get(n); len(token) > 2*maxToken {
						t.Fatalf("a token of %d characters", len(token))
					}
				}
			}
		}
	})
}

func resealed(p []byte) []byte {
	if len(p) < 4 {
		return p
	}
	return sealBlob(bytes.Clone(p[:len(p)-4]))
}
