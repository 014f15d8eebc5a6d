package erofs

// The on-disk format as Linux's fs/erofs/erofs_fs.h has it. All numbers are
// little-endian.
const (
	// BlockBits is the base-2 logarithm of the block size.
	BlockBits = 12
	// BlockSize is the size of a block, in bytes.
	BlockSize = 1 << BlockBits

	superOffset = 1024 // EROFS_SUPER_OFFSET
	superMagic  = 0xE0F5E1E2

	// struct erofs_super_block
	sbMagic           = 0
	sbBlockBits       = 12
	sbRootNID         = 14 // 16 bits
	sbInodes          = 16 // 64 bits
	sbBlocks          = 36
	sbFeatureIncompat = 80
	sbExtraDevices    = 86 // 16 bits
	sbDeviceTable     = 88 // 16 bits, in units of deviceSlot
	sbSize            = 128

	incompatChunkedFile = 0x00000004
	incompatDeviceTable = 0x00000008

	// struct erofs_deviceslot
	deviceSlot   = 128
	deviceBlocks = 64

	// struct erofs_inode_extended
	inodeSize     = 64
	inFormat      = 0  // 16 bits: bit 0 is 1 for this struct, the data layout above
	inXattrs      = 2  // 16 bits: see xattrHeader
	inMode        = 4  // 16 bits
	inFileSize    = 8  // 64 bits
	inWhere       = 16 // first block, device number, or the form of the chunks
	inNumber      = 20
	inUID         = 24
	inGID         = 28
	inMtime       = 32 // 64 bits, signed
	inMtimeNsec   = 40
	inLinks       = 44
	formatExtends = 1

	layoutPlain  = 0 << 1 // whole blocks from inWhere on
	layoutInline = 2 << 1 // the same, but the last part follows the inode
	layoutChunks = 4 << 1 // struct erofs_inode_chunk_index follows the inode

	// struct erofs_inode_chunk_index: 16 bits of zeros, device (from 1; 16 bits),
	// first block (32 bits)
	chunkIndexSize   = 8
	chunkIndexDevice = 2
	chunkIndexBlock  = 4
	chunkIndexes     = 0x20 // in inWhere: there are chunk indexes, of 8 bytes
	maxChunkBits     = 31   // of the 5 bits in inWhere, above BlockBits
	nidBits          = 5    // an inode's number is its address in units of 32 bytes
	nidSize          = 1 << nidBits
	noBlock          = 0xffffffff
	direntSize       = 12 // struct erofs_dirent: NID (64 bits), name (16 bits), type, 0
	direntName       = 8
	direntType       = 10
	xattrHeader      = 12 // struct erofs_xattr_ibody_header; inXattrs counts what follows in fours, plus one
	xattrEntry       = 4  // struct erofs_xattr_entry: length of name, prefix, length of value (16 bits)
	xattrAlign       = 4
	maxXattrBytes    = xattrHeader + xattrAlign*(1<<16-2)
	maxName          = 255
)

// xattrPrefixes are the name spaces that there are, with EROFS_XATTR_INDEX_*.
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{
	{"system.posix_acl_access", 2},
	{"system.posix_acl_default", 3},
	{"user.", 1},
	{"trusted.", 4},
	{"security.", 6},
}
