package iscsi

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"syscall"
)

// NAA derives a logical unit's name from the target's name, which says which
// machine and which time, and the unit's number: the same restore point has the
// same name wherever it is served. It is of NAA format 3, locally assigned
// (SPC-4 section 7.8.6.6.4): four bits of format, 60 of hash.
func NAA(iqn string, lun uint16) [8]byte {
	h := sha256.Sum256(binary.BigEndian.AppendUint16([]byte(iqn+"\x00"), lun))
	n := [8]byte(h[:8])
	n[0] = 0x30 | n[0]&0x0f
	return n
}

// isExhausted reports errors of accept that pass.
func isExhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
