package ext4

import (
	"context"
	"encoding/binary"
	"fmt"

	"yester/internal/ondisk"
)

// mapIndirect finds lblk in the block map of ext2 and ext3: twelve direct blocks,
// then trees of one, two and three levels of blocks full of block numbers.
func (f *FS) mapIndirect(ctx context.Context, in *inode, lblk uint32) (run, error) {
	perBits := f.sb.blockBits - 2 // log2 of the numbers in one block
	if lblk < directBlocks {
		return f.mapRun(in, in.block[:directBlocks*4], lblk)
	}
	rel := uint64(lblk) - directBlocks
	for level := uint(1); level <= 3; level++ {
		span := uint64(1) << (perBits * level) // blocks under this tree
		if rel >= span {
			rel -= span
			continue
		}
		blk := uint64(binary.LittleEndian.Uint32(in.block[4*(directBlocks+level-1):]))
		for {
			if blk == 0 {
				return run{zero: true, n: span - rel&(span-1)}, nil
			}
			if blk <= uint64(f.sb.firstDataBlock) {
				return run{}, ondisk.Corruptf(format, in.name(), -1, "indirect block at %d", blk)
			}
			m, err := f.block(ctx, blk, "indirect block")
			if err != nil {
				return run{}, fmt.Errorf("inode %d: %w", in.ino, err)
			}
			span >>= perBits
			i := rel / span
			rel &= span - 1
			if span == 1 {
				return f.mapRun(in, m.data, uint32(i))
			}
			blk = uint64(binary.LittleEndian.Uint32(m.data[4*i:]))
		}
	}
	return run{}, ondisk.Corruptf(format, in.name(), -1, "block %d is past what a block map reaches (size %d)", lblk, in.size)
}

// mapRun returns the run that begins at entry i of a list of block numbers.
func (f *FS) mapRun(in *inode, list []byte, i uint32) (run, error) {
	le := binary.LittleEndian
	first := uint64(le.Uint32(list[4*i:]))
	r := run{phys: first, n: 1, zero: first == 0}
	for j := i + 1; int(j)*4 < len(list); j++ {
		b := uint64(le.Uint32(list[4*j:]))
		if r.zero && b != 0 || !r.zero && b != first+r.n {
			break
		}
		r.n++
	}
	if !r.zero && (first <= uint64(f.sb.firstDataBlock) || first >= f.sb.blocks || r.n > f.sb.blocks-first) {
		if first < f.sb.blocks && first > uint64(f.sb.firstDataBlock) {
			r.n = f.sb.blocks - first // the blocks up to the bad one are fine
			return r, nil
		}
		return run{}, ondisk.Corruptf(format, in.name(), -1, "data in block %d of %d", first, f.sb.blocks)
	}
	return r, nil
}
