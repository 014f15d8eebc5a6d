package lvm

import (
	"context"
	"encoding/binary"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// area is a metadata area whose header has been read.
type area struct {
	region
	text region // its offset counts from the area's; size 0: there is none
	crc  uint32
}

// checkRegion checks that a metadata area lies on a device of that size, and gives
// it its size where the header leaves that open.
func checkRegion(r region, size int64) (region, error) {
	have := uint64(size)
	if r.off > have || have-r.off < mdaHeaderSize {
		return r, ondisk.Corruptf(format, "metadata area", -1, "its header at %#x lies past the end of the device (%#x)", r.off, have)
	}
	if r.size == 0 {
		r.size = have - r.off
	}
	if r.size <= mdaHeaderSize || r.size > have-r.off {
		return r, ondisk.Corruptf(format, "metadata area", int64(r.off), "%#x bytes, which end past the device (%#x)", r.size, have)
	}
	return r, nil
}

// parseArea reads the header of the metadata area r.
func parseArea(b []byte, r region) (area, error) {
	le := binary.LittleEndian
	a := area{region: r}
	at := int64(r.off)
	if have, want := checksum(crcInit, b[mdaOffMagic:mdaHeaderSize]), le.Uint32(b[mdaOffCRC:]); have != want {
		return a, ondisk.Corruptf(format, "metadata area header", at, "checksum %#08x, want %#08x", have, want)
	}
	if magic := b[mdaOffMagic:mdaOffVersion]; string(magic) != mdaMagic {
		return a, ondisk.Corruptf(format, "metadata area header", at+mdaOffMagic, "magic %q", magic)
	}
	if v := le.Uint32(b[mdaOffVersion:]); v != mdaVersion {
		return a, ondisk.Unsupportedf(format, "metadata area header", at+mdaOffVersion, "version %d", v)
	}
	if start, size := le.Uint64(b[mdaOffStart:]), le.Uint64(b[mdaOffSize:]); start != r.off || size > r.size || size <= mdaHeaderSize {
		return a, ondisk.Corruptf(format, "metadata area header", at+mdaOffStart,
			"it is of %#x bytes at %#x, in an area of %#x bytes", size, start, r.size)
	} else {
		a.size = size
	}
	locn := b[mdaOffLocn:]
	off, size := le.Uint64(locn[rawOffStart:]), le.Uint64(locn[rawOffSize:])
	if off == 0 || le.Uint32(locn[rawOffFlags:])&rawIgnored != 0 {
		return a, nil
	}
	// The text lies in the ring behind the header, and no piece of it twice.
	if off < mdaHeaderSize || off >= a.size || size == 0 || size > a.size-mdaHeaderSize {
		return a, ondisk.Corruptf(format, "metadata area header", at+mdaOffLocn, "text of %#x bytes at %#x of %#x", size, off, a.size)
	}
	if size > maxText {
		return a, ondisk.Unsupportedf(format, "metadata area header", at+mdaOffLocn, "text of %d bytes, more than %d", size, maxText)
	}
	a.text, a.crc = region{off, size}, le.Uint32(locn[rawOffCRC:])
	return a, nil
}

// pieces returns where the text lies on the device: in one piece, or in two where
// it goes round the end of the area.
func (a *area) pieces() []block.Range {
	first := min(a.text.size, a.size-a.text.off)
	list := []block.Range{{Off: int64(a.off + a.text.off), Len: int64(first)}}
	if rest := a.text.size - first; rest > 0 {
		list = append(list, block.Range{Off: int64(a.off + mdaHeaderSize), Len: int64(rest)})
	}
	return list
}

// readText reads the text and checks it.
func (a *area) readText(ctx context.Context, dev block.Reader) ([]byte, error) {
	b := make([]byte, 0, a.text.size)
	for _, g := range a.pieces() {
		b = b[:len(b)+int(g.Len)]
		if err := block.ReadFull(ctx, dev, b[len(b)-int(g.Len):], g.Off); err != nil {
			return nil, err
		}
	}
	if have := checksum(crcInit, b); have != a.crc {
		return nil, ondisk.Corruptf(format, "metadata text", int64(a.off+a.text.off), "checksum %#08x, want %#08x", have, a.crc)
	}
	return b, nil
}
