package ext4

// On-disk structures of ext2, ext3 and ext4: offsets in bytes, sizes and
// constants. All integers are little-endian. Sources are named per group:
// "ext4.h" is fs/ext4/ext4.h, "doc" is Documentation/filesystems/ext4/ of the
// Linux kernel.

// Superblock (struct ext4_super_block in ext4.h; doc: super.rst).
const (
	superOffset = 1024 // byte offset of the primary superblock
	superSize   = 1024
	superMagic  = 0xEF53

	sbInodesCount     = 0x00
	sbBlocksCountLo   = 0x04
	sbFreeBlocksLo    = 0x0C
	sbFreeInodes      = 0x10
	sbFirstDataBlock  = 0x14
	sbLogBlockSize    = 0x18 // block size is 1024 << this
	sbLogClusterSize  = 0x1C
	sbBlocksPerGroup  = 0x20
	sbInodesPerGroup  = 0x28
	sbMagic           = 0x38
	sbCreatorOS       = 0x48
	sbRevLevel        = 0x4C
	sbFirstIno        = 0x54
	sbInodeSize       = 0x58
	sbFeatureCompat   = 0x5C
	sbFeatureIncompat = 0x60
	sbFeatureROCompat = 0x64
	sbUUID            = 0x68 // 16 bytes
	sbVolumeName      = 0x78 // 16 bytes
	sbLastMounted     = 0x88 // 64 bytes
	sbJournalInum     = 0xE0
	sbJournalDev      = 0xE4
	sbLastOrphan      = 0xE8
	sbHashSeed        = 0xEC // 4 × uint32
	sbDefHashVersion  = 0xFC
	sbDescSize        = 0xFE
	sbFirstMetaBG     = 0x104
	sbBlocksCountHi   = 0x150
	sbFreeBlocksHi    = 0x158
	sbFlags           = 0x160
	sbChecksumType    = 0x175
	sbBackupBGs       = 0x24C // 2 × uint32, sparse_super2
	sbChecksumSeed    = 0x270
	sbOrphanFileInum  = 0x280
	sbChecksum        = 0x3FC

	revGoodOld       = 0 // EXT4_GOOD_OLD_REV: fixed inode size and first inode
	goodOldInodeSize = 128
	goodOldFirstIno  = 11

	maxLogBlockSize   = 6  // EXT4_MAX_BLOCK_LOG_SIZE 16: blocks of 64 KiB
	maxLogClusterSize = 20 // EXT4_MAX_CLUSTER_LOG_SIZE 30

	osLinux = 0 // EXT4_OS_LINUX

	checksumCRC32C = 1 // EXT4_CRC32C_CHKSUM

	sbFlagSignedHash   = 0x0001 // EXT2_FLAGS_SIGNED_HASH
	sbFlagUnsignedHash = 0x0002 // EXT2_FLAGS_UNSIGNED_HASH
)

// Reserved inode numbers (ext4.h; doc: special_inodes.rst).
const (
	inoRoot = 2
)

// Group descriptor (struct ext4_group_desc in ext4.h; doc: group_descr.rst).
const (
	gdInodeTableLo = 0x08
	gdChecksum     = 0x1E
	gdInodeTableHi = 0x28
	gdSizeMin      = 32   // EXT4_MIN_DESC_SIZE
	gdSize64       = 64   // EXT4_MIN_DESC_SIZE_64BIT
	gdSizeMax      = 1024 // EXT4_MAX_DESC_SIZE: the smallest block
)

// Inode (struct ext4_inode in ext4.h; doc: inodes.rst).
const (
	inMode       = 0x00
	inUIDLo      = 0x02
	inSizeLo     = 0x04
	inAtime      = 0x08
	inCtime      = 0x0C
	inMtime      = 0x10
	inGIDLo      = 0x18
	inLinks      = 0x1A
	inBlocksLo   = 0x1C
	inFlags      = 0x20
	inBlock      = 0x28 // 60 bytes
	inBlockSize  = 60
	inGeneration = 0x64
	inFileACLLo  = 0x68
	inSizeHi     = 0x6C
	inBlocksHi   = 0x74
	inFileACLHi  = 0x76
	inUIDHi      = 0x78
	inGIDHi      = 0x7A
	inCsumLo     = 0x7C
	inExtraISize = 0x80
	inCsumHi     = 0x82
	inCtimeExtra = 0x84
	inMtimeExtra = 0x88
	inAtimeExtra = 0x8C
	inCrtime     = 0x90
	inCrtimeExt  = 0x94

	timeEpochMask = 0x3 // low bits of the extra word extend the seconds
	timeEpochBits = 2   // nanoseconds are above them
)

// Inode flags (EXT4_*_FL in ext4.h).
const (
	flEncrypt  = 0x00000800
	flIndex    = 0x00001000
	flHugeFile = 0x00040000
	flExtents  = 0x00080000
	flEAInode  = 0x00200000
	flInline   = 0x10000000
	flCasefold = 0x40000000
)

// Extent tree (fs/ext4/ext4_extents.h; doc: ifork.rst).
const (
	ehMagic      = 0xF30A
	ehEntries    = 2
	ehMax        = 4
	ehDepth      = 6
	ehSize       = 12
	eeSize       = 12 // both struct ext4_extent and struct ext4_extent_idx
	eeBlock      = 0
	eeLen        = 4
	eeStartHi    = 6
	eeStartLo    = 8
	eiLeafLo     = 4
	eiLeafHi     = 8
	eeMaxInitLen = 32768 // EXT_INIT_MAX_LEN: longer means unwritten
	maxDepth     = 5     // EXT4_MAX_EXTENT_DEPTH
)

// Block map (doc: blockmap.rst).
const (
	directBlocks = 12 // EXT4_NDIR_BLOCKS
)

// Directory entries (struct ext4_dir_entry_2, ext4_dir_entry_tail in ext4.h; doc: directory.rst).
const (
	deIno      = 0
	deRecLen   = 4
	deNameLen  = 6
	deFileType = 7
	deName     = 8
	deMinLen   = 12 // smallest rec_len
	deTailSize = 12 // struct ext4_dir_entry_tail
	deTailCsum = 8
	deTailType = 0xDE // EXT4_FT_DIR_CSUM
	deHashSize = 8    // struct ext4_dir_entry_hash behind the name in encrypted casefolded directories
	maxName    = 255  // EXT4_NAME_LEN
)

// Hashed directories (struct dx_root, dx_node, dx_entry, dx_tail in fs/ext4/namei.c; doc: directory.rst).
const (
	dxRootInfo      = 24 // struct dx_root_info, behind "." and ".."
	dxRootHash      = 28
	dxRootInfoLen   = 29
	dxRootLevels    = 30
	dxRootFlags     = 31
	dxRootEntries   = 32
	dxNodeEntries   = 8
	dxEntrySize     = 8
	dxTailSize      = 8
	dxBlockMask     = 0x0FFFFFFF
	dxMaxLevels     = 2 // EXT4_HTREE_LEVEL_COMPAT: levels of nodes with blocks below the root, exclusive
	dxMaxLevelsHuge = 3 // EXT4_HTREE_LEVEL, with large_dir
	dxFlagUnknown   = 1 // hash flags a reader must not ignore

	hashLegacy          = 0 // DX_HASH_*
	hashHalfMD4         = 1
	hashTEA             = 2
	hashLegacyUnsigned  = 3
	hashHalfMD4Unsigned = 4
	hashTEAUnsigned     = 5
	hashSiphash         = 6
)

// Extended attributes (fs/ext4/xattr.h; doc: attributes.rst).
const (
	xaMagic      = 0xEA020000
	xaHeaderSize = 32 // struct ext4_xattr_header, of a block
	xaIHeader    = 4  // struct ext4_xattr_ibody_header
	xaHBlocks    = 8
	xaHChecksum  = 16

	xaNameLen    = 0
	xaNameIndex  = 1
	xaValueOffs  = 2
	xaValueInum  = 4
	xaValueSize  = 8
	xaHash       = 12
	xaEntrySize  = 16
	xaMaxValue   = 1 << 24 // EXT4_XATTR_SIZE_MAX
	xaIdxUser    = 1
	xaIdxACL     = 2
	xaIdxDefACL  = 3
	xaIdxTrusted = 4
	xaIdxSec     = 6
	xaIdxSystem  = 7
	xaIdxHurd    = 10
)

// Fast commits (fs/ext4/fast_commit.h; doc: journal.rst, "Fast commits"): blocks
// full of tags, each followed by a value of the length it gives.
const (
	fcTagLen  = 4 // struct ext4_fc_tl: tag and length, 16 bits each
	fcAdd     = 1 // EXT4_FC_TAG_*
	fcDel     = 2
	fcCreat   = 3
	fcLink    = 4
	fcUnlink  = 5
	fcInode   = 6
	fcPad     = 7
	fcTail    = 8
	fcHead    = 9
	fcAddSize = 16 // struct ext4_fc_add_range: an inode number and a struct ext4_extent
	fcDelSize = 12 // struct ext4_fc_del_range: inode, first block, count
	fcDentry  = 8  // struct ext4_fc_dentry_info: parent, inode, name
	fcIno     = 4  // struct ext4_fc_inode: inode number, raw inode
	fcEnds    = 8  // struct ext4_fc_head: features, transaction; struct ext4_fc_tail: transaction, checksum
)
