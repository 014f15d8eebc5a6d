package vhd

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
	"unicode/utf16"
)

// encodeStamp is the inverse of stamp.
func encodeStamp(t time.Time) (uint32, error) {
	if t.IsZero() {
		return 0, nil
	}
	s := t.Unix() - epoch.Unix()
	if s < 0 || s > math.MaxUint32 {
		return 0, fmt.Errorf("vhd: time %s can't be stored", t.UTC().Format(time.RFC3339))
	}
	return uint32(s), nil
}

func encodeFooter(opt WriteOptions, t diskType, size int64) ([]byte, error) {
	created, err := encodeStamp(opt.Created)
	if err != nil {
		return nil, err
	}
	b := make([]byte, footerSize)
	copy(b, footerCookie)
	be.PutUint32(b[offFeatures:], featuresAlways)
	be.PutUint32(b[offVersion:], formatVersion)
	be.PutUint64(b[offDataOffset:], footerSize)
	if t == typeFixed {
		be.PutUint64(b[offDataOffset:], math.MaxUint64)
	}
	be.PutUint32(b[offTimeStamp:], created)
	copy(b[offCreatorApp:], creator)
	be.PutUint16(b[offCreatorVer:], 1)
	copy(b[offCreatorOS:], "Wi2k")
	be.PutUint64(b[offOriginal:], uint64(size))
	be.PutUint64(b[offCurrent:], uint64(size))
	be.PutUint16(b[offGeometry:], 65535)
	b[offGeometry+2], b[offGeometry+3] = 16, 255
	be.PutUint32(b[offDiskType:], uint32(t))
	copy(b[offUniqueID:], opt.ID[:])
	be.PutUint32(b[offFooterSum:], checksum(b, offFooterSum))
	return b, nil
}

// encodeHeader fills b.head and lays out b.locators at b.end.
func (b *builder) encodeHeader(entries uint32, t diskType, opt DiffOptions) error {
	h := make([]byte, headerSize)
	copy(h, headerCookie)
	be.PutUint64(h[offNextOffset:], math.MaxUint64) // no further structure
	be.PutUint64(h[offTableOffset:], footerSize+headerSize)
	be.PutUint32(h[offHeaderVer:], formatVersion)
	be.PutUint32(h[offTableEntries:], entries)
	be.PutUint32(h[offBlockSize:], uint32(opt.BlockSize))
	if t == typeDifferencing {
		stamp, err := encodeStamp(opt.ParentModified)
		if err != nil {
			return err
		}
		copy(h[offParentID:], opt.ParentID[:])
		be.PutUint32(h[offParentTime:], stamp)
		name := encodeUTF16(opt.ParentName, binary.BigEndian)
		if len(name) > parentNameSize {
			return fmt.Errorf("vhd: parent name of %d bytes in UTF-16, at most %d", len(name), parentNameSize)
		}
		copy(h[offParentName:], name)
		if err := b.encodeLocators(h, opt); err != nil {
			return err
		}
	}
	be.PutUint32(h[offHeaderSum:], checksum(h, offHeaderSum))
	b.head = h
	return nil
}

func (b *builder) encodeLocators(h []byte, opt DiffOptions) error {
	if len(opt.Locators) > locatorCount {
		return fmt.Errorf("vhd: %d parent locators, at most %d", len(opt.Locators), locatorCount)
	}
	for i, l := range opt.Locators {
		var data []byte
		switch l.Platform {
		case "W2ru", "W2ku":
			data = encodeUTF16(l.Path, binary.LittleEndian)
		case "Wi2r", "Wi2k":
			data = []byte(l.Path)
		case "MacX":
			data = []byte("file://" + l.Path)
		default:
			return fmt.Errorf("vhd: parent locator platform %q", l.Platform)
		}
		if len(data) > maxLocator {
			return fmt.Errorf("vhd: parent locator of %d bytes, at most %d", len(data), maxLocator)
		}
		space := (len(data) + sectorSize - 1) &^ (sectorSize - 1)
		e := h[offLocators+i*locatorSize:]
		copy(e[offPlatform:], l.Platform)
		// Bytes, against the text ("number of 512-byte sectors"): what Windows,
		// VirtualBox and tapdisk write, and tapdisk requires.
		be.PutUint32(e[offDataSpace:], uint32(space))
		be.PutUint32(e[offDataLength:], uint32(len(data)))
		be.PutUint64(e[offDataStart:], uint64(b.end))
		padded := make([]byte, space)
		copy(padded, data)
		b.locators = append(b.locators, locatorData{b.end, padded})
		b.end += int64(space)
	}
	return nil
}

func encodeUTF16(s string, order binary.AppendByteOrder) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = order.AppendUint16(b, c)
	}
	return b
}
