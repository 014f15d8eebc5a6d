package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"

	"yester/internal/block"
	"yester/internal/decoded"
	"yester/internal/ondisk"
)

// Tables are cached by pages, bounded per layer and looked up without a lock: a
// slot holds a pointer to an immutable page and is replaced as a whole. Two
// readers that miss at once both read the page; nothing is ever wrong, only read
// twice.
const (
	pageSize  = 4096      // bytes: 512 entries, which map 32 MiB of disk by default
	l2Kept    = 4 << 20   // bytes of L2 pages kept: what 32 GiB of disk need by default
	l1Kept    = 256 << 10 // bytes of L1 pages kept: 16 TiB
	l1PerPage = pageSize / 8
)

// layer is one file of a chain.
type layer struct {
	file  block.Reader // tables and compressed clusters
	data  block.Reader // all other clusters: file, or the external data file
	name  string       // for messages
	end   int64        // of data, bytes
	limit int64        // bytes of disk it describes
	flat  bool         // data's bytes are the disk's: a backing file that is no qcow2

	meta     *meta
	state    state
	bits     uint   // logarithm of the cluster's size
	entry    uint   // bytes of an L2 entry: 8, or 16 when extended
	perTable uint64 // entries of an L2 table
	perPage  uint64 // entries of a page of one
	external bool   // data is another file
	l1, l2   []atomic.Pointer[page]
	units    *decoded.Units // compressed clusters, by their number on the disk
}

// page is a part of a table.
type page struct {
	no   uint64 // of all pages of the L1 table, or of all L2 tables together, in the disk's order
	at   int64  // in the file
	data []byte
}

func (p *page) entry(i uint64) uint64 { return be.Uint64(p.data[i*8:]) }

func newLayer(m *meta, s state, file, data block.Reader, name string) *layer {
	l := &layer{
		file: file, data: data, name: name, end: data.Size(), limit: int64(s.size), meta: m, state: s,
		bits: uint(m.clusterBits), entry: 8, external: m.incompatible.has(dataFile),
	}
	if m.subclusterable {
		l.entry = 16
	}
	cluster := uint64(1) << l.bits
	l.perTable = cluster / uint64(l.entry)
	size := min(pageSize, cluster)
	l.perPage = size / uint64(l.entry)
	clusters := (s.size + cluster - 1) >> l.bits
	l.l1 = make([]atomic.Pointer[page], min(l1Kept/pageSize, (m.l1Need(s.size)+l1PerPage-1)/l1PerPage))
	l.l2 = make([]atomic.Pointer[page], min(l2Kept/size, (clusters+l.perPage-1)/l.perPage))
	l.units = decoded.New(l.decode)
	return l
}

// flatLayer makes a layer of a backing file that is no qcow2.
func flatLayer(r block.Reader, name string) *layer {
	return &layer{file: r, data: r, name: name, flat: true, end: r.Size(), limit: r.Size()}
}

// kind says where the bytes of a span come from.
type kind uint8

const (
	absent  kind = iota // not from this layer
	zeros               // nowhere: they are zeros
	present             // the layer's data
	packed              // a compressed cluster
)

// span is what a layer knows of the bytes from some offset on.
type span struct {
	n    int64 // bytes, at least 1
	kind kind
	at   int64 // in the layer's data, when present
}

// next describes the bytes of the disk from off on, n at most. It looks at one
// page of a table, so that its time is bounded, and may report one run in parts.
func (l *layer) next(ctx context.Context, off, n int64) (span, error) {
	if off >= l.limit {
		return span{n: n}, nil
	}
	n = min(n, l.limit-off)
	if l.flat {
		return span{n: n, kind: present, at: off}, nil
	}
	cluster := uint64(off) >> l.bits
	p, gap, err := l.l2Page(ctx, cluster)
	if err != nil {
		return span{}, err
	}
	if p == nil {
		return span{n: min(n, int64(gap)<<l.bits-off)}, nil
	}
	size := int64(1) << l.bits
	rel := off & (size - 1)
	s, err := l.look(p, cluster, rel)
	if err != nil || s.kind == packed {
		s.n = min(s.n, n)
		return s, err
	}
	end := cluster - cluster%l.perPage + l.perPage
	for whole := rel+s.n == size; whole && s.n < n; {
		if cluster++; cluster == end {
			break
		}
		t, err := l.look(p, cluster, 0)
		if err != nil || t.kind != s.kind || s.kind == present && t.at != s.at+s.n {
			break // the next look-up tells
		}
		s.n += t.n
		whole = t.n == size
	}
	s.n = min(s.n, n)
	if s.kind == present {
		// What lies before a cut is still good.
		if left := l.end - s.at; s.n > left {
			if s.n = left; left <= 0 {
				return span{}, l.corrupt("L2 entry", -1, "cluster at %#x of disk offset %#x lies past the end (%#x)", s.at, off, l.end)
			}
		}
	}
	return s, nil
}

// l2Page returns the page of the L2 table that maps cluster; nil when there is no
// such table, and then the cluster before which none is.
func (l *layer) l2Page(ctx context.Context, cluster uint64) (p *page, gap uint64, err error) {
	no := cluster / l.perPage
	slot := &l.l2[no%uint64(len(l.l2))]
	if p := slot.Load(); p != nil && p.no == no {
		return p, 0, nil
	}
	i := cluster / l.perTable
	p, err = l.l1Page(ctx, i)
	if err != nil {
		return nil, 0, err
	}
	entry := p.entry(i % l1PerPage)
	at := entry & offsetMask
	if entry&l1Reserved != 0 {
		return nil, 0, l.l1Corrupt(i, "reserved bits are set: %#x", entry)
	}
	if at == 0 {
		for i++; i%l1PerPage != 0 && i%l1PerPage < uint64(len(p.data)/8) && p.entry(i%l1PerPage) == 0; {
			i++
		}
		return nil, i * l.perTable, nil
	}
	if err := l.checkCluster(at); err != nil {
		return nil, 0, l.l1Corrupt(i, "L2 table at %#x: %v", at, err)
	}
	at += cluster % l.perTable / l.perPage * l.perPage * uint64(l.entry)
	p = &page{no: no, at: int64(at), data: make([]byte, l.perPage*uint64(l.entry))}
	if err := l.read(ctx, p.data, p.at); err != nil {
		return nil, 0, fmt.Errorf("qcow2: %sL2 table %d at %#x: %w", l.prefix(), i, p.at, err)
	}
	slot.Store(p)
	return p, 0, nil
}

// l1Page returns the page that holds L1 entry i.
func (l *layer) l1Page(ctx context.Context, i uint64) (*page, error) {
	no := i / l1PerPage
	slot := &l.l1[no%uint64(len(l.l1))]
	if p := slot.Load(); p != nil && p.no == no {
		return p, nil
	}
	size := min(pageSize, (l.meta.l1Need(l.state.size)-no*l1PerPage)*8)
	p := &page{no: no, at: int64(l.state.l1Table + no*pageSize), data: make([]byte, size)}
	if err := l.read(ctx, p.data, p.at); err != nil {
		return nil, fmt.Errorf("qcow2: %sL1 table at %#x: %w", l.prefix(), p.at, err)
	}
	slot.Store(p)
	return p, nil
}

// look describes the bytes of one cluster from rel on, by its L2 entry.
func (l *layer) look(p *page, cluster uint64, rel int64) (span, error) {
	size := int64(1) << l.bits
	i := cluster % l.perPage
	s := span{n: size - rel}
	if l.entry == 16 {
		return l.lookExtended(p, cluster, rel)
	}
	e := p.entry(i)
	switch {
	case e == 0:
		return s, nil
	case e&compressed != 0:
		s.kind = packed
		return s, nil
	case e&l2Reserved != 0:
		return s, l.l2Corrupt(p, i, "reserved bits are set: %#x", e)
	case e&zeroCluster != 0:
		if l.meta.version < 3 {
			return s, l.l2Corrupt(p, i, "a zero cluster, which version %d hasn't: %#x", l.meta.version, e)
		}
		s.kind = zeros
		return s, nil
	}
	at := e & offsetMask
	if err := l.checkData(at, e, cluster); err != nil {
		return s, l.l2Corrupt(p, i, "%v", err)
	}
	s.kind, s.at = present, int64(at)+rel
	return s, nil
}

// lookExtended is look for extended entries, in which each subcluster has a
// state of its own.
func (l *layer) lookExtended(p *page, cluster uint64, rel int64) (span, error) {
	size := int64(1) << l.bits
	i := cluster % l.perPage
	e, bitmap := p.entry(i*2), p.entry(i*2+1)
	if e&compressed != 0 {
		return span{n: size - rel, kind: packed}, nil
	}
	if e&(l2Reserved|zeroCluster) != 0 {
		return span{}, l.l2Corrupt(p, i, "reserved bits are set: %#x", e)
	}
	alloc, zero := uint32(bitmap), uint32(bitmap>>32)
	if alloc&zero != 0 {
		return span{}, l.l2Corrupt(p, i, "subclusters are both data and zeros: %#x", bitmap)
	}
	sub := uint(rel) >> (l.bits - 5)
	var s span
	like := ^(alloc | zero) // the subclusters of the first one's kind
	switch {
	case alloc>>sub&1 != 0:
		at := e & offsetMask
		if err := l.checkData(at, e, cluster); err != nil {
			return s, l.l2Corrupt(p, i, "%v", err)
		}
		s.kind, s.at, like = present, int64(at)+rel, alloc
	case zero>>sub&1 != 0:
		s.kind, like = zeros, zero
	}
	n := min(uint(bits.TrailingZeros32(^(like >> sub))), subclusters-sub)
	s.n = int64(sub+n)<<(l.bits-5) - rel
	return s, nil
}

// checkData says whether a cluster of data may lie at the offset of entry e.
func (l *layer) checkData(at, e, cluster uint64) error {
	if l.external {
		// A data file keeps every cluster where the disk has it ([Header], bit 2).
		if at != cluster<<l.bits || at == 0 && e&copied == 0 {
			return fmt.Errorf("offset %#x in the data file isn't that of the disk", at)
		}
		return nil
	}
	return l.checkCluster(at)
}

// checkCluster says whether a cluster may lie at an offset of the file: on a
// boundary, and not over the header, the L1 or the reference count table.
func (l *layer) checkCluster(at uint64) error {
	size := uint64(1) << l.bits
	m := l.meta
	over := func(start, n uint64) bool { return at < start+n && start < at+size }
	switch {
	case at&(size-1) != 0:
		return errUnaligned
	case at < size:
		return errOverHeader
	case over(m.l1Table, uint64(m.l1Entries)*8) && m.l1Entries > 0, over(l.state.l1Table, uint64(l.state.l1Entries)*8) && l.state.l1Entries > 0:
		return errOverL1
	case m.refTable < maxHost && over(m.refTable, uint64(m.refClusters)<<l.bits) && m.refClusters > 0:
		return errOverRefcounts
	}
	return nil
}

var (
	errUnaligned     = errors.New("not at a cluster's boundary")
	errOverHeader    = errors.New("over the header")
	errOverL1        = errors.New("over the L1 table")
	errOverRefcounts = errors.New("over the reference count table")
)

// read fills b from the layer's file.
func (l *layer) read(ctx context.Context, b []byte, at int64) error {
	return readFull(ctx, l.file, b, at)
}

func readFull(ctx context.Context, r block.Reader, b []byte, at int64) error {
	err := block.ReadFull(ctx, r, b, at)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", ondisk.ErrCorrupt, err) // the file shrank, or ends early
	}
	return err
}

func (l *layer) prefix() string {
	if l.name == "" {
		return ""
	}
	return l.name + ": "
}

func (l *layer) corrupt(field string, off int64, msg string, args ...any) error {
	return ondisk.Corruptf("qcow2", l.prefix()+field, off, msg, args...)
}

func (l *layer) l1Corrupt(i uint64, msg string, args ...any) error {
	return l.corrupt(fmt.Sprintf("L1 entry %d", i), int64(l.state.l1Table+i*8), msg, args...)
}

func (l *layer) l2Corrupt(p *page, i uint64, msg string, args ...any) error {
	return l.corrupt("L2 entry", p.at+int64(i)*int64(l.entry), msg, args...)
}
