package mbr

import (
	"encoding/binary"
)

// Master boot record and extended boot record: one layout, in the first 512
// bytes of a sector of whatever size. Sources: UEFI Specification 2.10, section
// 5.2.1 (table 5.1, table 5.2); include/linux/msdos_partition.h.
const (
	recordSize      = 512    // bytes of a sector that the record takes
	diskSigOff      = 440    // uint32, UEFI 2.10 table 5.1 UniqueMBRDiskSignature
	entriesOff      = 446    // four entries of entrySize bytes
	entrySize       = 16     // UEFI 2.10 table 5.2
	entryCount      = 4      //
	signatureOff    = 510    // 55 AA
	signature       = 0xaa55 // as a little-endian uint16
	activeFlag      = 0x80   // boot indicator: 0 or this, nothing else
	firstLogical    = 5      // number of the first logical partition, block/partitions/msdos.c
	typeExtendedCHS = 0x05   // DOS_EXTENDED_PARTITION
	typeExtendedLBA = 0x0f   // WIN98_EXTENDED_PARTITION
	typeExtendedLnx = 0x85   // LINUX_EXTENDED_PARTITION
	typeGPT         = 0xee   // UEFI 2.10 section 5.2.3: protective MBR
)

// entry is a partition record.
type entry struct {
	boot   byte   // +0 boot indicator
	kind   byte   // +4 OS type
	start  uint32 // +8 starting LBA; in an extended boot record relative, see logical.go
	length uint32 // +12 size in sectors
}

// used goes by the size alone, as Linux does: the numbers of logical partitions
// depend on it.
func (e entry) used() bool { return e.length != 0 }

func (e entry) extended() bool {
	return e.kind == typeExtendedCHS || e.kind == typeExtendedLBA || e.kind == typeExtendedLnx
}

// record is a decoded master or extended boot record.
type record struct {
	signed  bool   // 55 AA is there
	diskSig uint32 // zero when the disk has none; meaningless in an extended boot record
	entries [entryCount]entry
}

// decode decodes a record from its recordSize bytes.
func decode(b *[recordSize]byte) record {
	r := record{
		signed:  binary.LittleEndian.Uint16(b[signatureOff:]) == signature,
		diskSig: binary.LittleEndian.Uint32(b[diskSigOff:]),
	}
	for i := range r.entries {
		e := b[entriesOff+i*entrySize:][:entrySize]
		r.entries[i] = entry{
			boot:   e[0],
			kind:   e[4],
			start:  binary.LittleEndian.Uint32(e[8:]),
			length: binary.LittleEndian.Uint32(e[12:]),
		}
	}
	return r
}

// Boot sectors of filesystems, which end in the same 55 AA. Sources: Microsoft
// Extensible Firmware Initiative FAT32 File System Specification 1.03, "Boot
// Sector and BPB"; exFAT file system specification, 3.1; libntfs layout.h
// (NTFS_BOOT_SECTOR); libbde, "BitLocker Drive Encryption (BDE) format
// specification", section 3 (volume header).
const (
	jumpOff       = 0  // EB xx 90 or E9 xx xx
	oemOff        = 3  // eight characters
	oemSize       = 8  //
	bpbSectorOff  = 11 // uint16 bytes per sector
	bpbClusterOff = 13 // uint8 sectors per cluster
	bpbReservOff  = 14 // uint16 sectors before the first FAT
	bpbFATsOff    = 16 // uint8 number of FATs
	bpbMediaOff   = 21 // uint8 media descriptor, repeated in the first byte of the FAT
)
