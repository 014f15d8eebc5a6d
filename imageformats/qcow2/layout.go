package qcow2

// On-disk structures of the "Qcow2 Image File Format" (QEMU, docs/interop/qcow2);
// section names in brackets. All numbers are big-endian.

const (
	magic   = "QFI\xfb" // [Header] bytes 0 to 3
	version = 3

	headerLength = 104 // [Header] of version 3 without optional fields

	clusterBits   = 16 // 64 KiB, QEMU's default
	clusterSize   = 1 << clusterBits
	refcountOrder = 4 // 16-bit reference counts, QEMU's default

	l2Entries          = clusterSize / 8                        // [L1 and L2 tables]
	l2Span             = l2Entries * clusterSize                // bytes of disk one L2 table maps: 512 MiB
	blockEntries       = clusterSize * 8 / (1 << refcountOrder) // counts in a refcount block
	tableEntries       = clusterSize / 8                        // refcount blocks named by a cluster of the table
	copied             = 1 << 63                                // [L1/L2 table entry] reference count is exactly one
	maxL1Size          = 32 << 20                               // bytes, QEMU's limit (block/qcow2.h, QCOW_MAX_L1_SIZE)
	maxSize      int64 = maxL1Size / 8 * l2Span                 // bytes of disk
)

// Header fields, byte offsets ([Header]).
const (
	offVersion         = 4   // uint32
	offClusterBits     = 20  // uint32
	offSize            = 24  // uint64, bytes
	offL1Size          = 36  // uint32, entries
	offL1Table         = 40  // uint64
	offRefcountTable   = 48  // uint64
	offRefcountCluster = 56  // uint32, clusters of the table
	offRefcountOrder   = 96  // uint32
	offHeaderLength    = 100 // uint32
)
