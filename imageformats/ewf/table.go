package ewf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"log/slog"
	"sort"
	"sync"

	"yester/internal/inflate"
)

// table says where a run of chunks lies in one segment.
type table struct {
	seg     *segment
	first   int64    // number of its first chunk
	count   int64    // chunks
	base    uint64   // added to every entry
	at      [2]int64 // of the entries: in table and in table2; 0 where there is none
	summed  bool     // the entries have a checksum
	lo, end int64    // the chunks lie in these bytes of the segment
}

// addTable notes a table section. Its entries are read when a chunk is.
func (m *meta) addTable(ctx context.Context, s *segment, sec section) error {
	var h [tableHeader]byte
	copyOf := m.pending
	m.pending = 0
	err := s.readSummed(ctx, h[:], sec.data(), tableSum, sec.kind)
	n := int64(le.Uint32(h[tableCount:]))
	if err == nil && (n > maxEntries || n*4 > sec.end-sec.data()-tableHeader) {
		err = s.corrupt(sec.kind, sec.at, "%d entries in %d bytes", n, sec.end-sec.at)
	}
	if sec.kind == "table2" && copyOf > 0 {
		t := &m.tables[copyOf-1]
		switch {
		case err != nil && t.count > 0:
			m.warnf("%v", err) // the first will do
			return nil
		case err != nil:
			return err
		case t.count > 0 && (n != t.count || le.Uint64(h[tableBase:]) != t.base):
			m.warnf("%v", s.corrupt(sec.kind, sec.at, "it differs from the first table: %d entries, not %d", n, t.count))
			return nil
		case t.count == 0: // the first is damaged
			t.count, t.base = n, le.Uint64(h[tableBase:])
			m.chunks += n
		}
		if err := t.check(); err != nil {
			return err
		}
		t.at[1] = sec.data() + tableHeader
		return nil
	}
	t := table{seg: s, first: m.chunks, count: n, base: le.Uint64(h[tableBase:]), at: [2]int64{sec.data() + tableHeader}}
	if m.lastRun.end > 0 {
		t.lo, t.end, t.summed = m.lastRun.data(), m.lastRun.end, true
		if n*4+4 > sec.end-sec.data()-tableHeader && err == nil {
			err = s.corrupt(sec.kind, sec.at, "no room for the checksum of %d entries", n)
		}
	} else { // EnCase 1: the chunks are in the table's own section
		t.lo, t.end = sec.data()+tableHeader+n*4, sec.end
	}
	if err != nil {
		if sec.kind == "table2" || m.lastRun.end == 0 {
			return err
		}
		m.warnf("%v: the second table is used", err)
		t.count, t.base, t.at = 0, 0, [2]int64{}
	} else if n == 0 {
		return nil
	}
	if err := t.check(); err != nil {
		return err
	}
	m.tables = append(m.tables, t)
	m.pending = len(m.tables)
	m.chunks += t.count
	return nil
}

// check verifies the base offset, so that adding an entry to it can't overflow.
func (t *table) check() error {
	if t.base > uint64(t.seg.file.Size()) {
		return t.seg.corrupt("table", t.lo, "base offset %#x", t.base)
	}
	return nil
}

// entries is a table's entries, as they lie in the file.
type entries struct {
	table *table
	data  []byte
}

// load returns the entries of t, the second table's when the first is damaged.
func (t *table) load(ctx context.Context, log *slog.Logger) (*entries, error) {
	n := int(t.count * 4)
	size := n
	if t.summed {
		size += 4
	}
	b := make([]byte, size)
	var first error
	for i, at := range t.at {
		if at == 0 {
			continue
		}
		field := [2]string{"table", "table2"}[i]
		var err error
		if t.summed {
			err = t.seg.readSummed(ctx, b, at, n, field)
		} else {
			err = t.seg.read(ctx, b, at, field)
		}
		if err == nil {
			if first != nil && log != nil {
				log.Warn(fmt.Sprintf("%v: the second table is used", first))
			}
			return &entries{t, b[:n]}, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// tableOf returns the index of the table that has chunk n.
func (img *Image) tableOf(n int64) int {
	return sort.Search(len(img.meta.tables), func(i int) bool { return img.meta.tables[i].first > n }) - 1
}

// place says where chunk n lies: b bytes [at, at+size) of its segment.
func (img *Image) place(ctx context.Context, n int64) (seg *segment, at, size int64, packed bool, err error) {
	no := img.tableOf(n)
	t := &img.meta.tables[no]
	slot := &img.slots[no%len(img.slots)]
	e := slot.Load()
	if e == nil || e.table != t {
		if e, err = t.load(ctx, img.log); err != nil {
			return nil, 0, 0, false, err
		}
		slot.Store(e)
	}
	i := n - t.first
	v := le.Uint32(e.data[i*4:])
	start := t.base + uint64(v&^entryPacked)
	end := uint64(t.end)
	if i+1 < t.count {
		end = t.base + uint64(le.Uint32(e.data[(i+1)*4:])&^entryPacked)
	}
	if start < uint64(t.lo) || end > uint64(t.end) || start >= end {
		return nil, 0, 0, false, t.seg.corrupt(fmt.Sprintf("table entry %d", i), t.at[0]+i*4,
			"chunk %d at %#x to %#x, but the chunks are at %#x to %#x", n, start, end, t.lo, t.end)
	}
	return t.seg, int64(start), int64(end - start), v&entryPacked != 0, nil
}

// decode reads chunk n and verifies its checksum.
func (img *Image) decode(ctx context.Context, n int64) ([]byte, error) {
	seg, at, size, packed, err := img.place(ctx, n)
	if err != nil {
		return nil, err
	}
	chunk := img.meta.chunk()
	want := min(chunk, img.meta.size-n*chunk)
	if packed {
		return img.unpack(ctx, seg, n, at, size, want)
	}
	// The last chunk may be as long as the others; what lies between two is none
	// of the first.
	size = min(size, chunk+chunkSumSize)
	if size < want+chunkSumSize {
		return nil, seg.corrupt("chunk", at, "chunk %d has %d bytes with its checksum, not %d", n, size, want+chunkSumSize)
	}
	b := make([]byte, size)
	if err := seg.read(ctx, b, at, "chunk"); err != nil {
		return nil, err
	}
	data := b[:size-chunkSumSize]
	if got, stored := adler32.Checksum(data), le.Uint32(b[len(data):]); got != stored {
		return nil, seg.corrupt("chunk", at, "chunk %d (disk offset %#x) has checksum %#x, by its content %#x", n, n*chunk, stored, got)
	}
	return data[:want:want], nil
}

// unpack reads a compressed chunk; zlib's own checksum is verified at its end.
func (img *Image) unpack(ctx context.Context, seg *segment, n, at, size, want int64) ([]byte, error) {
	chunk := img.meta.chunk()
	// What doesn't shrink is stored, or grows by five bytes in 64 KiB at most. What
	// lies between this chunk and the next is none of it.
	size = min(size, chunk+chunk/1024+64)
	in := inputs.Get().(*bytes.Buffer)
	defer inputs.Put(in)
	in.Reset()
	in.Grow(int(size))
	b := in.AvailableBuffer()[:size]
	if err := seg.read(ctx, b, at, "chunk"); err != nil {
		return nil, err
	}
	out := make([]byte, chunk)
	got, err := unzlib(out, b)
	if err == nil && int64(got) < want {
		err = fmt.Errorf("%d bytes instead of %d", got, want)
	}
	if err != nil {
		return nil, seg.corrupt("chunk", at, "chunk %d (disk offset %#x): %v", n, n*chunk, err)
	}
	return out[:want:want], nil
}

var inputs = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// unzlib unpacks in (RFC 1950) into out, and returns how much that was; more than
// out takes is an error. Behind the stream is its Adler-32.
func unzlib(out, in []byte) (int, error) {
	const deflate, dictionary = 8, 0x20
	if len(in) < 2 || in[0]&15 != deflate || (int(in[0])<<8|int(in[1]))%31 != 0 || in[1]&dictionary != 0 {
		return 0, errors.New("no zlib header")
	}
	n, taken, ended, err := inflate.Raw(out, in[2:])
	switch {
	case err != nil:
		return 0, err
	case !ended:
		return 0, fmt.Errorf("more than %d bytes", n)
	case len(in)-2-taken < 4:
		return 0, inflate.ErrShort
	}
	if got, want := adler32.Checksum(out[:n]), binary.BigEndian.Uint32(in[2+taken:]); got != want {
		return 0, fmt.Errorf("checksum %#x, by its content %#x", want, got)
	}
	return n, nil
}
