package qcow2

// On-disk structures of the "Qcow2 Image File Format" (QEMU, docs/interop/qcow2);
// section names in brackets. All numbers are big-endian.

const (
	magic   = "QFI\xfb" // [Header] bytes 0 to 3
	version = 3         // what is written

	headerLengthV2 = 72  // [Header] the whole of version 2
	headerLength   = 104 // [Header] of version 3 without optional fields

	// What is written: QEMU's defaults.
	clusterBits   = 16 // 64 KiB
	clusterSize   = 1 << clusterBits
	refcountOrder = 4 // 16-bit reference counts

	l2Entries          = clusterSize / 8                        // [L1 and L2 tables]
	l2Span             = l2Entries * clusterSize                // bytes of disk one L2 table maps: 512 MiB
	blockEntries       = clusterSize * 8 / (1 << refcountOrder) // counts in a refcount block
	tableEntries       = clusterSize / 8                        // refcount blocks named by a cluster of the table
	maxL1Size          = 32 << 20                               // bytes, QEMU's limit (block/qcow2.h, QCOW_MAX_L1_SIZE)
	maxSize      int64 = maxL1Size / 8 * l2Span                 // bytes of disk

	minClusterBits    = 9  // [Header] cluster_bits
	maxClusterBits    = 21 // the same: QEMU's limit
	minExtClusterBits = 14 // the same, with extended L2 entries
)

// Header fields, byte offsets ([Header]).
const (
	offVersion         = 4   // uint32
	offBackingOffset   = 8   // uint64, 0: none
	offBackingSize     = 16  // uint32, bytes
	offClusterBits     = 20  // uint32
	offSize            = 24  // uint64, bytes
	offCrypt           = 32  // uint32
	offL1Size          = 36  // uint32, entries
	offL1Table         = 40  // uint64
	offRefcountTable   = 48  // uint64
	offRefcountCluster = 56  // uint32, clusters of the table
	offSnapshots       = 60  // uint32
	offSnapshotTable   = 64  // uint64
	offIncompatible    = 72  // uint64, from here on version 3
	offCompatible      = 80  // uint64
	offAutoclear       = 88  // uint64
	offRefcountOrder   = 96  // uint32
	offHeaderLength    = 100 // uint32
	offCompression     = 104 // uint8, where header_length reaches beyond it
)

// features are the incompatible_features ([Header]).
type features uint64

const (
	dirty           features = 1 << 0
	corrupt         features = 1 << 1
	dataFile        features = 1 << 2
	compressionType features = 1 << 3
	extendedL2      features = 1 << 4
	known                    = dirty | corrupt | dataFile | compressionType | extendedL2
)

func (f features) has(bit features) bool { return f&bit != 0 }

// crypt_method ([Header]).
const (
	cryptAES  = 1
	cryptLUKS = 2
)

// compression_type ([Additional fields]).
const (
	compressionZlib = 0
	compressionZstd = 1
)

// Header extensions ([Header extensions]): a type and the length of the data,
// uint32 both, then the data, padded to a multiple of 8.
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extDataFile      = 0x44415441
	extHeaderSize    = 8

	// maxExtensions bounds how many are looked at: five types are defined, each
	// once.
	maxExtensions = 64
	maxBacking    = 1023 // [Header] backing_file_size
	// maxName is for the strings of extensions: QEMU's own limit for a format's
	// name is 15, for a file's 1023 (block/qcow2.c, qcow2_read_extensions).
	maxName = 1023

	featureNameSize = 48     // [Feature name table]: type, bit, 46 bytes of name
	maxFeatureNames = 3 * 64 // bits of three maps
	featureIncompat = 0      // [Feature name table] type
)

// L1 and L2 entries ([Cluster mapping]).
const (
	copied      = 1 << 63 // reference count is exactly one
	compressed  = 1 << 62 // L2 only
	zeroCluster = 1       // L2 only: reads as zeros, since version 3
	offsetMask  = 0x00ff_ffff_ffff_fe00
	l1Reserved  = 0x7f00_0000_0000_01ff
	l2Reserved  = 0x3f00_0000_0000_01fe // standard cluster descriptors
	packedShift = 62 + 8                // x of [Compressed Clusters Descriptor] is this less cluster_bits
	maxHost     = 1 << 56               // host offsets end here
	packedUnit  = 512                   // bytes: compressed data are counted in these

	subclusters = 32 // [Extended L2 Entries] in a cluster
)

// Snapshot table entries ([Snapshots]), byte offsets.
const (
	snapL1Table   = 0  // uint64
	snapL1Size    = 8  // uint32, entries
	snapIDSize    = 12 // uint16
	snapNameSize  = 14 // uint16
	snapSeconds   = 16 // uint32, since 1970
	snapNanos     = 20 // uint32
	snapState     = 32 // uint32, bytes of the machine's state
	snapExtraSize = 36 // uint32
	snapEntrySize = 40 // then extra data, ID, name, padding to 8
	snapStateLong = 0  // uint64, in the extra data: instead of snapState
	snapDiskSize  = 8  // uint64, in the extra data

	// QEMU's limits (block/qcow2.h): QCOW_MAX_SNAPSHOTS, QCOW_MAX_SNAPSHOT_EXTRA_DATA.
	maxSnapshots = 65536
	maxExtra     = 1024
	// maxSnapshotTable bounds what is read of the table, bytes: QEMU's own limit
	// of 64 MiB is far beyond what its ids and names of a few dozen bytes need.
	maxSnapshotTable = 16 << 20
)
