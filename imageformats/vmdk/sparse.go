package vmdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"sync/atomic"

	"yester/internal/block"
	"yester/internal/decoded"
	"yester/internal/ondisk"
)

// source is a host file with its name, for messages.
type source struct {
	r    block.Reader
	name string
	size int64 // bytes
}

// read fills b from at.
func (f *source) read(ctx context.Context, b []byte, at int64) error {
	err := block.ReadFull(ctx, f.r, b, at)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", ondisk.ErrCorrupt, err) // the file shrank, or ends early
	}
	return err
}

func (f *source) prefix() string {
	if f.name == "" {
		return ""
	}
	return f.name + ": "
}

func (f *source) corrupt(field string, off int64, msg string, args ...any) error {
	return ondisk.Corruptf("vmdk", f.prefix()+field, off, msg, args...)
}

func (f *source) unsupported(field string, off int64, msg string, args ...any) error {
	return ondisk.Unsupportedf("vmdk", f.prefix()+field, off, msg, args...)
}

// kind says what a range of a disk is.
type kind uint8

const (
	absent kind = iota // not in this layer: the parent's, or zeros
	zero
	plain  // bytes of a host file
	packed // in a compressed grain
)

// span is what an extent knows of the bytes from some offset on.
type span struct {
	kind kind
	n    int64   // bytes, at least 1
	file *source // plain: where
	at   int64   // plain: the offset in file
	ext  *sparse // packed: whose grain
	in   int64   // packed: the offset in the extent
}

// area is a part of an extent's file that holds metadata, bytes.
type area struct {
	at, n int64
	what  string
}

// Pages of grain directories and tables are cached as they lie in the file. A slot
// holds a pointer to an immutable page and is replaced as a whole: no lock, and
// two who miss at once both read the page.
const (
	pageShift = 12
	pageSize  = 1 << pageShift
	// maxPages bounds an extent's pages: 4 MiB, the tables of 64 GiB in grains of
	// 64 KiB.
	maxPages = 1024
)

type page struct {
	no   int64
	data [pageSize]byte
}

// maxSteps bounds the grains that one look-up passes over, and so its time.
const maxSteps = 1 << 16

// sparse is an extent whose grains are found through a grain directory and
// grain tables: hosted ("KDMV"), ESX Server ("COWD"), or space-efficient.
type sparse struct {
	*source
	capacity   int64 // bytes of disk
	grain      int64 // bytes, a power of two
	grainShift uint
	perTable   int64 // entries of a grain table
	entrySize  int64 // bytes: 4, or 8 for seSparse
	dir        int64 // byte offset of the grain directory
	redundant  int64 // of the second directory, with tables of its own; 0: none
	dirLen     int64 // entries
	zeroedGTE  bool
	compressed bool
	marked     bool   // compressed grains have markers
	unclean    bool   // it was in use when it was copied
	se         *seMap // seSparse only
	taken      []area // where no grain may lie

	pages  []atomic.Pointer[page]
	units  *decoded.Units // compressed only
	log    *slog.Logger
	warned atomic.Bool // that the redundant directory was used
}

// seMap says where a seSparse extent's numbered tables and grains lie, bytes.
type seMap struct{ tables, tablesEnd, grains int64 }

// setGrains sets the geometry, which the caller has checked: grain size and
// capacity in sectors, and entries of a grain table.
func (s *sparse) setGrains(capacity, grain uint64, perTable, entrySize int64) {
	s.capacity, s.grain = int64(capacity)<<sectorShift, int64(grain)<<sectorShift
	s.grainShift = uint(bits.TrailingZeros64(uint64(s.grain)))
	s.perTable, s.entrySize = perTable, entrySize
	grains := (s.capacity + s.grain - 1) >> s.grainShift
	s.dirLen = (grains + perTable - 1) / perTable
	// Directory and tables are at most this many pages, if they lie together; the
	// quotients are small, as both sizes are powers of two or nearly.
	pages := (s.dirLen*entrySize)>>pageShift + (grains/pageSize)*entrySize + 2
	s.pages = make([]atomic.Pointer[page], min(pages, maxPages))
}

// checkGrains says whether sizes from a header, in sectors, make sense.
func (f *source) checkGrains(capacity, grain uint64, capOff, grainOff int64) error {
	switch {
	case capacity == 0 || capacity > maxSectors:
		return f.corrupt("capacity", capOff, "%#x sectors", capacity)
	case grain == 0 || grain&(grain-1) != 0 || grain > maxGrainSector:
		return f.corrupt("grain size", grainOff, "%d sectors: no power of two up to %d", grain, maxGrainSector)
	}
	return nil
}

// holds reports whether the directory at off lies in the file as a whole.
func (s *sparse) holds(off int64) bool {
	return off > 0 && off <= s.size && s.dirLen <= (s.size-off)/s.entrySize
}

// entry reads the directory or table entry at off.
func (s *sparse) entry(ctx context.Context, off int64) (uint64, error) {
	no := off >> pageShift
	slot := &s.pages[no%int64(len(s.pages))]
	p := slot.Load()
	if p == nil || p.no != no {
		if off > s.size-s.entrySize {
			return 0, fmt.Errorf("past the end (%#x): %w", s.size, ondisk.ErrCorrupt)
		}
		p = &page{no: no}
		at := no << pageShift
		if err := s.read(ctx, p.data[:min(pageSize, s.size-at)], at); err != nil {
			return 0, err
		}
		slot.Store(p)
	} else if off > s.size-s.entrySize {
		return 0, fmt.Errorf("past the end (%#x): %w", s.size, ondisk.ErrCorrupt)
	}
	b := p.data[off&(pageSize-1):]
	if s.entrySize == seEntrySize {
		return le.Uint64(b), nil
	}
	return uint64(le.Uint32(b)), nil
}

// place is where a grain is.
type place struct {
	kind kind
	at   int64 // byte offset of its data, or of its marker
	same int64 // grains from this one on that are known to be alike: 1, or more when absent
}

// find looks grain g up, in the redundant directory where the first one is bad.
func (s *sparse) find(ctx context.Context, g int64) (place, error) {
	p, err := s.findIn(ctx, s.dir, g)
	if err == nil || s.redundant == 0 || ctx.Err() != nil {
		return p, err
	}
	q, rerr := s.findIn(ctx, s.redundant, g)
	if rerr != nil {
		return place{}, err
	}
	if !s.warned.Swap(true) {
		s.log.Warn("vmdk: the grain directory is damaged; the redundant one is used", "extent", s.name, "err", err)
	}
	return q, nil
}

func (s *sparse) findIn(ctx context.Context, dir, g int64) (place, error) {
	no, i := g/s.perTable, g%s.perTable
	dirOff := dir + no*s.entrySize
	e, err := s.entry(ctx, dirOff)
	if err != nil {
		return place{}, s.entryError("grain directory entry", no, dirOff, err)
	}
	if e == 0 {
		return place{kind: absent, same: s.perTable - i}, nil
	}
	table := int64(e << sectorShift)
	if s.se != nil {
		if table, err = s.seTable(no, dirOff, e); err != nil {
			return place{}, err
		}
	}
	// A table that is cut off is read as far as it goes.
	if table >= s.size {
		return place{}, s.corrupt(fmt.Sprintf("grain directory entry %d", no), dirOff, "table at %#x lies past the end (%#x)", table, s.size)
	}
	if over := s.overlap(table, s.perTable*s.entrySize); over != "" {
		return place{}, s.corrupt(fmt.Sprintf("grain directory entry %d", no), dirOff, "table at %#x lies over the %s", table, over)
	}
	off := table + i*s.entrySize
	if e, err = s.entry(ctx, off); err != nil {
		return place{}, s.entryError("grain table entry", g, off, err)
	}
	p := place{same: 1}
	switch {
	case s.se != nil:
		if p.kind, p.at, err = s.seGrain(g, off, e); err != nil || p.kind != plain {
			return p, err
		}
	case e == 0:
		return p, nil
	case e == gteZeroed && s.zeroedGTE:
		p.kind = zero
		return p, nil
	default:
		p.kind, p.at = plain, int64(e<<sectorShift)
		if s.compressed {
			p.kind = packed
		}
	}
	if p.at >= s.size {
		return place{}, s.corrupt(fmt.Sprintf("grain table entry %d", g), off, "grain at %#x lies past the end (%#x)", p.at, s.size)
	}
	n := s.grain
	if s.compressed {
		n = 1 // how long it is, its marker says
	}
	over := s.overlap(p.at, n)
	if p.at < table+s.perTable*s.entrySize && table < p.at+n {
		over = "grain table"
	}
	if over != "" {
		return place{}, s.corrupt(fmt.Sprintf("grain table entry %d", g), off, "grain at %#x lies over the %s", p.at, over)
	}
	return p, nil
}

// overlap names the metadata that n bytes at off touch.
func (s *sparse) overlap(off, n int64) string {
	for _, a := range s.taken {
		if off < a.at+a.n && a.at < off+n {
			return a.what
		}
	}
	return ""
}

func (s *sparse) entryError(what string, no, off int64, err error) error {
	return fmt.Errorf("vmdk: %s%s %d at %#x: %w", s.prefix(), what, no, off, err)
}

// next describes the bytes of the extent from off on, n at most: a run of grains
// of one kind, in one piece where they are data. A compressed grain is a span of
// its own.
func (s *sparse) next(ctx context.Context, off, n int64) (span, error) {
	if off >= s.capacity {
		return span{}, s.corrupt("capacity", -1, "the descriptor has disk at %#x of the extent, whose header says %#x bytes", off, s.capacity)
	}
	n = min(n, s.capacity-off)
	g, in := off>>s.grainShift, off&(s.grain-1)
	p, err := s.find(ctx, g)
	if err != nil {
		return span{}, err
	}
	sp := span{kind: p.kind, n: min(n, p.same<<s.grainShift-in)}
	switch p.kind {
	case packed:
		sp.ext, sp.in = s, off
		return sp, nil
	case plain:
		sp.file, sp.at = s.source, p.at+in
		if sp.at >= s.size {
			return span{}, s.corrupt(fmt.Sprintf("grain %d", g), p.at, "cut off: the file ends at %#x", s.size)
		}
	}
	g += p.same
	for range maxSteps {
		if sp.n == n {
			break
		}
		q, err := s.find(ctx, g)
		// An error is told by the look-up that begins there.
		if err != nil || q.kind != p.kind || q.kind == plain && q.at != sp.at+sp.n {
			break
		}
		sp.n = min(n, sp.n+q.same<<s.grainShift)
		g += q.same
	}
	if sp.kind == plain {
		sp.n = min(sp.n, s.size-sp.at)
	}
	return sp, nil
}
