package pdu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Errors of a Reader, beside those of the connection.
var (
	// ErrHeaderDigest: nothing after a damaged header can be trusted; the
	// connection is over (RFC 7143 section 7.8).
	ErrHeaderDigest = errors.New("header digest mismatch")
	// ErrDataDigest: the data segment was read to its end and is damaged; the
	// stream is still in step.
	ErrDataDigest = errors.New("data digest mismatch")
	// ErrTooLong: the PDU claims a longer segment than the reader allows.
	ErrTooLong = errors.New("segment longer than allowed")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC continues a CRC32C over p; it begins with 0. RFC 7143 section 13.1.
func CRC(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoli, p) }

// readerBuf holds a burst of commands: 32 of them with their digests are 1.7 KiB,
// 64 KiB of immediate data come in one read.
const readerBuf = 16 << 10

// Reader takes PDUs from a byte stream. It isn't safe for parallel use.
//
// After Next, the data segment, if the header announces one, has to be taken by
// exactly one of Data and Discard before the next Next; a length of zero needs
// neither.
type Reader struct {
	// HeaderDigest and DataDigest say which digests the stream carries.
	HeaderDigest, DataDigest bool
	// MaxData is the longest data segment allowed, in bytes.
	MaxData int
	// BeforeWait, if set, is called before a read that may block.
	BeforeWait func()

	src        io.Reader
	buf        []byte
	start, end int
	left       int // bytes of the current data segment not taken yet
	total      int // its length
}

// NewReader returns a Reader of src that allows data segments of maxData bytes.
func NewReader(src io.Reader, maxData int) *Reader {
	return &Reader{src: src, MaxData: maxData, buf: make([]byte, readerBuf)}
}

// fill makes at least n bytes available in buf; n is at most len(buf).
func (r *Reader) fill(n int) error {
	if r.end-r.start >= n {
		return nil
	}
	if r.start > 0 {
		copy(r.buf, r.buf[r.start:r.end])
		r.end -= r.start
		r.start = 0
	}
	for r.end < n {
		if r.BeforeWait != nil {
			r.BeforeWait()
		}
		m, err := r.src.Read(r.buf[r.end:])
		r.end += m
		if m == 0 && err != nil {
			if err == io.EOF && r.end > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// Next reads a header and its additional segments. ahs is valid until the next
// call of any method. io.EOF means that the stream ended between two PDUs.
func (r *Reader) Next(h *Header) (ahs []byte, err error) {
	if r.left > 0 {
		return nil, errors.New("pdu: data segment not taken")
	}
	if err := r.fill(HeaderLen); err != nil {
		return nil, err
	}
	copy(h[:], r.buf[r.start:])
	n := HeaderLen + h.AHSLen()
	digest := 0
	if r.HeaderDigest {
		digest = DigestLen
	}
	if err := r.fill(n + digest); err != nil {
		return nil, unexpected(err)
	}
	b := r.buf[r.start:r.end]
	if r.HeaderDigest && binary.LittleEndian.Uint32(b[n:]) != CRC(0, b[:n]) {
		return nil, ErrHeaderDigest
	}
	ahs = b[HeaderLen:n:n]
	r.start += n + digest
	r.total = h.DataLen()
	if r.total > r.MaxData {
		return nil, fmt.Errorf("%v with %d bytes of data, at most %d allowed: %w", h.Op(), r.total, r.MaxData, ErrTooLong)
	}
	r.left = r.total
	return ahs, nil
}

// Buffered reports whether a whole header is at hand without waiting.
func (r *Reader) Buffered() bool { return r.end-r.start >= HeaderLen }

// Data reads the current data segment into dst, whose length is that of the
// segment, and checks its digest.
func (r *Reader) Data(dst []byte) error {
	if len(dst) != r.total || r.left != r.total {
		return errors.New("pdu: buffer does not fit the data segment")
	}
	return r.take(dst)
}

// Discard reads the current data segment and forgets it, digest unchecked.
func (r *Reader) Discard() error {
	for r.left > 0 {
		if err := r.fill(1); err != nil {
			return unexpected(err)
		}
		n := min(r.left, r.end-r.start)
		r.start += n
		r.left -= n
	}
	if r.total == 0 {
		return nil
	}
	trail := Padding(r.total)
	if r.DataDigest {
		trail += DigestLen
	}
	r.total = 0
	if err := r.fill(trail); err != nil {
		return unexpected(err)
	}
	r.start += trail
	return nil
}

func (r *Reader) take(dst []byte) error {
	if r.total == 0 {
		return nil
	}
	got := copy(dst, r.buf[r.start:r.end])
	r.start += got
	for got < len(dst) {
		if r.BeforeWait != nil {
			r.BeforeWait()
		}
		n, err := r.src.Read(dst[got:])
		got += n
		if n == 0 && err != nil {
			return unexpected(err)
		}
	}
	r.left = 0
	pad := Padding(r.total)
	r.total = 0
	if !r.DataDigest {
		if err := r.fill(pad); err != nil {
			return unexpected(err)
		}
		r.start += pad
		return nil
	}
	if err := r.fill(pad + DigestLen); err != nil {
		return unexpected(err)
	}
	b := r.buf[r.start:]
	crc := CRC(CRC(0, dst), b[:pad])
	r.start += pad + DigestLen
	if crc != binary.LittleEndian.Uint32(b[pad:]) {
		return ErrDataDigest
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Append appends a whole PDU to dst: header, data, padding, and the digests
// asked for. It sets the header's DataSegmentLength. For PDUs off the hot path.
func Append(dst []byte, h *Header, data []byte, headerDigest, dataDigest bool) []byte {
	h.SetDataLen(len(data))
	dst = append(dst, h[:]...)
	if headerDigest {
		dst = binary.LittleEndian.AppendUint32(dst, CRC(0, h[:]))
	}
	if len(data) == 0 {
		return dst
	}
	at := len(dst)
	dst = append(dst, data...)
	for range Padding(len(data)) {
		dst = append(dst, 0)
	}
	if dataDigest {
		dst = binary.LittleEndian.AppendUint32(dst, CRC(0, dst[at:]))
	}
	return dst
}
