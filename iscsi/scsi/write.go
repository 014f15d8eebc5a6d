package scsi

import (
	"bytes"
	"errors"
	"time"

	"yester/internal/block"
)

// verifyStep is how much VERIFY reads at a time.
const verifyStep = 256 << 10

// verify reads the blocks, or compares them with data-out. SBC-3 sections 5.29 to 5.31.
func verify(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	bytchk := cdb[1] >> 1 & 3
	if protected(cdb) || bytchk == 2 {
		j.illegal(ascInvalidField)
		return
	}
	p := blocksOf(cdb)
	if !u.bounds(p, maxTransfer, j) {
		return
	}
	off, n := u.bytes(p)
	switch {
	case n == 0:
	case bytchk == 0:
		j.Work = func(c Context, j *Job, _ []byte) { j.verifyReadable(c, s.medium, off, n) }
	case bytchk == 1:
		j.OutLen, j.Exact = n, true
		j.Chunk = func(c Context, j *Job, p []byte, at int64) bool { return j.compare(c, s.medium, p, off+at, at) }
	default: // one block, compared with all
		j.OutLen, j.Exact = int64(u.blockSize), true
		j.Work = func(c Context, j *Job, out []byte) {
			for at := int64(0); at < n; at += int64(len(out)) {
				if !j.compare(c, s.medium, out, off+at, 0) {
					return
				}
			}
		}
	}
}

func (j *Job) verifyReadable(c Context, m Medium, off, n int64) {
	buf := make([]byte, min(n, verifyStep))
	for n > 0 {
		k := min(n, int64(len(buf)))
		if bad, err := ReadMedium(c, m, buf[:k], off); err != nil {
			j.FailRead(bad)
			return
		}
		off, n = off+k, n-k
	}
}

// compare reports whether p is what lies at off. at is p's place in the data-out
// buffer, which the information field of a miscompare counts in.
func (j *Job) compare(c Context, m Medium, p []byte, off, at int64) bool {
	buf := make([]byte, min(len(p), verifyStep))
	for len(p) > 0 {
		k := min(len(p), len(buf))
		if bad, err := ReadMedium(c, m, buf[:k], off); err != nil {
			j.FailRead(bad)
			return false
		}
		if !bytes.Equal(p[:k], buf[:k]) {
			i := 0
			for p[i] == buf[i] {
				i++
			}
			j.checkInfo(keyMiscompare, ascMiscompare, uint64(at)+uint64(i))
			return false
		}
		p, off, at = p[k:], off+int64(k), at+int64(k)
	}
	return true
}

// ReadMedium fills p from off. A failure says at which byte it lies; a short read
// is a failure whatever error came with it.
func ReadMedium(c Context, m Medium, p []byte, off int64) (failed int64, err error) {
	began := time.Now()
	n, err := m.ReadAtContext(c, p, off)
	if n == len(p) {
		return 0, nil
	}
	if n < 0 || n > len(p) {
		n = 0
	}
	if err == nil {
		err = errors.New("short read without an error")
	}
	if n == 0 && c.Err() == nil && time.Since(began) < narrowWithin {
		n = narrow(c, m, p, off)
	}
	return off + int64(n), err
}

// A medium that fails as a whole says nothing about where. Asking again for
// halves finds the first bad sector, as long as it answers quickly: one that
// takes its time to fail isn't asked a dozen times more.
const (
	narrowWithin = 100 * time.Millisecond
	sector       = 512
)

// narrow returns how many bytes at off can be read before the first that can't.
// p is overwritten.
func narrow(c Context, m Medium, p []byte, off int64) int {
	good, bad := 0, len(p) // p[:good] can be read, p[:bad] can't
	for end := time.Now().Add(10 * narrowWithin); bad-good > sector && c.Err() == nil && time.Now().Before(end); {
		mid := good + max(sector, (bad-good)/2/sector*sector)
		n, _ := m.ReadAtContext(c, p[good:mid], off+int64(good))
		if n == mid-good {
			good = mid
			continue
		}
		good, bad = good+max(0, min(n, mid-good)), mid
	}
	return good
}

// failWrite makes the outcome that of a write the overlay couldn't take.
func (j *Job) failWrite(err error) {
	var re *readError
	switch {
	case errors.Is(err, ErrOverlayFull):
		j.check(keyDataProtect, ascNoSpace)
	case errors.As(err, &re):
		j.FailRead(re.off)
	default:
		j.check(keyMediumError, ascWriteError)
	}
}

// write is WRITE and WRITE AND VERIFY of all lengths; what is verified was just
// written, so comparing it is left out only for BYTCHK, where it can't differ.
func write(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	if protected(cdb) {
		j.illegal(ascInvalidField)
		return
	}
	p := blocksOf(cdb)
	if !s.unit.bounds(p, maxTransfer, j) || p.n == 0 {
		return
	}
	off, n := s.unit.bytes(p)
	j.OutLen = n
	j.Chunk = func(c Context, j *Job, p []byte, at int64) bool {
		if err := s.overlay.WriteAt(c, p, off+at); err != nil {
			j.failWrite(err)
			return false
		}
		return true
	}
}

// writeSame: SBC-3 sections 5.46, 5.47.
func writeSame(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	anchor, noData := cdb[1]&0x10 != 0, cdb[0] == opWriteSame16 && cdb[1]&1 != 0
	p := blocksOf(cdb)
	if protected(cdb) || anchor {
		j.illegal(ascInvalidField)
		return
	}
	if !u.bounds(p, 0, j) {
		return
	}
	if p.n == 0 { // to the end of the medium
		p.n = u.blocks - p.lba
	}
	if p.n > maxWriteSame>>u.shift {
		j.illegal(ascInvalidField)
		return
	}
	off, n := u.bytes(p)
	if !noData {
		j.OutLen, j.Exact = int64(u.blockSize), true
	}
	j.Work = func(c Context, j *Job, one []byte) {
		var err error
		if noData || allZero(one) {
			err = s.overlay.Zero(c, off, n)
		} else {
			// With UNMAP set too: a pattern that were unmapped would read as zeros.
			err = s.overlay.fill(c, one, off, n)
		}
		if err != nil {
			j.failWrite(err)
		}
	}
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// unmap: SBC-3 section 5.28.
func unmap(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	if cdb[1]&1 != 0 { // ANCHOR
		j.illegal(ascInvalidField)
		return
	}
	j.OutLen = int64(be.Uint16(cdb[7:]))
	j.Work = func(c Context, j *Job, p []byte) {
		if len(p) == 0 {
			return
		}
		if len(p) < 8 {
			j.illegal(ascParamListLength)
			return
		}
		n := min(int(be.Uint16(p[2:])), len(p)-8) / 16
		if n > maxUnmapRanges {
			j.illegal(ascInvalidParam)
			return
		}
		spans := make([]span, n)
		for i := range spans {
			d := p[8+16*i:]
			spans[i] = span{be.Uint64(d), uint64(be.Uint32(d[8:]))}
			if !s.unit.bounds(spans[i], 0, j) {
				return
			}
		}
		for _, r := range spans {
			off, n := s.unit.bytes(r)
			if err := s.overlay.Zero(c, off, n); err != nil {
				j.failWrite(err)
				return
			}
		}
	}
}

// compareAndWrite: SBC-3 section 5.3.
func compareAndWrite(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	p := span{be.Uint64(cdb[2:]), uint64(cdb[13])}
	if protected(cdb) {
		j.illegal(ascInvalidField)
		return
	}
	if !u.bounds(p, maxGather/2, j) {
		return
	}
	off, n := u.bytes(p)
	j.OutLen, j.Exact = 2*n, true
	j.Work = func(c Context, j *Job, out []byte) {
		u.atomicMu.Lock()
		defer u.atomicMu.Unlock()
		if !j.compare(c, s.medium, out[:n], off, 0) {
			return
		}
		if err := s.overlay.WriteAt(c, out[n:], off); err != nil {
			j.failWrite(err)
		}
	}
}

// orWrite: SBC-3 section 5.7.
func orWrite(_ *Nexus, s *lunState, cdb []byte, j *Job) {
	u := s.unit
	p := blocksOf(cdb)
	if protected(cdb) {
		j.illegal(ascInvalidField)
		return
	}
	if !u.bounds(p, maxTransfer, j) || p.n == 0 {
		return
	}
	off, n := u.bytes(p)
	j.OutLen = n
	j.Chunk = func(c Context, j *Job, p []byte, at int64) bool {
		u.atomicMu.Lock()
		defer u.atomicMu.Unlock()
		old := make([]byte, len(p))
		if bad, err := ReadMedium(c, s.medium, old, off+at); err != nil {
			j.FailRead(bad)
			return false
		}
		for i := range old {
			old[i] |= p[i]
		}
		if err := s.overlay.WriteAt(c, old, off+at); err != nil {
			j.failWrite(err)
			return false
		}
		return true
	}
}

var _ block.Reader = (*Overlay)(nil)
