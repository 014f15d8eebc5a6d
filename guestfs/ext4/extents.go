package ext4

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"yester/internal/ondisk"
)

// run is a stretch of a file's logical blocks that lie one after another on the
// device, or that all are holes.
type run struct {
	phys uint64 // first block; meaningless when zero
	n    uint64 // blocks, at least 1
	zero bool   // a hole or an unwritten extent: reads as zeros
}

// mapBlock returns the run that begins at logical block lblk of in. It need not
// be the longest.
func (f *FS) mapBlock(ctx context.Context, in *inode, lblk uint64) (run, error) {
	if lblk >= math.MaxUint32 {
		return run{}, ondisk.Corruptf(format, in.name(), -1, "block %d can't be mapped (size %d)", lblk, in.size)
	}
	if in.fast == nil {
		return f.mapDisk(ctx, in, uint32(lblk))
	}
	r, ok, limit := in.fast.mapFast(lblk)
	if ok {
		return r, nil
	}
	r, err := f.mapDisk(ctx, in, uint32(lblk))
	r.n = min(r.n, limit-lblk)
	return r, err
}

// mapDisk is mapBlock by what lies on the disk.
func (f *FS) mapDisk(ctx context.Context, in *inode, lblk uint32) (run, error) {
	if in.flags&flExtents != 0 {
		return f.mapExtent(ctx, in, lblk)
	}
	return f.mapIndirect(ctx, in, lblk)
}

// mapExtent finds lblk in the extent tree, one binary search a level.
func (f *FS) mapExtent(ctx context.Context, in *inode, lblk uint32) (run, error) {
	le := binary.LittleEndian
	node := in.block[:]
	lo, hi := uint32(0), uint64(math.MaxUint32) // what node covers: [lo, hi)
	depth := int(le.Uint16(node[ehDepth:]))
	if depth > maxDepth {
		return run{}, ondisk.Corruptf(format, in.name(), -1, "extent tree of depth %d", depth)
	}
	if err := f.checkExtentNode(node, depth, inBlockSize); err != nil {
		return run{}, ondisk.Corruptf(format, in.name(), -1, "extent tree root: %v", err)
	}
	for {
		n := int(le.Uint16(node[ehEntries:]))
		i := searchExtents(node, n, lblk) // the last entry that begins at or before lblk
		if n > 0 {
			if first := le.Uint32(node[ehSize+eeBlock:]); first < lo {
				return run{}, ondisk.Corruptf(format, in.name(), -1, "extent tree: block %d under an index of %d", first, lo)
			}
		}
		if i+1 < n {
			if next := uint64(le.Uint32(node[ehSize+(i+1)*eeSize+eeBlock:])); next < hi {
				hi = next
			}
		}
		if i < 0 { // a hole before the first entry
			return run{zero: true, n: hi - uint64(lblk)}, nil
		}
		e := node[ehSize+i*eeSize:]
		start := le.Uint32(e[eeBlock:])
		if depth == 0 {
			return f.extentRun(in, e, lblk, hi)
		}
		depth--
		lo = start
		blk := uint64(le.Uint32(e[eiLeafLo:])) | uint64(le.Uint16(e[eiLeafHi:]))<<32
		var err error
		if node, err = f.extentNode(ctx, in, blk, depth); err != nil {
			return run{}, err
		}
	}
}

// extentRun returns the part of extent e from lblk on, or the hole behind e, which
// ends at hi.
func (f *FS) extentRun(in *inode, e []byte, lblk uint32, hi uint64) (run, error) {
	le := binary.LittleEndian
	start, n := uint64(le.Uint32(e[eeBlock:])), uint64(le.Uint16(e[eeLen:]))
	unwritten := n > eeMaxInitLen
	if unwritten {
		n -= eeMaxInitLen
	}
	phys := uint64(le.Uint32(e[eeStartLo:])) | uint64(le.Uint16(e[eeStartHi:]))<<32
	off := uint64(lblk) - start
	switch {
	case n == 0 || start+n > hi:
		return run{}, ondisk.Corruptf(format, in.name(), -1, "extent of %d blocks at %d, the next begins at %d", n, start, hi)
	case phys >= f.sb.blocks || n > f.sb.blocks-phys || phys <= uint64(f.sb.firstDataBlock):
		return run{}, ondisk.Corruptf(format, in.name(), -1, "extent at %d lies in blocks %d+%d of %d", start, phys, n, f.sb.blocks)
	case off >= n:
		return run{zero: true, n: hi - uint64(lblk)}, nil
	}
	return run{phys: phys + off, n: n - off, zero: unwritten}, nil
}

// searchExtents returns the index of the last of n entries whose first logical
// block is at most lblk, or -1. Extents and index entries both begin with it.
func searchExtents(node []byte, n int, lblk uint32) int {
	lo, hi := 0, n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if binary.LittleEndian.Uint32(node[ehSize+mid*eeSize:]) <= lblk {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// checkExtentNode verifies a node's header against the space it has and that its
// entries ascend, on which the binary search relies.
func (f *FS) checkExtentNode(node []byte, depth, space int) error {
	le := binary.LittleEndian
	n, limit := int(le.Uint16(node[ehEntries:])), int(le.Uint16(node[ehMax:]))
	switch {
	case le.Uint16(node) != ehMagic:
		return fmt.Errorf("magic %#04x, not %#04x", le.Uint16(node), ehMagic)
	case int(le.Uint16(node[ehDepth:])) != depth:
		return fmt.Errorf("depth %d, not %d", le.Uint16(node[ehDepth:]), depth)
	case n > limit || limit > (space-ehSize)/eeSize:
		return fmt.Errorf("%d entries, at most %d, in %d bytes", n, limit, space)
	case n == 0 && depth > 0:
		return fmt.Errorf("no entries at depth %d", depth)
	}
	for i := 1; i < n; i++ {
		a := le.Uint32(node[ehSize+(i-1)*eeSize:])
		if b := le.Uint32(node[ehSize+i*eeSize:]); b <= a {
			return fmt.Errorf("entry %d begins at block %d, the one before at %d", i, b, a)
		}
	}
	return nil
}

// extentNode returns the extent tree node in block blk, verified.
func (f *FS) extentNode(ctx context.Context, in *inode, blk uint64, depth int) ([]byte, error) {
	m, err := f.block(ctx, blk, "extent tree node")
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", in.ino, err)
	}
	key := checkKey(in.ino, checkExtents) | uint64(depth)<<40
	if m.checked.Load() == key {
		return m.data, nil
	}
	pos := int64(blk) << f.sb.blockBits
	if err := f.checkExtentNode(m.data, depth, len(m.data)); err != nil {
		return nil, ondisk.Corruptf(format, in.name()+" extent tree node", pos, "%v", err)
	}
	if f.sb.metadataCsum() {
		// The tail lies behind the last possible entry (struct ext4_extent_tail).
		tail := ehSize + int(binary.LittleEndian.Uint16(m.data[ehMax:]))*eeSize
		if tail+4 > len(m.data) {
			return nil, ondisk.Corruptf(format, in.name()+" extent tree node", pos, "no room for its checksum")
		}
		if crc32c(in.seed, m.data[:tail]) != binary.LittleEndian.Uint32(m.data[tail:]) {
			return nil, ondisk.Corruptf(format, in.name()+" extent tree node", pos, "wrong checksum")
		}
	}
	m.checked.Store(key)
	return m.data, nil
}
