package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/ondisk"
)

const format = "ext4" // in errors

// superblock is the decoded and checked superblock.
type superblock struct {
	inodes, blocks   uint64
	freeBlocks       uint64 // clusters with bigalloc
	freeInodes       uint32
	firstDataBlock   uint32
	blockBits        uint // log2 of the block size in bytes
	clusterBits      uint // log2 of the cluster size in blocks
	blocksPerGroup   uint32
	inodesPerGroup   uint32
	groups           uint32
	inodeSize        uint32
	descSize         uint32
	firstMetaBG      uint32
	firstIno         uint32
	creatorOS        uint32
	compat, incompat uint32
	roCompat         uint32
	backupBGs        [2]uint32 // of sparse_super2
	uuid             [16]byte
	label, lastMount string
	seed             uint32 // start of every metadata checksum
	hashSeed         [4]uint32
	hashFlags        uint32 // sbFlag*Hash
	defHash          uint8  // hash function of new directories
	journalInum      uint32
	lastOrphan       uint32
	orphanFileInum   uint32
}

func (sb *superblock) blockSize() uint32 { return 1 << sb.blockBits }

// metadataCsum reports whether metadata blocks carry CRC-32C checksums.
func (sb *superblock) metadataCsum() bool { return sb.roCompat&roMetadataCsum != 0 }

// probe implements guestfs.Format.Probe: the magic, and a revision, block size
// and inode size that can be.
func probe(ctx context.Context, dev block.Reader) (bool, error) {
	if dev.Size() < superOffset+superSize {
		return false, nil
	}
	var b [sbFeatureIncompat + 4]byte
	if err := block.ReadFull(ctx, dev, b[:], superOffset); err != nil {
		return false, err
	}
	le := binary.LittleEndian
	// A journal device has no inodes; Open says what it is.
	journalDev := le.Uint32(b[sbFeatureIncompat:])
	return le.Uint16(b[sbMagic:]) == superMagic &&
		le.Uint32(b[sbLogBlockSize:]) <= maxLogBlockSize &&
		(le.Uint32(b[sbInodesPerGroup:]) != 0 || journalDev&incompatJournalDev != 0), nil
}

// readSuper reads and checks the primary superblock.
func readSuper(ctx context.Context, dev block.Reader) (*superblock, error) {
	if dev.Size() < superOffset+superSize {
		return nil, fmt.Errorf("ext4: device of %d bytes: %w", dev.Size(), ondisk.ErrFormat)
	}
	b := make([]byte, superSize)
	if err := block.ReadFull(ctx, dev, b, superOffset); err != nil {
		return nil, fmt.Errorf("ext4: superblock: %w", err)
	}
	return parseSuper(b)
}

func parseSuper(b []byte) (*superblock, error) {
	le := binary.LittleEndian
	u32 := func(off int) uint32 { return le.Uint32(b[off:]) }
	if m := le.Uint16(b[sbMagic:]); m != superMagic {
		return nil, &ondisk.FormatError{Format: format, Field: "superblock magic", Off: superOffset + sbMagic,
			Msg: fmt.Sprintf("%#04x, not %#04x", m, superMagic), Err: ondisk.ErrFormat}
	}
	sb := &superblock{
		inodes:         uint64(u32(sbInodesCount)),
		blocks:         uint64(u32(sbBlocksCountLo)),
		freeBlocks:     uint64(u32(sbFreeBlocksLo)),
		freeInodes:     u32(sbFreeInodes),
		firstDataBlock: u32(sbFirstDataBlock),
		blocksPerGroup: u32(sbBlocksPerGroup),
		inodesPerGroup: u32(sbInodesPerGroup),
		inodeSize:      goodOldInodeSize,
		firstIno:       goodOldFirstIno,
		descSize:       gdSizeMin,
		creatorOS:      u32(sbCreatorOS),
		hashFlags:      u32(sbFlags),
		defHash:        b[sbDefHashVersion],
		journalInum:    u32(sbJournalInum),
		lastOrphan:     u32(sbLastOrphan),
	}
	if u32(sbRevLevel) != revGoodOld {
		sb.inodeSize = uint32(le.Uint16(b[sbInodeSize:]))
		sb.firstIno = u32(sbFirstIno)
		sb.compat, sb.incompat, sb.roCompat = u32(sbFeatureCompat), u32(sbFeatureIncompat), u32(sbFeatureROCompat)
	}
	copy(sb.uuid[:], b[sbUUID:])
	sb.label = cString(b[sbVolumeName : sbVolumeName+16])
	sb.lastMount = cString(b[sbLastMounted : sbLastMounted+64])
	for i := range sb.hashSeed {
		sb.hashSeed[i] = u32(sbHashSeed + 4*i)
	}
	sb.backupBGs = [2]uint32{u32(sbBackupBGs), u32(sbBackupBGs + 4)}
	if sb.compat&compatOrphanFile != 0 {
		sb.orphanFileInum = u32(sbOrphanFileInum)
	}

	if sb.incompat&incompatJournalDev != 0 {
		return nil, ondisk.Unsupportedf(format, "feature journal_dev", superOffset+sbFeatureIncompat,
			"this is an external journal device, not a filesystem")
	}
	if unknown := sb.incompat &^ incompatSupported; unknown != 0 {
		names := incompatFeatures.list(nil, unknown)
		return nil, ondisk.Unsupportedf(format, "features", superOffset+sbFeatureIncompat,
			"incompatible %s (%#x)", strings.Join(names, ", "), unknown)
	}
	if err := sb.checksums(b); err != nil {
		return nil, err
	}
	return sb, sb.geometry(b)
}

// checksums verifies the superblock's own checksum and sets the seed of all others.
func (sb *superblock) checksums(b []byte) error {
	le := binary.LittleEndian
	if sb.incompat&incompatCsumSeed != 0 {
		sb.seed = le.Uint32(b[sbChecksumSeed:])
	} else { // also the seed of the hashes of ea_inode, without metadata_csum
		sb.seed = crc32c(^uint32(0), sb.uuid[:])
	}
	if !sb.metadataCsum() {
		return nil
	}
	if t := b[sbChecksumType]; t != checksumCRC32C {
		return ondisk.Unsupportedf(format, "superblock checksum type", superOffset+sbChecksumType, "%d", t)
	}
	if got, want := crc32c(^uint32(0), b[:sbChecksum]), le.Uint32(b[sbChecksum:]); got != want {
		return ondisk.Corruptf(format, "superblock checksum", superOffset+sbChecksum, "computed %#08x, stored %#08x", got, want)
	}
	return nil
}

// geometry checks and derives all sizes and counts, so that later arithmetic
// neither divides by zero nor overflows.
func (sb *superblock) geometry(b []byte) error {
	le := binary.LittleEndian
	bad := func(field string, off int64, msg string, args ...any) error {
		return ondisk.Corruptf(format, "superblock "+field, superOffset+off, msg, args...)
	}
	logBlock, logCluster := le.Uint32(b[sbLogBlockSize:]), le.Uint32(b[sbLogClusterSize:])
	if logBlock > maxLogBlockSize {
		return bad("block size", sbLogBlockSize, "1024 << %d", logBlock)
	}
	sb.blockBits = uint(10 + logBlock)
	bs := sb.blockSize()
	if sb.roCompat&roBigalloc != 0 {
		if logCluster < logBlock || logCluster > maxLogClusterSize {
			return bad("cluster size", sbLogClusterSize, "1024 << %d with blocks of %d", logCluster, bs)
		}
		sb.clusterBits = uint(logCluster - logBlock)
	}
	if s := sb.inodeSize; s < goodOldInodeSize || s > bs || s&(s-1) != 0 {
		return bad("inode size", sbInodeSize, "%d with blocks of %d", s, bs)
	}
	if sb.incompat&incompat64Bit != 0 {
		sb.blocks |= uint64(le.Uint32(b[sbBlocksCountHi:])) << 32
		sb.freeBlocks |= uint64(le.Uint32(b[sbFreeBlocksHi:])) << 32
		d := uint32(le.Uint16(b[sbDescSize:]))
		if d < gdSize64 || d > gdSizeMax || d > bs || d&(d-1) != 0 {
			return bad("group descriptor size", sbDescSize, "%d", d)
		}
		sb.descSize = d
	}
	// Extents address 2^48 blocks; byte offsets have to fit in an int64.
	if sb.blocks > min(uint64(1)<<48, uint64(1)<<(62-sb.blockBits)) || sb.blocks <= uint64(sb.firstDataBlock) {
		return bad("block count", sbBlocksCountLo, "%d, first data block %d", sb.blocks, sb.firstDataBlock)
	}
	if want := uint32(1); sb.firstDataBlock > want || bs == 1024 && sb.clusterBits == 0 && sb.firstDataBlock != want && sb.firstDataBlock != 0 {
		return bad("first data block", sbFirstDataBlock, "%d", sb.firstDataBlock)
	}
	if sb.blocksPerGroup == 0 || uint64(sb.blocksPerGroup) > uint64(bs)*8<<sb.clusterBits {
		return bad("blocks per group", sbBlocksPerGroup, "%d", sb.blocksPerGroup)
	}
	if sb.inodesPerGroup == 0 || sb.inodesPerGroup > bs*8 {
		return bad("inodes per group", sbInodesPerGroup, "%d", sb.inodesPerGroup)
	}
	groups := (sb.blocks - uint64(sb.firstDataBlock) + uint64(sb.blocksPerGroup) - 1) / uint64(sb.blocksPerGroup)
	if groups > 1<<32-1 || groups*uint64(sb.inodesPerGroup) < sb.inodes {
		return bad("inode count", sbInodesCount, "%d in %d groups of %d", sb.inodes, groups, sb.inodesPerGroup)
	}
	sb.groups = uint32(groups)
	sb.firstMetaBG = le.Uint32(b[sbFirstMetaBG:])
	return nil
}

// hasSuper reports whether group holds a copy of the superblock and, unless
// meta_bg moved them, of the group descriptors (doc: super.rst).
func (sb *superblock) hasSuper(group uint32) bool {
	switch {
	case group == 0:
		return true
	case sb.compat&compatSparseSuper2 != 0:
		return group == sb.backupBGs[0] || group == sb.backupBGs[1]
	case group == 1 || sb.roCompat&roSparseSuper == 0:
		return true
	case group&1 == 0:
		return false
	}
	for _, base := range [...]uint32{3, 5, 7} {
		n := group
		for n%base == 0 {
			n /= base
		}
		if n == 1 {
			return true
		}
	}
	return false
}

// fsType tells ext2, ext3 and ext4 apart as libblkid does: by whether there is
// a journal and any feature that the older drivers lack.
func (sb *superblock) fsType() string {
	const ro23 = roSparseSuper | roLargeFile | roBtreeDir
	const in2 = incompatFiletype | incompatMetaBG
	switch journal := sb.compat&compatHasJournal != 0; {
	case sb.roCompat&^ro23 != 0:
		return "ext4"
	case !journal && sb.incompat&^in2 == 0:
		return "ext2"
	case journal && sb.incompat&^(in2|incompatRecover) == 0:
		return "ext3"
	}
	return "ext4"
}

// info fills what the superblock knows of guestfs.Info.
func (sb *superblock) info() guestfs.Info {
	in := guestfs.Info{
		Type:      sb.fsType(),
		Label:     sb.label,
		Size:      int64(sb.blocks) << sb.blockBits,
		BlockSize: int(sb.blockSize()),
		FilesMax:  int64(sb.inodes),
		LastMount: sb.lastMount,
	}
	if hi := sb.freeBlocks >> (63 - sb.blockBits - sb.clusterBits); hi == 0 {
		in.Free = min(int64(sb.freeBlocks)<<(sb.blockBits+sb.clusterBits), in.Size)
	}
	in.Files = max(0, int64(sb.inodes)-int64(sb.freeInodes))
	if sb.uuid != [16]byte{} {
		u := sb.uuid
		in.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	}
	in.Features = compatFeatures.list(in.Features, sb.compat)
	in.Features = incompatFeatures.list(in.Features, sb.incompat)
	in.Features = roCompatFeatures.list(in.Features, sb.roCompat)
	return in
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
