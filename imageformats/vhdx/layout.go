package vhdx

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"strings"
)

// On-disk structures of [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format",
// version 20240423; section numbers in brackets. All numbers are little-endian
// ([MS-VHDX] 2.1), and checksums are CRC-32C.

const (
	kib = 1 << 10
	mib = 1 << 20

	fileTypeOff  = 0         // [2.2] File Type Identifier
	header1Off   = 64 * kib  // [2.2]
	header2Off   = 128 * kib // [2.2]
	region1Off   = 192 * kib // [2.2]
	region2Off   = 256 * kib // [2.2]
	headerEnd    = mib       // [2.2]: the header section is 1 MiB
	regionAlign  = mib       // [2.2.3.2], [2.5.1]: regions and blocks lie at multiples of it
	headerSize   = 4 * kib   // [2.2.2], what the checksum covers
	tableSize    = 64 * kib  // [2.2.3], [2.6]: a region table, a metadata table
	maxEntries   = 2047      // [2.2.3.1], [2.6.1.1]: entries of either
	maxUserItems = 1024      // [2.6.1.2], metadata items with IsUser set
	maxItem      = mib       // [2.6.1.2], bytes of a metadata item

	fileVersion = 1 // [2.2.2] Version
	logVersion  = 0 // [2.2.2] LogVersion

	minBlock   = 1 * mib   // [2.6.2.1]
	maxBlock   = 256 * mib // [2.6.2.1]
	maxSize    = 64 << 40  // [2.6.2.2], bytes of a virtual disk
	bitmapBits = 1 << 23   // [2.4], sectors told of by one sector bitmap block
	bitmapSize = mib       // [2.4], bytes of a sector bitmap block
)

const (
	fileTypeSig = "vhdxfile" // [2.2.1]
	headerSig   = "head"     // [2.2.2]
	regionSig   = "regi"     // [2.2.3.1]
	metadataSig = "metadata" // [2.6.1.1]
	entrySig    = "loge"     // [2.3.1.1]
	zeroSig     = "zero"     // [2.3.1.2]
	descSig     = "desc"     // [2.3.1.3]
	dataSig     = "data"     // [2.3.1.4]
)

// File type identifier fields, byte offsets ([2.2.1]).
const (
	offCreator  = 8 // 512 bytes of UTF-16
	creatorSize = 512
)

// Header fields, byte offsets ([2.2.2]).
const (
	offHeaderSum  = 4  // uint32
	offSequence   = 8  // uint64
	offFileGUID   = 16 // FileWriteGuid
	offDataGUID   = 32 // DataWriteGuid
	offLogGUID    = 48
	offLogVersion = 64 // uint16
	offVersion    = 66 // uint16
	offLogLength  = 68 // uint32, bytes
	offLogOffset  = 72 // uint64
	headerFields  = 80 // bytes that hold fields; the others are reserved
)

// Region table fields, byte offsets ([2.2.3.1], [2.2.3.2]).
const (
	offRegionSum    = 4  // uint32
	offRegionCount  = 8  // uint32
	regionHeadSize  = 16 //
	regionEntrySize = 32
	offRegionGUID   = 0  // in an entry
	offRegionOffset = 16 // uint64, in the file
	offRegionLength = 24 // uint32, bytes
	offRegionFlags  = 28 // uint32, bit 0: required
	regionRequired  = 1
)

// Metadata table fields, byte offsets ([2.6.1.1], [2.6.1.2]).
const (
	offItemCount  = 10 // uint16
	itemHeadSize  = 32
	itemEntrySize = 32
	offItemID     = 0  // in an entry
	offItemOffset = 16 // uint32, in the region
	offItemLength = 20 // uint32, bytes
	offItemFlags  = 24 // uint32
	itemUser      = 1 << 0
	itemDisk      = 1 << 1 // IsVirtualDisk
	itemRequired  = 1 << 2
)

// File parameters, byte offsets ([2.6.2.1]).
const (
	offBlockSize   = 0 // uint32
	offParams      = 4 // uint32
	leaveAllocated = 1 << 0
	hasParent      = 1 << 1
)

// Parent locator fields, byte offsets ([2.6.2.6.1], [2.6.2.6.2]).
const (
	offPairCount    = 18 // uint16
	locatorHeadSize = 20
	pairSize        = 12
	offKey          = 0  // uint32, in the item
	offValue        = 4  // uint32, in the item
	offKeyLen       = 8  // uint16, bytes
	offValueLen     = 10 // uint16, bytes
)

// Keys of a parent locator ([2.6.2.6.3]).
const (
	keyLinkage  = "parent_linkage"
	keyLinkage2 = "parent_linkage2"
	keyRelative = "relative_path"
	keyVolume   = "volume_path"
	keyAbsolute = "absolute_win32_path"
)

// Log structures ([2.3.1]); offsets in bytes.
const (
	logSector      = 4 * kib
	entryHeadSize  = 64
	descSize       = 32
	offEntrySum    = 4  // uint32
	offEntryLength = 8  // uint32, bytes
	offEntryTail   = 12 // uint32, in the log
	offEntrySeq    = 16 // uint64
	offEntryCount  = 24 // uint32, descriptors
	offEntryGUID   = 32
	offFlushed     = 48 // uint64, FlushedFileOffset
	offLast        = 56 // uint64, LastFileOffset

	offTrailing   = 4  // 4 bytes, of a data descriptor
	offLeading    = 8  // 8 bytes, of a data descriptor
	offZeroLength = 8  // uint64, of a zero descriptor
	offDescOffset = 16 // uint64, in the file
	offDescSeq    = 24 // uint64
	leadingSize   = 8
	trailingSize  = 4
	offSeqHigh    = 4             // uint32, of a data sector
	offSeqLow     = logSector - 4 // uint32, of a data sector
)

// batEntry is an entry of the block allocation table ([2.5.1]): the state in
// bits 0 to 2, the offset in the file in MiB from bit 20 on.
type batEntry uint64

const (
	batEntrySize = 8
	batReserved  = 0xffff8 // bits 3 to 19

	// entryBad marks in memory an entry that must not be used; the bit is one of
	// those reserved.
	entryBad batEntry = 1 << 3
)

func (e batEntry) state() blockState { return blockState(e & 7) }
func (e batEntry) offsetMB() uint64  { return uint64(e >> 20) }

// blockState is the state of a payload block ([2.5.1.1]) or of a sector bitmap
// block ([2.5.1.2], which knows notPresent and fullyPresent only).
type blockState uint8

const (
	notPresent       blockState = 0
	undefined        blockState = 1
	zero             blockState = 2
	unmapped         blockState = 3
	fullyPresent     blockState = 6
	partiallyPresent blockState = 7
)

// guid is a GUID in the order of its text: stored ones have their first three
// fields little-endian ([MS-DTYP] 2.3.4.2).
type guid [16]byte

// Regions ([2.2.3.2]), metadata items ([2.6.2]) and the one type of parent
// locator ([2.6.2.6.3]).
var (
	regionBAT      = mustGUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
	regionMetadata = mustGUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")

	itemParams   = mustGUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	itemSize     = mustGUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	itemDiskID   = mustGUID("beca12ab-b2e6-4523-93ef-c309e000c746")
	itemLogical  = mustGUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
	itemPhysical = mustGUID("cda348c7-445d-4471-9cc9-e9885251c556")
	itemLocator  = mustGUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")

	locatorVHDX = mustGUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// swapped exchanges the order of g's text and that in which it is stored; it is
// its own inverse.
func (g guid) swapped() guid {
	g[0], g[1], g[2], g[3] = g[3], g[2], g[1], g[0]
	g[4], g[5] = g[5], g[4]
	g[6], g[7] = g[7], g[6]
	return g
}

// String returns the lower-case form without braces.
func (g guid) String() string {
	s := hex.EncodeToString(g[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// readGUID decodes the stored GUID that b begins with.
func readGUID(b []byte) guid { return guid(b[:16]).swapped() }

// parseGUID reads the text form, with or without braces.
func parseGUID(s string) (g guid, ok bool) {
	if len(s) == 38 && s[0] == '{' && s[37] == '}' {
		s = s[1:37]
	}
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return g, false
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(g) {
		return g, false
	}
	return guid(b), true
}

func mustGUID(s string) guid {
	g, ok := parseGUID(s)
	if !ok {
		panic("vhdx: bad GUID in the source: " + s)
	}
	return g
}

// checksum is the CRC-32C of b with the four bytes at sumOff taken as zeros.
func checksum(b []byte, sumOff int) uint32 {
	var none [4]byte
	sum := crc32.Update(0, castagnoli, b[:sumOff])
	sum = crc32.Update(sum, castagnoli, none[:])
	return crc32.Update(sum, castagnoli, b[sumOff+4:])
}

// header is a decoded header.
type header struct {
	sequence   uint64
	dataGUID   guid
	logGUID    guid
	logVersion uint16
	version    uint16
	logLength  uint32
	logOffset  uint64
}

// decodeHeader reads the fields of b, headerSize bytes.
func decodeHeader(b []byte) header {
	return header{
		sequence:   le.Uint64(b[offSequence:]),
		dataGUID:   readGUID(b[offDataGUID:]),
		logGUID:    readGUID(b[offLogGUID:]),
		logVersion: le.Uint16(b[offLogVersion:]),
		version:    le.Uint16(b[offVersion:]),
		logLength:  le.Uint32(b[offLogLength:]),
		logOffset:  le.Uint64(b[offLogOffset:]),
	}
}
