package ext4

import (
	"context"
	"fmt"
	"sync/atomic"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// metaBlock is a cached metadata block. Its data never change.
type metaBlock struct {
	data []byte
	// checked is the checkKey for which the block's checksum and structure were
	// last found good. A block that two inodes claim (only damage does that) is
	// checked again for each.
	checked atomic.Uint64
}

// Kinds of check a metaBlock can have passed, see checkKey.
const (
	checkExtents = 1 + iota
	checkDir
	checkIndex
	checkXattr
)

func checkKey(ino uint32, kind uint64) uint64 { return uint64(ino)<<3 | kind }

// block returns metadata block blk through the cache. what names it in errors.
func (f *FS) block(ctx context.Context, blk uint64, what string) (*metaBlock, error) {
	if m, ok := f.blockCache.get(blk); ok {
		return m, nil
	}
	if blk >= f.sb.blocks {
		return nil, ondisk.Corruptf(format, what, -1, "block %d of %d", blk, f.sb.blocks)
	}
	data := make([]byte, f.sb.blockSize())
	if err := block.ReadFull(ctx, f.dev, data, int64(blk)<<f.sb.blockBits); err != nil {
		return nil, fmt.Errorf("ext4: %s in block %d: %w", what, blk, err)
	}
	return f.blockCache.put(blk, &metaBlock{data: data}), nil
}

// blockAhead is block for a caller that will soon want the following blocks, up
// to limit (exclusive), too: one request fetches several.
func (f *FS) blockAhead(ctx context.Context, blk, limit uint64, what string) (*metaBlock, error) {
	if m, ok := f.blockCache.get(blk); ok {
		return m, nil
	}
	bs := uint64(f.sb.blockSize())
	n := min(metaReadahead/bs, limit-blk, f.sb.blocks-min(blk, f.sb.blocks))
	if n < 2 {
		return f.block(ctx, blk, what)
	}
	data := make([]byte, n*bs)
	if err := block.ReadFull(ctx, f.dev, data, int64(blk)<<f.sb.blockBits); err != nil {
		return f.block(ctx, blk, what) // the trouble may be with a later block
	}
	// Each block is copied out so that a cached one doesn't keep the others alive.
	var first *metaBlock
	for i := range n {
		b := make([]byte, bs)
		copy(b, data[i*bs:])
		m := f.blockCache.put(blk+i, &metaBlock{data: b})
		if i == 0 {
			first = m
		}
	}
	return first, nil
}
