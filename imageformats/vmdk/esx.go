package vmdk

import (
	"context"
	"fmt"
	"log/slog"
	"math"

	"yester/internal/ondisk"
)

// openCowd opens an ESX Server sparse extent.
func openCowd(ctx context.Context, f *source, log *slog.Logger) (*sparse, error) {
	var b [cowdHeaderSize]byte
	if f.size < int64(len(b)) {
		return nil, f.corrupt("COWD header", 0, "cut off: the file ends at %#x", f.size)
	}
	if err := f.read(ctx, b[:], 0); err != nil {
		return nil, fmt.Errorf("vmdk: %sCOWD header: %w", f.prefix(), err)
	}
	h := decodeCowd(b[:])
	if h.version != cowdVersion {
		return nil, f.unsupported("COWD header", offCowdVersion, "version %d", h.version)
	}
	if err := f.checkGrains(uint64(h.capacity), uint64(h.grainSize), offCowdCapacity, offCowdGrain); err != nil {
		return nil, err
	}
	s := &sparse{source: f, log: log, dir: int64(h.gd) << sectorShift}
	s.setGrains(uint64(h.capacity), uint64(h.grainSize), cowdTable, 4)
	switch {
	case int64(h.gdes) < s.dirLen:
		return nil, f.corrupt("COWD header", offCowdGDEs, "%d entries in the grain directory, the capacity needs %d", h.gdes, s.dirLen)
	case s.dir < cowdHeaderSize || !s.holds(s.dir):
		return nil, f.corrupt("grain directory", offCowdGD, "%d entries at %#x lie outside the file (%#x bytes)", s.dirLen, s.dir, f.size)
	}
	s.taken = []area{{0, cowdHeaderSize, "header"}, {s.dir, s.dirLen * s.entrySize, "grain directory"}}
	s.unclean = h.unclean || h.flags&cowdInconsistent != 0
	return s, nil
}

// openSe opens a seSparse extent. Its format is known by what ESXi writes, so what
// is unlike that is refused.
func openSe(ctx context.Context, f *source, log *slog.Logger, ignoreJournal bool) (*sparse, []string, error) {
	var b [seHeaderSize]byte
	if f.size < int64(len(b)) {
		return nil, nil, f.corrupt("seSparse header", 0, "cut off: the file ends at %#x", f.size)
	}
	if err := f.read(ctx, b[:], 0); err != nil {
		return nil, nil, fmt.Errorf("vmdk: %sseSparse header: %w", f.prefix(), err)
	}
	if le.Uint64(b[:]) != seMagic {
		return nil, nil, f.corrupt("seSparse header", 0, "magic %#x", le.Uint64(b[:]))
	}
	h := decodeSe(b[:])
	if err := h.check(f); err != nil {
		return nil, nil, err
	}
	warnings, err := f.checkVolatile(ctx, &h, ignoreJournal)
	if err != nil {
		return nil, nil, err
	}
	s := &sparse{source: f, log: log, dir: int64(h.dir.at) << sectorShift}
	s.setGrains(h.capacity, h.grainSize, int64(h.table)<<sectorShift/seEntrySize, seEntrySize)
	if uint64(s.dirLen) > h.dir.n*(sectorSize/seEntrySize) {
		return nil, nil, f.corrupt("grain directory", offSeDir, "%d sectors, the capacity needs %d entries", h.dir.n, s.dirLen)
	}
	if !s.holds(s.dir) {
		return nil, nil, f.corrupt("grain directory", offSeDir, "%d entries at %#x lie outside the file (%#x bytes)", s.dirLen, s.dir, f.size)
	}
	s.se = &seMap{
		tables:    int64(h.tables.at) << sectorShift,
		tablesEnd: int64(h.tables.at+h.tables.n) << sectorShift,
		grains:    int64(h.grains.at) << sectorShift,
	}
	s.taken = []area{{0, seHeaderSize, "header"}, {s.dir, int64(h.dir.n) << sectorShift, "grain directory"}}
	return s, warnings, nil
}

// check verifies the constant header.
func (h *seHeader) check(f *source) error {
	switch {
	case h.version != seVersion:
		return f.unsupported("seSparse header", offSeVersion, "version %#x", h.version)
	case h.grainSize != seGrain:
		return f.unsupported("seSparse header", offSeGrain, "grains of %d sectors", h.grainSize)
	case h.table != seTableSectors:
		return f.unsupported("seSparse header", offSeTable, "grain tables of %d sectors", h.table)
	}
	for i, v := range h.reserved {
		if v != 0 {
			return f.unsupported("seSparse header", int64(offSeFlags+8*i), "flags %#x", v)
		}
	}
	for _, a := range []struct {
		name string
		off  int64
		area seArea
	}{{"volatile header", offSeVolatile, h.volatile}, {"grain directory", offSeDir, h.dir}, {"grain tables", offSeTables, h.tables}, {"grains", offSeGrains, h.grains}} {
		if a.area.at == 0 || a.area.at > maxSectors || a.area.n > maxSectors {
			return f.corrupt(a.name, a.off, "%#x sectors at sector %#x", a.area.n, a.area.at)
		}
	}
	return f.checkGrains(h.capacity, h.grainSize, offSeCapacity, offSeGrain)
}

// checkVolatile verifies the volatile header, and that there is nothing in the
// journal to replay.
func (f *source) checkVolatile(ctx context.Context, h *seHeader, ignoreJournal bool) (warnings []string, err error) {
	at := int64(h.volatile.at) << sectorShift
	if at > f.size-seHeaderSize {
		return nil, f.corrupt("volatile header", at, "past the end (%#x)", f.size)
	}
	var b [seHeaderSize]byte
	if err := f.read(ctx, b[:], at); err != nil {
		return nil, fmt.Errorf("vmdk: %svolatile header: %w", f.prefix(), err)
	}
	if m := le.Uint64(b[:]); m != seVolatileMagic {
		return nil, f.corrupt("volatile header", at, "magic %#x", m)
	}
	if le.Uint64(b[offSeReplay:]) == 0 {
		return nil, nil
	}
	if !ignoreJournal {
		return nil, f.unsupported("volatile header", at+offSeReplay, "the journal holds changes that aren't in the grain tables yet")
	}
	return []string{f.prefix() + "the journal holds changes that aren't in the grain tables yet; they are left out"}, nil
}

// seTable returns the place of the table that directory entry e, number no, names.
func (s *sparse) seTable(no, off int64, e uint64) (int64, error) {
	if e>>seTypeShift != seDirPresent || e&^(seDirPresent<<seTypeShift|seDirIndexMask) != 0 {
		return 0, s.corrupt(fmt.Sprintf("grain directory entry %d", no), off, "%#x", e)
	}
	size := s.perTable * s.entrySize
	table := s.se.tables + int64(e&seDirIndexMask)*size // < 2⁵⁹ + 2⁴⁷
	if table > s.se.tablesEnd-size {
		return 0, s.corrupt(fmt.Sprintf("grain directory entry %d", no), off, "table %d lies outside the tables (up to %#x)", e&seDirIndexMask, s.se.tablesEnd)
	}
	return table, nil
}

// seGrain decodes table entry e of grain g. An unmapped grain, which the guest has
// trimmed, reads as zeros: so does QEMU, and ESXi's disks promise it.
func (s *sparse) seGrain(g, off int64, e uint64) (kind, int64, error) {
	switch e >> seTypeShift {
	case seAbsent:
		if e != 0 {
			break
		}
		return absent, 0, nil
	case seUnmapped, seZero:
		return zero, 0, nil
	case sePresent:
		n := e>>seGrainLowShift&seGrainLowMask | e&seGrainHighMask<<12
		if n > math.MaxInt64>>1/uint64(s.grain) {
			break
		}
		return plain, s.se.grains + int64(n)*s.grain, nil
	}
	return absent, 0, ondisk.Corruptf("vmdk", fmt.Sprintf("%sgrain table entry %d", s.prefix(), g), off, "%#x", e)
}
