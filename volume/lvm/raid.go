package lvm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"yester/internal/block"
)

// superblock is what a leg's metadata volume says of a RAID 1.
type superblock struct {
	devices, position, level uint32
	events                   uint64
	failed                   [1 + raidExtFailed]uint64
	recovery                 uint64
	reshaping                bool
}

// parseSuperblock is nil for a metadata volume that was never written to.
func parseSuperblock(b []byte) *superblock {
	le := binary.LittleEndian
	if string(b[:len(raidMagic)]) != raidMagic {
		return nil
	}
	sb := &superblock{
		devices: le.Uint32(b[raidOffDevices:]), position: le.Uint32(b[raidOffPosition:]), level: le.Uint32(b[raidOffLevel:]),
		events: le.Uint64(b[raidOffEvents:]), recovery: le.Uint64(b[raidOffRecovery:]),
	}
	sb.failed[0] = le.Uint64(b[raidOffFailed:])
	if le.Uint32(b[raidOffFeatures:])&raidFeatureV190 != 0 {
		sb.reshaping = le.Uint32(b[raidOffFlags:])&raidFlagReshape != 0
		for i := range raidExtFailed {
			sb.failed[1+i] = le.Uint64(b[raidOffExtFailed+8*i:])
		}
	}
	return sb
}

// raidStates returns for each leg of seg why its data may not be those of the
// array, by the superblocks of the legs that are there; nil for a sound leg, and for
// one of which nothing is known.
func (r *resolver) raidStates(lv *logical, seg *segment, depth int) ([]error, error) {
	why := make([]error, len(seg.metas))
	blocks := make([]*superblock, len(seg.metas))
	read := make([]bool, len(seg.metas))
	var newest *superblock
	b := make([]byte, raidSBSize)
	for i, meta := range seg.metas {
		m, err := r.resolve(meta, depth+1)
		if err == nil {
			err = block.ReadFull(r.ctx, m, b, 0)
		}
		if r.ctx.Err() != nil {
			return nil, r.ctx.Err()
		}
		if err != nil {
			continue // its data are likely to be unreadable, too; if not, the others know
		}
		read[i] = true
		if blocks[i] = parseSuperblock(b); blocks[i] != nil && (newest == nil || blocks[i].events > newest.events) {
			newest = blocks[i]
		}
	}
	if newest == nil { // an array that was never in use
		return why, nil
	}
	if newest.level != raidLevelMirror || newest.reshaping || newest.devices != uint32(len(seg.metas)) {
		return nil, unsupportedf(r.g.full(lv), "a RAID whose superblock doesn't agree with it: level %d, %d devices, reshaping: %v",
			newest.level, newest.devices, newest.reshaping)
	}
	for _, sb := range blocks {
		if sb != nil && sb.events == newest.events {
			for i := range sb.failed {
				newest.failed[i] |= sb.failed[i]
			}
		}
	}
	for i, sb := range blocks {
		switch {
		case newest.failed[i/64]>>(i%64)&1 != 0:
			why[i] = errors.New("it had failed")
		case !read[i]:
		case sb == nil:
			why[i] = errors.New("it was never in sync: it has no superblock, and others have")
		case sb.position != uint32(i):
			why[i] = fmt.Errorf("its superblock is that of leg %d", sb.position)
		case sb.recovery != raidNoOffset:
			why[i] = fmt.Errorf("it was being rebuilt, and had got to sector %d", sb.recovery)
		case newest.events-sb.events > raidEventsBehind:
			why[i] = fmt.Errorf("it is out of date: %d events, and another leg has %d", sb.events, newest.events)
		}
	}
	return why, nil
}

// hintSuperblocks asks for all the superblocks of the group at once.
func (r *resolver) hintSuperblocks() {
	for _, lv := range r.g.lvs {
		for i := range lv.segs {
			for _, meta := range lv.segs[i].metas {
				if m, err := r.resolve(meta, 0); err == nil {
					m.Prefetch([]block.Range{{Len: raidSBSize}})
				}
			}
		}
	}
}
