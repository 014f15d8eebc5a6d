package jbd2

// On-disk structures of the journal of ext3, ext4 and OCFS2: offsets in bytes
// and constants, from include/linux/jbd2.h of the Linux kernel
// (Documentation/filesystems/ext4/journal.rst). All integers are big-endian.

const (
	magic = 0xC03B3998 // JBD2_MAGIC_NUMBER

	// journal_header_t, at the start of every block that isn't data.
	hMagic    = 0
	hType     = 4
	hSequence = 8
	hSize     = 12

	// h_blocktype
	typeDescriptor = 1
	typeCommit     = 2
	typeSuperV1    = 3
	typeSuperV2    = 4
	typeRevoke     = 5
)

// journal_superblock_t, block 0 of the journal.
const (
	superSize       = 1024
	sBlockSize      = 0x0C
	sMaxLen         = 0x10 // blocks in the journal
	sFirst          = 0x14 // first block of the log
	sSequence       = 0x18 // first transaction expected in the log
	sStart          = 0x1C // block where the log starts; 0 when there is nothing in it
	sFeatureCompat  = 0x24
	sFeatureIncomp  = 0x28
	sFeatureROComp  = 0x2C
	sUUID           = 0x30
	sChecksumType   = 0x50
	sNumFCBlocks    = 0x54
	sChecksum       = 0xFC
	checksumCRC32C  = 4    // JBD2_CRC32C_CHKSUM
	defaultFCBlocks = 256  // JBD2_DEFAULT_FAST_COMMIT_BLOCKS
	minBlocks       = 1024 // JBD2_MIN_JOURNAL_BLOCKS

	compatChecksum = 0x01

	incompatRevoke     = 0x01
	incompat64Bit      = 0x02
	incompatAsync      = 0x04
	incompatCsumV2     = 0x08
	incompatCsumV3     = 0x10
	incompatFastCommit = 0x20
	incompatKnown      = incompatRevoke | incompat64Bit | incompatAsync | incompatCsumV2 | incompatCsumV3 | incompatFastCommit
)

// Tags of a descriptor block (journal_block_tag_t, journal_block_tag3_t).
const (
	tagBlock    = 0
	tagChecksum = 4 // 16 bits; before V3
	tagFlags    = 6 // 16 bits; of V3 the lower half of 32
	tagBlockHi  = 8
	tag3Sum     = 12
	tag3Size    = 16
	tagSize     = 12
	tailSize    = 4 // struct jbd2_journal_block_tail

	flagEscape   = 1
	flagSameUUID = 2
	flagLast     = 8
	uuidSize     = 16
)

// struct commit_header.
const (
	cChecksumType = 12
	cChecksumSize = 13
	cChecksum     = 16
	cCommitSec    = 0x30
	cSize         = 0x3C
	checksumCRC32 = 1 // JBD2_CRC32_CHKSUM
	crc32Size     = 4
)

// struct jbd2_journal_revoke_header_s.
const (
	rCount      = 12 // bytes in use, this header included
	rHeaderSize = 16
)
