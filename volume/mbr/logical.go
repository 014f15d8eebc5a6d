package mbr

import (
	"context"
	"fmt"

	"yester/internal/block"
	"yester/volume"
)

const (
	// maxRecords bounds the extended boot records of a disk. Linux makes at most
	// 256 partitions of one (DISK_MAX_PARTS, include/linux/genhd.h), and each
	// record costs a read.
	maxRecords = 256
	// dataEntries is how many entries of an extended boot record describe
	// partitions by the book; the others must pass checks.
	dataEntries = 2
)

// chain follows the extended boot records of a disk, adding the logical
// partitions they describe.
type chain struct {
	dev    block.Reader
	table  *volume.Table
	sector int64           // bytes
	next   int             // number of the next logical partition
	seen   map[uint64]bool // sectors of the records read so far, over all extended partitions
}

// walk adds the logical partitions of ext, which is the primary partition of the
// given number. A chain that is broken ends there, as it does for Linux, but with
// a warning: what precedes the damage and the primaries are sound.
//
// In an extended boot record, the start of a partition counts from the record,
// the start of the next record from the extended partition's first sector.
func (c *chain) walk(ctx context.Context, number int, ext entry) error {
	first := uint64(ext.start)
	at, length := first, uint64(ext.length)
	for {
		if c.seen[at] {
			c.warn(number, at, "the chain of logical partitions returns to a record it has passed")
			return nil
		}
		if len(c.seen) == maxRecords {
			c.warn(number, at, fmt.Sprintf("there are more than %d records in the chain of logical partitions", maxRecords))
			return nil
		}
		c.seen[at] = true
		r, ok, err := readRecord(ctx, c.dev, int64(at)*c.sector)
		if err != nil {
			return err
		}
		if !ok {
			if int64(at)*c.sector > c.dev.Size()-recordSize {
				c.warn(number, at, "the record lies past the end of the disk")
			} else if at != first || r != (record{}) {
				// An extended partition nothing was ever made in may begin with zeros.
				c.warn(number, at, "the record has no signature")
			}
			return nil
		}
		link := -1
		for i, e := range r.entries {
			switch {
			case !e.used():
			case e.extended():
				if link < 0 {
					link = i
				}
			case i < dataEntries || inside(e, at, length, first, uint64(ext.length)):
				add(c.dev, c.table, c.next, at+uint64(e.start), e)
				c.next++
			}
		}
		if link < 0 {
			return nil
		}
		length = uint64(r.entries[link].length)
		at = first + uint64(r.entries[link].start)
	}
}

// inside reports whether e lies in its record's part of the extended partition.
// Some tools leave rubbish in the third and fourth entry of an extended boot
// record, so Linux believes those only when they do (block/partitions/msdos.c).
func inside(e entry, at, length, first, extLength uint64) bool {
	end := uint64(e.start) + uint64(e.length)
	return end <= length && at+end <= first+extLength
}

func (c *chain) warn(number int, at uint64, what string) {
	c.table.Warnf("extended partition %d, boot record at %#x: %s; logical partitions from p%d on are not shown",
		number, int64(at)*c.sector, what, c.next)
}
