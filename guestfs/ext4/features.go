package ext4

import "fmt"

// Feature bits (EXT4_FEATURE_* in ext4.h), those that change how a reader reads.
const (
	compatHasJournal   = 0x0004
	compatDirIndex     = 0x0020
	compatSparseSuper2 = 0x0200
	compatOrphanFile   = 0x1000

	roSparseSuper  = 0x0001
	roLargeFile    = 0x0002
	roBtreeDir     = 0x0004
	roHugeFile     = 0x0008
	roGDTCsum      = 0x0010
	roBigalloc     = 0x0200
	roMetadataCsum = 0x0400

	incompatFiletype   = 0x0002
	incompatRecover    = 0x0004
	incompatJournalDev = 0x0008
	incompatMetaBG     = 0x0010
	incompatExtents    = 0x0040
	incompat64Bit      = 0x0080
	incompatMMP        = 0x0100
	incompatFlexBG     = 0x0200
	incompatEAInode    = 0x0400
	incompatCsumSeed   = 0x2000
	incompatLargeDir   = 0x4000
	incompatInline     = 0x8000
	incompatEncrypt    = 0x10000
	incompatCasefold   = 0x20000

	incompatSupported = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents |
		incompat64Bit | incompatMMP | incompatFlexBG | incompatEAInode | incompatCsumSeed |
		incompatLargeDir | incompatInline | incompatEncrypt | incompatCasefold
)

// featureSet is one of the superblock's three feature words: its letter in
// e2fsprogs' names of unknown bits, and the names of the known ones by bit.
type featureSet struct {
	letter byte
	names  [32]string
}

// The names that e2fsprogs prints (e2fsprogs lib/e2p/feature.c; man ext4(5)).
var (
	compatFeatures = featureSet{'C', [32]string{
		0: "dir_prealloc", 1: "imagic_inodes", 2: "has_journal", 3: "ext_attr", 4: "resize_inode",
		5: "dir_index", 6: "lazy_bg", 8: "snapshot_bitmap", 9: "sparse_super2", 10: "fast_commit",
		11: "stable_inodes", 12: "orphan_file",
	}}
	incompatFeatures = featureSet{'I', [32]string{
		0: "compression", 1: "filetype", 2: "needs_recovery", 3: "journal_dev", 4: "meta_bg",
		6: "extent", 7: "64bit", 8: "mmp", 9: "flex_bg", 10: "ea_inode", 12: "dirdata",
		13: "metadata_csum_seed", 14: "large_dir", 15: "inline_data", 16: "encrypt", 17: "casefold",
	}}
	roCompatFeatures = featureSet{'R', [32]string{
		0: "sparse_super", 1: "large_file", 3: "huge_file", 4: "uninit_bg", 5: "dir_nlink",
		6: "extra_isize", 7: "snapshot", 8: "quota", 9: "bigalloc", 10: "metadata_csum",
		11: "replica", 12: "read-only", 13: "project", 14: "shared_blocks", 15: "verity",
		16: "orphan_present",
	}}
)

// list appends the names of the bits set in v.
func (s *featureSet) list(names []string, v uint32) []string {
	for bit, name := range s.names {
		if v>>bit&1 == 0 {
			continue
		}
		if name == "" {
			name = fmt.Sprintf("FEATURE_%c%d", s.letter, bit)
		}
		names = append(names, name)
	}
	return names
}
