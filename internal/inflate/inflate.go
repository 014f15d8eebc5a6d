// Package inflate decompresses deflate streams (RFC 1951) of known size in one go:
// the clusters, grains and chunks of compressed images, which are in memory as a
// whole. Knowing both ends spares the window and the state of a reader, and so it
// is two to three times as fast as one.
package inflate

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"sync"
)

// Errors of Raw.
var (
	ErrCorrupt = errors.New("deflate: invalid code")
	ErrShort   = errors.New("deflate: the data end early")
)

const (
	litBits  = 11 // bits of a code that the first look-up takes
	distBits = 9
	maxCode  = 15  // RFC 1951, 3.2.7: bits of the longest code
	numLit   = 288 // 3.2.6
	numDist  = 32
	endBlock = 256

	// Table entries: the kind or number of extra bits, the length of the code, and
	// a value.
	//
	//	bits 0-3    length of the code in bits; of a link, of the first look-up's
	//	bits 4-7    extra bits; of a link, bits of the second look-up
	//	bits 8-11   kind
	//	bits 12-31  literal, base of a length or distance, or start of the sub-table
	kindShift           = 8
	kindBase     uint32 = 0 << kindShift // length or distance
	kindLiteral  uint32 = 1 << kindShift
	kindEnd      uint32 = 2 << kindShift
	kindLink     uint32 = 4 << kindShift
	invalidEntry uint32 = 8 << kindShift
	kindMask     uint32 = 15 << kindShift
	valueShift          = 12
)

// RFC 1951, 3.2.5.
var (
	lengthBase = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthBits = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase   = [...]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distExtra  = [...]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	// 3.2.7: the order of the lengths of the codes of lengths.
	codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

// decoder is the scratch space of one decompression.
type decoder struct {
	// A first look-up, and room for a sub-table for each code: 288 of 16 entries, 32
	// of 64. The sizes are powers of two, so that a mask keeps an index inside.
	lit     [1 << 13]uint32
	dist    [1 << 12]uint32
	lengths [numLit + numDist]uint8
}

var decoders = sync.Pool{New: func() any { return new(decoder) }}

// Raw decompresses the stream at the start of src into dst. It ends with the
// stream or when dst is full, and returns how many bytes of dst were filled, and
// how many of src the stream took; ended is false when dst was filled before the
// stream's end was seen. What stands behind the stream is not looked at. After an
// error what dst holds means nothing.
func Raw(dst, src []byte) (filled, taken int, ended bool, err error) {
	d := decoders.Get().(*decoder)
	defer decoders.Put(d)
	r := reader{src: src}
	for {
		r.fill()
		final, kind := r.bits&1 != 0, r.bits>>1&3
		r.drop(3)
		var full bool
		switch kind {
		case 0:
			filled, full, err = r.stored(dst, filled)
		case 1:
			d.fixed()
			filled, full, err = d.block(&r, dst, filled)
		case 2:
			if err = d.dynamic(&r); err == nil {
				filled, full, err = d.block(&r, dst, filled)
			}
		default:
			err = ErrCorrupt
		}
		if err == nil && r.over() {
			err = ErrShort
		}
		if err != nil {
			return 0, 0, false, err
		}
		if full || final {
			return filled, r.taken(), !full, nil
		}
	}
}

// reader takes bits from src, lowest first. Behind the end it gives zeros, and
// counts them as negative.
type reader struct {
	src  []byte
	pos  int    // next byte to take into bits
	bits uint64 // at least n of them are src's
	n    uint
	past int // bytes taken behind the end
}

// fill makes n at least 56.
func (r *reader) fill() {
	if len(r.src)-r.pos >= 8 {
		r.bits |= binary.LittleEndian.Uint64(r.src[r.pos:]) << r.n
		r.pos += int((63 - r.n) >> 3)
		r.n |= 56
		return
	}
	for r.n <= 56 {
		if r.pos < len(r.src) {
			r.bits |= uint64(r.src[r.pos]) << r.n
			r.pos++
		} else {
			r.past++
		}
		r.n += 8
	}
}

func (r *reader) drop(n uint) {
	r.bits >>= n
	r.n -= n
}

// take returns the next n bits, which fill must have seen to.
func (r *reader) take(n uint) uint {
	v := uint(r.bits & (1<<n - 1))
	r.drop(n)
	return v
}

// over reports whether bits behind the end have been used.
func (r *reader) over() bool { return uint(r.past)*8 > r.n }

// taken returns how many bytes have been used, the last in part.
func (r *reader) taken() int { return r.pos + r.past - int(r.n>>3) }

// stored copies an uncompressed block (3.2.4).
func (r *reader) stored(dst []byte, at int) (filled int, full bool, err error) {
	r.drop(r.n & 7)
	r.fill()
	n := int(r.bits & 0xffff)
	if uint16(n) != ^uint16(r.bits>>16) {
		return at, false, ErrCorrupt
	}
	r.drop(32)
	pos := r.taken()
	if pos > len(r.src) || n > len(r.src)-pos && len(r.src)-pos < len(dst)-at {
		return at, false, ErrShort
	}
	*r = reader{src: r.src, pos: pos}
	if room := len(dst) - at; n > room {
		n = room
		full = true
	}
	copy(dst[at:at+n], r.src[pos:])
	r.pos += n
	return at + n, full, nil
}

// block decodes the symbols of a block (3.2.3). full says that dst was too short.
func (d *decoder) block(r *reader, dst []byte, at int) (filled int, full bool, err error) {
	src, pos, hold, n := r.src, r.pos, r.bits, r.n
	lit, dist := &d.lit, &d.dist
	for {
		if len(src)-pos >= 8 {
			hold |= binary.LittleEndian.Uint64(src[pos:]) << n
			pos += int((63 - n) >> 3)
			n |= 56
		} else {
			r.pos, r.bits, r.n = pos, hold, n
			r.fill()
			pos, hold, n = r.pos, r.bits, r.n
			if r.over() {
				return at, false, ErrShort
			}
		}
		// 56 bits hold four literals of the first look-up.
		e := lit[hold&(1<<litBits-1)]
		if e&kindLiteral != 0 && at < len(dst)-4 {
			out := (*[4]byte)(dst[at:]) // one check for all
			hold >>= e & 15
			n -= uint(e & 15)
			out[0] = byte(e >> valueShift)
			at++
			if e = lit[hold&(1<<litBits-1)]; e&kindLiteral != 0 {
				hold >>= e & 15
				n -= uint(e & 15)
				out[1] = byte(e >> valueShift)
				at++
				if e = lit[hold&(1<<litBits-1)]; e&kindLiteral != 0 {
					hold >>= e & 15
					n -= uint(e & 15)
					out[2] = byte(e >> valueShift)
					at++
					if e = lit[hold&(1<<litBits-1)]; e&kindLiteral != 0 {
						hold >>= e & 15
						n -= uint(e & 15)
						out[3] = byte(e >> valueShift)
						at++
						continue
					}
				}
			}
			if n < 2*maxCode {
				continue // look the next one up again, with more bits at hand
			}
		}
		if e&kindMask == kindLink {
			hold >>= litBits
			n -= litBits
			e = lit[(e>>valueShift+uint32(hold&(1<<(e>>4&15)-1)))&(1<<13-1)]
		}
		hold >>= e & 15
		n -= uint(e & 15)
		switch e & kindMask {
		case kindLiteral:
			if at == len(dst) {
				return at, true, nil
			}
			dst[at] = byte(e >> valueShift)
			at++
			continue
		case kindEnd:
			r.pos, r.bits, r.n = pos, hold, n
			return at, false, nil
		case kindBase:
		default:
			return at, false, ErrCorrupt
		}
		x := e >> 4 & 15
		length := int(e>>valueShift) + int(hold&(1<<x-1))
		hold >>= x
		n -= uint(x)
		if n < 2*maxCode { // a code of 15 bits and 13 extra ones
			r.pos, r.bits, r.n = pos, hold, n
			r.fill()
			pos, hold, n = r.pos, r.bits, r.n
		}
		e = dist[hold&(1<<distBits-1)]
		if e&kindMask == kindLink {
			hold >>= distBits
			n -= distBits
			e = dist[(e>>valueShift+uint32(hold&(1<<(e>>4&15)-1)))&(1<<12-1)]
		}
		if e&kindMask != kindBase {
			return at, false, ErrCorrupt
		}
		hold >>= e & 15
		n -= uint(e & 15)
		x = e >> 4 & 15
		back := int(e>>valueShift) + int(hold&(1<<x-1))
		hold >>= x
		n -= uint(x)
		if back > at {
			return at, false, ErrCorrupt
		}
		if room := len(dst) - at; length > room {
			length, full = room, true
		}
		if back >= 8 && length <= 16 && at < len(dst)-16 {
			// Short and apart: what is copied too much is written over.
			from := dst[at-back:]
			binary.LittleEndian.PutUint64(dst[at:], binary.LittleEndian.Uint64(from))
			if length > 8 {
				binary.LittleEndian.PutUint64(dst[at+8:], binary.LittleEndian.Uint64(from[8:]))
			}
			at += length
			continue
		}
		at = repeat(dst, at, back, length)
		if full {
			r.pos, r.bits, r.n = pos, hold, n
			return at, true, nil
		}
	}
}

// repeat copies the n bytes that lie back bytes before at; they may be ones that
// it has just written.
func repeat(dst []byte, at, back, n int) int {
	from := at - back
	if back >= n {
		copy(dst[at:at+n], dst[from:])
		return at + n
	}
	for end := at + n; at < end; {
		at += copy(dst[at:end], dst[from:at])
	}
	return at
}

// fixed sets the tables of 3.2.6.
func (d *decoder) fixed() {
	for i := range numLit {
		switch {
		case i < 144:
			d.lengths[i] = 8
		case i < 256:
			d.lengths[i] = 9
		case i < 280:
			d.lengths[i] = 7
		default:
			d.lengths[i] = 8
		}
	}
	for i := range numDist {
		d.lengths[numLit+i] = 5
	}
	build(d.lit[:], litBits, d.lengths[:numLit], litEntry)
	build(d.dist[:], distBits, d.lengths[numLit:], distEntry)
}

// dynamic reads the tables of 3.2.7.
func (d *decoder) dynamic(r *reader) error {
	r.fill()
	nLit, nDist, nCode := int(r.take(5))+257, int(r.take(5))+1, int(r.take(4))+4
	if nLit > 286 || nDist > 30 {
		return ErrCorrupt
	}
	var codes [19]uint8
	for i := range nCode {
		if i%16 == 0 {
			r.fill()
		}
		codes[codeOrder[i]] = uint8(r.take(3))
	}
	var table [128]uint32
	if !build(table[:], 7, codes[:], func(i int) uint32 { return uint32(i)<<valueShift | kindLiteral }) {
		return ErrCorrupt
	}
	for i := 0; i < nLit+nDist; {
		r.fill()
		e := table[r.bits&127]
		if e&kindMask != kindLiteral {
			return ErrCorrupt
		}
		r.drop(uint(e & 15))
		v, n := uint8(e>>valueShift), 1
		switch v {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			v, n = d.lengths[i-1], 3+int(r.take(2))
		case 17:
			v, n = 0, 3+int(r.take(3))
		case 18:
			v, n = 0, 11+int(r.take(7))
		}
		if n > nLit+nDist-i {
			return ErrCorrupt
		}
		for range n {
			d.lengths[i] = v
			i++
		}
	}
	if r.over() {
		return ErrShort
	}
	if d.lengths[endBlock] == 0 || !build(d.lit[:], litBits, d.lengths[:nLit], litEntry) || !build(d.dist[:], distBits, d.lengths[nLit:nLit+nDist], distEntry) {
		return ErrCorrupt
	}
	return nil
}

func litEntry(i int) uint32 {
	switch {
	case i < endBlock:
		return uint32(i)<<valueShift | kindLiteral
	case i == endBlock:
		return kindEnd
	case i-endBlock-1 < len(lengthBase):
		return uint32(lengthBase[i-endBlock-1])<<valueShift | kindBase | uint32(lengthBits[i-endBlock-1])<<4
	}
	return invalidEntry
}

func distEntry(i int) uint32 {
	if i < len(distBase) {
		return uint32(distBase[i])<<valueShift | kindBase | uint32(distExtra[i])<<4
	}
	return invalidEntry
}

// build makes the table of the codes of those lengths (3.2.2): a first look-up of
// width bits, and behind it a sub-table for each start that longer codes share. It
// returns false for lengths that make no code. One that is incomplete is taken
// where it has a single code of one bit, or none (3.2.7), as zlib does.
func build(table []uint32, width uint, lengths []uint8, entry func(int) uint32) bool {
	var count, next [maxCode + 1]uint32
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	left, longest := 1, uint(0)
	for n := uint(1); n <= maxCode; n++ {
		if left = left<<1 - int(count[n]); left < 0 {
			return false
		}
		if count[n] > 0 {
			longest = n
		}
		next[n] = (next[n-1] + count[n-1]) << 1
	}
	if left > 0 && longest > 1 {
		return false
	}
	first := table[:1<<width]
	clear(first)
	if left > 0 {
		for i := range first {
			first[i] = invalidEntry
		}
	}
	free := uint32(1) << width
	for i, n8 := range lengths {
		n := uint(n8)
		if n == 0 {
			continue
		}
		code := uint32(bits.Reverse16(uint16(next[n])) >> (16 - n)) // its first bit lowest
		next[n]++
		e := entry(i)
		if n <= width {
			for j := code; j < 1<<width; j += 1 << n {
				first[j] = e | uint32(n)
			}
			continue
		}
		more := longest - width
		start := &first[code&(1<<width-1)]
		if *start&kindMask != kindLink {
			*start = free<<valueShift | kindLink | uint32(more)<<4
			free += 1 << more
		}
		sub := table[*start>>valueShift:][:1<<more]
		for j := code >> width; j < 1<<more; j += 1 << (n - width) {
			sub[j] = e | uint32(n-width)
		}
	}
	return true
}
