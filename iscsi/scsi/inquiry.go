package scsi

import (
	"math/bits"
	"strings"
)

// What INQUIRY says of this device. SPC-4 section 6.6.2.
const (
	vendorID         = "YESTER"
	productID        = "RESTORE POINT"
	productOverlay   = "POINT SCRATCH" // writes are taken and thrown away
	versionSPC4      = 0x06
	designatorNAA    = 3 // SPC-4 table 587
	designatorT10    = 1
	codeSetBinary    = 1
	codeSetASCII     = 2
	provisioningThin = 2
)

// versionDescriptors: SAM-5, iSCSI, SPC-4, SBC-3. SPC-4 table 198.
var versionDescriptors = [...]uint16{0x00a0, 0x0960, 0x0460, 0x04c0}

func padded(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s + strings.Repeat(" ", n-len(s))
}

func (u *Unit) product() string {
	if u.Overlay != nil {
		return productOverlay
	}
	return productID
}

func inquiry(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	alloc := int(be.Uint16(cdb[3:]))
	if cdb[1]&2 != 0 || cdb[1]&1 == 0 && cdb[2] != 0 { // CMDDT is obsolete; a page needs EVPD
		j.illegal(ascInvalidField)
		return
	}
	if cdb[1]&1 != 0 {
		page := u.vpd(cdb[2])
		if page == nil {
			j.illegal(ascInvalidField)
			return
		}
		be.PutUint16(page[2:], uint16(len(page)-4))
		page[1] = cdb[2]
		j.reply(page, alloc)
		return
	}
	out := make([]byte, 96)
	out[2] = versionSPC4
	out[3] = 0x12 // HISUP, response data format 2
	out[4] = byte(len(out) - 5)
	out[7] = 0x02 // CMDQUE
	copy(out[8:], padded(vendorID, 8))
	copy(out[16:], padded(u.product(), 16))
	copy(out[32:], padded(u.Revision, 4))
	for i, v := range versionDescriptors {
		be.PutUint16(out[58+2*i:], v)
	}
	j.reply(out, alloc)
}

// vpd returns a vital product data page with room for its header, or nil.
func (u *Unit) vpd(code byte) []byte {
	switch code {
	case vpdSupported:
		return append(make([]byte, 4), vpdSupported, vpdSerial, vpdDeviceID, vpdBlockLimits, vpdBlockChars, vpdProvisioning)
	case vpdSerial:
		return append(make([]byte, 4), u.Serial...)
	case vpdDeviceID:
		p := make([]byte, 4)
		p = append(p, codeSetBinary, designatorNAA, 0, 8)
		p = append(p, u.NAA[:]...)
		id := padded(vendorID, 8) + padded(u.product(), 16) + u.Serial
		p = append(p, codeSetASCII, designatorT10, 0, byte(len(id)))
		return append(p, id...)
	case vpdBlockLimits: // SBC-3 section 6.5.3
		p := make([]byte, 64)
		blocks := func(n int) uint32 { return uint32(n >> u.shift) }
		be.PutUint16(p[6:], uint16(max(1, u.PhysicalSize>>u.shift))) // optimal granularity
		be.PutUint32(p[8:], blocks(maxTransfer))
		be.PutUint32(p[12:], blocks(optimalTransfer))
		be.PutUint32(p[16:], blocks(maxTransfer)) // prefetch
		if u.Overlay != nil {
			p[5] = byte(min(255, maxGather/2>>u.shift)) // COMPARE AND WRITE
			be.PutUint32(p[20:], 0xffffffff)            // blocks of one UNMAP: no limit
			be.PutUint32(p[24:], maxUnmapRanges)
			be.PutUint32(p[28:], uint32(overlayPage>>u.shift))
			be.PutUint32(p[32:], 1<<31) // UGAVALID, alignment 0
			be.PutUint64(p[36:], maxWriteSame>>u.shift)
		}
		return p
	case vpdBlockChars: // SBC-3 section 6.5.2
		p := make([]byte, 64)
		be.PutUint16(p[4:], 1) // non-rotating: a seek costs nothing an initiator could spare
		return p
	case vpdProvisioning: // SBC-3 section 6.5.4
		p := make([]byte, 8)
		p[5] = 1 << 2 // LBPRZ: what isn't mapped reads as zeros
		if u.Overlay != nil {
			p[5] |= 1<<7 | 1<<6 | 1<<5 // UNMAP, WRITE SAME(16) and (10) with UNMAP
		}
		p[6] = provisioningThin
		return p
	}
	return nil
}

// readCapacity10: SBC-3 section 5.15.
func readCapacity10(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	if cdb[8]&1 == 0 && be.Uint32(cdb[2:]) != 0 { // an address without PMI
		j.illegal(ascInvalidField)
		return
	}
	out := make([]byte, 8)
	be.PutUint32(out, uint32(min(u.blocks-1, 0xffffffff)))
	be.PutUint32(out[4:], u.blockSize)
	j.In = out
}

// readCapacity16: SBC-3 section 5.16.
func readCapacity16(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	out := make([]byte, 32)
	be.PutUint64(out, u.blocks-1)
	be.PutUint32(out[8:], u.blockSize)
	out[13] = byte(bits.TrailingZeros(uint(u.PhysicalSize / u.BlockSize)))
	out[14] = 1<<7 | 1<<6 // LBPME, LBPRZ: GET LBA STATUS tells holes
	j.reply(out, int(min(be.Uint32(cdb[10:]), 1<<20)))
}
