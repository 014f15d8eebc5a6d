package gpt

import (
	"encoding/binary"
	"fmt"
	"unicode/utf16"
)

// GUID partition table. Sources: UEFI Specification 2.10, section 5.3.2 (table
// 5.5, the header) and 5.3.3 (table 5.6, an entry); section 5.2.3 (protective
// MBR). Integers are little-endian.
const (
	magic          = "EFI PART" // header +0
	headerMin      = 92         // bytes of the header that are defined; HeaderSize is at least this
	headerCRCOff   = 16         // its own four bytes count as zero
	primaryLBA     = 1          //
	entrySizeMin   = 128        // SizeOfPartitionEntry is 128 << n
	entrySizeMax   = 4096       // a cap of ours; tools write 128
	entryNameOff   = 56         // UTF-16LE, NUL-terminated unless full
	entryNameSize  = 72         //
	attrLegacyBoot = 1 << 2     // table 5.8: Legacy BIOS Bootable

	mbrSize       = 512    // bytes of LBA 0 that are the protective MBR
	mbrEntriesOff = 446    // four entries of mbrEntrySize bytes
	mbrEntrySize  = 16     // +4 type, +8 uint32 starting LBA, +12 uint32 size in sectors
	mbrEntryCount = 4      //
	mbrSigOff     = 510    //
	mbrSignature  = 0xaa55 //
	mbrTypeGPT    = 0xee   //
)

// header is a GPT header.
type header struct {
	size        uint32 // +12 HeaderSize: what the CRC covers
	crc         uint32 // +16 HeaderCRC32
	lba         uint64 // +24 MyLBA
	alternate   uint64 // +32 AlternateLBA: where the other copy lies
	firstUsable uint64 // +40
	lastUsable  uint64 // +48 inclusive
	disk        guid   // +56 DiskGUID
	entries     uint64 // +72 PartitionEntryLBA
	count       uint32 // +80 NumberOfPartitionEntries
	entrySize   uint32 // +84 SizeOfPartitionEntry, bytes
	entriesCRC  uint32 // +88 PartitionEntryArrayCRC32
}

// decodeHeader decodes the first headerMin bytes of b, whose magic was checked.
func decodeHeader(b []byte) header {
	le := binary.LittleEndian
	return header{
		size:        le.Uint32(b[12:]),
		crc:         le.Uint32(b[headerCRCOff:]),
		lba:         le.Uint64(b[24:]),
		alternate:   le.Uint64(b[32:]),
		firstUsable: le.Uint64(b[40:]),
		lastUsable:  le.Uint64(b[48:]),
		disk:        guid(b[56:72]),
		entries:     le.Uint64(b[72:]),
		count:       le.Uint32(b[80:]),
		entrySize:   le.Uint32(b[84:]),
		entriesCRC:  le.Uint32(b[88:]),
	}
}

// entry is a partition entry.
type entry struct {
	kind  guid   // +0 PartitionTypeGUID; zero: unused
	id    guid   // +16 UniquePartitionGUID
	first uint64 // +32 StartingLBA
	last  uint64 // +40 EndingLBA, inclusive
	attr  uint64 // +48
	name  string // +56
}

// decodeEntry decodes the first entrySizeMin bytes of b.
func decodeEntry(b []byte) entry {
	le := binary.LittleEndian
	units := make([]uint16, 0, entryNameSize/2)
	for i := entryNameOff; i < entryNameOff+entryNameSize; i += 2 {
		u := le.Uint16(b[i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return entry{
		kind:  guid(b[0:16]),
		id:    guid(b[16:32]),
		first: le.Uint64(b[32:]),
		last:  le.Uint64(b[40:]),
		attr:  le.Uint64(b[48:]),
		name:  string(utf16.Decode(units)),
	}
}

// guid is a GUID as stored: its first three fields are little-endian (UEFI 2.10,
// appendix A).
type guid [16]byte

// String returns the lower-case form.
func (g guid) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[0:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:16])
}
