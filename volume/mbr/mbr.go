// Package mbr reads partition tables of the master boot record kind ("DOS",
// "msdos"), with the logical partitions of extended ones, numbered as Linux
// numbers them: primaries 1 to 4 by their slot, logical ones from 5 in the order
// of their chain. An extended partition itself isn't a volume: nothing but the
// chain lies in it.
//
// A table nested in a partition (a BSD disklabel, type 0xa5) isn't opened.
package mbr

import (
	"context"
	"fmt"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/volume"
)

// Scheme reads MBR partition tables. Its Open answers ondisk.ErrFormat for a disk
//   - without a signature, or whose entries have impossible boot flags;
//   - without any entry in use: whoever formats a whole disk and writes boot code
//     to its first sector leaves such a table, and as one volume it can be read;
//   - whose first sector is the boot sector of a filesystem;
//   - with an entry of type 0xee, hybrid or not: such a disk is GPT's.
var Scheme = volume.Scheme{Name: "mbr", Open: open}

var errNone = fmt.Errorf("mbr: %w", ondisk.ErrFormat)

func open(ctx context.Context, dev block.Reader, opt volume.Options) (*volume.Table, error) {
	if dev.Size() < recordSize {
		return nil, errNone
	}
	var b [recordSize]byte
	if err := block.ReadFull(ctx, dev, b[:], 0); err != nil {
		return nil, fmt.Errorf("mbr: %w", err)
	}
	r := decode(&b)
	if !r.isTable() {
		return nil, errNone
	}
	if is, err := isBootSector(ctx, dev, &b); err != nil || is {
		if err == nil {
			err = ondisk.ErrFormat
		}
		return nil, fmt.Errorf("mbr: %w", err)
	}

	sizes, err := opt.SectorSizes()
	if err != nil {
		return nil, fmt.Errorf("mbr: %w", err)
	}
	sector := sizes[0]
	if opt.SectorSize == 0 {
		if sector, err = findSectorSize(ctx, dev, r, sizes); err != nil {
			return nil, err
		}
	}
	t := &volume.Table{Scheme: "mbr", SectorSize: sector}
	if r.diskSig != 0 {
		t.ID = fmt.Sprintf("%08x", r.diskSig)
	}
	c := chain{dev: dev, table: t, sector: int64(sector), next: firstLogical, seen: make(map[uint64]bool)}
	for i, e := range r.entries {
		switch {
		case !e.used():
		case e.extended():
			if err := c.walk(ctx, i+1, e); err != nil {
				return nil, err
			}
		default:
			add(dev, t, i+1, uint64(e.start), e)
		}
	}
	t.Sort()
	t.CheckOverlaps()
	return t, nil
}

// isTable reports whether r can be a partition table that is this package's.
func (r *record) isTable() bool {
	used := false
	for _, e := range r.entries {
		// Linux refuses the whole table by the same test (block/partitions/msdos.c):
		// text or code of a boot sector hardly ever passes it.
		if e.boot != 0 && e.boot != activeFlag || e.kind == typeGPT {
			return false
		}
		used = used || e.used()
	}
	return r.signed && used
}

// add adds the partition that e describes, whose first sector is start. Both are
// sums of a few 32-bit numbers, so the byte offsets fit an int64.
func add(dev block.Reader, t *volume.Table, number int, start uint64, e entry) {
	v := volume.Volume{
		Name:   fmt.Sprintf("p%d", number),
		Number: number,
		Start:  int64(start) * int64(t.SectorSize),
		Type:   fmt.Sprintf("0x%02x", e.kind),
		Active: e.boot == activeFlag,
	}
	if t.ID != "" {
		// The number is hexadecimal, as the kernel and util-linux have it.
		v.ID = fmt.Sprintf("%s-%02x", t.ID, number)
	}
	t.Add(dev, v, int64(e.length)*int64(t.SectorSize))
}

// findSectorSize tells the sector size of a disk whose container doesn't. The
// table itself doesn't say either, so it is the first of sizes unless an extended
// partition proves otherwise: its first sector has to be a boot record.
func findSectorSize(ctx context.Context, dev block.Reader, r record, sizes []int) (int, error) {
	for _, e := range r.entries {
		if !e.used() || !e.extended() {
			continue
		}
		for _, size := range sizes {
			_, ok, err := readRecord(ctx, dev, int64(e.start)*int64(size))
			if err != nil {
				return 0, err
			}
			if ok {
				return size, nil
			}
		}
	}
	return sizes[0], nil
}

// readRecord reads the extended boot record at the byte offset off; false when
// there is none.
func readRecord(ctx context.Context, dev block.Reader, off int64) (record, bool, error) {
	if off > dev.Size()-recordSize {
		return record{}, false, nil
	}
	var b [recordSize]byte
	if err := block.ReadFull(ctx, dev, b[:], off); err != nil {
		return record{}, false, fmt.Errorf("mbr: extended boot record: %w", err)
	}
	r := decode(&b)
	return r, r.signed, nil
}
