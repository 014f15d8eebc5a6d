package gpt

import (
	"context"
	"fmt"
	"hash/crc32"
	"math"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/volume"
)

// maxEntryBytes bounds the array of entries. 16 KiB is usual; Linux can't read
// one that is larger than a kmalloc of 4 MiB (block/partitions/efi.c).
const maxEntryBytes = 4 << 20

// tableCopy is one copy of the table, both checksums verified.
type tableCopy struct {
	header
	array []byte // count entries of entrySize bytes
}

// find returns the first sound copy of the table in sectors of the given size,
// nil when there is none; why the others aren't is added to failed. pmbr is the
// LBA the backup should be at by the protective MBR, 0 when it doesn't say. It
// fails only when ctx is done.
func find(ctx context.Context, dev block.Reader, sector int64, pmbr uint64, failed *failures) (*tableCopy, error) {
	last := lastLBA(dev, sector)
	tried := map[uint64]bool{0: true} // LBA 0 is the protective MBR
	candidates := []uint64{primaryLBA, 0, last, pmbr}
	for i := range candidates {
		lba := candidates[i]
		if tried[lba] || lba > last {
			continue
		}
		tried[lba] = true
		c, err := readCopy(ctx, dev, sector, lba)
		if err == nil && c != nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("gpt: %w", context.Cause(ctx))
		}
		if err != nil {
			*failed = append(*failed, err)
		}
		if c != nil && i == 0 {
			candidates[1] = c.alternate // its checksum is right, so it is believed
		}
	}
	return nil, nil
}

// readCopy reads the copy of the table whose header should be at lba. It returns
// nil without an error when there is no header, and a copy without its array,
// and an error, when the header is sound and the array is not.
func readCopy(ctx context.Context, dev block.Reader, sector int64, lba uint64) (*tableCopy, error) {
	off := int64(lba) * sector
	field := "backup header"
	if lba == primaryLBA {
		field = "primary header"
	}
	corrupt := func(msg string, args ...any) error {
		return ondisk.Corruptf("gpt", field, off, msg, args...)
	}
	b := make([]byte, sector)
	if err := block.ReadFull(ctx, dev, b, off); err != nil {
		return nil, fmt.Errorf("gpt: %s at %#x: %w", field, off, err)
	}
	if string(b[:len(magic)]) != magic {
		return nil, nil
	}
	h := decodeHeader(b)
	if h.size < headerMin || int64(h.size) > sector {
		return nil, corrupt("header size %d outside %d..%d", h.size, headerMin, sector)
	}
	clear(b[headerCRCOff : headerCRCOff+4])
	if sum := crc32.ChecksumIEEE(b[:h.size]); sum != h.crc {
		return nil, corrupt("checksum %#08x, stored is %#08x", sum, h.crc)
	}
	if h.lba != lba {
		return nil, corrupt("it says that its place is LBA %d", h.lba)
	}
	c := &tableCopy{header: h}
	if h.entrySize < entrySizeMin || h.entrySize > entrySizeMax || h.entrySize&(h.entrySize-1) != 0 {
		return c, corrupt("entry size %d is not 128 times a power of two up to %d", h.entrySize, entrySizeMax)
	}
	n := uint64(h.count) * uint64(h.entrySize)
	switch {
	case n > maxEntryBytes:
		return c, ondisk.Unsupportedf("gpt", field, off, "%d partition entries of %d bytes (at most %d bytes are read)", h.count, h.entrySize, maxEntryBytes)
	case h.entries > lastLBA(dev, sector) || n > uint64(dev.Size()-int64(h.entries)*sector):
		return c, corrupt("entries at LBA %d, %d bytes, lie past the end of the disk (%#x)", h.entries, n, dev.Size())
	case h.entries <= primaryLBA:
		return c, corrupt("entries at LBA %d, where the header or the protective MBR is", h.entries)
	}
	array := make([]byte, n)
	arrayOff := int64(h.entries) * sector
	if err := block.ReadFull(ctx, dev, array, arrayOff); err != nil {
		return c, fmt.Errorf("gpt: partition entries at %#x: %w", arrayOff, err)
	}
	if sum := crc32.ChecksumIEEE(array); sum != h.entriesCRC {
		return c, ondisk.Corruptf("gpt", "partition entries of the "+field, arrayOff, "checksum %#08x, stored is %#08x", sum, h.entriesCRC)
	}
	c.array = array
	return c, nil
}

// addTo adds the partitions of c to t. An entry that can't be a partition is left
// out with a warning; it has a number of its own, so the others aren't shifted.
func (c *tableCopy) addTo(t *volume.Table, dev block.Reader) {
	sector := uint64(t.SectorSize)
	for i := range int(c.count) {
		e := decodeEntry(c.array[i*int(c.entrySize):][:c.entrySize])
		if e.kind == (guid{}) {
			continue
		}
		number := i + 1
		if e.last < e.first || e.last >= math.MaxInt64/sector {
			t.Warnf("partition p%d is not shown: it goes from LBA %d to %d", number, e.first, e.last)
			continue
		}
		v := volume.Volume{
			Name:   fmt.Sprintf("p%d", number),
			Number: number,
			Start:  int64(e.first * sector),
			Type:   e.kind.String(),
			Label:  e.name,
			ID:     e.id.String(),
			Active: e.attr&attrLegacyBoot != 0,
		}
		t.Add(dev, v, int64((e.last-e.first+1)*sector))
	}
	t.CheckOverlaps()
}
