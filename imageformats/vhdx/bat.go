package vhdx

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// Caches are bounded per layer and looked up without a lock: a slot holds a
// pointer to an immutable page and is replaced as a whole. Two readers that miss
// at once both read the page; nothing is ever wrong, only read twice.
const (
	batPageSize = 4096 // bytes
	entriesPage = batPageSize / batEntrySize
	batPages    = 512 // slots: 2 MiB at most, all of the BAT of 8 TiB in blocks of 32 MiB
)

type batPage struct {
	no      uint64
	entries [entriesPage]batEntry
}

// entry returns BAT entry idx, which is sound.
func (l *layer) entry(ctx context.Context, idx uint64) (batEntry, error) {
	if idx >= l.entries {
		return 0, l.corrupt(l.entryName(idx), l.entryOff(idx), "the BAT has %d entries", l.entries)
	}
	pageNo := idx / entriesPage
	slot := &l.bat[pageNo%uint64(len(l.bat))]
	page := slot.Load()
	if page == nil || page.no != pageNo {
		var err error
		if page, err = l.readPage(ctx, pageNo); err != nil {
			return 0, fmt.Errorf("vhdx: %s%s at %#x: %w", l.prefix(), l.entryName(idx), l.entryOff(idx), err)
		}
		slot.Store(page)
	}
	e := page.entries[idx%entriesPage]
	if e&entryBad != 0 {
		return 0, l.entryError(page, idx)
	}
	return e, nil
}

// readPage reads a page of the BAT and marks the entries that are bad.
func (l *layer) readPage(ctx context.Context, no uint64) (*batPage, error) {
	first := no * entriesPage
	count := min(entriesPage, l.entries-first)
	var raw [batPageSize]byte
	b := raw[:count*batEntrySize]
	if err := l.read(ctx, b, l.entryOff(first)); err != nil {
		return nil, err
	}
	page := &batPage{no: no}
	var held []int // entries that name a place in the file
	for i := range int(count) {
		e := batEntry(le.Uint64(b[i*batEntrySize:]))
		if l.entryFault(first+uint64(i), e) != "" {
			e |= entryBad
		} else if n := l.holds(first+uint64(i), e); n > 0 {
			held = append(held, i)
		}
		page.entries[i] = e
	}
	// Two that name one place can't both be right. Those of other pages aren't
	// compared: it would take the whole BAT.
	slices.SortFunc(held, func(a, b int) int {
		return cmp.Compare(page.entries[a].offsetMB(), page.entries[b].offsetMB())
	})
	end, last := uint64(0), 0 // of the blocks so far, MiB, and whose that is
	for _, i := range held {
		e := page.entries[i]
		if e.offsetMB() < end {
			page.entries[i] |= entryBad
			page.entries[last] |= entryBad
		}
		if n := e.offsetMB() + uint64(l.holds(first+uint64(i), e))>>20; n > end {
			end, last = n, i
		}
	}
	return page, nil
}

// isBitmap reports whether BAT entry idx is a sector bitmap's.
func (l *layer) isBitmap(idx uint64) bool {
	ratio := uint64(1) << l.ratioShift
	return idx%(ratio+1) == ratio
}

// holds returns how many bytes of the file BAT entry idx claims for its block.
// Bitmaps of a disk without a parent don't count, as they mean nothing, and old
// releases of QEMU left rubbish there.
func (l *layer) holds(idx uint64, e batEntry) int64 {
	switch bitmap := l.isBitmap(idx); {
	case bitmap && l.diff && e.state() == fullyPresent:
		return bitmapSize
	case !bitmap && (e.state() == fullyPresent || e.state() == partiallyPresent):
		return l.blockSize
	}
	return 0
}

// entryFault says what is wrong with BAT entry idx by itself, or "".
func (l *layer) entryFault(idx uint64, e batEntry) string {
	bitmap := l.isBitmap(idx)
	if bitmap && !l.diff {
		return ""
	}
	if e&batReserved != 0 {
		return fmt.Sprintf("reserved bits are set (%#x)", uint64(e))
	}
	switch s := e.state(); {
	case bitmap && s != notPresent && s != fullyPresent,
		s == 4 || s == 5,
		s == partiallyPresent && !l.diff:
		return fmt.Sprintf("state %d", s)
	}
	n := l.holds(idx, e)
	if n == 0 {
		return ""
	}
	if e.offsetMB() >= uint64(l.fileSize+mib-1)>>20 {
		return fmt.Sprintf("block at %#x MiB lies past the end of the file (%#x)", e.offsetMB(), l.fileSize)
	}
	start := int64(e.offsetMB()) << 20
	if what := over(l.areas, start, n); what != "" {
		return fmt.Sprintf("block at %#x lies over the %s", start, what)
	}
	return ""
}

// entryError says what is wrong with a bad entry of page.
func (l *layer) entryError(page *batPage, idx uint64) error {
	e := page.entries[idx%entriesPage] &^ entryBad
	if msg := l.entryFault(idx, e); msg != "" {
		return l.corrupt(l.entryName(idx), l.entryOff(idx), "%s", msg)
	}
	for i, o := range page.entries {
		other := page.no*entriesPage + uint64(i)
		n, m := uint64(l.holds(idx, e))>>20, uint64(l.holds(other, o))>>20
		if a, b := e.offsetMB(), o.offsetMB(); other != idx && l.entryFault(other, o&^entryBad) == "" && a < b+m && b < a+n {
			return l.corrupt(l.entryName(idx), l.entryOff(idx), "block at %#x overlaps that of BAT entry %d at %#x", a<<20, other, b<<20)
		}
	}
	return l.corrupt(l.entryName(idx), l.entryOff(idx), "reserved bits are set")
}

// entryName names BAT entry idx in messages.
func (l *layer) entryName(idx uint64) string {
	group := uint64(1)<<l.ratioShift + 1
	if l.isBitmap(idx) {
		return fmt.Sprintf("BAT entry %d (sector bitmap %d)", idx, idx/group)
	}
	return fmt.Sprintf("BAT entry %d (block %d)", idx, idx-idx/group)
}

// entryOff returns where BAT entry idx lies in the file.
func (l *layer) entryOff(idx uint64) int64 { return l.batOff + int64(idx)*batEntrySize }
