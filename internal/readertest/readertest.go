// Package readertest is the conformance suite of block.Reader: whatever hands
// out bytes in this project runs it over a fixture whose bytes are known.
package readertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"yester/internal/block"
)

// Bytes is a block.Reader over a slice: the simplest truth to compare with.
type Bytes []byte

// Size implements block.Reader.
func (b Bytes) Size() int64 { return int64(len(b)) }

// ReadAt implements block.Reader.
func (b Bytes) ReadAt(p []byte, off int64) (int, error) {
	n, err := block.CheckRead(off, len(p), int64(len(b)))
	if n > 0 {
		copy(p, b[off:off+int64(n)])
	}
	return n, err
}

// File is a plain file as a block.Reader.
type File struct{ *os.File }

// Size implements block.Reader; 0 when the file can't be stat'ed.
func (f File) Size() int64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

// Run checks r against want, which holds what r must, byte for byte. Offsets are
// random but the same in each run; edges (bytes) adds places worth a look, such
// as block boundaries. With -short, as under the race detector, there are fewer of
// each kind.
func Run(t *testing.T, r, want block.Reader, edges ...int64) {
	t.Helper()
	if r.Size() != want.Size() {
		t.Fatalf("Size() = %d, want %d", r.Size(), want.Size())
	}
	t.Run("whole", func(t *testing.T) { whole(t, r, want) })
	t.Run("limits", func(t *testing.T) { limits(t, r, want) })
	t.Run("edges", func(t *testing.T) { around(t, r, want, edges) })
	t.Run("random", func(t *testing.T) { random(t, r, want, 1, few(200)) })
	t.Run("parallel", func(t *testing.T) { parallel(t, r, want) })
	if _, ok := r.(block.ContextReader); ok && r.Size() > 0 {
		t.Run("context", func(t *testing.T) { cancelled(t, r) })
	}
	if _, ok := r.(block.Mapper); ok {
		t.Run("extents", func(t *testing.T) { extents(t, r, want) })
	}
}

// few returns n, or an eighth of it with -short.
func few(n int) int {
	if testing.Short() {
		return n / 8
	}
	return n
}

// Hash returns the SHA-256 of r's bytes, read in pieces of n bytes.
func Hash(r block.Reader, n int) (string, error) {
	h := sha256.New()
	m, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{io.NewSectionReader(r, 0, r.Size())}, make([]byte, n))
	if err == nil && m != r.Size() {
		err = fmt.Errorf("read %d bytes of %d", m, r.Size())
	}
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func whole(t *testing.T, r, want block.Reader) {
	exp, err := Hash(want, 1<<20)
	if err != nil {
		t.Fatalf("reading what is wanted: %v", err)
	}
	pieces := []int{300_001, 1 << 20} // aligned and not
	if testing.Short() {
		pieces = pieces[:1]
	}
	for _, n := range pieces {
		got, err := Hash(r, n)
		if err != nil || got != exp {
			t.Fatalf("read in pieces of %d bytes: hash %s, error %v; want %s%s", n, got, err, exp, firstDifference(r, want))
		}
	}
}

// firstDifference says where r and want part, for messages.
func firstDifference(r, want block.Reader) string {
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < want.Size(); off += int64(len(a)) {
		n, err := r.ReadAt(a, off)
		m, _ := want.ReadAt(b, off)
		if n != m {
			return fmt.Sprintf("; read at %#x gives %d bytes (%v), want %d", off, n, err, m)
		}
		for i := range n {
			if a[i] != b[i] {
				return fmt.Sprintf("; first difference at %#x: %#x, want %#x", off+int64(i), a[i], b[i])
			}
		}
	}
	return ""
}

// limits checks the rules at the ends: io.ReaderAt's, and block.Reader's on EOF.
func limits(t *testing.T, r, want block.Reader) {
	size := r.Size()
	for _, c := range []struct {
		name string
		off  int64
		n    int
		want int
		err  error // io.EOF, nil, or anyError
	}{
		{"nothing at the start", 0, 0, 0, nil},
		{"nothing at the end", size, 0, 0, nil},
		{"at the end", size, 1, 0, io.EOF},
		{"past the end", size + 1, 10, 0, io.EOF},
		{"far past the end", 1<<62 + 5, 4096, 0, io.EOF},
		{"over the end", max(0, size-100), 200, int(min(size, 100)), io.EOF},
		{"up to the end", max(0, size-100), int(min(size, 100)), int(min(size, 100)), nil},
		{"negative", -1, 1, 0, errAny},
		{"negative, large", -1 << 63, 1 << 12, 0, errAny},
	} {
		p := bytes.Repeat([]byte{0xa5}, c.n)
		n, err := r.ReadAt(p, c.off)
		ok := n == c.want
		switch {
		case c.err == nil:
			ok = ok && (err == nil || isEOF(err) && n > 0 && c.off+int64(n) == size)
		case isEOF(c.err):
			ok = ok && isEOF(err)
		default:
			ok = ok && err != nil && !errors.Is(err, io.EOF)
		}
		if !ok {
			t.Errorf("%s: ReadAt(%d bytes, %d) of %d = %d, %v; want %d, %v", c.name, c.n, c.off, size, n, err, c.want, c.err)
			continue
		}
		if n > 0 {
			q := make([]byte, n)
			if err := block.ReadFull(t.Context(), want, q, c.off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p[:n], q) {
				t.Errorf("%s: wrong bytes", c.name)
			}
		}
	}
}

// isEOF reports whether err is io.EOF itself: callers of an io.ReaderAt, those
// in the standard library too, compare with it.
func isEOF(err error) bool {
	return err == io.EOF //nolint:errorlint // a wrapped one won't do
}

var errAny = errors.New("any error but io.EOF")

// buffers holds pairs to read into, as reads are many.
var buffers = sync.Pool{New: func() any { return new([2][]byte) }}

// compare reads n bytes at off from both; it is called from several goroutines.
func compare(t *testing.T, r, want block.Reader, off, n int64) {
	off = max(0, off)
	buf := buffers.Get().(*[2][]byte)
	defer buffers.Put(buf)
	for i := range buf {
		if int64(len(buf[i])) < n {
			buf[i] = make([]byte, n)
		}
	}
	p, q := buf[0][:n], buf[1][:n]
	poison(p)
	gn, gerr := r.ReadAt(p, off)
	wn, _ := want.ReadAt(q, off)
	if gn != wn || !bytes.Equal(p[:gn], q[:wn]) {
		t.Errorf("%d bytes at %#x: got %d bytes, error %v, equal %t; want %d bytes",
			n, off, gn, gerr, gn == wn && bytes.Equal(p[:gn], q[:wn]), wn)
		return
	}
	if gn < len(p) && !isEOF(gerr) || gn == len(p) && gerr != nil && !isEOF(gerr) {
		t.Errorf("%d bytes at %#x: got all %d bytes with error %v", n, off, gn, gerr)
	}
}

// poison fills p with a byte that no hole has, so that one left as it was is
// noticed.
func poison(p []byte) {
	if len(p) == 0 {
		return
	}
	p[0] = 0xa5
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}

func around(t *testing.T, r, want block.Reader, edges []int64) {
	size := r.Size()
	edges = append([]int64{0, 511, 512, 4096, 64 << 10, 1 << 20, 2 << 20, size / 2, size - 4096, size - 512, size}, edges...)
	for _, e := range edges {
		for _, before := range []int64{0, 1, 511, 512, 4097} {
			lengths := []int64{1, 513, 70_000, 2, 512, 8195}
			for _, n := range lengths[:max(3, few(len(lengths)))] {
				compare(t, r, want, e-before, n)
			}
		}
	}
}

func random(t *testing.T, r, want block.Reader, seed uint64, count int) {
	size := r.Size()
	rng := rand.New(rand.NewPCG(seed, 0x7265616465727465))
	for range count {
		off := rng.Int64N(size + 1)
		n := min(rng.Int64N(1<<(1+rng.IntN(21))), size+4096) // many short, some of megabytes
		compare(t, r, want, off, n)
	}
}

func parallel(t *testing.T, r, want block.Reader) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { random(t, r, want, uint64(100+i), few(25)) })
	}
	wg.Wait()
}

// cancelled checks that a read under a context that is done fails as that.
func cancelled(t *testing.T, r block.Reader) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n, err := block.ReadAt(ctx, r, make([]byte, 1), 0)
	if !errors.Is(err, context.Canceled) || n != 0 {
		t.Errorf("read with a cancelled context = %d, %v; want 0, context.Canceled", n, err)
	}
	if n, err := block.ReadAt(t.Context(), r, make([]byte, 1), 0); n != 1 || err != nil && !isEOF(err) {
		t.Errorf("read after a cancelled one = %d, %v", n, err)
	}
}

// extents checks that the extents tile the reader, that holes read as zeros, and
// that what is said to lie in a file does.
func extents(t *testing.T, r, want block.Reader) {
	size := r.Size()
	ctx := t.Context()
	for _, off := range []int64{-1, size, size + 1} {
		if e, err := block.ExtentAt(ctx, r, off, 1); err == nil {
			t.Errorf("extent at %d of %d = %+v, want an error", off, size, e)
		}
	}
	buf, exp := make([]byte, 1<<20), make([]byte, 1<<20)
	check := func(off int64, e block.Extent) bool {
		for done := int64(0); done < e.Len; {
			b, x := buf[:min(int64(len(buf)), e.Len-done)], exp[:min(int64(len(buf)), e.Len-done)]
			if err := block.ReadFull(ctx, want, x, off+done); err != nil {
				t.Fatal(err)
			}
			switch {
			case e.Zero:
				clear(b)
			case e.File != nil:
				if n, err := e.File.ReadAt(b, e.Off+done); n != len(b) {
					t.Errorf("extent at %#x: reading its file at %#x: %d bytes, %v", off, e.Off+done, n, err)
					return false
				}
			default:
				return true
			}
			if !bytes.Equal(b, x) {
				t.Errorf("extent %+v at %#x: the bytes there differ from the reader's", e, off)
				return false
			}
			done += int64(len(b))
		}
		return true
	}
	steps := []int64{size, 100_000}
	for _, step := range steps[:max(1, few(len(steps)))] {
		for off := int64(0); off < size; {
			e, err := block.ExtentAt(ctx, r, off, step)
			if err != nil {
				t.Fatalf("extent at %#x: %v", off, err)
			}
			if e.Len < 1 || e.Len > min(step, size-off) || e.Zero && e.File != nil {
				t.Fatalf("extent at %#x of at most %d bytes = %+v", off, step, e)
			}
			if !check(off, e) {
				return
			}
			off += e.Len
		}
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for range min(int64(few(200)), size) {
		off := rng.Int64N(size)
		e, err := block.ExtentAt(ctx, r, off, 1+rng.Int64N(size))
		if err != nil {
			t.Fatalf("extent at %#x: %v", off, err)
		}
		e.Len = min(e.Len, 256<<10)
		if !check(off, e) {
			return
		}
	}
}
