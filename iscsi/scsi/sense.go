package scsi

import "math"

// sense makes fixed-format sense data. SPC-4 section 4.5.3.
func sense(key byte, asc uint16) []byte {
	s := make([]byte, 18)
	s[0] = 0x70
	s[2] = key
	s[7] = 10 // additional length
	be.PutUint16(s[12:], asc)
	return s
}

// senseDescriptor makes descriptor-format sense data. SPC-4 section 4.5.2.
func senseDescriptor(key byte, asc uint16) []byte {
	s := make([]byte, 8)
	s[0] = 0x72
	s[1] = key
	be.PutUint16(s[2:], asc)
	return s
}

// addInfo sets the information field: four bytes of fixed format, which stays
// without where they aren't enough, or a descriptor.
func addInfo(s []byte, info uint64) []byte {
	if s[0] == 0x70 {
		if info <= math.MaxUint32 {
			s[0] |= 0x80 // VALID
			be.PutUint32(s[3:], uint32(info))
		}
		return s
	}
	s[7] = 12                     // additional length
	s = append(s, 0, 10, 0x80, 0) // information descriptor, VALID
	return be.AppendUint64(s, info)
}

// Job is what a command asks of its transport. Exactly one of these holds after
// Prepare:
//
//   - Work is set: gather OutLen bytes of data-out (none, when it is 0), call
//     Work on a goroutine that may wait, then send the outcome;
//   - Chunk is set: hand it OutLen bytes of data-out piece by piece, in order,
//     until it returns false, then send the outcome;
//   - ReadLen is above 0: send that many bytes of Medium from ReadOff on, calling
//     FailRead where a read fails;
//   - else the outcome is there already.
//
// Work and Chunk are passed the Job itself, which may be a copy of the one that
// Prepare filled in.
//
// The outcome is Status, with Sense when that is CHECK CONDITION, and In.
type Job struct {
	Status byte
	Sense  []byte
	In     []byte // parameter data for the initiator, already cut to the allocation length

	Medium           Medium
	ReadOff, ReadLen int64 // bytes

	OutLen int64 // bytes of data-out the command takes
	// Exact: an initiator that means to send another number of bytes means
	// another command; refuse it (Refuse) rather than compare or repeat the wrong
	// bytes.
	Exact bool
	Work  func(c Context, j *Job, out []byte)
	Chunk func(c Context, j *Job, p []byte, off int64) bool

	unit *Unit
}

func (j *Job) check(key byte, asc uint16) {
	j.Status, j.Sense, j.In = StatusCheckCondition, nil, nil
	if j.unit != nil && j.unit.descriptors() {
		j.Sense = senseDescriptor(key, asc)
		return
	}
	j.Sense = sense(key, asc)
}

func (j *Job) illegal(asc uint16) { j.check(keyIllegalRequest, asc) }

func (j *Job) checkInfo(key byte, asc uint16, info uint64) {
	j.check(key, asc)
	j.Sense = addInfo(j.Sense, info)
}

// FailRead makes the outcome that of an unrecovered read error in the block that
// holds the medium's byte off.
func (j *Job) FailRead(off int64) {
	j.checkInfo(keyMediumError, ascReadError, uint64(off)/uint64(j.unit.blockSize))
}

// FailTransport makes the outcome that of data lost between the initiator and
// the target: a data digest error or data-out out of sequence.
func (j *Job) FailTransport(digest bool) {
	if digest {
		j.check(keyAborted, ascCRCError)
		return
	}
	j.check(keyAborted, ascDataPhaseError)
}

// reply sets In to data cut to the allocation length.
func (j *Job) reply(data []byte, alloc int) {
	if alloc < len(data) {
		data = data[:alloc]
	}
	j.In = data
}

// Refuse makes the outcome that of a command whose data-out isn't as long as its
// CDB says: an invalid field in the CDB.
func (j *Job) Refuse() { j.illegal(ascInvalidField) }
