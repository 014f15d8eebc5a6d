package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// layer is one file of a chain.
type layer struct {
	file block.Reader // with its log replayed
	name string       // for messages
	size int64        // bytes of disk it describes

	flat bool // its bytes are the disk's: a parent that is no VHDX

	diff       bool // of a VHDX from here on
	blockSize  int64
	blockShift uint
	sectorSize int64
	ratioShift uint  // payload blocks for one sector bitmap, as a power of two
	fileSize   int64 //
	batOff     int64
	entries    uint64 // of the BAT
	areas      []area

	bat  []atomic.Pointer[batPage]
	maps mapCache
}

func newLayer(file block.Reader, m *meta, name string) *layer {
	l := &layer{
		file: file, name: name, size: m.size,
		diff:       m.diff,
		blockSize:  m.blockSize,
		blockShift: uint(bits.TrailingZeros64(uint64(m.blockSize))),
		sectorSize: m.sectorSize,
		ratioShift: uint(bits.TrailingZeros64(uint64(m.ratio))),
		fileSize:   file.Size(),
		batOff:     m.bat.off,
		entries:    m.entries,
		areas:      m.areas,
	}
	l.bat = make([]atomic.Pointer[batPage], min(batPages, (m.entries+entriesPage-1)/entriesPage))
	if m.diff {
		l.maps = newMapCache(uint64(m.size / m.sectorSize))
	}
	return l
}

// flatLayer makes a layer of a parent that is no VHDX.
func flatLayer(r block.Reader, name string) *layer {
	return &layer{file: r, name: name, flat: true, size: r.Size()}
}

// kind says what a layer knows of some bytes.
type kind uint8

const (
	absent kind = iota // ask the layer below
	zeros              // zeros, whatever lies below
	data               // in the layer's file
)

// span is what a layer knows of the bytes from some offset on.
type span struct {
	n    int64 // bytes, at least 1
	kind kind
	at   int64 // where, when data
}

// next describes the bytes of the disk from off on, n at most; off lies in the
// layer. Neighbouring blocks alike are told of at once, as far as one page of the
// BAT goes, so that the time of a look-up is bounded.
func (l *layer) next(ctx context.Context, off, n int64) (span, error) {
	n = min(n, l.size-off)
	if l.flat {
		return span{n: n, kind: data, at: off}, nil
	}
	var sum span
	for {
		at := off + sum.n
		no := uint64(at) >> l.blockShift
		s, whole, err := l.inBlock(ctx, no, at, n-sum.n)
		switch {
		case sum.n == 0:
			if err != nil {
				return span{}, err
			}
			sum = s
		case err != nil || s.kind != sum.kind || s.kind == data && s.at != sum.at+sum.n:
			return sum, nil // the next look-up tells the rest
		default:
			sum.n += s.n
		}
		if sum.n == n || !whole || (l.batIndex(no)+1)%entriesPage == 0 {
			return sum, nil
		}
	}
}

// batIndex returns the number of the BAT entry of payload block no: behind every
// 2^ratioShift payload blocks there is one of a sector bitmap ([2.5]).
func (l *layer) batIndex(no uint64) uint64 { return no + no>>l.ratioShift }

// inBlock describes the bytes of payload block no from off on, n at most. whole
// says that this was told by the BAT alone and up to the block's end.
func (l *layer) inBlock(ctx context.Context, no uint64, off, n int64) (s span, whole bool, err error) {
	idx := l.batIndex(no)
	e, err := l.entry(ctx, idx)
	if err != nil {
		return span{}, false, err
	}
	rel := off & (l.blockSize - 1)
	whole = n >= l.blockSize-rel
	n = min(n, l.blockSize-rel)
	switch e.state() {
	case notPresent:
		if l.diff {
			return span{n: n}, whole, nil
		}
		return span{n: n, kind: zeros}, whole, nil
	case undefined, zero, unmapped:
		return span{n: n, kind: zeros}, whole, nil
	case partiallyPresent:
		whole = false
		set, count, err := l.sectorRun(ctx, no, off, n)
		if err != nil {
			return span{}, false, err
		}
		n = min(n, count)
		if !set {
			return span{n: n}, false, nil
		}
	}
	// entry has made sure that the block begins inside the file.
	at := int64(e.offsetMB())<<20 + rel
	if n > l.fileSize-at {
		whole = false
		if n = l.fileSize - at; n <= 0 {
			return span{}, false, l.corrupt(l.entryName(idx), l.entryOff(idx), "disk offset %#x lies at %#x, past the end of the file (%#x)", off, at, l.fileSize)
		}
	}
	return span{n: n, kind: data, at: at}, whole, nil
}

// read fills b from the layer's file.
func (l *layer) read(ctx context.Context, b []byte, at int64) error {
	err := block.ReadFull(ctx, l.file, b, at)
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
	return ondisk.Corruptf("vhdx", l.prefix()+field, off, msg, args...)
}
