package scsi

// noteReserved refreshes the flag that lets commands skip the look at
// reservations; u.mu is held.
func (u *Unit) noteReserved() {
	u.reserved.Store(u.holder6 != nil || len(u.pr.keys) > 0)
}

// conflict reports whether a reservation held elsewhere stands against c.
// SPC-2 section 5.5.1 table 9 for RESERVE, SPC-4 section 5.13.1 for persistent ones.
func (u *Unit) conflict(s *lunState, c *command, cdb []byte) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.holder6 != nil && u.holder6 != s {
		if c.op == opPreventAllow {
			return cdb[4]&3 != 0
		}
		return !c.free6
	}
	if len(u.pr.keys) == 0 {
		return false
	}
	if c.class == classReserve6 { // the two kinds don't mix
		return true
	}
	if u.pr.kind == 0 || u.pr.holds(s.port) {
		return false
	}
	_, registered := u.pr.keys[s.port]
	switch u.pr.kind {
	case prWriteExclusive:
		return c.class == classWrite
	case prExclusiveAccess:
		return c.class != classAlways
	case prWriteExclusiveRO, prWriteExclusiveAR:
		return c.class == classWrite && !registered
	case prExclusiveAccRO, prExclusiveAccAR:
		return c.class != classAlways && !registered
	}
	return false
}

// reserve6 is RESERVE(6) and (10) of a whole unit. SPC-2 sections 7.21, 7.22.
func reserve6(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	if cdb[1]&0x1f != 0 { // third party, extents
		j.illegal(ascInvalidField)
		return
	}
	s.unit.mu.Lock()
	defer s.unit.mu.Unlock()
	// conflict has seen to another holder; a parallel RESERVE may have come first.
	if h := s.unit.holder6; h != nil && h != s {
		j.Status = StatusReservationConflict
		return
	}
	s.unit.holder6 = s
	s.unit.noteReserved()
}

// release6: of a reservation that isn't one's own, it is a no-op.
func release6(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	if cdb[1]&0x1f != 0 {
		j.illegal(ascInvalidField)
		return
	}
	s.unit.mu.Lock()
	defer s.unit.mu.Unlock()
	if s.unit.holder6 == s {
		s.unit.holder6 = nil
		s.unit.noteReserved()
	}
}
