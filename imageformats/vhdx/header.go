package vhdx

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// readFileType tells a VHDX from anything else and reads who made it.
func (m *meta) readFileType(ctx context.Context, file block.Reader) error {
	var b [offCreator + creatorSize]byte
	n := min(int64(len(b)), file.Size())
	if err := block.ReadFull(ctx, file, b[:n], fileTypeOff); err != nil {
		return fmt.Errorf("vhdx: file type identifier at 0x0: %w", err)
	}
	if !bytes.HasPrefix(b[:n], []byte(fileTypeSig)) {
		return &ondisk.FormatError{Format: "vhdx", Field: "file type identifier", Off: -1, Msg: "no signature", Err: ondisk.ErrFormat}
	}
	m.info.Creator = strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, decodeUTF16(b[offCreator:])))
	return nil
}

// readHeaders finds the current header: of the two, each written while the other
// stays as it is, the sound one with the higher sequence number.
func (m *meta) readHeaders(ctx context.Context, file block.Reader) error {
	var raw [2][headerSize]byte
	var bad [2]error
	for i, at := range []int64{header1Off, header2Off} {
		bad[i] = readSummed(ctx, file, fmt.Sprintf("header %d", i+1), headerSig, raw[i][:], at, offHeaderSum)
		if bad[i] != nil && !isDamage(bad[i]) {
			return bad[i]
		}
	}
	h := [2]header{decodeHeader(raw[0][:]), decodeHeader(raw[1][:])}
	cur := 0
	switch {
	case bad[0] != nil && bad[1] != nil:
		return fmt.Errorf("%w; nor is header 2 sound: %w", bad[0], bad[1])
	case bad[0] != nil:
		cur = 1
		m.warnf("%v; header 2 is used", bad[0])
	case bad[1] != nil:
		m.warnf("%v; header 1 is used", bad[1])
	case h[0].sequence < h[1].sequence:
		cur = 1
	case h[0].sequence == h[1].sequence && !bytes.Equal(raw[0][:headerFields], raw[1][:headerFields]):
		// Disk2vhd writes the same header twice; two that differ can't both be current.
		return ondisk.Corruptf("vhdx", "header 2", header2Off+offSequence, "both headers have sequence number %d, but they differ", h[0].sequence)
	}
	m.header = h[cur]
	at := int64([]int{header1Off, header2Off}[cur])
	if m.header.version != fileVersion {
		return ondisk.Unsupportedf("vhdx", "header", at+offVersion, "version %d", m.header.version)
	}
	return m.checkLogPlace(at)
}

// checkLogPlace checks that the log, as the header at that offset has it, is at
// a sensible place. An empty log need not be anywhere.
func (m *meta) checkLogPlace(at int64) error {
	h := m.header
	if h.logGUID == (guid{}) && h.logLength == 0 {
		return nil
	}
	if h.logLength == 0 || h.logLength%regionAlign != 0 {
		return ondisk.Corruptf("vhdx", "log length", at+offLogLength, "%#x is no multiple of 1 MiB", h.logLength)
	}
	if h.logOffset < headerEnd || h.logOffset%regionAlign != 0 || h.logOffset > math.MaxInt64-math.MaxUint32 {
		return ondisk.Corruptf("vhdx", "log offset", at+offLogOffset, "%#x is no place for it", h.logOffset)
	}
	m.areas = append(m.areas, area{"log", int64(h.logOffset), int64(h.logLength)})
	return nil
}

// readSummed fills b from off and verifies signature and checksum. A failure of
// these, or a file that ends before, matches ErrCorrupt.
func readSummed(ctx context.Context, file block.Reader, field, sig string, b []byte, off int64, sumOff int) error {
	if size := file.Size(); off > size || int64(len(b)) > size-off {
		return ondisk.Corruptf("vhdx", field, off, "lies past the end of the file (%#x)", size)
	}
	if err := block.ReadFull(ctx, file, b, off); err != nil {
		return fmt.Errorf("vhdx: %s at %#x: %w", field, off, err)
	}
	if string(b[:len(sig)]) != sig {
		return ondisk.Corruptf("vhdx", field, off, "signature %q", b[:len(sig)])
	}
	if got, want := checksum(b, sumOff), le.Uint32(b[sumOff:]); got != want {
		return ondisk.Corruptf("vhdx", field, off, "checksum %#x, by its content %#x", want, got)
	}
	return nil
}

// readRegions reads the region table and finds the BAT and the metadata.
func (m *meta) readRegions(ctx context.Context, file block.Reader) error {
	tables := [2][]byte{make([]byte, tableSize), make([]byte, tableSize)}
	var bad [2]error
	for i, at := range []int64{region1Off, region2Off} {
		bad[i] = readSummed(ctx, file, fmt.Sprintf("region table %d", i+1), regionSig, tables[i], at, offRegionSum)
		if bad[i] != nil && !isDamage(bad[i]) {
			return bad[i]
		}
	}
	table, at := tables[0], int64(region1Off)
	switch {
	case bad[0] != nil && bad[1] != nil:
		return fmt.Errorf("%w; nor is region table 2 sound: %w", bad[0], bad[1])
	case bad[0] != nil:
		table, at = tables[1], region2Off
		m.warnf("%v; region table 2 is used", bad[0])
	case bad[1] != nil:
		m.warnf("%v; region table 1 is used", bad[1])
	case !bytes.Equal(tables[0], tables[1]):
		m.warnf("the region tables differ; the first is used")
	}
	count := le.Uint32(table[offRegionCount:])
	if count > maxEntries {
		return ondisk.Corruptf("vhdx", "region table", at+offRegionCount, "%d entries, at most %d", count, maxEntries)
	}
	for i := range int(count) {
		pos := regionHeadSize + i*regionEntrySize
		if err := m.addRegion(i, table[pos:pos+regionEntrySize], at+int64(pos)); err != nil {
			return err
		}
	}
	if m.bat.n == 0 || m.metadata.n == 0 {
		return ondisk.Corruptf("vhdx", "region table", at, "it names no BAT or no metadata region")
	}
	return m.checkAreas()
}

// addRegion takes up region table entry i, which lies at off.
func (m *meta) addRegion(i int, e []byte, off int64) error {
	id, flags := readGUID(e[offRegionGUID:]), le.Uint32(e[offRegionFlags:])
	start, n := le.Uint64(e[offRegionOffset:]), le.Uint32(e[offRegionLength:])
	field := fmt.Sprintf("region table entry %d", i)
	a := area{"region " + id.String(), int64(start), int64(n)}
	switch {
	case start < headerEnd || start%regionAlign != 0 || start > math.MaxInt64-math.MaxUint32:
		return ondisk.Corruptf("vhdx", field, off+offRegionOffset, "region %s at %#x", id, start)
	case n == 0 || n%regionAlign != 0:
		return ondisk.Corruptf("vhdx", field, off+offRegionLength, "region %s of %#x bytes", id, n)
	case id == regionBAT || id == regionMetadata:
		dst := &m.bat
		a.name = "BAT"
		if id == regionMetadata {
			dst, a.name = &m.metadata, "metadata region"
		}
		if dst.n != 0 {
			return ondisk.Corruptf("vhdx", field, off, "a second %s", a.name)
		}
		*dst = a
	case flags&regionRequired != 0:
		return ondisk.Unsupportedf("vhdx", field, off, "required region %s", id)
	}
	m.areas = append(m.areas, a)
	return nil
}

// area is a part of the file that no block may lie over.
type area struct {
	name string
	off  int64
	n    int64
}

// over returns the name of the area that the n bytes at off lie over, or "".
// areas are ascending and apart from each other.
func over(areas []area, off, n int64) string {
	if off < headerEnd {
		return "header section"
	}
	i, _ := slices.BinarySearchFunc(areas, off, func(a area, off int64) int {
		if a.off+a.n <= off {
			return -1
		}
		return 1
	})
	if i < len(areas) && areas[i].off < off+n {
		return areas[i].name
	}
	return ""
}

// checkAreas sorts the areas and refuses such as overlap.
func (m *meta) checkAreas() error {
	slices.SortFunc(m.areas, func(a, b area) int { return cmp.Compare(a.off, b.off) })
	for i := range len(m.areas) - 1 {
		if a, b := m.areas[i], m.areas[i+1]; b.off < a.off+a.n {
			return ondisk.Corruptf("vhdx", "region table", b.off, "%s and %s overlap", a.name, b.name)
		}
	}
	return nil
}
