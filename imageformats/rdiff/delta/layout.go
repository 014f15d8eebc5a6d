package delta

import "encoding/binary"

// The delta stream of librsync 2.3.2. Sources: librsync's doc/format.md, section
// "Delta files", and src/prototab.c for the commands and their parameters;
// zero lengths are refused as rs_patch_s_literal and rs_patch_s_copy of
// src/patch.c do. All numbers are big-endian and unsigned. The stream carries
// neither a checksum nor the size of what it makes.

// magic begins every delta (RS_DELTA_MAGIC of librsync.h).
const (
	magic     = 0x72730236
	magicSize = 4
)

// Commands (src/prototab.c). Each is one byte, followed by its parameters.
const (
	opEnd         = 0x00
	opLiteral1    = 0x01 // a literal of 1 byte; up to opLiteral64 the code is the length
	opLiteral64   = 0x40
	opLiteralN1   = 0x41 // the length in 1 byte, and in 2, 4, 8 up to opLiteralN8
	opLiteralN8   = 0x44
	opCopyN1N1    = 0x45 // start, then length, each in 1, 2, 4 or 8 bytes
	opCopyN8N8    = 0x54
	maxParameters = 16 // bytes: the two of opCopyN8N8
)

var be = binary.BigEndian

// literalWidth returns in how many bytes the length of a literal with code
// opLiteralN1..opLiteralN8 is stored.
func literalWidth(op byte) int { return 1 << (op - opLiteralN1) }

// copyWidths returns in how many bytes start and length of a copy with code
// opCopyN1N1..opCopyN8N8 are stored.
func copyWidths(op byte) (start, length int) {
	i := op - opCopyN1N1
	return 1 << (i >> 2), 1 << (i & 3)
}

// number decodes a parameter of 1, 2, 4 or 8 bytes.
func number(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(be.Uint16(b))
	case 4:
		return uint64(be.Uint32(b))
	default:
		return be.Uint64(b)
	}
}

// maxSize bounds start, length and the size of a version, bytes: an exbibyte, far
// beyond any file and small enough that sums of two can't overflow.
const maxSize = 1 << 60
