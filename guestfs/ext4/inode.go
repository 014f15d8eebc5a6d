package ext4

import (
	"context"
	"encoding/binary"
	"fmt"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// inode is a decoded inode; it never changes.
type inode struct {
	ino, gen   uint32
	mode       uint32
	flags      uint32
	nlink      uint32
	uid, gid   uint32
	size       int64
	blocks     int64 // of 512 bytes
	fileACL    uint64
	seed       uint32 // start of the checksums of this inode's blocks
	extraISize uint32
	tableBlock uint64 // where the raw inode lies
	tableOff   uint32 // byte offset in tableBlock

	atime, mtime, ctime, btime guestfs.Time
	block                      [inBlockSize]byte // i_block

	fast *fastInode // nil unless a fast commit changed the inode
}

func (in *inode) isDir() bool { return in.mode&guestfs.ModeType == guestfs.ModeDir }

// name names the inode in errors.
func (in *inode) name() string { return fmt.Sprintf("inode %d", in.ino) }

// byID returns the inode that id names, unless it is one that can't be reached
// by a path: a reserved or a deleted one.
func (f *FS) byID(ctx context.Context, id guestfs.ID) (*inode, error) {
	if id.Sub != 0 || id.Ino == 0 || id.Ino > f.sb.inodes {
		return nil, fmt.Errorf("ext4: no inode %d/%d: %w", id.Sub, id.Ino, guestfs.ErrNotExist)
	}
	ino := uint32(id.Ino)
	if ino < f.sb.firstIno && ino != inoRoot {
		return nil, ondisk.Corruptf(format, fmt.Sprintf("inode %d", ino), -1, "reserved inode in a directory")
	}
	in, err := f.inode(ctx, ino)
	if err != nil {
		return nil, err
	}
	if in.nlink == 0 || in.mode == 0 {
		return nil, ondisk.Corruptf(format, in.name(), -1, "deleted inode in a directory")
	}
	if in.flags&flEAInode != 0 {
		return nil, ondisk.Corruptf(format, in.name(), -1, "value of an extended attribute in a directory")
	}
	return in, nil
}

// inode returns inode ino, reserved ones included.
func (f *FS) inode(ctx context.Context, ino uint32) (*inode, error) {
	if f.fast != nil {
		if c := f.fast.inodes[ino]; c != nil {
			return c.in, nil
		}
	}
	if in, ok := f.inodeCache.get(uint64(ino)); ok {
		return in, nil
	}
	in, err := f.loadInode(ctx, ino)
	if err != nil {
		return nil, err
	}
	return f.inodeCache.put(uint64(ino), in), nil
}

// loadInode reads, verifies and decodes inode ino from the inode table.
func (f *FS) loadInode(ctx context.Context, ino uint32) (*inode, error) {
	raw, blk, off, err := f.inodeBytes(ctx, ino)
	if err != nil {
		return nil, err
	}
	in, err := f.decodeInode(ino, raw, int64(blk)<<f.sb.blockBits+int64(off), true)
	if err != nil {
		return nil, err
	}
	in.tableBlock, in.tableOff = blk, off
	return in, nil
}

// inodeBytes returns the raw inode ino, and the block and the offset in it where
// it lies.
func (f *FS) inodeBytes(ctx context.Context, ino uint32) (raw []byte, blk uint64, off uint32, err error) {
	sb := f.sb
	if ino == 0 || uint64(ino) > sb.inodes {
		return nil, 0, 0, ondisk.Corruptf(format, fmt.Sprintf("inode %d", ino), -1, "outside 1..%d", sb.inodes)
	}
	g, at := (ino-1)/sb.inodesPerGroup, uint64((ino-1)%sb.inodesPerGroup)*uint64(sb.inodeSize)
	gr, err := f.group(ctx, g)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("inode %d: %w", ino, err)
	}
	blk, off = gr.inodeTable+at>>sb.blockBits, uint32(at)&(sb.blockSize()-1)
	end := gr.inodeTable + (uint64(sb.inodesPerGroup)*uint64(sb.inodeSize)+uint64(sb.blockSize())-1)>>sb.blockBits
	m, err := f.blockAhead(ctx, blk, end, "inode table")
	if err != nil {
		return nil, 0, 0, fmt.Errorf("inode %d: %w", ino, err)
	}
	return m.data[off : off+sb.inodeSize], blk, off, nil
}

// decodeInode decodes a raw inode, which lies at byte pos of the device, and
// verifies its checksum unless it comes from elsewhere.
func (f *FS) decodeInode(ino uint32, raw []byte, pos int64, verify bool) (*inode, error) {
	le := binary.LittleEndian
	sb := f.sb
	in := &inode{
		ino:   ino,
		gen:   le.Uint32(raw[inGeneration:]),
		mode:  uint32(le.Uint16(raw[inMode:])),
		flags: le.Uint32(raw[inFlags:]),
		nlink: uint32(le.Uint16(raw[inLinks:])),
		uid:   uint32(le.Uint16(raw[inUIDLo:])) | uint32(le.Uint16(raw[inUIDHi:]))<<16,
		gid:   uint32(le.Uint16(raw[inGIDLo:])) | uint32(le.Uint16(raw[inGIDHi:]))<<16,
		size:  int64(le.Uint32(raw[inSizeLo:])),
	}
	copy(in.block[:], raw[inBlock:])
	if sb.metadataCsum() {
		in.seed = sb.inodeSeed(ino, in.gen)
		if verify && sb.creatorOS == osLinux && !inodeChecksumOK(in.seed, raw) {
			return nil, ondisk.Corruptf(format, in.name(), pos, "wrong checksum")
		}
	}
	if sb.inodeSize > goodOldInodeSize {
		in.extraISize = uint32(le.Uint16(raw[inExtraISize:]))
		if goodOldInodeSize+in.extraISize > sb.inodeSize || in.extraISize%4 != 0 {
			return nil, ondisk.Corruptf(format, in.name(), pos+inExtraISize, "extra size %d of inodes of %d bytes", in.extraISize, sb.inodeSize)
		}
	}
	// Of other types the upper half had other uses, except with large_dir
	// (ext4_isize in ext4.h).
	if in.mode&guestfs.ModeType == guestfs.ModeRegular || sb.incompat&incompatLargeDir != 0 {
		in.size |= int64(le.Uint32(raw[inSizeHi:])) << 32
	}
	if in.size < 0 {
		return nil, ondisk.Corruptf(format, in.name(), pos+inSizeLo, "size %#x", uint64(in.size))
	}
	in.blocks = int64(le.Uint32(raw[inBlocksLo:]))
	if sb.roCompat&roHugeFile != 0 {
		in.blocks |= int64(le.Uint16(raw[inBlocksHi:])) << 32
		if in.flags&flHugeFile != 0 { // counted in filesystem blocks
			in.blocks <<= sb.blockBits - 9
		}
	}
	in.fileACL = uint64(le.Uint32(raw[inFileACLLo:]))
	if sb.incompat&incompat64Bit != 0 {
		in.fileACL |= uint64(le.Uint16(raw[inFileACLHi:])) << 32
	}

	// A time's extra word is there when i_extra_isize reaches its end.
	stamp := func(at, extra int) guestfs.Time {
		t := guestfs.Time{Sec: int64(int32(le.Uint32(raw[at:])))}
		if extra+4 <= goodOldInodeSize+int(in.extraISize) && extra+4 <= len(raw) {
			e := le.Uint32(raw[extra:])
			t.Sec += int64(e&timeEpochMask) << 32
			if t.Nsec = e >> timeEpochBits; t.Nsec >= 1e9 { // 30 bits hold a little more
				t.Sec++
				t.Nsec -= 1e9
			}
		}
		return t
	}
	in.atime = stamp(inAtime, inAtimeExtra)
	in.ctime = stamp(inCtime, inCtimeExtra)
	in.mtime = stamp(inMtime, inMtimeExtra)
	if inCrtime+4 <= goodOldInodeSize+int(in.extraISize) {
		in.btime = stamp(inCrtime, inCrtimeExt)
	}
	return in, nil
}

// raw returns the inode's bytes in the inode table, already verified.
func (f *FS) raw(ctx context.Context, in *inode) ([]byte, error) {
	if in.fast != nil {
		return in.fast.raw, nil
	}
	m, err := f.block(ctx, in.tableBlock, "inode table")
	if err != nil {
		return nil, err
	}
	return m.data[in.tableOff : in.tableOff+f.sb.inodeSize], nil
}

func (in *inode) attr(sb *superblock) guestfs.Attr {
	a := guestfs.Attr{
		Mode: in.mode, Nlink: in.nlink, UID: in.uid, GID: in.gid,
		Size: in.size, Blocks: in.blocks,
		Atime: in.atime, Mtime: in.mtime, Ctime: in.ctime, Btime: in.btime,
	}
	switch in.mode & guestfs.ModeType {
	case guestfs.ModeBlock, guestfs.ModeChar:
		a.Major, a.Minor = in.device()
	case guestfs.ModeRegular:
		if in.flags&flInline != 0 {
			// As the kernel does, so that nobody takes the file for a hole.
			a.Blocks += (in.size + 511) >> 9
		}
	}
	return a
}

// device decodes a device number: the old 8:8 form in the first word of i_block,
// or the new 12:20 form in the second (old_decode_dev and new_decode_dev in
// include/linux/kdev_t.h).
func (in *inode) device() (major, minor uint32) {
	if d := binary.LittleEndian.Uint32(in.block[0:]); d != 0 {
		return d >> 8 & 0xFF, d & 0xFF
	}
	d := binary.LittleEndian.Uint32(in.block[4:])
	return d >> 8 & 0xFFF, d&0xFF | d>>12&0xFFF00
}

// fastSymlink reports whether a symbolic link's target lies in i_block: it fits,
// and no block but perhaps one of extended attributes is allocated.
func (in *inode) fastSymlink(sb *superblock) bool {
	if in.size >= inBlockSize || in.flags&(flExtents|flInline) != 0 {
		return false
	}
	if sb.incompat&incompatEAInode != 0 {
		return true // values in inodes of their own count in i_blocks
	}
	var ea int64
	if in.fileACL != 0 {
		ea = 1 << (sb.blockBits + sb.clusterBits - 9)
	}
	return in.blocks == 0 || in.blocks == ea
}
