package inflate

import (
	"bytes"
	"compress/flate"
	"io"
	"math/rand/v2"
	"testing"
)

func pack(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// samples are data with codes of every kind and length.
func samples() [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	var list [][]byte
	for _, size := range []int{0, 1, 2, 3, 100, 4096, 65536, 80_000} {
		for kind := range 6 {
			b := make([]byte, size)
			for i := range b {
				switch kind {
				case 0:
					b[i] = byte(rng.Uint32())
				case 1:
					b[i] = "text with words in it, text with words"[rng.IntN(38)]
				case 2:
					b[i] = "repeats"[i%7]
				case 3: // lengths up to the longest
					b[i] = byte(min(255, rng.ExpFloat64()*6))
				case 4:
					if b[i] = byte(i >> 4); i > 5000 && rng.IntN(50) > 0 {
						b[i] = b[i-1-rng.IntN(4096)]
					}
				}
			}
			list = append(list, b)
		}
	}
	return list
}

// TestRaw decompresses what compress/flate packs, into room that fits, is too
// short, and too long, with other bytes behind.
func TestRaw(t *testing.T) {
	for i, data := range samples() {
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6, 9} {
			src := pack(t, data, level)
			behind := append(bytes.Clone(src), 0xff, 0x55, 0xaa)
			for _, room := range []int{len(data), len(data) / 2, len(data) + 100} {
				dst := make([]byte, room)
				n, taken, ended, err := Raw(dst, behind)
				want := min(room, len(data))
				if err != nil || n != want || ended != (room >= len(data)) || ended && taken != len(src) || !bytes.Equal(dst[:n], data[:n]) {
					t.Fatalf("sample %d, level %d, room %d of %d: %d bytes, %d of %d taken, ended %t, %v", i, level, room, len(data), n, taken, len(src), ended, err)
				}
			}
			for cut := 0; cut < len(src); cut += 1 + len(src)/min(50, 1+100_000/(1+len(src))) {
				dst := make([]byte, len(data))
				if n, _, ended, err := Raw(dst, src[:cut]); ended || err == nil && n < len(data) || !bytes.Equal(dst[:n], data[:n]) {
					t.Fatalf("sample %d, level %d, cut at %d of %d: %d bytes, ended %t, %v", i, level, cut, len(src), n, ended, err)
				}
			}
		}
	}
}

// FuzzRaw compares with compress/flate.
func FuzzRaw(f *testing.F) {
	for _, data := range samples()[:30] {
		for _, level := range []int{flate.HuffmanOnly, 0, 9} {
			f.Add(pack(f, data[:min(len(data), 2000)], level))
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		const room = 1 << 16
		got := make([]byte, room)
		n, _, ended, err := Raw(got, src)
		r := flate.NewReader(bytes.NewReader(src))
		want, werr := io.ReadAll(io.LimitReader(r, room))
		if ended && err == nil && (werr != nil || !bytes.Equal(want, got[:n])) {
			t.Fatalf("%d bytes; compress/flate has %d, %v", n, len(want), werr)
		}
		if werr == nil && len(want) < room && (err != nil || !ended) {
			t.Fatalf("%d bytes, ended %t, %v; compress/flate has %d", n, ended, err, len(want))
		}
		if err == nil && n == room && !bytes.Equal(want, got[:len(want)]) {
			t.Fatal("other bytes")
		}
	})
}

func BenchmarkRaw(b *testing.B) {
	data := samples()[37][:65536]
	src := pack(b, data, 6)
	dst := make([]byte, len(data))
	b.Run("raw", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, _, _, err := Raw(dst, src); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("flate", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		r := flate.NewReader(nil)
		for b.Loop() {
			if err := r.(flate.Resetter).Reset(bytes.NewReader(src), nil); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(r, dst); err != nil {
				b.Fatal(err)
			}
		}
	})
}
