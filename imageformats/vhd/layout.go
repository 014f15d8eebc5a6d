package vhd

import (
	"encoding/binary"
	"time"
)

// On-disk structures of the "Virtual Hard Disk Image Format Specification",
// version 1.0, Microsoft, 11 October 2006; section names in brackets. All
// numbers are big-endian ([Overview]: network byte order).

const (
	sectorSize = 512 // bytes; the format knows no other ([Overview])

	footerSize    = 512 // [Hard Disk Footer Format]
	oldFooterSize = 511 // same section: written by releases before Virtual PC 2004
	headerSize    = 1024

	footerCookie = "conectix"
	headerCookie = "cxsparse"

	formatVersion = 0x00010000 // of footer and dynamic header: major 1, minor 0
	majorMask     = 0xffff0000

	unallocated = 0xffffffff // BAT entry of a block that isn't in the file

	defaultBlockSize = 2 << 20 // bytes, [Dynamic Disk Header Format]
)

// Footer fields, byte offsets ([Hard Disk Footer Format]).
const (
	offCookie      = 0  // 8 bytes
	offFeatures    = 8  // uint32
	offVersion     = 12 // uint32
	offDataOffset  = 16 // uint64, of the dynamic header; all ones when fixed
	offTimeStamp   = 24 // uint32, seconds since epoch
	offCreatorApp  = 28 // 4 characters
	offCreatorVer  = 32 // uint16 major, uint16 minor
	offCreatorOS   = 36 // 4 characters
	offOriginal    = 40 // uint64, size in bytes when created
	offCurrent     = 48 // uint64, size in bytes now
	offGeometry    = 56 // uint16 cylinders, uint8 heads, uint8 sectors per track
	offDiskType    = 60 // uint32
	offFooterSum   = 64 // uint32
	offUniqueID    = 68 // 16 bytes
	offSavedState  = 84 // uint8
	featuresAlways = 2  // reserved bit of Features that is always set
)

// Dynamic header fields, byte offsets ([Dynamic Disk Header Format]).
const (
	offNextOffset   = 8  // uint64, all ones: no further structure
	offTableOffset  = 16 // uint64
	offHeaderVer    = 24 // uint32
	offTableEntries = 28 // uint32
	offBlockSize    = 32 // uint32, without the sector bitmap
	offHeaderSum    = 36 // uint32
	offParentID     = 40 // 16 bytes
	offParentTime   = 56 // uint32
	offParentName   = 64 // 512 bytes of UTF-16BE
	parentNameSize  = 512
	offLocators     = 576 // 8 entries
	locatorCount    = 8
	locatorSize     = 24
)

// Parent locator entry fields, byte offsets ([Dynamic Disk Header Format],
// table "Parent locator").
const (
	offPlatform   = 0  // uint32, read as 4 characters
	offDataSpace  = 4  // uint32, sectors by the text, bytes by several writers
	offDataLength = 8  // uint32, bytes
	offDataStart  = 16 // uint64, in the file
)

// diskType is the footer's Disk Type.
type diskType uint32

const (
	typeFixed        diskType = 2
	typeDynamic      diskType = 3
	typeDifferencing diskType = 4
)

func (t diskType) String() string {
	switch t {
	case typeFixed:
		return "fixed"
	case typeDynamic:
		return "dynamic"
	case typeDifferencing:
		return "differencing"
	}
	return "unknown"
}

// The largest geometry that the footer holds, in sectors. Writers put it there
// when the size can't be said in cylinders, heads and sectors ([CHS Calculation];
// QEMU and Disk2vhd put it there to say "don't look at the geometry").
const maxGeometry = 65535 * 16 * 255

// maxDynamicSize is the largest disk a BAT of 32-bit sector numbers is meant
// for: 2040 GiB ([Overview] of dynamic disks; QEMU's limit as well). Enforced
// when writing only.
const maxDynamicSize = 2040 << 30

// maxSize bounds Current Size when reading, bytes: an exbibyte, far beyond what
// any writer makes and small enough that sums of offsets can't overflow.
const maxSize = 1 << 60

// epoch is the zero of all time stamps: 1 January 2000, 00:00 UTC.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

var be = binary.BigEndian

// footer is the decoded hard disk footer.
type footer struct {
	dataOffset  uint64
	timeStamp   uint32
	creatorApp  string // 4 bytes as stored
	major       uint16
	minor       uint16
	creatorOS   string
	currentSize uint64
	cylinders   uint16
	heads       uint8
	sectors     uint8
	diskType    diskType
	version     uint32
	id          [16]byte
	savedState  bool
}

// header is the decoded dynamic disk header.
type header struct {
	tableOffset  uint64
	version      uint32
	tableEntries uint32
	blockSize    uint32
	parentID     [16]byte
	parentTime   uint32
	parentName   [parentNameSize]byte
	locators     [locatorCount]locator
}

// locator is a decoded parent locator entry.
type locator struct {
	platform string // 4 bytes as stored
	length   uint32
	offset   uint64
}

// checksum is the one's complement of the sum of b's bytes, without the four at
// sumOff ([Hard Disk Footer Format], Checksum).
func checksum(b []byte, sumOff int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < sumOff || i >= sumOff+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// decodeFooter reads the fields of b, footerSize bytes.
func decodeFooter(b []byte) footer {
	return footer{
		dataOffset:  be.Uint64(b[offDataOffset:]),
		timeStamp:   be.Uint32(b[offTimeStamp:]),
		creatorApp:  string(b[offCreatorApp : offCreatorApp+4]),
		major:       be.Uint16(b[offCreatorVer:]),
		minor:       be.Uint16(b[offCreatorVer+2:]),
		creatorOS:   string(b[offCreatorOS : offCreatorOS+4]),
		currentSize: be.Uint64(b[offCurrent:]),
		cylinders:   be.Uint16(b[offGeometry:]),
		heads:       b[offGeometry+2],
		sectors:     b[offGeometry+3],
		diskType:    diskType(be.Uint32(b[offDiskType:])),
		version:     be.Uint32(b[offVersion:]),
		id:          [16]byte(b[offUniqueID : offUniqueID+16]),
		savedState:  b[offSavedState] != 0,
	}
}

// decodeHeader reads the fields of b, headerSize bytes.
func decodeHeader(b []byte) header {
	h := header{
		tableOffset:  be.Uint64(b[offTableOffset:]),
		version:      be.Uint32(b[offHeaderVer:]),
		tableEntries: be.Uint32(b[offTableEntries:]),
		blockSize:    be.Uint32(b[offBlockSize:]),
		parentID:     [16]byte(b[offParentID : offParentID+16]),
		parentTime:   be.Uint32(b[offParentTime:]),
		parentName:   [parentNameSize]byte(b[offParentName : offParentName+parentNameSize]),
	}
	for i := range h.locators {
		e := b[offLocators+i*locatorSize:]
		h.locators[i] = locator{
			platform: string(e[offPlatform : offPlatform+4]),
			length:   be.Uint32(e[offDataLength:]),
			offset:   be.Uint64(e[offDataStart:]),
		}
	}
	return h
}
