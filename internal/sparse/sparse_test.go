package sparse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"syscall"
	"testing"

	"yester/internal/block"
	"yester/internal/readertest"
)

// mapped knows which of its pages are zeros, says so in odd pieces, and counts
// the bytes read.
type mapped struct {
	readertest.Bytes
	read atomic.Int64
	fail int64 // offset at which reads fail
}

func (m *mapped) ReadAt(p []byte, off int64) (int, error) {
	m.read.Add(int64(len(p)))
	if m.fail > 0 && off <= m.fail && m.fail < off+int64(len(p)) {
		return 0, syscall.EIO
	}
	return m.Bytes.ReadAt(p, off)
}

func (m *mapped) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	n = min(n, 1000-off%1000)
	return block.Extent{Len: n, Zero: Zero(m.Bytes[off : off+n])}, nil
}

func TestScan(t *testing.T) {
	b := make(readertest.Bytes, 1<<20+100)
	for _, i := range []int{0, 5000, 70_000, 70_001, 500_000, 1 << 20, 1<<20 + 99} {
		b[i] = 1
	}
	for name, src := range map[string]block.Reader{"plain": b, "mapped": &mapped{Bytes: b}} {
		t.Run(name, func(t *testing.T) {
			got := make([]byte, len(b))
			last, done := int64(-1), int64(-1)
			err := Scan(t.Context(), src, Options{Chunk: 4096, Progress: func(n int64) {
				if n < done {
					t.Errorf("progress %d after %d", n, done)
				}
				done = n
			}}, func(off int64, data []byte) error {
				if off <= last || off%4096 != 0 || Zero(data) || len(data) != int(min(4096, int64(len(b))-off)) {
					t.Errorf("chunk of %d at %d after %d", len(data), off, last)
				}
				last = off
				copy(got[off:], data)
				return nil
			})
			if err != nil || !bytes.Equal(got, b) || done != int64(len(b)) {
				t.Errorf("error %v, equal %t, progress %d", err, bytes.Equal(got, b), done)
			}
			if m, ok := src.(*mapped); ok && m.read.Load() > 7*4096 {
				t.Errorf("read %d bytes", m.read.Load())
			}
		})
	}
}

func TestScanErrors(t *testing.T) {
	b := bytes.Repeat([]byte{1}, 1<<20)
	nop := func(int64, []byte) error { return nil }
	if err := Scan(t.Context(), &mapped{Bytes: b, fail: 500_000}, Options{Chunk: 4096}, nop); !errors.Is(err, syscall.EIO) {
		t.Errorf("failing read: %v", err)
	}
	stop := errors.New("stop")
	if err := Scan(t.Context(), readertest.Bytes(b), Options{Chunk: 4096}, func(off int64, _ []byte) error {
		if off > 100_000 {
			return stop
		}
		return nil
	}); err != stop {
		t.Errorf("failing emit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := Scan(ctx, readertest.Bytes(b), Options{Chunk: 4096}, func(int64, []byte) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := Scan(t.Context(), readertest.Bytes(b), Options{Chunk: 1000}, nop); err == nil {
		t.Error("chunk of 1000 bytes is taken")
	}
}

type short struct{}

func (short) WriteAt(p []byte, _ int64) (int, error) { return len(p) / 2, nil }

type sink struct{ bytes.Buffer }

func (s *sink) WriteAt(p []byte, off int64) (int, error) {
	if int(off) > s.Len() {
		s.Write(make([]byte, int(off)-s.Len()))
	}
	return s.Write(p)
}

func TestWrite(t *testing.T) {
	if err := WriteAt(short{}, make([]byte, 10), 0); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("short write: %v", err)
	}
	for _, b := range []string{"", "\x00", "a", "\x00\x00\x00\x00a", "abcd\x00\x00\x00\x00\x00\x00\x00\x00e\x00", "\x00\x00\x00\x00\x00\x00a\x00b"} {
		var s sink
		if err := WriteData(&s, []byte(b), 0, 4); err != nil {
			t.Fatal(err)
		}
		got := append(s.Bytes(), make([]byte, len(b)-min(len(b), s.Len()))...)
		if string(got) != b {
			t.Errorf("wrote %q for %q", got, b)
		}
	}
}

func TestHole(t *testing.T) {
	b := make(readertest.Bytes, 10_500)
	b[7000] = 1
	src := &mapped{Bytes: b}
	for _, c := range []struct {
		off, n int64
		r      block.Reader
		want   bool
	}{
		{0, 7000, src, true}, {0, 7001, src, false}, {7000, 1, src, false}, {8000, 2500, src, true}, {8000, 1 << 30, src, true},
		{1 << 20, 10, src, true}, {0, 10, b, false},
	} {
		got, err := Hole(t.Context(), c.r, c.off, c.n)
		if err != nil || got != c.want {
			t.Errorf("[%d, +%d) of a %T: %t, %v", c.off, c.n, c.r, got, err)
		}
		if both, err := HoleInBoth(t.Context(), &mapped{Bytes: make(readertest.Bytes, 100_000)}, c.r, c.off, c.n); err != nil || both != c.want {
			t.Errorf("[%d, +%d) of a %T and a hole: %t, %v", c.off, c.n, c.r, both, err)
		}
	}
	if n := src.read.Load(); n != 0 {
		t.Errorf("%d bytes were read", n)
	}
}
