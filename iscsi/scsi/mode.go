package scsi

// Page control values of MODE SENSE. SPC-4 section 6.13.1.
const (
	pcCurrent    = 0
	pcChangeable = 1
	pcDefault    = 2
	pcSaved      = 3
)

// Device-specific parameter of a direct-access device. SBC-3 section 6.4.1.
const (
	modeWriteProtect = 0x80
	modeDPOFUA       = 0x10
)

// modePages lists the pages in the order MODE SENSE returns them all.
var modePages = [...]byte{pageErrorRecovery, pageDisconnect, pageCaching, pageControl, pageInfoException}

// modePage returns one page, or nil when the unit hasn't got it.
func (u *Unit) modePage(code byte, pc byte) []byte {
	var p []byte
	switch code {
	case pageErrorRecovery: // SBC-3 section 6.4.8
		p = make([]byte, 12)
	case pageDisconnect: // SPC-4 section 7.5.10
		p = make([]byte, 16)
	case pageCaching: // SBC-3 section 6.4.5
		p = make([]byte, 20)
		if u.Overlay != nil && pc != pcChangeable {
			p[2] = 0x04 // WCE: a volatile write cache, and it is all there is
		}
	case pageControl: // SPC-4 section 7.5.8
		p = make([]byte, 12)
		if pc == pcChangeable {
			p[4] = controlSWP
			break
		}
		if u.descriptors() {
			p[2] = 0x04 // D_SENSE
		}
		p[3] = 0x10 // unrestricted reordering of commands
		if pc == pcCurrent && u.swp.Load() {
			p[4] |= controlSWP
		}
		p[8], p[9] = 0xff, 0xff // busy timeout: unlimited
	case pageInfoException: // SPC-4 section 7.5.11
		p = make([]byte, 12)
	default:
		return nil
	}
	p[0], p[1] = code, byte(len(p)-2)
	return p
}

// modeSense: SPC-4 sections 6.13 and 6.14.
func modeSense(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	long := cdb[0] == opModeSense10
	pc, code, sub := cdb[2]>>6, cdb[2]&0x3f, cdb[3]
	if pc == pcSaved {
		j.illegal(ascSavingParams)
		return
	}
	var pages []byte
	switch {
	case sub != 0 && sub != 0xff:
		j.illegal(ascInvalidField)
		return
	case code == pageAll:
		for _, c := range modePages {
			pages = append(pages, u.modePage(c, pc)...)
		}
	default:
		if pages = u.modePage(code, pc); pages == nil {
			j.illegal(ascInvalidField)
			return
		}
	}
	var desc []byte
	if cdb[1]&0x08 == 0 { // DBD off: a block descriptor
		desc = u.blockDescriptor(long && cdb[1]&0x10 != 0)
	}
	specific := byte(modeDPOFUA)
	if !u.writable() {
		specific |= modeWriteProtect
	}
	if long {
		out := make([]byte, 8, 8+len(desc)+len(pages))
		out[3] = specific
		if len(desc) == 16 {
			out[4] = 1 // LONGLBA
		}
		be.PutUint16(out[6:], uint16(len(desc)))
		out = append(append(out, desc...), pages...)
		be.PutUint16(out, uint16(len(out)-2))
		j.reply(out, int(be.Uint16(cdb[7:])))
		return
	}
	out := make([]byte, 4, 4+len(desc)+len(pages))
	out[2] = specific
	out[3] = byte(len(desc))
	out = append(append(out, desc...), pages...)
	out[0] = byte(len(out) - 1)
	j.reply(out, int(cdb[4]))
}

// blockDescriptor: SBC-3 section 6.4.2.
func (u *Unit) blockDescriptor(long bool) []byte {
	if long {
		d := make([]byte, 16)
		be.PutUint64(d, u.blocks)
		be.PutUint32(d[12:], u.blockSize)
		return d
	}
	d := make([]byte, 8)
	be.PutUint32(d, uint32(min(u.blocks, 0xffffffff)))
	be.PutUint32(d[4:], u.blockSize) // the high byte is reserved, and zero here
	return d
}

// modeSelect takes the pages as they are, with one bit that can change: SWP.
// SPC-4 sections 6.11 and 6.12.
func modeSelect(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	long := cdb[0] == opModeSelect10
	n := int(cdb[4])
	if long {
		n = int(be.Uint16(cdb[7:]))
	}
	if cdb[1]&0x11 != 0x10 { // PF set, SP (save pages) not
		j.illegal(ascInvalidField)
		return
	}
	j.OutLen = int64(n)
	j.Work = func(_ Context, j *Job, p []byte) {
		if len(p) == 0 {
			return
		}
		header := 4
		if long {
			header = 8
		}
		if len(p) < header {
			j.illegal(ascParamListLength)
			return
		}
		desc := int(p[3])
		if long {
			desc = int(be.Uint16(p[6:]))
		}
		if desc > len(p)-header {
			j.illegal(ascParamListLength)
			return
		}
		swp := u.swp.Load()
		for p = p[header+desc:]; len(p) > 0; {
			if len(p) < 2 || len(p) < 2+int(p[1]) {
				j.illegal(ascParamListLength)
				return
			}
			page := p[:2+int(p[1])]
			cur, mask := u.modePage(page[0]&0x3f, pcCurrent), u.modePage(page[0]&0x3f, pcChangeable)
			if cur == nil || page[0]&0x40 != 0 || len(cur) != len(page) {
				j.illegal(ascInvalidParam)
				return
			}
			for i := 2; i < len(page); i++ {
				if (page[i]^cur[i])&^mask[i] != 0 {
					j.illegal(ascInvalidParam)
					return
				}
			}
			if page[0]&0x3f == pageControl {
				swp = page[4]&controlSWP != 0
			}
			p = p[len(page):]
		}
		if u.swp.Swap(swp) != swp {
			u.tellOthers(s, ascModeChanged)
		}
	}
}

// tellOthers raises a unit attention at every nexus but by.
func (u *Unit) tellOthers(by *lunState, asc uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for s := range u.nexuses {
		if s != by {
			s.attention(asc)
		}
	}
}
