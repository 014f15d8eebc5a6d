package lvm

// The on-disk structures, all little-endian, by LVM2's own sources (2.03.16).

const sectorSize = 512 // bytes; of labels and of all counts of sectors, whatever the disk's (lib/misc/lvm-globals, SECTOR_SIZE)

// Label: lib/label/label.h, struct label_header.
const (
	labelSectors = 4 // the label lies in one of the first ones (LABEL_SCAN_SECTORS)
	labelMagic   = "LABELONE"
	labelType    = "LVM2 001" // lib/format_text/layout.h, LVM2_LABEL

	labelOffSector = 8  // u64: the sector that the label is in
	labelOffCRC    = 16 // u32: of the sector's bytes from labelOffHeader on
	labelOffHeader = 20 // u32: where the PV header begins in the sector
	labelOffType   = 24 // 8 bytes
	labelEnd       = 32
)

// crcInit begins every checksum (lib/misc/crc.h, INITIAL_CRC): CRC-32 of IEEE's
// polynomial, reflected, without the final complement.
const crcInit = 0xf597a6cf

// PV header: lib/format_text/layout.h, struct pv_header. Two lists of disk_locn
// follow it, each ended by an entry of zeros: data areas, then metadata areas.
// What comes after (struct pv_header_extension) isn't needed.
const (
	pvOffUUID  = 0  // 32 characters
	pvOffSize  = 32 // u64: bytes of the device
	pvOffAreas = 40

	idLen = 32 // lib/uuid/uuid.h, ID_LEN

	locnOffStart = 0 // u64: struct disk_locn: byte offset on the device
	locnOffSize  = 8 // u64: bytes; 0: to the end of the device
	locnSize     = 16
)

// Metadata area: lib/format_text/layout.h, struct mda_header, struct raw_locn.
// The header is followed by text in a ring.
const (
	mdaMagic      = " LVM2 x[5A%r0N*>" // FMTT_MAGIC
	mdaVersion    = 1                  // FMTT_VERSION
	mdaHeaderSize = 512                // MDA_HEADER_SIZE

	mdaOffCRC     = 0  // u32: of the header's bytes from mdaOffMagic on
	mdaOffMagic   = 4  // 16 bytes
	mdaOffVersion = 20 // u32
	mdaOffStart   = 24 // u64: byte offset of this header on the device
	mdaOffSize    = 32 // u64: bytes of the area, this header included
	mdaOffLocn    = 40 // struct raw_locn: the committed text; behind it the one being written

	rawOffStart = 0  // u64: byte offset from the header's; 0: no text
	rawOffSize  = 8  // u64: bytes
	rawOffCRC   = 16 // u32: of the text
	rawOffFlags = 20 // u32

	rawIgnored = 1 // RAW_LOCN_IGNORED: the area isn't in use, and its text is stale
)

// Superblock of a leg of a raid1 in its metadata volume: Linux
// drivers/md/dm-raid.c, struct dm_raid_superblock.
const (
	raidMagic    = "DmRd"
	raidSBSize   = 512 // bytes that are read; the structure has fewer
	raidMaxLegs  = 253 // MAX_RAID_DEVICES
	raidNoOffset = ^uint64(0)

	raidOffFeatures  = 4   // u32
	raidOffDevices   = 8   // u32
	raidOffPosition  = 12  // u32: which leg this is
	raidOffEvents    = 16  // u64
	raidOffFailed    = 24  // u64: a bit for each of the first 64 legs
	raidOffRecovery  = 32  // u64: sectors rebuilt so far; raidNoOffset: all
	raidOffLevel     = 48  // u32
	raidOffFlags     = 60  // u32
	raidOffExtFailed = 120 // three u64: the bits of further legs
	raidExtFailed    = 3

	raidFeatureV190  = 1 // FEATURE_FLAG_SUPPORTS_V190: what lies from raidOffFlags on is there
	raidFlagReshape  = 1 // SB_FLAG_RESHAPE_ACTIVE
	raidLevelMirror  = 1
	raidEventsBehind = 1 // a leg whose count is lower by more than this has missed writes (md's own measure)
)

// Caps on what the metadata may say.
const (
	// maxText bounds the metadata text, bytes: some 30,000 logical volumes. The
	// default area takes 1 MiB. maxAllText bounds those of one machine together,
	// copies that are alike counted once.
	maxText    = 16 << 20
	maxAllText = 4 * maxText
	// maxAllValues bounds the values of all those texts, which take some 100 bytes of
	// memory each: 16 for each logical volume of a text that is as large as can be,
	// twice.
	maxAllValues = 1 << 20
	maxDepth     = 8 // sections and arrays within each other; LVM2 has four
	maxAreas     = 8 // metadata areas of a PV; LVM2 makes two at most
	// maxHeight bounds how many volumes lie on top of each other inside a group:
	// a mirror of volumes that are being moved has three.
	maxHeight = 12
	maxName   = 127 // NAME_LEN - 1, lib/metadata/metadata-exported.h
)
