package scsi

// class says how a command fares under a reservation that another nexus holds.
type class uint8

const (
	classAlways   class = iota // never conflicts with a persistent reservation
	classRead                  // reads the medium
	classWrite                 // changes the medium or the unit
	classReserve6              // RESERVE and RELEASE themselves
)

// command describes one operation code, or one service action of it.
type command struct {
	op      byte
	sa      int // service action, or noSA
	class   class
	free6   bool // allowed under RESERVE(6) of another nexus
	medium  bool // write-class: 07/2700 without a place for writes
	protect bool // has a WRPROTECT field
	// usage is the CDB usage map of SPC-4 section 6.35.3: a bit is set where the
	// device looks at it. Its first byte is the opcode, its length the CDB's.
	usage   []byte
	timeout uint32 // recommended seconds
	run     func(n *Nexus, s *lunState, cdb []byte, j *Job)
}

const noSA = -1

// Recommended timeouts, in seconds. A restore point may lie in a cloud, where one
// block takes retries; commands that touch no medium answer at once.
const (
	timeQuick  = 10
	timeMedium = 60
	timeLong   = 300
)

// commands lists what a unit answers; those with medium set only with an overlay.
var commands = []command{
	{opTestUnitReady, noSA, classAlways, false, false, false, usage6(0, 0, 0, 0), timeQuick, ok},
	{opRequestSense, noSA, classAlways, true, false, false, usage6(0x01, 0, 0, 0xff), timeQuick, requestSense},
	{opRead6, noSA, classRead, false, false, false, usage6(0x1f, 0xff, 0xff, 0xff), timeMedium, read},
	{opInquiry, noSA, classAlways, true, false, false, usage6(0x01, 0xff, 0xff, 0xff), timeQuick, inquiry},
	{opModeSelect6, noSA, classWrite, false, false, false, usage6(0x11, 0, 0, 0xff), timeQuick, modeSelect},
	{opReserve6, noSA, classReserve6, false, false, false, usage6(0, 0, 0, 0), timeQuick, reserve6},
	{opRelease6, noSA, classReserve6, true, false, false, usage6(0, 0, 0, 0), timeQuick, release6},
	{opModeSense6, noSA, classAlways, false, false, false, usage6(0x08, 0xff, 0xff, 0xff), timeQuick, modeSense},
	{opStartStop, noSA, classAlways, false, false, false, usage6(0x01, 0, 0x0f, 0xf7), timeQuick, startStop},
	{opPreventAllow, noSA, classAlways, true, false, false, usage6(0, 0, 0, 0x03), timeQuick, ok},
	{opReadCapacity10, noSA, classAlways, true, false, false, usage10(0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01), timeQuick, readCapacity10},
	{opRead10, noSA, classRead, false, false, false, usageRW10(0xf8), timeMedium, read},
	{opVerify10, noSA, classRead, false, false, false, usageRW10(0xf6), timeLong, verify},
	{opPrefetch10, noSA, classRead, false, false, false, usageRW10(0x02), timeQuick, prefetch},
	{opSyncCache10, noSA, classAlways, false, false, false, usageRW10(0x06), timeMedium, syncCache},
	{opModeSelect10, noSA, classWrite, false, false, false, usage10(0x11, 0, 0, 0, 0, 0, 0xff, 0xff), timeQuick, modeSelect},
	{opReserve10, noSA, classReserve6, false, false, false, usage10(0, 0, 0, 0, 0, 0, 0, 0), timeQuick, reserve6},
	{opRelease10, noSA, classReserve6, true, false, false, usage10(0, 0, 0, 0, 0, 0, 0, 0), timeQuick, release6},
	{opModeSense10, noSA, classAlways, false, false, false, usage10(0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff), timeQuick, modeSense},
	{opPersistentIn, saReadKeys, classAlways, false, false, false, usage10(0x1f, 0, 0, 0, 0, 0, 0xff, 0xff), timeQuick, persistentIn},
	{opPersistentIn, saReadReservation, classAlways, false, false, false, usage10(0x1f, 0, 0, 0, 0, 0, 0xff, 0xff), timeQuick, persistentIn},
	{opPersistentIn, saReportCaps, classAlways, false, false, false, usage10(0x1f, 0, 0, 0, 0, 0, 0xff, 0xff), timeQuick, persistentIn},
	{opPersistentIn, saReadFullStatus, classAlways, false, false, false, usage10(0x1f, 0, 0, 0, 0, 0, 0xff, 0xff), timeQuick, persistentIn},
	{opPersistentOut, saRegister, classAlways, false, false, false, usagePROut, timeQuick, persistentOut},
	{opPersistentOut, saReserve, classAlways, false, false, false, usagePROut, timeQuick, persistentOut},
	{opPersistentOut, saRelease, classAlways, false, false, false, usagePROut, timeQuick, persistentOut},
	{opPersistentOut, saClear, classAlways, false, false, false, usagePROut, timeQuick, persistentOut},
	{opPersistentOut, saPreempt, classAlways, false, false, false, usagePROut, timeQuick, persistentOut},
	{opPersistentOut, saPreemptAbort, classAlways, false, false, false, usagePROut, timeQuick, persistentOut},
	{opPersistentOut, saRegisterIgnore, classAlways, false, false, false, usagePROut, timeQuick, persistentOut},
	{opRead16, noSA, classRead, false, false, false, usageRW16(0xf8), timeMedium, read},
	{opVerify16, noSA, classRead, false, false, false, usageRW16(0xf6), timeLong, verify},
	{opPrefetch16, noSA, classRead, false, false, false, usageRW16(0x02), timeQuick, prefetch},
	{opSyncCache16, noSA, classAlways, false, false, false, usageRW16(0x06), timeMedium, syncCache},
	{opServiceIn16, saReadCapacity16, classAlways, true, false, false, usageSA16, timeQuick, readCapacity16},
	{opServiceIn16, saGetLBAStatus, classRead, false, false, false, usageSA16, timeMedium, getLBAStatus},
	{opReportLUNs, noSA, classAlways, true, false, false, usage12(0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0), timeQuick, reportLUNs},
	{opMaintenanceIn, saReportOpcodes, classAlways, false, false, false, usage12(0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0), timeQuick, nil},
	{opRead12, noSA, classRead, false, false, false, usageRW12(0xf8), timeMedium, read},
	{opVerify12, noSA, classRead, false, false, false, usageRW12(0xf6), timeLong, verify},

	{opWrite6, noSA, classWrite, false, true, false, usage6(0x1f, 0xff, 0xff, 0xff), timeMedium, write},
	{opWrite10, noSA, classWrite, false, true, true, usageRW10(0xf8), timeMedium, write},
	{opWriteVerify10, noSA, classWrite, false, true, true, usageRW10(0xf2), timeMedium, write},
	{opWriteSame10, noSA, classWrite, false, true, true, usageRW10(0xf8), timeLong, writeSame},
	{opUnmap, noSA, classWrite, false, true, false, usage10(0x01, 0, 0, 0, 0, 0, 0xff, 0xff), timeLong, unmap},
	{opCompareAndWrite, noSA, classWrite, false, true, true, usage16(0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0), timeMedium, compareAndWrite},
	{opWrite16, noSA, classWrite, false, true, true, usageRW16(0xf8), timeMedium, write},
	{opOrWrite16, noSA, classWrite, false, true, true, usageRW16(0xf8), timeMedium, orWrite},
	{opWriteVerify16, noSA, classWrite, false, true, true, usageRW16(0xf2), timeMedium, write},
	{opWriteSame16, noSA, classWrite, false, true, true, usageRW16(0xf9), timeLong, writeSame},
	{opWrite12, noSA, classWrite, false, true, true, usageRW12(0xf8), timeMedium, write},
	{opWriteVerify12, noSA, classWrite, false, true, true, usageRW12(0xf2), timeMedium, write},
}

// writeClass are further opcodes that would change the medium; none of them is
// implemented, and on a unit without an overlay they are refused as writes rather
// than as unknown, so that an initiator learns why.
var writeClass = map[byte]bool{
	opFormatUnit: true, opReassignBlocks: true, opWriteBuffer: true, opWriteLong10: true, opSanitize: true,
	opXDWrite10: true, opXPWrite10: true, opXDWriteRead10: true, opXDWriteExtended: true, opWriteAtomic16: true,
}

var writeClass32 = map[uint16]bool{
	saXPWrite32: true, saXDWriteRead32: true, saWrite32: true, saWriteVerify32: true, saWriteSame32: true,
	saOrWrite32: true, saWriteAtomic32: true,
}

// otherWrite reports whether an unimplemented CDB belongs to the write class.
func otherWrite(cdb []byte) bool {
	switch cdb[0] {
	case opServiceOut16:
		return cdb[1]&0x1f == saWriteLong16
	case opVariable:
		return writeClass32[be.Uint16(cdb[8:])]
	}
	return writeClass[cdb[0]]
}

// table finds a command by opcode and service action. It is filled once, before
// anything can use it, and never changed.
var table = func() (t [256]struct {
	plain *command
	bySA  map[byte]*command
}) {
	for i := range commands {
		c := &commands[i]
		c.usage[0] = c.op
		if c.sa == noSA {
			t[c.op].plain = c
			continue
		}
		if t[c.op].bySA == nil {
			t[c.op].bySA = map[byte]*command{}
		}
		t[c.op].bySA[byte(c.sa)] = c
	}
	return t
}()

// cdbLen returns the length of a CDB by its opcode's group, 0 for vendor groups
// and those of variable length. SPC-4 section 4.3.4.
func cdbLen(op byte) int {
	switch op >> 5 {
	case 0:
		return 6
	case 1, 2:
		return 10
	case 4:
		return 16
	case 5:
		return 12
	}
	return 0
}

// Prepare decodes a command and says what is to be done; see Job. cdb has at
// least 16 bytes. It never waits for the medium.
func (n *Nexus) Prepare(lun uint64, cdb []byte, j *Job) {
	*j = Job{}
	s := n.state(lun)
	if s == nil {
		n.wrongLUN(lun, cdb, j)
		return
	}
	u := s.unit
	j.unit, j.Medium = u, s.medium
	op := cdb[0]
	if s.pending.Load() != 0 && op != opInquiry && op != opReportLUNs && op != opRequestSense {
		if a, ok := s.takeAttention(); ok {
			j.check(keyUnitAttention, a)
			return
		}
	}
	e := &table[op]
	c := e.plain
	if e.bySA != nil {
		c = e.bySA[cdb[1]&0x1f]
	}
	if c == nil {
		switch {
		case u.Overlay == nil && otherWrite(cdb):
			j.check(keyDataProtect, ascWriteProtected)
		case e.bySA != nil:
			j.illegal(ascInvalidField)
		default:
			j.illegal(ascInvalidOpcode)
		}
		return
	}
	if u.reserved.Load() && u.conflict(s, c, cdb) {
		j.Status = StatusReservationConflict
		return
	}
	if c.medium && !u.writable() {
		if c.protect && protected(cdb) { // wrong on any unit, whatever it holds
			j.illegal(ascInvalidField)
			return
		}
		j.check(keyDataProtect, ascWriteProtected)
		return
	}
	if k := cdbLen(op); k > 0 && cdb[k-1]&0x04 != 0 { // NACA: there is no ACA here
		j.illegal(ascInvalidField)
		return
	}
	if c.run == nil { // REPORT SUPPORTED OPERATION CODES, which lists the table itself
		reportOpcodes(s, cdb, j)
		return
	}
	c.run(n, s, cdb, j)
}

func ok(*Nexus, *lunState, []byte, *Job) {}

func reportLUNs(n *Nexus, _ *lunState, cdb []byte, j *Job) { n.reportLUNs(cdb, j) }

// requestSense returns what waits: an attention, or nothing. Sense of failed
// commands travels with their status. SPC-4 section 6.39.
func requestSense(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	if cdb[1]&1 != 0 { // DESC: descriptor format
		out := make([]byte, 8)
		out[0] = 0x72
		if a, ok := s.takeAttention(); ok {
			out[1] = keyUnitAttention
			be.PutUint16(out[2:], a)
		}
		j.reply(out, int(cdb[4]))
		return
	}
	out := sense(keyNone, ascNone)
	if a, ok := s.takeAttention(); ok {
		out = sense(keyUnitAttention, a)
	}
	j.reply(out, int(cdb[4]))
}

// startStop: nothing spins and nothing can be ejected; a unit always stays ready.
// SBC-3 section 5.25.
func startStop(_ *Nexus, _ *lunState, cdb []byte, j *Job) {
	if cdb[4]>>4 == 0 && cdb[4]&0x02 != 0 { // LOEJ on a medium that isn't removable
		j.illegal(ascInvalidField)
	}
}

// span is a run of logical blocks.
type span struct{ lba, n uint64 }

// blocksOf decodes address and length of a read- or write-like CDB.
func blocksOf(cdb []byte) span {
	switch cdbLen(cdb[0]) {
	case 6:
		n := uint64(cdb[4])
		if n == 0 {
			n = 256
		}
		return span{uint64(be.Uint32(cdb) & 0x1fffff), n}
	case 10:
		return span{uint64(be.Uint32(cdb[2:])), uint64(be.Uint16(cdb[7:]))}
	case 12:
		return span{uint64(be.Uint32(cdb[2:])), uint64(be.Uint32(cdb[6:]))}
	}
	return span{be.Uint64(cdb[2:]), uint64(be.Uint32(cdb[10:]))}
}

// bounds checks that p lies on the unit and, unless limit is 0, is no longer than
// limit bytes.
func (u *Unit) bounds(p span, limit int64, j *Job) bool {
	if p.lba > u.blocks || p.n > u.blocks-p.lba {
		j.checkInfo(keyIllegalRequest, ascLBARange, p.lba)
		return false
	}
	if limit > 0 && p.n > uint64(limit)>>u.shift {
		j.illegal(ascInvalidField)
		return false
	}
	return true
}

func (u *Unit) bytes(p span) (off, n int64) {
	return int64(p.lba << u.shift), int64(p.n << u.shift)
}

// protected reports RDPROTECT, WRPROTECT or VRPROTECT: no protection
// information is stored.
func protected(cdb []byte) bool { return len(cdb) >= 2 && cdbLen(cdb[0]) != 6 && cdb[1]>>5 != 0 }

func read(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	if protected(cdb) {
		j.illegal(ascInvalidField)
		return
	}
	p := blocksOf(cdb)
	if s.unit.bounds(p, maxTransfer, j) {
		j.ReadOff, j.ReadLen = s.unit.bytes(p)
	}
}

// prefetch feeds the cache beneath. SBC-3 sections 5.10, 5.11.
func prefetch(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	p := blocksOf(cdb)
	if !s.unit.bounds(p, 0, j) {
		return
	}
	if p.n == 0 { // to the end of the medium
		p.n = s.unit.blocks - p.lba
	}
	if f, ok := s.unit.Medium.(Prefetcher); ok {
		f.Prefetch(s.unit.bytes(p))
	}
}

// syncCache has nothing to do: a read-only medium has no dirty cache, and an
// overlay promises no durability (its caching page says so).
func syncCache(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	s.unit.bounds(blocksOf(cdb), 0, j)
}
