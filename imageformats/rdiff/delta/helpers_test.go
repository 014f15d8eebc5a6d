package delta

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// tool returns the path of a program that a test needs.
func tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is needed", name)
		}
		t.Skipf("%s is needed", name)
	}
	return p
}

func runTool(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(tool(t, name), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// ledger counts what is open, to find files that are forgotten.
type ledger struct{ open, opened atomic.Int64 }

// memory is a File in memory, entered in a ledger.
type memory struct {
	readertest.Bytes
	l      *ledger
	closed atomic.Bool
}

func (m *memory) Close() error {
	if m.closed.Swap(true) {
		return errors.New("closed twice")
	}
	m.l.open.Add(-1)
	return nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if m.closed.Load() {
		return 0, os.ErrClosed
	}
	return m.Bytes.ReadAt(p, off)
}

// source is b as a stored file of unknown size.
func (l *ledger) source(name string, b []byte, compressed bool) Source {
	if compressed {
		b = pack(b)
		name += ".gz"
	}
	return l.stored(name, b, compressed)
}

// stored is b as it lies in the repository.
func (l *ledger) stored(name string, b []byte, compressed bool) Source {
	return Source{Name: name, Gzip: compressed, Size: -1, Open: func(context.Context) (File, error) {
		l.open.Add(1)
		l.opened.Add(1)
		return &memory{Bytes: b, l: l}, nil
	}}
}

// none fails if something is open still.
func (l *ledger) none(t testing.TB) {
	t.Helper()
	if n := l.open.Load(); n != 0 {
		t.Errorf("%d files were left open", n)
	}
}

func pack(b []byte) []byte {
	var z bytes.Buffer
	level := gzip.DefaultCompression
	if len(b) > 100_000 {
		level = gzip.BestSpeed
	}
	w, err := gzip.NewWriterLevel(&z, level)
	if err != nil {
		panic(err) // no such level
	}
	w.Write(b)
	w.Close()
	return z.Bytes()
}

// hostFile is a file on the host as an origin shows it.
type hostFile struct{ readertest.File }

func (h hostFile) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	return block.Extent{Len: n, File: h.File.File, Off: off}, nil
}

// onHost is a file of the host as a source.
func onHost(path string, size int64) Source {
	return Source{Name: filepath.Base(path), Gzip: filepath.Ext(path) == ".gz", Size: size, Key: path,
		Open: func(context.Context) (File, error) {
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			return hostFile{readertest.File{File: f}}, nil
		}}
}

// encoder writes deltas, each command in the form that rng picks among those that
// can hold it.
type encoder struct {
	b   []byte
	rng *rand.Rand
}

func newEncoder(rng *rand.Rand) *encoder {
	return &encoder{b: binary.BigEndian.AppendUint32(nil, magic), rng: rng}
}

// width picks log2 of a number of bytes that can hold v.
func (e *encoder) width(v uint64) int {
	least := 0
	for least < 3 && v >= 1<<(8<<least) {
		least++
	}
	if e.rng == nil {
		return least
	}
	return least + e.rng.IntN(4-least)
}

func (e *encoder) number(v uint64, width int) {
	for i := 1<<width - 1; i >= 0; i-- {
		e.b = append(e.b, byte(v>>(8*i)))
	}
}

func (e *encoder) copy(start, n int64) *encoder {
	ws, wn := e.width(uint64(start)), e.width(uint64(n))
	e.b = append(e.b, byte(opCopyN1N1+4*ws+wn))
	e.number(uint64(start), ws)
	e.number(uint64(n), wn)
	return e
}

func (e *encoder) literal(p []byte) *encoder {
	if n := len(p); n <= opLiteral64 && (e.rng == nil || e.rng.IntN(2) == 0) {
		e.b = append(e.b, byte(n))
	} else {
		w := e.width(uint64(n))
		e.b = append(e.b, byte(opLiteralN1+w))
		e.number(uint64(n), w)
	}
	e.b = append(e.b, p...)
	return e
}

func (e *encoder) end() []byte { return append(e.b, opEnd) }

// patch applies a delta to old in the plainest way. It is a second reading of the
// format that shares nothing with the package.
func patch(old, d []byte) ([]byte, error) {
	r := bytes.NewReader(d)
	num := func(n int) (v uint64) {
		for range n {
			c, _ := r.ReadByte()
			v = v<<8 | uint64(c)
		}
		return v
	}
	if num(4) != 0x72730236 {
		return nil, errors.New("magic")
	}
	var out []byte
	for {
		op, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		switch {
		case op == 0:
			if r.Len() > 0 {
				return nil, errors.New("trailing bytes")
			}
			return out, nil
		case op <= 0x44:
			n := uint64(op)
			if op > 0x40 {
				w := 1 << (op - 0x41)
				if r.Len() < w {
					return nil, io.ErrUnexpectedEOF
				}
				n = num(w)
			}
			if n == 0 || n > uint64(r.Len()) {
				return nil, errors.New("literal")
			}
			p := make([]byte, n)
			io.ReadFull(r, p)
			out = append(out, p...)
		case op <= 0x54:
			ws, wn := 1<<((op-0x45)/4), 1<<((op-0x45)%4)
			if r.Len() < ws+wn {
				return nil, io.ErrUnexpectedEOF
			}
			start, n := num(ws), num(wn)
			if n == 0 || start > uint64(len(old)) || n > uint64(len(old))-start {
				return nil, errors.New("copy")
			}
			if uint64(len(out))+n > 1<<24 {
				return nil, errors.New("too large for a test")
			}
			out = append(out, old[start:start+n]...)
		default:
			return nil, errors.New("reserved")
		}
	}
}

// spool is a Spooler in a folder, that counts.
type spool struct {
	dir          string
	mu           sync.Mutex
	filled, hits int
}

func (s *spool) Spool(_ context.Context, key string, fill func(io.Writer) error) (File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.dir, key)
	if _, err := os.Stat(path); err == nil {
		s.hits++
	} else {
		f, err := os.Create(path + ".new")
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if err := fill(f); err != nil {
			return nil, fmt.Errorf("fill: %w", errors.Join(err, os.Remove(path+".new")))
		}
		if err := os.Rename(path+".new", path); err != nil {
			return nil, err
		}
		s.filled++
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return hostFile{readertest.File{File: f}}, nil
}

// must composes, and closes at the end of the test.
func must(t testing.TB, base Source, deltas []Source, opt Options) *Content {
	t.Helper()
	c, err := Compose(t.Context(), base, deltas, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// check compares all bytes, quicker than readertest.Run, and the list's form.
func check(t testing.TB, c *Content, want []byte) {
	t.Helper()
	got := make([]byte, c.Size())
	if err := block.ReadFull(context.Background(), c, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("content of %d bytes differs from the %d bytes wanted", len(got), len(want))
	}
	var off int64
	for i, s := range c.list {
		if s.off != off || s.n < 1 || c.files[s.from] == nil {
			t.Fatalf("segment %d of %d is %+v, want one at %#x", i, len(c.list), s, off)
		}
		off += s.n
	}
}

// wantCorrupt fails unless err matches ErrCorrupt and its text has all of texts.
func wantCorrupt(t testing.TB, err error, texts ...string) {
	t.Helper()
	if !errors.Is(err, ondisk.ErrCorrupt) {
		t.Fatalf("error %v, want one of corruption", err)
	}
	for _, s := range texts {
		if !bytes.Contains([]byte(err.Error()), []byte(s)) {
			t.Fatalf("error %q doesn't say %q", err, s)
		}
	}
}

// gunzipAll decompresses b by the standard library.
func gunzipAll(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n+7)
	for i := 0; i < n; i += 8 {
		binary.NativeEndian.PutUint64(b[i:i+8:i+8], rng.Uint64())
	}
	return b[:n:n]
}
