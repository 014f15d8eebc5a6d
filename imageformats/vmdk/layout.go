package vmdk

import "encoding/binary"

// On-disk structures of VMDK extents. [VDF] is VMware's "Virtual Disk Format 5.0"
// (2011), sections in brackets; [libvmdk] is that project's "VMware Virtual Disk
// (VMDK) format specification"; [QEMU] is block/vmdk.c. All numbers are
// little-endian, and sectors have 512 bytes whatever the guest's disk has ([VDF]
// "The Descriptor File").

const (
	sectorSize  = 512
	sectorShift = 9
)

var le = binary.LittleEndian

// Hosted sparse extents ([VDF] "Hosted Sparse Extents", SparseExtentHeader):
// monolithicSparse, twoGbMaxExtentSparse, streamOptimized.
const (
	sparseMagic      = "KDMV"
	sparseHeaderSize = sectorSize
	maxVersion       = 3

	offVersion    = 4  // uint32
	offFlags      = 8  // uint32
	offCapacity   = 12 // uint64, sectors
	offGrainSize  = 20 // uint64, sectors, a power of two
	offDescOffset = 28 // uint64, sectors; 0: no descriptor in here
	offDescSize   = 36 // uint64, sectors
	offGTEs       = 44 // uint32, entries in a grain table
	offRGD        = 48 // uint64, sector of the redundant grain directory
	offGD         = 56 // uint64, sector of the grain directory
	offOverHead   = 64 // uint64, sectors that metadata take
	offUnclean    = 72 // uint8, not 0: in use, or not closed
	offNewlines   = 73 // 4 bytes, newlines
	offCompress   = 77 // uint16

	newlines  = "\n \r\n"
	gdAtEnd   = 1<<64 - 1 // the directory's place is in the footer ([VDF] "Compressed Sparse Extents")
	deflate   = 1         // of offCompress
	gteZeroed = 1         // [VDF] "Zeroed-grain GTE"

	flagNewlines   = 1 << 0 // the newline bytes are to be verified
	flagRedundant  = 1 << 1 // there is a redundant grain directory
	flagZeroedGTE  = 1 << 2 // gteZeroed stands for a grain of zeros
	flagCompressed = 1 << 16
	flagMarkers    = 1 << 17
	// Of the upper half a reader must know every flag that is set (open-vmdk,
	// vmware_vmdk.h: SPARSEFLAG_INCOMPAT_FLAGS).
	flagsIncompatible = 0xffff0000
)

// Markers of stream-optimised extents ([VDF] "Markers"). A grain marker is
// followed by data at once, the others by what they announce in the next sector.
const (
	offMarkerLBA   = 0  // uint64, the grain's first sector in the extent
	offMarkerSize  = 8  // uint32, bytes of data; 0: no grain marker
	offMarkerType  = 12 // uint32, when the size is 0
	grainMarker    = 12 // bytes before a grain's data
	markerFooter   = 3
	tableEntries   = 512 // that every writer puts in a grain table
	maxTable       = 4096
	maxGrainSector = 1 << 21 // 1 GiB: [QEMU] refuses larger grains, none are written
)

// ESX Server sparse extents ([VDF] "ESX Server Sparse Extents", COWDisk_Header).
const (
	cowdMagic      = "COWD"
	cowdHeaderSize = 2048
	cowdVersion    = 1
	cowdTable      = 4096 // entries in a grain table

	offCowdVersion  = 4    // uint32
	offCowdFlags    = 8    // uint32
	offCowdCapacity = 12   // uint32, sectors
	offCowdGrain    = 16   // uint32, sectors
	offCowdGD       = 20   // uint32, sector
	offCowdGDEs     = 24   // uint32, entries of the grain directory
	offCowdUnclean  = 1648 // uint32

	cowdInconsistent = 1 << 2 // of the flags
)

// Space-efficient sparse extents of ESXi, which VMware doesn't document ([QEMU]
// VMDKSESparseConstHeader, VMDKSESparseVolatileHeader).
const (
	seMagic         = 0x00000000cafebabe
	seVolatileMagic = 0x00000000cafecafe
	seVersion       = 0x0000000200000001
	seHeaderSize    = sectorSize
	seGrain         = 8  // sectors, the only size known
	seTableSectors  = 64 // of a grain table, the only size known
	seEntrySize     = 8

	offSeVersion    = 8   // uint64
	offSeCapacity   = 16  // uint64, sectors
	offSeGrain      = 24  // uint64, sectors
	offSeTable      = 32  // uint64, sectors
	offSeFlags      = 40  // uint64, and four reserved up to offSeVolatile
	offSeVolatile   = 80  // uint64 sector, uint64 sectors, like all that follow
	offSeDir        = 128 // grain directory
	offSeTables     = 144 // grain tables
	offSeGrains     = 192 // grains
	offSeReplay     = 24  // uint64 of the volatile header: the journal is to be replayed
	seTypeShift     = 60  // of an entry: what it is
	seDirPresent    = 1   // type of a directory entry
	seAbsent        = 0   // types of a table entry
	seUnmapped      = 1
	seZero          = 2
	sePresent       = 3
	seDirIndexMask  = 1<<32 - 1
	seGrainLowShift = 48 // the lowest 12 bits of the grain's number lie above the others
	seGrainLowMask  = 1<<12 - 1
	seGrainHighMask = 1<<48 - 1
)

// maxSectors bounds a disk, sectors: half an exbibyte, far beyond VMFS's 64 TiB and
// small enough that sums of byte offsets can't overflow.
const maxSectors = 1 << 50

// sparseHeader is the decoded header of a hosted sparse extent.
type sparseHeader struct {
	version    uint32
	flags      uint32
	capacity   uint64
	grainSize  uint64
	descOffset uint64
	descSize   uint64
	gtes       uint32
	rgd, gd    uint64
	unclean    bool
	newlines   string
	compress   uint16
}

// decodeSparse reads the fields of b, sparseHeaderSize bytes.
func decodeSparse(b []byte) sparseHeader {
	return sparseHeader{
		version:    le.Uint32(b[offVersion:]),
		flags:      le.Uint32(b[offFlags:]),
		capacity:   le.Uint64(b[offCapacity:]),
		grainSize:  le.Uint64(b[offGrainSize:]),
		descOffset: le.Uint64(b[offDescOffset:]),
		descSize:   le.Uint64(b[offDescSize:]),
		gtes:       le.Uint32(b[offGTEs:]),
		rgd:        le.Uint64(b[offRGD:]),
		gd:         le.Uint64(b[offGD:]),
		unclean:    b[offUnclean] != 0,
		newlines:   string(b[offNewlines : offNewlines+len(newlines)]),
		compress:   le.Uint16(b[offCompress:]),
	}
}

// cowdHeader is the decoded header of an ESX Server sparse extent.
type cowdHeader struct {
	version, flags, capacity, grainSize, gd, gdes uint32
	unclean                                       bool
}

// decodeCowd reads the fields of b, cowdHeaderSize bytes.
func decodeCowd(b []byte) cowdHeader {
	return cowdHeader{
		version:   le.Uint32(b[offCowdVersion:]),
		flags:     le.Uint32(b[offCowdFlags:]),
		capacity:  le.Uint32(b[offCowdCapacity:]),
		grainSize: le.Uint32(b[offCowdGrain:]),
		gd:        le.Uint32(b[offCowdGD:]),
		gdes:      le.Uint32(b[offCowdGDEs:]),
		unclean:   le.Uint32(b[offCowdUnclean:]) != 0,
	}
}

// seArea is a part of a seSparse extent, sectors.
type seArea struct{ at, n uint64 }

// seHeader is the decoded constant header of a seSparse extent.
type seHeader struct {
	version, capacity, grainSize, table uint64
	reserved                            [5]uint64 // flags and reserved fields
	volatile, dir, tables, grains       seArea
}

// decodeSe reads the fields of b, seHeaderSize bytes.
func decodeSe(b []byte) seHeader {
	area := func(off int) seArea { return seArea{le.Uint64(b[off:]), le.Uint64(b[off+8:])} }
	h := seHeader{
		version:   le.Uint64(b[offSeVersion:]),
		capacity:  le.Uint64(b[offSeCapacity:]),
		grainSize: le.Uint64(b[offSeGrain:]),
		table:     le.Uint64(b[offSeTable:]),
		volatile:  area(offSeVolatile),
		dir:       area(offSeDir),
		tables:    area(offSeTables),
		grains:    area(offSeGrains),
	}
	for i := range h.reserved {
		h.reserved[i] = le.Uint64(b[offSeFlags+8*i:])
	}
	return h
}
