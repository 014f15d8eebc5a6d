package scsi

import "slices"

// decodeLUN reads a single-level LUN in the peripheral (bus 0) or flat space
// addressing method. SAM-5 sections 4.7.7.2, 4.7.7.3.
func decodeLUN(lun uint64) (uint16, bool) {
	if lun&0xffffffffffff != 0 {
		return 0, false
	}
	v := uint16(lun >> 48)
	switch v >> 14 {
	case 0:
		return v & 0xff, v>>8 == 0
	case 1:
		return v & 0x3fff, true
	}
	return 0, false
}

// EncodeLUN is the eight-byte form of a logical unit number: peripheral
// addressing below 256, flat space from there on.
func EncodeLUN(l uint16) uint64 {
	if l < 256 {
		return uint64(l) << 48
	}
	return uint64(0x4000|l) << 48
}

func sortLUNs(l []uint16) { slices.Sort(l) }

// reportLUNs answers on any LUN, existing or not. SPC-4 section 6.33.
func (n *Nexus) reportLUNs(cdb []byte, j *Job) {
	alloc := int(min(be.Uint32(cdb[6:]), maxParameters*4))
	if alloc < 16 {
		j.illegal(ascInvalidField)
		return
	}
	list := n.dev.luns
	switch cdb[2] {
	case 0x00, 0x02: // logical units; all of them, well-known ones (none) included
	case 0x01: // well-known logical units only
		list = nil
	default:
		j.illegal(ascInvalidField)
		return
	}
	out := make([]byte, 8+8*len(list))
	be.PutUint32(out, uint32(8*len(list)))
	for i, l := range list {
		be.PutUint64(out[8+8*i:], EncodeLUN(l))
	}
	j.reply(out, alloc)
}

// wrongLUN answers commands to a logical unit that doesn't exist. SAM-5 section 5.11.
func (n *Nexus) wrongLUN(lun uint64, cdb []byte, j *Job) {
	switch cdb[0] {
	case opReportLUNs:
		n.reportLUNs(cdb, j)
	case opRequestSense:
		j.reply(sense(keyIllegalRequest, ascNoLUN), int(cdb[4]))
	case opInquiry:
		if cdb[1]&3 != 0 || cdb[2] != 0 {
			j.illegal(ascInvalidField)
			return
		}
		out := make([]byte, 36)
		out[0] = 0x7f // not capable of supporting a device here
		if lun == 0 {
			// LUN 0 answers so that an initiator goes on to ask for REPORT LUNS: no
			// device connected, of no known type.
			out[0] = 0x3f
		}
		out[2], out[3], out[4] = versionSPC4, 0x12, 31
		copy(out[8:], padded(vendorID, 8))
		copy(out[16:], padded(productID, 16))
		copy(out[32:], padded("", 4))
		j.reply(out, int(be.Uint16(cdb[3:])))
	default:
		j.illegal(ascNoLUN)
	}
}
