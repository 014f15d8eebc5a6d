package vhd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// Caches are bounded per layer and looked up without a lock: a slot holds a
// pointer to an immutable page and is replaced as a whole. Two readers that miss
// at once both read the page; nothing is ever wrong, only read twice.
const (
	batPageSize   = 4096            // bytes: 1024 entries, 2 GiB of disk by default
	batPages      = 1024            // slots: 4 MiB at most, all of a 2 TiB disk's BAT
	entriesPage   = batPageSize / 4 // entries in a page
	mapPageSize   = sectorSize      // bytes of a sector bitmap: 4096 sectors, 2 MiB of disk
	sectorsPage   = mapPageSize * 8 // sectors told of by one page
	mapPages      = 1024            // slots: half a megabyte at most
	maxMapStates  = 4 << 20         // bitmap pages whose state is remembered: 1 MiB
	stateUnknown  = 0               // of a bitmap page
	stateFull     = 1               // all its sectors are in the block
	stateEmpty    = 2               // none is
	stateMixed    = 3               // to be looked up
	statesPerWord = 16              // two bits each
)

// layer is one file of a chain.
type layer struct {
	file  block.Reader
	name  string // for messages
	limit int64  // bytes of disk it describes

	cut     bool  // the file has no good footer at its end
	flat    bool  // its bytes are the disk's: a fixed VHD, or a parent that is no VHD
	dataEnd int64 // flat and sparse: where the file's data ends at the latest

	blockSize  int64 // sparse from here on
	blockShift uint
	bitmapSize int64
	tableOff   int64
	tableEnd   int64
	headerOff  int64
	lowFirst   bool // sector bitmaps begin with the lowest bit of each byte

	bat    []atomic.Pointer[batPage]
	maps   []atomic.Pointer[mapPage]
	states []atomic.Uint32 // two bits for each bitmap page of the disk, or nil when there are too many
}

type batPage struct {
	no   uint64
	data [batPageSize]byte
}

type mapPage struct {
	no   uint64 // of all bitmap pages of the layer, in the disk's order
	bits [mapPageSize / 8]uint64
}

func newLayer(file block.Reader, m *meta, name string) *layer {
	l := &layer{file: file, name: name, limit: m.limit, dataEnd: m.dataEnd, cut: m.cut}
	if m.diskType == typeFixed {
		l.flat = true
		return l
	}
	n := blocks(m.limit, m.blockSize)
	l.blockSize = int64(m.blockSize)
	l.blockShift = uint(bits.TrailingZeros32(m.blockSize))
	l.bitmapSize = m.bitmapSize
	l.tableOff = int64(m.tableOffset)
	l.tableEnd = l.tableOff + int64(n*4)
	l.headerOff = int64(m.dataOffset)
	// Tapdisk's first release; later ones convert such bitmaps when they meet
	// them (blktap, vhd-util "update": "older VHD bitmaps were little endian").
	l.lowFirst = m.creatorApp == "tap\x00" && m.major == 0 && m.minor == 1
	if n == 0 {
		return l
	}
	l.bat = make([]atomic.Pointer[batPage], min(batPages, (n+entriesPage-1)/entriesPage))
	pages := n * uint64(l.pagesPerBlock())
	l.maps = make([]atomic.Pointer[mapPage], min(mapPages, pages))
	if pages <= maxMapStates {
		l.states = make([]atomic.Uint32, (pages+statesPerWord-1)/statesPerWord)
	}
	return l
}

// flatLayer makes a layer of a parent that is no VHD.
func flatLayer(r block.Reader, name string) *layer {
	return &layer{file: r, name: name, flat: true, limit: r.Size(), dataEnd: r.Size()}
}

func (l *layer) pagesPerBlock() int64 { return l.bitmapSize / mapPageSize }

// span is what a layer knows of the bytes from some offset on.
type span struct {
	n       int64 // bytes, at least 1
	present bool  // they are in the layer's file
	at      int64 // where, when present
}

// next describes the bytes of the disk from off on, n at most. It reports
// presence that ends no later than a block, and may report absence in parts.
func (l *layer) next(ctx context.Context, off, n int64) (span, error) {
	if off >= l.limit {
		return span{n: n}, nil
	}
	n = min(n, l.limit-off)
	if l.flat {
		if n > l.dataEnd-off {
			if n = l.dataEnd - off; n <= 0 {
				return span{}, l.corrupt("data", off, "the file ends at %#x", l.dataEnd)
			}
		}
		return span{n: n, present: true, at: off}, nil
	}
	var absent int64
	for no := uint64(off) >> l.blockShift; ; no++ {
		entry, err := l.entry(ctx, no)
		switch {
		case absent > 0 && (err != nil || entry != unallocated):
			return span{n: absent}, nil // the next look-up tells the rest
		case err != nil:
			return span{}, err
		case entry != unallocated:
			return l.inBlock(ctx, no, entry, off, n)
		}
		// One page of the BAT a look-up, so that its time is bounded.
		absent = min(int64(no+1)<<l.blockShift-off, n)
		if absent == n || (no+1)%entriesPage == 0 {
			return span{n: absent}, nil
		}
	}
}

// entry returns BAT entry no, which must be one that the disk needs.
func (l *layer) entry(ctx context.Context, no uint64) (uint32, error) {
	pageNo := no / entriesPage
	slot := &l.bat[pageNo%uint64(len(l.bat))]
	page := slot.Load()
	if page == nil || page.no != pageNo {
		page = &batPage{no: pageNo}
		at := l.tableOff + int64(pageNo)*batPageSize
		b := page.data[:min(batPageSize, l.tableEnd-at)]
		if err := l.read(ctx, b, at); err != nil {
			return 0, fmt.Errorf("vhd: %sBAT entry %d at %#x: %w", l.prefix(), no, at+int64(no%entriesPage)*4, err)
		}
		slot.Store(page)
	}
	return be.Uint32(page.data[no%entriesPage*4:]), nil
}

// inBlock describes what the sector bitmap of block no says of off.
func (l *layer) inBlock(ctx context.Context, no uint64, entry uint32, off, n int64) (span, error) {
	start := int64(entry) * sectorSize
	if err := l.checkBlock(no, start); err != nil {
		return span{}, err
	}
	rel := off & (l.blockSize - 1)
	n = min(n, l.blockSize-rel)
	var known int64 // bytes from rel on of the kind that present says
	var present bool
	for known < n {
		sector := (rel + known) / sectorSize
		set, count, err := l.sectorRun(ctx, no, start, sector)
		if err != nil {
			if known > 0 {
				break
			}
			return span{}, err
		}
		if known > 0 && set != present {
			break
		}
		present = set
		known = (sector+count)*sectorSize - rel
	}
	n = min(n, known)
	if !present {
		return span{n: n}, nil
	}
	at := start + l.bitmapSize + rel
	if n > l.dataEnd-at {
		if n = l.dataEnd - at; n <= 0 {
			return span{}, l.corrupt(fmt.Sprintf("BAT entry %d", no), l.tableOff+int64(no)*4,
				"sector %d of the block at %#x lies past the end (%#x)", rel/sectorSize, start, l.dataEnd)
		}
	}
	return span{n: n, present: true, at: at}, nil
}

// checkBlock says whether a block may lie at start: in the file, and not over
// its footer copy, header or BAT.
func (l *layer) checkBlock(no uint64, start int64) error {
	end := start + l.bitmapSize + l.blockSize // < 2⁴¹ + 2³³
	var over string
	switch {
	// A file that has lost its end may have kept part of a block; one that
	// hasn't holds all of it that the disk needs.
	case start+l.bitmapSize > l.dataEnd,
		!l.cut && start+l.bitmapSize+min(l.blockSize, l.limit-int64(no)<<l.blockShift) > l.dataEnd:
		return l.corrupt(fmt.Sprintf("BAT entry %d", no), l.tableOff+int64(no)*4,
			"block at %#x lies past the end (%#x)", start, l.dataEnd)
	case start < footerSize:
		over = "footer copy"
	case start < l.headerOff+headerSize && l.headerOff < end:
		over = "dynamic header"
	case start < l.tableEnd && l.tableOff < end:
		over = "BAT"
	default:
		return nil
	}
	return l.corrupt(fmt.Sprintf("BAT entry %d", no), l.tableOff+int64(no)*4, "block at %#x lies over the %s", start, over)
}

// sectorRun returns whether a sector of block no is in the block, and how many
// sectors from it on are alike, within one page of the bitmap.
func (l *layer) sectorRun(ctx context.Context, no uint64, start, sector int64) (set bool, count int64, err error) {
	first := sector / sectorsPage * sectorsPage
	pageEnd := min(first+sectorsPage, l.blockSize/sectorSize)
	pageNo := no*uint64(l.pagesPerBlock()) + uint64(sector/sectorsPage)
	switch l.state(pageNo) {
	case stateFull:
		return true, pageEnd - sector, nil
	case stateEmpty:
		return false, pageEnd - sector, nil
	}
	slot := &l.maps[pageNo%uint64(len(l.maps))]
	page := slot.Load()
	if page == nil || page.no != pageNo {
		var b [mapPageSize]byte
		at := start + first/8
		if err := l.read(ctx, b[:], at); err != nil {
			return false, 0, fmt.Errorf("vhd: %ssector bitmap of block %d at %#x: %w", l.prefix(), no, at, err)
		}
		page = &mapPage{no: pageNo}
		for i := range page.bits {
			page.bits[i] = be.Uint64(b[i*8:]) // the first sector is the highest bit
			if l.lowFirst {
				page.bits[i] = bits.Reverse64(binary.LittleEndian.Uint64(b[i*8:]))
			}
		}
		state := uint32(stateMixed)
		if set, n := page.run(0, pageEnd-first); n == pageEnd-first {
			state = stateEmpty
			if set {
				state = stateFull
			}
		}
		l.setState(pageNo, state)
		if state == stateMixed || l.states == nil {
			slot.Store(page)
		}
	}
	set, count = page.run(sector-first, pageEnd-first)
	return set, count, nil
}

// run returns whether bit i is set and how many bits from it on, before bit end,
// are alike.
func (p *mapPage) run(i, end int64) (set bool, n int64) {
	set = p.bits[i/64]>>(63-i%64)&1 != 0
	for j := i; j < end; {
		w := p.bits[j/64] << (j % 64)
		if set {
			w = ^w
		}
		// The bits shifted in at the low end count as unlike; they are none of
		// the word's.
		alike := min(int64(bits.LeadingZeros64(w)), 64-j%64)
		j += alike
		if alike == 0 || j%64 != 0 {
			return set, min(j, end) - i
		}
	}
	return set, end - i
}

func (l *layer) state(pageNo uint64) uint32 {
	if l.states == nil {
		return stateUnknown
	}
	return l.states[pageNo/statesPerWord].Load() >> (pageNo % statesPerWord * 2) & 3
}

// setState stores a state once; racing readers of one page store the same.
func (l *layer) setState(pageNo uint64, state uint32) {
	if l.states != nil {
		l.states[pageNo/statesPerWord].Or(state << (pageNo % statesPerWord * 2))
	}
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
	return ondisk.Corruptf("vhd", l.prefix()+field, off, msg, args...)
}
