package scsi

import (
	"context"

	"yester/internal/block"
)

// Limits of one GET LBA STATUS, beyond which the initiator asks again.
const (
	maxStatusDescriptors = 1024
	// maxStatusExtents bounds the look-ups of one command: neighbouring extents of
	// a kind are merged, so a fragmented image would cost any number of them.
	maxStatusExtents = 4096
)

// getLBAStatus tells what is a hole, from the extents of the medium, so that
// initiators skip it. SBC-3 section 5.9.
func getLBAStatus(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	start := be.Uint64(cdb[2:])
	alloc := int64(be.Uint32(cdb[10:]))
	if start >= u.blocks {
		j.checkInfo(keyIllegalRequest, ascLBARange, start)
		return
	}
	descriptors := int(min((alloc-8)/16, maxStatusDescriptors))
	if descriptors < 1 {
		if alloc > 0 {
			descriptors = 1
		} else {
			return
		}
	}
	j.Work = func(c Context, j *Job, _ []byte) {
		out, failed, err := u.lbaStatus(c, s.medium, start, descriptors)
		if err != nil {
			j.FailRead(failed)
			return
		}
		j.reply(out, int(min(alloc, int64(len(out)))))
	}
}

func (u *Unit) lbaStatus(c context.Context, m Medium, start uint64, limit int) (out []byte, failed int64, err error) {
	out = make([]byte, 8, 8+16*min(limit, 64))
	const unknown = 0xff
	lba, count, kind := start, uint64(0), byte(unknown)
	emit := func() {
		// A descriptor counts blocks in 32 bits.
		for count > 0 && (len(out)-8)/16 < limit {
			n := min(count, 0xffffffff)
			d := make([]byte, 16)
			be.PutUint64(d, lba)
			be.PutUint32(d[8:], uint32(n))
			d[12] = kind
			out = append(out, d...)
			lba, count = lba+n, count-n
		}
	}
	size := int64(u.blocks << u.shift)
	off := int64(start << u.shift)
	for range maxStatusExtents {
		if off >= size || (len(out)-8)/16 >= limit {
			break
		}
		e, err := block.ExtentAt(c, m, off, size-off)
		if err != nil {
			return nil, off, err
		}
		// A block is a hole only as a whole: a hole is rounded inwards, and what
		// is left of its last block counts as mapped.
		k := byte(0)
		n := uint64(e.Len) >> u.shift
		if e.Zero && n > 0 {
			k = 1 // deallocated
		} else if e.Zero || e.Len&int64(u.blockSize-1) != 0 {
			n = (uint64(e.Len) + uint64(u.blockSize) - 1) >> u.shift
		}
		if k != kind {
			emit()
			kind = k
		}
		count += n
		off += int64(n << u.shift)
	}
	emit()
	be.PutUint32(out, uint32(len(out)-4))
	return out, 0, nil
}
