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

// senseInfo makes sense data with the information field set: fixed format where
// its four bytes are enough, else descriptor format (SPC-4 section 4.5.2), since
// a wrong or missing address is worth less than an unusual format.
func senseInfo(key byte, asc uint16, info uint64) []byte {
	if info <= math.MaxUint32 {
		s := sense(key, asc)
		s[0] |= 0x80 // VALID
		be.PutUint32(s[3:], uint32(info))
		return s
	}
	s := make([]byte, 20)
	s[0] = 0x72
	s[1] = key
	be.PutUint16(s[2:], asc)
	s[7] = 12   // additional length
	s[9] = 10   // information descriptor: type 0, length 10
	s[10] = 128 // VALID
	be.PutUint64(s[12:], info)
	return s
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
	Work   func(c Context, j *Job, out []byte)
	Chunk  func(c Context, j *Job, p []byte, off int64) bool

	unit *Unit
}

func (j *Job) check(key byte, asc uint16) {
	j.Status, j.Sense, j.In = StatusCheckCondition, sense(key, asc), nil
}

func (j *Job) illegal(asc uint16) { j.check(keyIllegalRequest, asc) }

func (j *Job) checkInfo(key byte, asc uint16, info uint64) {
	j.Status, j.Sense, j.In = StatusCheckCondition, senseInfo(key, asc, info), nil
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

// Refuse makes the outcome that of a command whose data-out is shorter than what
// it says: an invalid field in the CDB.
func (j *Job) Refuse() { j.illegal(ascInvalidField) }
