package jbd2

import (
	"context"
	"fmt"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// recovery runs the passes over the log.
type recovery struct {
	*journal
	ctx context.Context

	endID   uint32            // the first transaction that isn't complete
	found   bool              // endID is known
	revoked map[uint64]uint32 // block to the last transaction that revoked it
	writes  map[uint64]write
}

// The passes, as in fs/jbd2/recovery.c: where does the log end, which blocks
// are revoked, which are written.
type pass int

const (
	passScan pass = iota
	passRevoke
	passReplay
)

func (r *recovery) run() error {
	r.revoked = make(map[uint64]uint32)
	r.writes = make(map[uint64]write)
	for p := passScan; p <= passReplay; p++ {
		next, err := r.pass(p)
		if err != nil {
			return err
		}
		if p == passScan && !r.found {
			r.endID, r.found = next, true
		}
		if p != passScan && next != r.endID {
			return ondisk.Corruptf(format, "journal", -1, "pass %d ended at transaction %d, not %d", p, next, r.endID)
		}
	}
	return nil
}

// maxRecords bounds the blocks written and revoked, each of which takes some 40
// bytes of memory during recovery. The largest journals in use, of 4 GiB, hold a
// quarter of it.
const maxRecords = 1 << 22

// before reports whether transaction a comes before b; the numbers wrap around.
func before(a, b uint32) bool { return int32(a-b) < 0 }

// read returns block at of the journal.
func (r *recovery) read(at uint32, b []byte) error {
	if err := block.ReadFull(r.ctx, r.log, b, int64(at)*int64(r.size)); err != nil {
		return fmt.Errorf("jbd2: journal block %d: %w", at, err)
	}
	return nil
}

// next returns the block after at in the ring that the log is.
func (r *recovery) next(at uint32) uint32 {
	if at++; at >= r.last {
		at = r.first
	}
	return at
}

// state is what one pass carries along.
type state struct {
	p        pass
	id       uint32 // transaction expected
	at       uint32 // next block of the log
	left     uint32 // blocks until the pass has been round the whole ring
	crc      uint32 // of the transaction so far, with compatChecksum
	suspect  bool   // a block of the current transaction had a wrong checksum
	lastTime uint64 // commit time of the last complete transaction
}

// pass walks the log, transaction by transaction, and returns the number of the
// one at which it ended.
func (r *recovery) pass(p pass) (uint32, error) {
	s := &state{p: p, id: r.sequence, at: r.start, left: r.last - r.first, crc: ^uint32(0)}
	b := make([]byte, r.size)
	for {
		if p != passScan && !before(s.id, r.endID) {
			return s.id, nil
		}
		if s.left == 0 { // a log can't be longer than its ring
			return s.id, nil
		}
		pos := s.at
		if err := r.read(pos, b); err != nil {
			return 0, err
		}
		s.at = r.next(s.at)
		s.left--
		if be.Uint32(b[hMagic:]) != magic || be.Uint32(b[hSequence:]) != s.id {
			return s.id, nil
		}
		var done bool
		var err error
		switch be.Uint32(b[hType:]) {
		case typeDescriptor:
			err = r.descriptor(s, pos, b)
		case typeCommit:
			done, err = r.commit(s, pos, b)
		case typeRevoke:
			err = r.revoke(s, pos, b)
		default:
			done = true
		}
		if done || err != nil {
			return s.id, err
		}
	}
}

// tailOK verifies the checksum at the end of a descriptor or revoke block.
func (r *recovery) tailOK(b []byte) bool {
	if !r.csumV23() {
		return true
	}
	tail := len(b) - tailSize
	crc := crc32c(r.seed, b[:tail])
	return crc32c(crc, make([]byte, tailSize)) == be.Uint32(b[tail:])
}

// tagBytes is the size of a tag (journal_tag_bytes in fs/jbd2/journal.c).
func (r *recovery) tagBytes() int {
	if r.incompat&incompatCsumV3 != 0 {
		return tag3Size
	}
	n := tagSize
	if r.incompat&incompatCsumV2 != 0 {
		n += 2
	}
	if r.incompat&incompat64Bit == 0 {
		n -= 4
	}
	return n
}

// tag is one decoded tag: a block of data follows the descriptor for each.
type tag struct {
	target   uint64
	flags    uint16
	checksum uint32 // 16 bits before V3
}

// tags decodes a descriptor block.
func (r *recovery) tags(b []byte) []tag {
	limit := len(b)
	if r.csumV23() {
		limit -= tailSize
	}
	size := r.tagBytes()
	var list []tag
	for at := hSize; at+size <= limit; {
		p := b[at:]
		t := tag{target: uint64(be.Uint32(p[tagBlock:])), flags: be.Uint16(p[tagFlags:])}
		if r.incompat&incompat64Bit != 0 {
			t.target |= uint64(be.Uint32(p[tagBlockHi:])) << 32
		}
		if r.incompat&incompatCsumV3 != 0 {
			t.checksum = be.Uint32(p[tag3Sum:])
		} else {
			t.checksum = uint32(be.Uint16(p[tagChecksum:]))
		}
		list = append(list, t)
		at += size
		if t.flags&flagSameUUID == 0 {
			at += uuidSize
		}
		if t.flags&flagLast != 0 {
			break
		}
	}
	return list
}

// descriptor handles a block of tags and the data blocks behind it.
func (r *recovery) descriptor(s *state, pos uint32, b []byte) error {
	if !r.tailOK(b) {
		if s.p != passScan {
			return ondisk.Corruptf(format, "journal descriptor", int64(pos)*int64(r.size), "transaction %d: wrong checksum", s.id)
		}
		s.suspect = true // stale, or damaged: the commit block will tell
	}
	data := make([]byte, 0)
	sum := s.p == passScan && r.compat&compatChecksum != 0 && !s.suspect && !r.found
	if sum {
		s.crc = crc32BE(s.crc, b)
	}
	if sum || s.p == passReplay {
		data = make([]byte, r.size)
	}
	for _, t := range r.tags(b) {
		if s.left == 0 {
			return nil
		}
		src := s.at
		s.at = r.next(s.at)
		s.left--
		if len(data) == 0 {
			continue
		}
		if s.p == passReplay {
			if at, ok := r.revoked[t.target]; ok && !before(at, s.id) {
				continue
			}
		}
		if err := r.read(src, data); err != nil {
			return err
		}
		if sum {
			s.crc = crc32BE(s.crc, data)
			continue
		}
		if err := r.write(s.id, src, t, data); err != nil {
			return err
		}
	}
	return nil
}

// write notes that recovery writes data, which lie in journal block src.
func (r *recovery) write(id, src uint32, t tag, data []byte) error {
	pos := int64(src) * int64(r.size)
	if r.csumV23() {
		var seq [4]byte
		be.PutUint32(seq[:], id)
		crc := crc32c(crc32c(r.seed, seq[:]), data)
		if r.incompat&incompatCsumV3 == 0 {
			crc &= 0xFFFF
		}
		if crc != t.checksum {
			return ondisk.Corruptf(format, "journal data", pos, "transaction %d, block %d of the filesystem: wrong checksum", id, t.target)
		}
	}
	if t.target >= r.fsBlocks {
		return ondisk.Corruptf(format, "journal tag", pos, "transaction %d writes block %d of %d", id, t.target, r.fsBlocks)
	}
	if len(r.writes) >= maxRecords {
		return ondisk.Unsupportedf(format, "journal", pos, "more than %d blocks to write", maxRecords)
	}
	r.writes[t.target] = write{target: t.target, source: src, escaped: t.flags&flagEscape != 0}
	return nil
}

// commit handles a commit block, which ends a transaction. done means that the
// log ends here.
func (r *recovery) commit(s *state, pos uint32, b []byte) (done bool, err error) {
	if s.p != passScan {
		s.id++
		return false, nil
	}
	time := be.Uint64(b[cCommitSec:])
	if s.suspect {
		// Left over from an older use of the journal if its time lies before;
		// otherwise this transaction was committed and has been damaged.
		if time >= s.lastTime {
			return false, ondisk.Corruptf(format, "journal", int64(pos)*int64(r.size), "transaction %d: wrong checksum of a descriptor or revoke block", s.id)
		}
		return true, nil
	}
	ok := true
	if r.compat&compatChecksum != 0 {
		if r.found { // an asynchronous commit failed before, and the log went on
			return true, nil
		}
		sum, typ, size := be.Uint32(b[cChecksum:]), b[cChecksumType], b[cChecksumSize]
		ok = sum == s.crc && typ == checksumCRC32 && size == crc32Size || sum == 0 && typ == 0 && size == 0
		s.crc = ^uint32(0)
	}
	if !ok || !r.commitOK(b) {
		if time < s.lastTime {
			return true, nil
		}
		if !r.found {
			r.endID, r.found = s.id, true
		}
		if r.incompat&incompatAsync == 0 {
			return true, nil // the commit was interrupted
		}
	}
	s.lastTime = time
	s.id++
	return false, nil
}

// commitOK verifies the checksum of a commit block; some writers left out what
// lies behind the header.
func (r *recovery) commitOK(b []byte) bool {
	if !r.csumV23() {
		return true
	}
	want := be.Uint32(b[cChecksum:])
	c := append([]byte(nil), b...)
	clear(c[cChecksum : cChecksum+4])
	if crc32c(r.seed, c) == want {
		return true
	}
	clear(c[cSize:])
	return crc32c(r.seed, c) == want
}

// revoke handles a block of revoke records: older copies of those blocks in the
// log must not be written.
func (r *recovery) revoke(s *state, pos uint32, b []byte) error {
	if s.p == passScan && !r.tailOK(b) {
		s.suspect = true
	}
	if s.p != passRevoke {
		return nil
	}
	limit := len(b)
	if r.csumV23() {
		limit -= tailSize
	}
	used := be.Uint32(b[rCount:])
	if uint64(used) > uint64(limit) {
		return ondisk.Corruptf(format, "journal revoke block", int64(pos)*int64(r.size), "transaction %d: %d bytes used of %d", s.id, used, limit)
	}
	size := 4
	if r.incompat&incompat64Bit != 0 {
		size = 8
	}
	for at := rHeaderSize; at+size <= int(used); at += size {
		blk := uint64(be.Uint32(b[at:]))
		if size == 8 {
			blk = be.Uint64(b[at:])
		}
		if blk >= r.fsBlocks {
			continue // nothing can be written there
		}
		if old, ok := r.revoked[blk]; !ok || before(old, s.id) {
			r.revoked[blk] = s.id
		}
		if len(r.revoked) > maxRecords {
			return ondisk.Unsupportedf(format, "journal", int64(pos)*int64(r.size), "more than %d blocks revoked", maxRecords)
		}
	}
	return nil
}

// crc32Table is of the polynomial 0x04C11DB7, most significant bit first: the
// transaction checksum of compatChecksum (crc32_be in lib/crc/crc32.c).
var crc32Table = func() (t [256]uint32) {
	for i := range t {
		c := uint32(i) << 24
		for range 8 {
			if c&0x80000000 != 0 {
				c = c<<1 ^ 0x04C11DB7
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc32BE(crc uint32, p []byte) uint32 {
	for _, b := range p {
		crc = crc<<8 ^ crc32Table[byte(crc>>24)^b]
	}
	return crc
}
