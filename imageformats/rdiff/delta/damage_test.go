package delta

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"yester/internal/block"
)

// small is a base, a delta over it with every kind of command, and the outcome.
func small(t testing.TB) (base, d, want []byte) {
	rng := rand.New(rand.NewPCG(9, 9))
	base = random(rng, 30_000)
	e := newEncoder(rng)
	for i := range int64(14) {
		e.copy(i*2000, 1+i*37).literal(random(rng, int(1+i*5)))
	}
	d = e.end()
	want, err := patch(base, d)
	if err != nil {
		t.Fatal(err)
	}
	return base, d, want
}

// TestTruncated cuts a delta at every byte.
func TestTruncated(t *testing.T) {
	base, d, _ := small(t)
	packed := pack(d)
	var l ledger
	for _, c := range []struct {
		b          []byte
		compressed bool
	}{{d, false}, {packed, true}} {
		for n := range c.b {
			_, err := Compose(t.Context(), l.source("base", base, false), []Source{l.stored("cut.diff", c.b[:n], c.compressed)}, Options{})
			wantCorrupt(t, err, "cut.diff")
		}
	}
	for n := range packed { // as a snapshot
		_, err := Compose(t.Context(), l.stored("cut.snapshot", packed[:n], true), nil, Options{})
		wantCorrupt(t, err, "cut.snapshot")
	}
	l.none(t)
}

// TestFlipped flips every bit of compressed files: wrong bytes never come out.
// Some bits of a header mean nothing to the data.
func TestFlipped(t *testing.T) {
	base, d, want := small(t)
	packed := pack(d[:300])
	packed = append(packed, pack(d[300:])...) // two members
	var l ledger
	harmless := 0
	for i := range len(packed) * 8 {
		b := bytes.Clone(packed)
		b[i/8] ^= 1 << (i % 8)
		for _, f := range []func() (*Content, []byte, error){
			func() (*Content, []byte, error) {
				c, err := Compose(t.Context(), l.source("base", base, false), []Source{l.stored("diff", b, true)}, Options{})
				return c, want, err
			},
			func() (*Content, []byte, error) {
				c, err := Compose(t.Context(), l.stored("snapshot", b, true), nil, Options{})
				return c, d, err
			},
		} {
			c, want, err := f()
			if err != nil {
				wantCorrupt(t, err)
				continue
			}
			harmless++
			check(t, c, want)
			c.Close()
		}
	}
	if most := 2 * 2 * 10 * 8; harmless > most {
		t.Errorf("%d flipped bits went unnoticed, more than the %d of the headers", harmless, most)
	}
	l.none(t)
}

// TestFlippedPlain flips bits of a delta that has no checksum: no panic, no read
// that fails after Compose was content with it.
func TestFlippedPlain(t *testing.T) {
	base, d, _ := small(t)
	var l ledger
	for i := range len(d) * 8 {
		b := bytes.Clone(d)
		b[i/8] ^= 1 << (i % 8)
		want, perr := patch(base, b)
		c, err := Compose(t.Context(), l.source("base", base, false), []Source{l.source("diff", b, false)}, Options{})
		if (err == nil) != (perr == nil) {
			t.Fatalf("bit %d: %v, where patching says %v", i, err, perr)
		}
		if err == nil {
			check(t, c, want)
			c.Close()
		}
	}
	l.none(t)
}

// TestErrors checks what each error says.
func TestErrors(t *testing.T) {
	base := []byte("some twenty-odd bytes")
	ok := newEncoder(nil).copy(0, 5).end()
	raw := func(b ...byte) []byte { return append([]byte{0x72, 0x73, 0x02, 0x36}, b...) }
	for _, c := range []struct {
		name string
		d    []byte
		says string
	}{
		{"empty", nil, "magic at 0x0: the delta is cut off"},
		{"a signature", []byte{0x72, 0x73, 0x01, 0x36, 0}, "magic at 0x0: 0x72730136"},
		{"no end", raw(0x45, 0, 1), "command at 0x7: the delta is cut off"},
		{"trailing bytes", append(bytes.Clone(ok), 0), "END command at 0x7: more bytes follow"},
		{"a reserved code", raw(0x55), "command at 0x4: code 0x55 is reserved"},
		{"the last code", raw(0xff), "command at 0x4: code 0xff is reserved"},
		{"an empty literal", raw(0x41, 0, 0), "command at 0x4: start 0x0 and length 0x0"},
		{"an empty copy", raw(0x45, 0, 0, 0), "command at 0x4: start 0x0 and length 0x0"},
		{"a literal cut off", raw(0x05, 'a'), "the delta is cut off"},
		{"a literal beyond", raw(0x44, 0x0f, 0, 0, 0, 0, 0, 0, 0), "the delta is cut off"},
		{"a length with a sign", raw(0x44, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "length 0xffffffffffffffff"},
		{"a start with a sign", raw(0x51, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0), "start 0xffffffffffffffff"},
		{"sizes that overflow", raw(0x48, 0, 0x0f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x48, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0), "command at 0xe: the output grows to"},
		{"a copy from beyond", raw(0x45, 20, 2, 0), "COPY command at 0x4: copies up to 0x16, but base yields 0x15 bytes"},
		{"a copy of beyond", raw(0x45, 0, 1, 0x45, 22, 1, 0), "COPY command at 0x7: copies up to 0x17, but base yields 0x15 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l ledger
			for _, compressed := range []bool{false, true} {
				_, err := Compose(t.Context(), l.source("base", base, false), []Source{l.source("bad.diff", c.d, compressed)}, Options{})
				wantCorrupt(t, err, "rdiff: bad.diff", c.says)
				// Under an older delta that needs little of it.
				_, err = Compose(t.Context(), l.source("base", base, false),
					[]Source{l.source("bad.diff", c.d, compressed), l.source("good.diff", newEncoder(nil).copy(0, 1).end(), compressed)}, Options{})
				wantCorrupt(t, err, "rdiff: bad.diff")
			}
			l.none(t)
		})
	}
	var l ledger
	sized := func(s Source, n int64) Source { s.Size = n; return s }
	good, mirror := l.source("a.diff", ok, true), l.source("mirror", base, false)
	snap := l.source("s.snapshot", base, true)
	for i, c := range []struct {
		base   Source
		deltas []Source
		says   string
	}{
		{mirror, []Source{sized(good, 6)}, "a.diff.gz: yields 5 bytes, its metadata record 6"},
		{mirror, []Source{sized(good, 4)}, "the output grows to 5 bytes, beyond the 4"},
		{mirror, []Source{sized(good, 0)}, "the output grows to 5 bytes, beyond the 0"},
		{sized(mirror, 20), []Source{good}, "mirror: yields 21 bytes, its metadata record 20"},
		{sized(mirror, 20), nil, "mirror: yields 21 bytes"},
		{sized(snap, 20), nil, "s.snapshot.gz: decompresses to more than 20 bytes"},
		{sized(snap, 22), nil, "s.snapshot.gz: yields 21 bytes, its metadata record 22"},
		{mirror, []Source{good, l.source("b.diff", newEncoder(nil).copy(2, 4).end(), true)},
			"b.diff.gz: COPY command at 0x4: copies up to 0x6, but a.diff.gz yields 0x5 bytes"},
		{l.stored("x.gz", nil, true), nil, "x.gz: gzip: unexpected EOF"},
		{l.stored("x.gz", append(pack(base), 0), true), nil, "x.gz: gzip"},
	} {
		_, err := Compose(t.Context(), c.base, c.deltas, Options{})
		wantCorrupt(t, err, c.says)
		l.none(t)
		_ = i
	}
}

// TestMembers reads snapshots of several gzip members, empty ones among them.
func TestMembers(t *testing.T) {
	var l ledger
	rng := rand.New(rand.NewPCG(2, 2))
	var want, packed []byte
	for i := range 8 {
		b := random(rng, i%3*60_000)
		want, packed = append(want, b...), append(packed, pack(b)...)
	}
	check(t, must(t, l.stored("s.gz", packed, true), nil, Options{}), want)
}

// FuzzDelta reads arbitrary bytes as deltas, twice over: it must agree with the
// plain patch of the tests about what is right and what comes out.
func FuzzDelta(f *testing.F) {
	_, d, _ := small(f)
	f.Add(d[:200], []byte("base"))
	f.Add(newEncoder(nil).copy(0, 3).literal([]byte("abc")).copy(1, 3).end(), []byte("base"))
	f.Add(newEncoder(rand.New(rand.NewPCG(1, 1))).copy(2, 2).literal(bytes.Repeat([]byte("x"), 100)).end(), []byte("base"))
	f.Fuzz(func(t *testing.T, d, base []byte) {
		want, perr := patch(base, d)
		if perr != nil && perr.Error() == "too large for a test" {
			return
		}
		var l ledger
		for _, limit := range []int{0, 2} {
			for _, compressed := range []bool{false, true} {
				c, err := Compose(t.Context(), l.source("base", base, false), []Source{l.source("d", d, compressed)}, Options{maxSegments: limit})
				if (err == nil) != (perr == nil) {
					t.Fatalf("%v, where patching says %v", err, perr)
				}
				if err == nil {
					check(t, c, want)
					c.Close()
				}
				l.none(t)
			}
		}
	})
}

// FuzzCompose makes a chain of valid deltas of what the fuzzer says and compares
// composing with applying one by one.
func FuzzCompose(f *testing.F) {
	f.Add(uint64(1), uint8(3), uint8(4))
	f.Add(uint64(2), uint8(9), uint8(0))
	f.Add(uint64(3), uint8(20), uint8(50))
	f.Fuzz(func(t *testing.T, seed uint64, count, limit uint8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		versions, deltas := synthetic(rng, int(count)%24, 20_000)
		var l ledger
		var sources []Source
		for i, d := range deltas {
			sources = append(sources, l.source(fmt.Sprint("diff", i), d, rng.IntN(2) == 0))
		}
		for i := range versions {
			c, err := Compose(t.Context(), l.source("base", versions[0], rng.IntN(2) == 0), sources[:i], Options{maxSegments: int(limit)})
			if err != nil {
				t.Fatal(err)
			}
			check(t, c, versions[i])
			c.Close()
		}
		l.none(t)
	})
}

// FuzzGzip reads arbitrary bytes as a compressed snapshot: what comes out is the
// same in pieces and whole, and no more than the size that was said.
func FuzzGzip(f *testing.F) {
	f.Add(pack([]byte("some text, some text")), int64(20))
	f.Add(append(pack(nil), pack(bytes.Repeat([]byte("z"), 3000))...), int64(-1))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		var l ledger
		s := l.stored("s", b, true)
		s.Size = max(-1, size)
		c, err := Compose(t.Context(), s, nil, Options{})
		l.none(t)
		want, werr := gunzipAll(b)
		if (err == nil) != (werr == nil && (s.Size < 0 || s.Size == int64(len(want)))) {
			t.Fatalf("error %v, where the standard library says %v, %d bytes of %d", err, werr, len(want), s.Size)
		}
		if err != nil {
			return
		}
		check(t, c, want)
		p := make([]byte, 1)
		if len(want) > 0 && (block.ReadFull(t.Context(), c, p, int64(len(want)/2)) != nil || p[0] != want[len(want)/2]) {
			t.Fatal("a byte in the middle differs")
		}
		c.Close()
	})
}
