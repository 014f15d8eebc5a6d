package ext4

import (
	"context"
	"encoding/binary"

	"yester/guestfs/ext4/jbd2"
	"yester/internal/ondisk"
)

// maxFastTags bounds the tags kept in memory: an area of the usual 256 blocks of 4
// KiB holds at most 80,000.
const maxFastTags = 1 << 20

// fcTag is one tag of a fast commit.
type fcTag struct {
	tag   uint16
	value []byte
}

// scanFast returns the tags of the complete fast commits that follow the log,
// in the kernel's reading (ext4_fc_replay_scan in fs/ext4/fast_commit.c): the
// first one carries the number of the transaction under way, each ends with a
// tail that has its checksum, and what follows the last good tail doesn't
// count. A first commit without a good tail is damage.
func (f *FS) scanFast(ctx context.Context, j *jbd2.Journal) ([]fcTag, error) {
	le := binary.LittleEndian
	var tags []fcTag
	good, crc := 0, uint32(0) // tags up to the last good tail; checksum since then
	broken := func(blk uint32, msg string) ([]fcTag, error) {
		if good > 0 {
			return tags[:good], nil
		}
		return nil, ondisk.Corruptf(format, "fast commit", -1, "block %d: %s", blk, msg)
	}
	for blk := uint32(0); blk < j.FastEnd-j.FastStart; blk++ {
		b, err := j.ReadFast(ctx, blk)
		if err != nil {
			return nil, err
		}
		if blk == 0 && le.Uint16(b) != fcHead {
			return nil, nil
		}
		for at := 0; at <= len(b)-fcTagLen; {
			t := fcTag{tag: le.Uint16(b[at:])}
			n := int(le.Uint16(b[at+2:]))
			whole := b[at:]
			at += fcTagLen
			if n > len(b)-at || !f.fcLenOK(t.tag, n) {
				return broken(blk, "malformed tag")
			}
			t.value = b[at : at+n]
			at += n
			switch t.tag {
			case fcHead:
				if u := le.Uint32(t.value); u != 0 {
					return nil, ondisk.Unsupportedf(format, "fast commit features", -1, "%#x", u)
				}
				if le.Uint32(t.value[4:]) != j.Next {
					return tags[:good], nil // of an older transaction
				}
			case fcTail:
				crc = crc32c(crc, whole[:fcTagLen+4])
				if le.Uint32(t.value) != j.Next || le.Uint32(t.value[4:]) != crc {
					return broken(blk, "wrong checksum")
				}
				crc = 0
				good = len(tags)
				continue
			}
			crc = crc32c(crc, whole[:fcTagLen+n])
			if t.tag != fcHead && t.tag != fcPad {
				if len(tags) >= maxFastTags {
					return nil, ondisk.Unsupportedf(format, "fast commit", -1, "more than %d tags", maxFastTags)
				}
				tags = append(tags, t)
			}
		}
	}
	return tags[:good], nil
}

// fcLenOK reports whether a value of n bytes can belong to a tag.
func (f *FS) fcLenOK(tag uint16, n int) bool {
	switch tag {
	case fcAdd:
		return n == fcAddSize
	case fcDel:
		return n == fcDelSize
	case fcCreat, fcLink, fcUnlink:
		return n > fcDentry && n <= fcDentry+maxName
	case fcInode:
		return n >= fcIno+goodOldInodeSize && n <= fcIno+int(f.sb.inodeSize)
	case fcPad:
		return true
	case fcTail:
		return n >= fcEnds
	case fcHead:
		return n == fcEnds
	}
	return false
}
