package ewf

import "encoding/binary"

// On-disk structures of the "Expert Witness Compression Format", version 1
// (libewf, documentation/Expert Witness Compression Format (EWF).asciidoc, 0.0.79);
// section names in brackets. All numbers are little-endian; all checksums are
// Adler-32 (RFC 1950, 8.2) and stand behind what they cover.

var le = binary.LittleEndian

const (
	magic = "EVF\x09\x0d\x0a\xff\x00" // [File header]

	fileHeaderSize = 13 // [File header]
	offSegment     = 9  // uint16, from 1 on

	maxSegments = 99 + 22*26*26 // [Segment file extensions]: E01 to E99, EAA to ZZZ
)

// Section descriptors, byte offsets ([Section descriptor]).
const (
	descType    = 0  // 16 characters
	descNext    = 16 // uint64, offset of the next section in the segment
	descSize    = 24 // uint64, with the descriptor; 0 where it wasn't set
	descSum     = 72 // uint32
	descSize0   = 76 // of a descriptor
	descTypeLen = 16

	// maxSections bounds how many sections a segment may have. Tables of EnCase 5
	// hold 16375 chunks of 32 KiB, which is four sections for 512 MiB.
	maxSections = 1 << 18
)

// The volume, disk and data sections, byte offsets (libewf, ewf/ewf_volume.h).
const (
	volMedia     = 0  // uint8
	volChunks    = 4  // uint32
	volPerChunk  = 8  // uint32, sectors in a chunk
	volSector    = 12 // uint32, bytes of a sector
	volSectors   = 16 // uint64, sectors of the disk
	volFlags     = 36 // uint8
	volGUID      = 64 // 16 bytes: the same in all segments of a set; zeros in older ones
	volSum       = 1048
	volSize      = 1052
	volSizeSMART = 94 // of the SMART format, and of the specification by ASR Data

	// maxChunk bounds the bytes of a chunk: EnCase goes up to 32768 sectors of 512
	// bytes ([Sectors section]); larger ones would leave no room in the cache.
	maxChunk = 16 << 20
)

var mediaTypes = map[byte]string{0x00: "removable", 0x01: "fixed", 0x03: "optical", 0x0e: "logical", 0x10: "memory"}

// Tables, byte offsets from the end of the descriptor ([Table section]).
const (
	tableCount   = 0  // uint32
	tableBase    = 8  // uint64, added to all offsets; since EnCase 6, zeros before
	tableSum     = 20 // uint32
	tableHeader  = 24 // then the entries, uint32 each, and their sum
	entryPacked  = 1 << 31
	chunkSumSize = 4 // behind a chunk that isn't compressed
	// maxEntries bounds a table: EnCase 6 writes 65534 entries at most. libewf's
	// EWF-X knows no limit.
	maxEntries = 1 << 20
)

// Hash, digest and error2 sections, byte offsets from the end of the descriptor.
const (
	hashMD5    = 0 // 16 bytes
	hashSum    = 32
	hashSize   = 36
	digestMD5  = 0  // 16 bytes
	digestSHA1 = 16 // 20 bytes
	digestSum  = 76
	digestSize = 80

	errorCount  = 0 // uint32
	errorSum    = 516
	errorHeader = 520 // then entries: first sector, sectors, uint32 each; then their sum
	errorEntry  = 8
	maxErrors   = 1 << 20 // entries: 8 MiB; a disk with more is beyond telling

	// maxHeader bounds a header section, packed and unpacked: EnCase's texts are of
	// at most 3000 characters each.
	maxHeader = 1 << 20
)
