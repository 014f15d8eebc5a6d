package mbr

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"

	"yester/internal/block"
)

// wholeDisk are the first bytes of filesystems that may take a whole disk and
// whose jump and name together are unmistakable. Boot loaders that keep a
// predecessor's parameter block when they install an MBR (GRUB does) keep the
// name, but not the jump.
var wholeDisk = []string{
	"\xeb\x52\x90NTFS    ",
	"\xeb\x76\x90EXFAT   ",
	"\xeb\x58\x90-FVE-FS-", // BitLocker, Windows 7 and later
	"\xeb\x52\x90-FVE-FS-", // BitLocker, Windows Vista
}

// isBootSector reports whether b, the first sector of dev, is the boot sector of
// a filesystem, although its entries look like a partition table.
func isBootSector(ctx context.Context, dev block.Reader, b *[recordSize]byte) (bool, error) {
	for _, s := range wholeDisk {
		if bytes.HasPrefix(b[jumpOff:oemOff+oemSize], []byte(s)) {
			return true, nil
		}
	}
	return isFAT(ctx, dev, b)
}

// isFAT tells a FAT boot sector by its parameter block and the file allocation
// table that it points to. The second test is for disks that were FAT once and
// were partitioned by tools that keep the old parameter block; the first alone is
// what a newer mkfs.fat leaves on a whole disk, together with a partition table
// whose one entry spans everything, the boot sector included.
func isFAT(ctx context.Context, dev block.Reader, b *[recordSize]byte) (bool, error) {
	sector := int64(binary.LittleEndian.Uint16(b[bpbSectorOff:]))
	cluster := b[bpbClusterOff]
	reserved := int64(binary.LittleEndian.Uint16(b[bpbReservOff:]))
	media := b[bpbMediaOff]
	jump := b[jumpOff] == 0xeb && b[jumpOff+2] == 0x90 || b[jumpOff] == 0xe9
	switch {
	case !jump,
		sector < 512 || sector > 4096 || sector&(sector-1) != 0,
		bits.OnesCount8(cluster) != 1,
		reserved == 0,
		b[bpbFATsOff] == 0 || b[bpbFATsOff] > 4,
		media != 0xf0 && media < 0xf8:
		return false, nil
	}
	// The FAT begins with the media descriptor and, in each of its three kinds,
	// bits that are all ones.
	var fat [3]byte
	off := reserved * sector
	if off > dev.Size()-int64(len(fat)) {
		return false, nil
	}
	if err := block.ReadFull(ctx, dev, fat[:], off); err != nil {
		return false, fmt.Errorf("file allocation table: %w", err)
	}
	return fat[0] == media && fat[1] == 0xff && fat[2] == 0xff, nil
}
