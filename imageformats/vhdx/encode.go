package vhdx

import (
	"fmt"
	"unicode/utf16"

	"yester/imageformats"
)

// creatorName goes into the file type identifier, which is for diagnosis only
// ([2.2.1]).
const creatorName = "yester"

// Where a written file keeps what isn't a block.
const (
	writeLogOff      = 1 * mib
	writeLogSize     = 1 * mib
	writeMetadataOff = 2 * mib
	writeMetadata    = 1 * mib
	writeBATOff      = 3 * mib
)

func encodeUTF16(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = le.AppendUint16(b, c)
	}
	return b
}

// encodeFileType returns the file type identifier.
func encodeFileType() []byte {
	b := make([]byte, tableSize)
	copy(b, fileTypeSig)
	copy(b[offCreator:offCreator+creatorSize], encodeUTF16(creatorName))
	return b
}

// encodeHeader returns a header.
func encodeHeader(h header) []byte {
	b := make([]byte, headerSize)
	copy(b, headerSig)
	le.PutUint64(b[offSequence:], h.sequence)
	putGUID(b[offFileGUID:], h.dataGUID)
	putGUID(b[offDataGUID:], h.dataGUID)
	putGUID(b[offLogGUID:], h.logGUID)
	le.PutUint16(b[offLogVersion:], h.logVersion)
	le.PutUint16(b[offVersion:], h.version)
	le.PutUint32(b[offLogLength:], h.logLength)
	le.PutUint64(b[offLogOffset:], h.logOffset)
	le.PutUint32(b[offHeaderSum:], checksum(b, offHeaderSum))
	return b
}

func putGUID(b []byte, g guid) {
	g = g.swapped()
	copy(b, g[:])
}

// encodeRegions returns a region table.
func encodeRegions(batSize int64) []byte {
	b := make([]byte, tableSize)
	copy(b, regionSig)
	le.PutUint32(b[offRegionCount:], 2)
	for i, r := range []struct {
		id  guid
		off int64
		n   int64
	}{{regionBAT, writeBATOff, batSize}, {regionMetadata, writeMetadataOff, writeMetadata}} {
		e := b[regionHeadSize+i*regionEntrySize:]
		putGUID(e[offRegionGUID:], r.id)
		le.PutUint64(e[offRegionOffset:], uint64(r.off))
		le.PutUint32(e[offRegionLength:], uint32(r.n))
		le.PutUint32(e[offRegionFlags:], regionRequired)
	}
	le.PutUint32(b[offRegionSum:], checksum(b, offRegionSum))
	return b
}

// encodeMetadata returns the metadata table and its items.
func encodeMetadata(opt WriteOptions, size int64, params uint32, locator []byte) []byte {
	b := make([]byte, tableSize)
	copy(b, metadataSig)
	count := 0
	add := func(id guid, flags uint32, data []byte) {
		e := b[itemHeadSize+count*itemEntrySize:]
		count++
		putGUID(e[offItemID:], id)
		le.PutUint32(e[offItemOffset:], uint32(len(b)))
		le.PutUint32(e[offItemLength:], uint32(len(data)))
		le.PutUint32(e[offItemFlags:], flags|itemRequired)
		b = append(b, data...)
	}
	add(itemParams, 0, le.AppendUint32(le.AppendUint32(nil, uint32(opt.BlockSize)), params))
	add(itemSize, itemDisk, le.AppendUint64(nil, uint64(size)))
	disk := guid(opt.DiskID).swapped()
	add(itemDiskID, itemDisk, disk[:])
	add(itemLogical, itemDisk, le.AppendUint32(nil, uint32(opt.SectorSize)))
	add(itemPhysical, itemDisk, le.AppendUint32(nil, 4096))
	if locator != nil {
		add(itemLocator, 0, locator)
	}
	le.PutUint16(b[offItemCount:], uint16(count))
	return b
}

// encodeLocator returns a parent locator.
func encodeLocator(opt DiffOptions) ([]byte, error) {
	pairs := [][2]string{{keyLinkage, "{" + guid(opt.ParentID).String() + "}"}}
	if opt.ParentAltID != [16]byte{} {
		pairs = append(pairs, [2]string{keyLinkage2, "{" + guid(opt.ParentAltID).String() + "}"})
	}
	for _, l := range opt.Locators {
		switch l.Platform {
		case keyRelative, keyVolume, keyAbsolute:
			pairs = append(pairs, [2]string{l.Platform, l.Path})
		default:
			return nil, fmt.Errorf("vhdx: parent locator %q", l.Platform)
		}
	}
	b := make([]byte, locatorHeadSize+len(pairs)*pairSize)
	putGUID(b, locatorVHDX)
	le.PutUint16(b[offPairCount:], uint16(len(pairs)))
	for i, p := range pairs {
		k, v := encodeUTF16(p[0]), encodeUTF16(p[1])
		if len(v) > 1<<16-1 {
			return nil, fmt.Errorf("vhdx: parent locator of %d bytes, at most %d", len(v), 1<<16-1)
		}
		e := b[locatorHeadSize+i*pairSize:]
		le.PutUint32(e[offKey:], uint32(len(b)))
		le.PutUint16(e[offKeyLen:], uint16(len(k)))
		le.PutUint32(e[offValue:], uint32(len(b)+len(k)))
		le.PutUint16(e[offValueLen:], uint16(len(v)))
		b = append(append(b, k...), v...)
	}
	return b, nil
}

// ParentLocators returns locators as Hyper-V writes them for a parent: its path
// relative to the child's folder (`.\base.vhdx`), and its absolute path on
// Windows (`C:\base.vhdx`). Either may be empty.
func ParentLocators(relative, absolute string) []imageformats.Locator {
	var l []imageformats.Locator
	if relative != "" {
		l = append(l, imageformats.Locator{Platform: keyRelative, Path: relative, Relative: true})
	}
	if absolute != "" {
		l = append(l, imageformats.Locator{Platform: keyAbsolute, Path: absolute})
	}
	return l
}
