package ext4

import (
	"context"
	"encoding/binary"

	"yester/internal/ondisk"
)

// group is what a reader needs of one group descriptor.
type group struct {
	inodeTable uint64 // first block
}

// group returns the descriptor of block group g, checksum verified.
func (f *FS) group(ctx context.Context, g uint32) (group, error) {
	if d, ok := f.groupCache.get(uint64(g)); ok {
		return d, nil
	}
	d, err := f.loadGroup(ctx, g, f.descBlock(g), true)
	for i := 0; err != nil && i < maxBackups && ctx.Err() == nil; i++ {
		blk, ok := f.backupDescBlock(g, i)
		if !ok {
			break
		}
		if b, err2 := f.loadGroup(ctx, g, blk, true); err2 == nil && f.sb.hasGroupCsum() {
			// What is read of a descriptor never changes, so a copy is as good.
			f.log.Warn("ext4: using the copy of a group descriptor", "block", blk, "error", err)
			d, err = b, nil
		}
	}
	if err != nil && f.sb.metadataCsum() && f.sb.creatorOS == osLinux && ctx.Err() == nil {
		// Every inode's checksum covers its number: one that is read from a wrong
		// place is found out. The kernel mounts this read-only, too.
		if b, err2 := f.loadGroup(ctx, g, f.descBlock(g), false); err2 == nil {
			f.log.Warn("ext4: using a damaged group descriptor; inodes have checksums of their own", "error", err)
			d, err = b, nil
		}
	}
	if err != nil {
		return group{}, err
	}
	return f.groupCache.put(uint64(g), d), nil
}

// maxBackups is how many copies of a damaged descriptor are tried.
const maxBackups = 3

// hasGroupCsum reports whether group descriptors have checksums. Without, a copy
// is no more believable than the original.
func (sb *superblock) hasGroupCsum() bool { return sb.roCompat&(roMetadataCsum|roGDTCsum) != 0 }

// backupDescBlock returns the block of the i-th copy of the descriptor of group
// g: behind the copies of the superblock, or with meta_bg in the second and the
// last group of the meta group.
func (f *FS) backupDescBlock(g uint32, i int) (uint64, bool) {
	sb := f.sb
	perBlock := sb.blockSize() / sb.descSize
	nr := g / perBlock
	first := func(group uint32) uint64 {
		return uint64(sb.firstDataBlock) + uint64(group)*uint64(sb.blocksPerGroup)
	}
	if sb.incompat&incompatMetaBG != 0 && nr >= sb.firstMetaBG {
		home := nr*perBlock + [...]uint32{1, perBlock - 1, 0}[i]
		if i > 1 || home >= sb.groups {
			return 0, false
		}
		blk := first(home)
		if sb.hasSuper(home) {
			blk++
		}
		return blk, true
	}
	homes := [maxBackups]uint32{1, 3, 5} // hold copies with and without sparse_super
	if sb.compat&compatSparseSuper2 != 0 {
		homes = [maxBackups]uint32{sb.backupBGs[0], sb.backupBGs[1]}
	}
	if home := homes[i]; home > 0 && home < sb.groups {
		return first(home) + 1 + uint64(nr), true
	}
	return 0, false
}

// descBlock returns the block that holds the primary descriptor of group g.
// Without meta_bg the descriptors follow the superblock; with it each meta
// group, as many groups as one block describes, holds its own (doc:
// group_descr.rst, blockgroup.rst).
func (f *FS) descBlock(g uint32) uint64 {
	sb := f.sb
	perBlock := sb.blockSize() / sb.descSize
	nr := g / perBlock
	if sb.incompat&incompatMetaBG == 0 || nr < sb.firstMetaBG {
		return superOffset>>sb.blockBits + 1 + uint64(nr)
	}
	first := nr * perBlock
	blk := uint64(sb.firstDataBlock) + uint64(first)*uint64(sb.blocksPerGroup)
	if sb.hasSuper(first) {
		blk++
	}
	if first == 0 && sb.blockSize() == 1024 && sb.firstDataBlock == 0 {
		blk++ // bigalloc with 1 KiB blocks: block 0 is the boot block
	}
	return blk
}

// loadGroup decodes the descriptor of group g from block blk.
func (f *FS) loadGroup(ctx context.Context, g uint32, blk uint64, verify bool) (group, error) {
	le := binary.LittleEndian
	sb := f.sb
	m, err := f.block(ctx, blk, "group descriptors")
	if err != nil {
		return group{}, err
	}
	at := g % (sb.blockSize() / sb.descSize) * sb.descSize
	d := m.data[at : at+sb.descSize]
	off := int64(blk)<<sb.blockBits + int64(at)
	if verify && sb.hasGroupCsum() {
		if got, want := sb.groupChecksum(g, d), le.Uint16(d[gdChecksum:]); got != want {
			return group{}, ondisk.Corruptf(format, "group descriptor checksum", off+gdChecksum,
				"group %d: computed %#04x, stored %#04x", g, got, want)
		}
	}
	gr := group{inodeTable: uint64(le.Uint32(d[gdInodeTableLo:]))}
	if sb.descSize >= gdSize64 {
		gr.inodeTable |= uint64(le.Uint32(d[gdInodeTableHi:])) << 32
	}
	n := (uint64(sb.inodesPerGroup)*uint64(sb.inodeSize) + uint64(sb.blockSize()) - 1) >> sb.blockBits
	if gr.inodeTable <= uint64(sb.firstDataBlock) || gr.inodeTable >= sb.blocks || n > sb.blocks-gr.inodeTable {
		return group{}, ondisk.Corruptf(format, "group descriptor", off,
			"group %d: inode table of %d blocks at block %d of %d", g, n, gr.inodeTable, sb.blocks)
	}
	return gr, nil
}
