package scsi

// CDB usage maps for REPORT SUPPORTED OPERATION CODES, by CDB length. The
// opcode's byte is filled in with the table; the last byte is the control byte,
// of which NACA is looked at.

const controlUsage = 0x04

func usage6(b ...byte) []byte  { return usageOf(6, b) }
func usage10(b ...byte) []byte { return usageOf(10, b) }
func usage12(b ...byte) []byte { return usageOf(12, b) }
func usage16(b ...byte) []byte { return usageOf(16, b) }

func usageOf(n int, b []byte) []byte {
	u := make([]byte, n)
	copy(u[1:n-1], b)
	u[n-1] = controlUsage
	return u
}

func usageRW10(flags byte) []byte {
	return usage10(flags, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff)
}

func usageRW12(flags byte) []byte {
	return usage12(flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f)
}

func usageRW16(flags byte) []byte {
	return usage16(flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f)
}

var (
	usagePROut = usage10(0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff)
	usageSA16  = usage16(0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0)
)

// reportOpcodes is REPORT SUPPORTED OPERATION CODES. SPC-4 section 6.35.
func reportOpcodes(s *lunState, cdb []byte, j *Job) {
	alloc := int(min(be.Uint32(cdb[6:]), 1<<20))
	withTimeouts := cdb[2]&0x80 != 0
	visible := func(c *command) bool { return !c.medium || s.unit.Overlay != nil }
	switch mode := cdb[2] & 7; mode {
	case 0: // all commands
		out := make([]byte, 4)
		for i := range commands {
			if c := &commands[i]; visible(c) {
				out = appendDescriptor(out, c, withTimeouts)
			}
		}
		be.PutUint32(out, uint32(len(out)-4))
		j.reply(out, alloc)
	case 1, 2, 3: // one command: by opcode, by service action, by either
		op, sa := cdb[3], be.Uint16(cdb[4:])
		e := &table[op]
		if mode == 1 && e.bySA != nil || mode == 2 && e.plain != nil {
			j.illegal(ascInvalidField)
			return
		}
		c := e.plain
		if e.bySA != nil && sa < 0x20 {
			c = e.bySA[byte(sa)]
		}
		if mode == 3 && e.plain != nil && sa != 0 {
			c = nil
		}
		out := []byte{0, 1, 0, 0} // not supported
		if c != nil && visible(c) {
			out[1] = 3 // supported as the standard has it
			be.PutUint16(out[2:], uint16(len(c.usage)))
			u := append([]byte(nil), c.usage...)
			if c.sa != noSA {
				u[1] = u[1]&^0x1f | byte(c.sa)
			}
			out = append(out, u...)
			if withTimeouts {
				out[1] |= 0x80
				out = appendTimeouts(out, c)
			}
		}
		j.reply(out, alloc)
	default:
		j.illegal(ascInvalidField)
	}
}

func appendDescriptor(out []byte, c *command, withTimeouts bool) []byte {
	d := make([]byte, 8)
	d[0] = c.op
	if c.sa != noSA {
		be.PutUint16(d[2:], uint16(c.sa))
		d[5] |= 1 // SERVACTV
	}
	be.PutUint16(d[6:], uint16(len(c.usage)))
	if withTimeouts {
		d[5] |= 2 // CTDP
	}
	out = append(out, d...)
	if withTimeouts {
		out = appendTimeouts(out, c)
	}
	return out
}

// appendTimeouts appends a command timeouts descriptor. SPC-4 section 6.35.4.
func appendTimeouts(out []byte, c *command) []byte {
	d := make([]byte, 12)
	be.PutUint16(d, 10)
	be.PutUint32(d[4:], timeQuick)
	be.PutUint32(d[8:], c.timeout)
	return append(out, d...)
}
