package scsi

import (
	"maps"
	"slices"
)

// maxRegistrations bounds the registered ports of one unit.
const maxRegistrations = 256

// persistent is a unit's persistent reservation, kept in memory alone (PTPL isn't
// offered): a target that restarts has none. SPC-4 section 5.13.
type persistent struct {
	generation uint32
	keys       map[string]uint64 // by initiator port name
	holder     string            // port; of no meaning for the all-registrants kinds
	kind       byte              // 0: no reservation
}

func allRegistrants(kind byte) bool { return kind == prWriteExclusiveAR || kind == prExclusiveAccAR }

func registrantsOnly(kind byte) bool {
	return kind == prWriteExclusiveRO || kind == prExclusiveAccRO || allRegistrants(kind)
}

func validKind(kind byte) bool {
	switch kind {
	case prWriteExclusive, prExclusiveAccess, prWriteExclusiveRO, prExclusiveAccRO, prWriteExclusiveAR, prExclusiveAccAR:
		return true
	}
	return false
}

// holds reports whether port holds the reservation.
func (p *persistent) holds(port string) bool {
	if p.kind == 0 {
		return false
	}
	if allRegistrants(p.kind) {
		_, ok := p.keys[port]
		return ok
	}
	return p.holder == port
}

// persistentIn: SPC-4 section 6.15.
func persistentIn(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	alloc := int(be.Uint16(cdb[7:]))
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]byte, 8)
	be.PutUint32(out, u.pr.generation)
	ports := slices.Sorted(maps.Keys(u.pr.keys))
	switch cdb[1] & 0x1f {
	case saReadKeys:
		for _, p := range ports {
			out = be.AppendUint64(out, u.pr.keys[p])
		}
		be.PutUint32(out[4:], uint32(len(out)-8))
	case saReadReservation:
		if u.pr.kind != 0 {
			var d [16]byte
			if !allRegistrants(u.pr.kind) {
				be.PutUint64(d[:], u.pr.keys[u.pr.holder])
			}
			d[13] = u.pr.kind // scope: logical unit
			out = append(out, d[:]...)
			be.PutUint32(out[4:], 16)
		}
	case saReportCaps:
		clear(out)
		be.PutUint16(out, 8)
		out[3] = 0x80 // TMV: the type mask below is valid
		out[4] = 1<<prWriteExclusiveAR | 1<<prExclusiveAccRO | 1<<prWriteExclusiveRO | 1<<prExclusiveAccess | 1<<prWriteExclusive
		out[5] = 1 << (prExclusiveAccAR - 8)
	case saReadFullStatus:
		for _, p := range ports {
			out = append(out, u.pr.fullStatus(p)...)
		}
		be.PutUint32(out[4:], uint32(len(out)-8))
	}
	j.reply(out, alloc)
}

// fullStatus is one descriptor of READ FULL STATUS, with the iSCSI TransportID
// of SPC-4 section 7.6.4.6.
func (p *persistent) fullStatus(port string) []byte {
	d := make([]byte, 24)
	be.PutUint64(d, p.keys[port])
	if p.holds(port) {
		d[12] = 1
		d[13] = p.kind
	}
	be.PutUint16(d[18:], 1) // relative target port
	name := append([]byte(port), 0)
	for len(name)%4 != 0 || len(name) < 20 {
		name = append(name, 0)
	}
	id := []byte{0x45, 0, 0, 0} // format 01b: name, separator, ISID; protocol iSCSI
	be.PutUint16(id[2:], uint16(len(name)))
	id = append(id, name...)
	be.PutUint32(d[20:], uint32(len(id)))
	return append(d, id...)
}

// persistentOut: SPC-4 section 6.16.
func persistentOut(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	n := be.Uint32(cdb[5:])
	if n != 24 {
		j.illegal(ascParamListLength)
		return
	}
	sa, kind, scope := cdb[1]&0x1f, cdb[2]&0x0f, cdb[2]>>4
	j.OutLen = int64(n)
	j.Work = func(_ Context, j *Job, p []byte) {
		key, action := be.Uint64(p), be.Uint64(p[8:])
		flags := p[20]
		if flags&0x0d != 0 { // SPEC_I_PT, ALL_TG_PT, APTPL
			j.illegal(ascInvalidParam)
			return
		}
		u := s.unit
		u.mu.Lock()
		defer u.mu.Unlock()
		defer u.noteReserved()
		cur, registered := u.pr.keys[s.port]
		if sa != saRegister && sa != saRegisterIgnore {
			if !registered || cur != key {
				j.Status = StatusReservationConflict
				return
			}
		}
		switch sa {
		case saRegister, saRegisterIgnore:
			if sa == saRegister && cur != key { // cur is 0 when not registered
				j.Status = StatusReservationConflict
				return
			}
			u.register(s, action, registered, j)
		case saReserve:
			u.reserve(s, kind, scope, j)
		case saRelease:
			u.release(s, kind, scope, j)
		case saClear:
			u.pr = persistent{generation: u.pr.generation + 1}
			u.attentionTo(s, ascReservePreempted, func(string) bool { return true })
		case saPreempt, saPreemptAbort:
			u.preempt(s, action, kind, scope, j)
		}
	}
}

func (u *Unit) register(s *lunState, key uint64, registered bool, j *Job) {
	if key == 0 {
		if registered {
			u.unregister(s, s.port)
		}
		u.pr.generation++
		return
	}
	if !registered && len(u.pr.keys) >= maxRegistrations {
		j.illegal(0x5504) // insufficient registration resources
		return
	}
	if u.pr.keys == nil {
		u.pr.keys = map[string]uint64{}
	}
	u.pr.keys[s.port] = key
	u.pr.generation++
}

// unregister removes port and, where it held it, the reservation.
func (u *Unit) unregister(by *lunState, port string) {
	held := u.pr.holds(port)
	delete(u.pr.keys, port)
	if !held || allRegistrants(u.pr.kind) && len(u.pr.keys) > 0 {
		return
	}
	if registrantsOnly(u.pr.kind) {
		u.attentionTo(by, ascReserveReleased, u.isRegistered)
	}
	u.pr.kind, u.pr.holder = 0, ""
}

func (u *Unit) isRegistered(port string) bool { _, ok := u.pr.keys[port]; return ok }

// attentionTo raises an attention at the nexuses of the chosen ports, but not at by.
func (u *Unit) attentionTo(by *lunState, asc uint16, choose func(port string) bool) {
	for n := range u.nexuses {
		if n != by && choose(n.port) {
			n.attention(asc)
		}
	}
}

func (u *Unit) reserve(s *lunState, kind, scope byte, j *Job) {
	if scope != 0 || !validKind(kind) {
		j.illegal(ascInvalidField)
		return
	}
	if u.pr.kind == 0 {
		u.pr.kind, u.pr.holder = kind, s.port
		return
	}
	if !u.pr.holds(s.port) || u.pr.kind != kind {
		j.Status = StatusReservationConflict
	}
}

func (u *Unit) release(s *lunState, kind, scope byte, j *Job) {
	if !u.pr.holds(s.port) {
		return
	}
	if scope != 0 || kind != u.pr.kind {
		j.illegal(ascReleaseInvalid)
		return
	}
	if registrantsOnly(kind) {
		u.attentionTo(s, ascReserveReleased, u.isRegistered)
	}
	u.pr.kind, u.pr.holder = 0, ""
}

// preempt removes the registrations with the given key, and takes over the
// reservation when they held it. SPC-4 section 5.13.11.2.4.
func (u *Unit) preempt(s *lunState, key uint64, kind, scope byte, j *Job) {
	var victims []string
	takeOver := false
	for p, k := range u.pr.keys {
		if k == key {
			if p != s.port {
				victims = append(victims, p)
			}
			takeOver = takeOver || u.pr.holds(p) && !allRegistrants(u.pr.kind)
		}
	}
	if key == 0 && allRegistrants(u.pr.kind) {
		takeOver = true
		for p := range u.pr.keys {
			if p != s.port {
				victims = append(victims, p)
			}
		}
	}
	if len(victims) == 0 && !takeOver {
		if key == 0 {
			j.illegal(ascInvalidParam)
			return
		}
		j.Status = StatusReservationConflict
		return
	}
	if takeOver && (scope != 0 || !validKind(kind)) {
		j.illegal(ascInvalidField)
		return
	}
	for _, p := range victims {
		delete(u.pr.keys, p)
	}
	if takeOver {
		u.pr.kind, u.pr.holder = kind, s.port
	}
	u.pr.generation++
	u.attentionTo(s, ascRegistrationPreempted, func(p string) bool { return slices.Contains(victims, p) })
}
