package ext4

import (
	"context"
	"encoding/binary"
	"math"

	"yester/internal/ondisk"
)

// canHash reports whether name can be found by its hash: the directory has an
// index, and the hash of the name can be computed. That of a casefolded name
// needs the folded form, which this reader knows for ASCII only.
func (f *FS) canHash(in *inode, name string, fold bool) bool {
	if f.sb.compat&compatDirIndex == 0 || in.flags&flIndex == 0 || in.size <= int64(f.sb.blockSize()) {
		return false
	}
	if fold {
		for i := range len(name) {
			if name[i] >= 0x80 {
				return false
			}
		}
	}
	return true
}

// dxPath is the way from the root of a hashed directory to a leaf. Each level is
// the list of a block's entries, of which the first has the list's limit and
// count where the others have a hash.
type dxPath struct {
	lists [dxMaxLevelsHuge + 1][]byte // cut to count entries
	at    [dxMaxLevelsHuge + 1]int
	depth int // index of the lowest list
}

// child returns the logical block that the current entry of a level points to.
func (p *dxPath) child(level int) uint64 {
	return uint64(binary.LittleEndian.Uint32(p.lists[level][p.at[level]*dxEntrySize+4:]) & dxBlockMask)
}

// lookupHashed finds name in the leaf that its hash leads to, and in the leaves
// after it for as long as names of the same hash go on there. It returns 0 when
// the name isn't there.
func (f *FS) lookupHashed(ctx context.Context, in *inode, name string, fold bool) (uint32, error) {
	c := dirCursor{f: f, in: in}
	blocks, err := c.blocks()
	if err != nil {
		return 0, err
	}
	root, err := c.index(ctx, 0)
	if err != nil {
		return 0, err
	}
	version := root[dxRootHash]
	if version > hashTEA {
		return 0, ondisk.Unsupportedf(format, in.name()+" directory index", -1, "hash version %d", version)
	}
	// Which kind of char the hash was computed with is noted in the superblock;
	// where it isn't, both have to be tried.
	signs := f.sb.hashFlags & (sbFlagSignedHash | sbFlagUnsignedHash)
	if signs&sbFlagUnsignedHash == 0 {
		ino, err := f.searchHash(ctx, &c, root, blocks, name, version, fold)
		if ino != 0 || err != nil || signs != 0 || isASCII(name) {
			return ino, err
		}
	}
	return f.searchHash(ctx, &c, root, blocks, name, version+hashLegacyUnsigned, fold)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func (f *FS) searchHash(ctx context.Context, c *dirCursor, root []byte, blocks uint64, name string, version uint8, fold bool) (uint32, error) {
	in := c.in
	hash, _ := nameHash(name, version, &f.sb.hashSeed, fold)
	var p dxPath
	p.depth = int(root[dxRootLevels])
	list, err := f.dxList(in, root, dxRootEntries)
	if err != nil {
		return 0, err
	}
	for level := 0; ; level++ {
		p.lists[level] = list
		p.at[level] = searchDX(list, hash)
		if level == p.depth {
			break
		}
		node, err := c.index(ctx, p.child(level))
		if err != nil {
			return 0, err
		}
		if list, err = f.dxList(in, node, dxNodeEntries); err != nil {
			return 0, err
		}
	}
	for range blocks { // there can't be more leaves than blocks
		lblk := p.child(p.depth)
		m, _, err := c.block(ctx, lblk)
		if err != nil {
			return 0, err
		}
		if m == nil || lblk >= blocks || lblk == 0 {
			return 0, ondisk.Corruptf(format, in.name()+" directory index", -1, "leaf in block %d of %d", lblk, blocks)
		}
		if ino, err := f.findName(in, m.data, name, fold); ino != 0 || err != nil {
			return ino, err
		}
		if more, err := f.dxNext(ctx, c, &p, hash); !more || err != nil {
			return 0, err
		}
	}
	return 0, ondisk.Corruptf(format, in.name()+" directory index", -1, "more leaves than blocks")
}

// dxNext moves p to the next leaf if that may hold names of the same hash: then
// the lowest bit of its first hash is set, which no name's hash has.
func (f *FS) dxNext(ctx context.Context, c *dirCursor, p *dxPath, hash uint32) (bool, error) {
	level := p.depth
	for p.at[level]++; p.at[level]*dxEntrySize >= len(p.lists[level]); p.at[level]++ {
		if level == 0 {
			return false, nil
		}
		level--
	}
	if h := binary.LittleEndian.Uint32(p.lists[level][p.at[level]*dxEntrySize:]); h&^1 != hash {
		return false, nil
	}
	for ; level < p.depth; level++ {
		node, err := c.index(ctx, p.child(level))
		if err != nil {
			return false, err
		}
		list, err := f.dxList(c.in, node, dxNodeEntries)
		if err != nil {
			return false, err
		}
		p.lists[level+1], p.at[level+1] = list, 0
	}
	return true, nil
}

// index returns logical block lblk, which must be an index block.
func (c *dirCursor) index(ctx context.Context, lblk uint64) ([]byte, error) {
	m, _, err := c.block(ctx, lblk)
	if err != nil {
		return nil, err
	}
	if m == nil || !c.f.isIndexBlock(m.data, lblk) {
		return nil, ondisk.Corruptf(format, c.in.name(), -1, "block %d of the directory is no index block", lblk)
	}
	if lblk == 0 {
		levels, most := m.data[dxRootLevels], uint8(dxMaxLevels)
		if c.f.sb.incompat&incompatLargeDir != 0 {
			most = dxMaxLevelsHuge
		}
		if levels >= most || m.data[dxRootFlags]&dxFlagUnknown != 0 {
			return nil, ondisk.Corruptf(format, c.in.name()+" directory index", -1, "%d levels, flags %#x", levels, m.data[dxRootFlags])
		}
	}
	return m.data, nil
}

// isIndexBlock reports whether b has the shape of an index block: one entry, or
// "." and "..", that hide the index from a reader of plain directories.
func (f *FS) isIndexBlock(b []byte, lblk uint64) bool {
	le := binary.LittleEndian
	if lblk != 0 {
		return le.Uint32(b[deIno:]) == 0 && f.recLen(b) == len(b)
	}
	return f.recLen(b) == 12 && f.recLen(b[12:]) == len(b)-12 &&
		le.Uint32(b[dxRootInfo:]) == 0 && b[dxRootInfoLen] == 8
}

// dxList returns the entries of index block b, which begin at off.
func (f *FS) dxList(in *inode, b []byte, off int) ([]byte, error) {
	limit, count := int(binary.LittleEndian.Uint16(b[off:])), int(binary.LittleEndian.Uint16(b[off+2:]))
	if count == 0 || count > limit || off+limit*dxEntrySize > len(b) {
		return nil, ondisk.Corruptf(format, in.name()+" directory index", -1, "%d entries, at most %d", count, limit)
	}
	return b[off : off+count*dxEntrySize], nil
}

// searchDX returns the last entry whose hash is at most hash; the first counts as 0.
func searchDX(list []byte, hash uint32) int {
	lo, hi := 1, len(list)/dxEntrySize
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if binary.LittleEndian.Uint32(list[mid*dxEntrySize:]) <= hash {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// indexChecksumOK verifies the checksum in the tail of an index block (struct
// dx_tail), which covers the entries in use.
func (f *FS) indexChecksumOK(in *inode, b []byte, lblk uint64) bool {
	le := binary.LittleEndian
	off := dxNodeEntries
	if lblk == 0 && f.recLen(b) != len(b) {
		off = dxRootEntries
	}
	limit, count := int(le.Uint16(b[off:])), int(le.Uint16(b[off+2:]))
	tail := off + limit*dxEntrySize
	if count > limit || tail > len(b)-dxTailSize {
		return false
	}
	crc := crc32c(in.seed, b[:off+count*dxEntrySize])
	crc = crc32c(crc, b[tail:tail+4])
	crc = crc32c(crc, zeros[:4])
	return crc == le.Uint32(b[tail+4:])
}

// nameHash computes the hash of a name and its minor hash. fold hashes the name
// with ASCII letters in lower case.
func nameHash(name string, version uint8, seed *[4]uint32, fold bool) (major, minor uint32) {
	var low [maxName]byte
	n := copy(low[:], name)
	p := low[:n]
	if fold {
		for i := range p {
			p[i] = lowerASCII(p[i])
		}
	}
	const eof = math.MaxUint32 &^ 1 // marks the end of a directory: EXT4_HTREE_EOF_32BIT << 1
	major, minor = hashBytes(p, version, seed)
	if major &^= 1; major == eof {
		major -= 2
	}
	return major, minor
}
