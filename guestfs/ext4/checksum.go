package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var zeros [4]byte

// crc32c continues the CRC-32C that ext4 uses over p: unlike hash/crc32 it
// inverts neither its start value nor its result (doc: checksums.rst; the start
// value ~0 is the caller's).
func crc32c(crc uint32, p []byte) uint32 {
	return ^crc32.Update(^crc, castagnoli, p)
}

// crc32cLE continues the checksum over v as four bytes, little-endian. Done here
// by the table, because a buffer for hash/crc32 would be an allocation.
func crc32cLE(crc, v uint32) uint32 {
	for range 4 {
		crc = castagnoli[byte(crc)^byte(v)] ^ crc>>8
		v >>= 8
	}
	return crc
}

// crc16Table is of the reflected polynomial 0xA001 (x^16+x^15+x^2+1), which
// guards group descriptors of filesystems with uninit_bg (lib/crc/crc16.c).
var crc16Table = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc16(crc uint16, p []byte) uint16 {
	for _, b := range p {
		crc = crc>>8 ^ crc16Table[byte(crc)^b]
	}
	return crc
}

// groupChecksum computes bg_checksum of group descriptor d (doc:
// group_descr.rst): CRC-32C cut to 16 bits with metadata_csum, else CRC-16.
func (sb *superblock) groupChecksum(group uint32, d []byte) uint16 {
	if sb.roCompat&roMetadataCsum != 0 {
		crc := crc32cLE(sb.seed, group)
		crc = crc32c(crc, d[:gdChecksum])
		crc = crc32c(crc, zeros[:2])
		return uint16(crc32c(crc, d[gdChecksum+2:]))
	}
	crc := crc16(0xFFFF, sb.uuid[:])
	var g [4]byte
	binary.LittleEndian.PutUint32(g[:], group)
	crc = crc16(crc, g[:])
	crc = crc16(crc, d[:gdChecksum])
	return crc16(crc, d[gdChecksum+2:])
}

// inodeSeed is the start value of all checksums that belong to one inode.
func (sb *superblock) inodeSeed(ino, generation uint32) uint32 {
	return crc32cLE(crc32cLE(sb.seed, ino), generation)
}

// inodeChecksumOK verifies the raw inode's checksum, of which the upper half
// exists only where i_extra_isize reaches it.
func inodeChecksumOK(seed uint32, raw []byte) bool {
	le := binary.LittleEndian
	want := uint32(le.Uint16(raw[inCsumLo:]))
	mask := uint32(0xFFFF)
	crc := crc32c(seed, raw[:inCsumLo])
	crc = crc32c(crc, zeros[:2])
	crc = crc32c(crc, raw[inCsumLo+2:goodOldInodeSize])
	if len(raw) > goodOldInodeSize {
		rest := inCsumHi
		crc = crc32c(crc, raw[goodOldInodeSize:inCsumHi])
		if int(le.Uint16(raw[inExtraISize:]))+goodOldInodeSize >= inCsumHi+2 {
			want |= uint32(le.Uint16(raw[inCsumHi:])) << 16
			mask = 0xFFFFFFFF
			crc = crc32c(crc, zeros[:2])
			rest += 2
		}
		crc = crc32c(crc, raw[rest:])
	}
	return crc&mask == want
}
