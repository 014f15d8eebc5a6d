package lvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"yester/internal/ondisk"
)

// format is the name in errors.
const format = "lvm2"

// checksum continues crc over b; a text that goes round the end of its area is
// summed in two pieces.
func checksum(crc uint32, b []byte) uint32 {
	return ^crc32.Update(^crc, crc32.IEEETable, b)
}

// region is a run of a device's bytes.
type region struct{ off, size uint64 }

// header is a PV's label and what stands behind it.
type header struct {
	uuid string // with dashes
	size uint64 // bytes, as the header says
	mdas []region
}

// readLabel finds the label in the first sectors of a device. The error matches
// ondisk.ErrFormat when there is none.
func readLabel(b []byte) (*header, error) {
	var damage error
	for n := range min(labelSectors, len(b)/sectorSize) {
		sector := b[n*sectorSize:][:sectorSize]
		if string(sector[:len(labelMagic)]) != labelMagic {
			continue
		}
		h, err := parseLabel(sector, n)
		if err == nil {
			return h, nil
		}
		damage = errors.Join(damage, err)
	}
	if damage == nil {
		return nil, fmt.Errorf("no LVM label: %w", ondisk.ErrFormat)
	}
	return nil, damage
}

func parseLabel(sector []byte, n int) (*header, error) {
	at := int64(n) * sectorSize
	le := binary.LittleEndian
	if typ := sector[labelOffType:labelEnd]; string(typ) != labelType {
		return nil, ondisk.Unsupportedf(format, "label", at+labelOffType, "type %q", typ)
	}
	if have, want := checksum(crcInit, sector[labelOffHeader:]), le.Uint32(sector[labelOffCRC:]); have != want {
		return nil, ondisk.Corruptf(format, "label", at+labelOffCRC, "checksum %#08x, want %#08x", have, want)
	}
	if s := le.Uint64(sector[labelOffSector:]); s != uint64(n) {
		return nil, ondisk.Corruptf(format, "label", at+labelOffSector, "it is of sector %d", s)
	}
	off := le.Uint32(sector[labelOffHeader:])
	if off < labelEnd || off > sectorSize-pvOffAreas {
		return nil, ondisk.Corruptf(format, "label", at+labelOffHeader, "PV header at %#x of the sector", off)
	}
	b := sector[off:]
	at += int64(off)
	uuid, ok := dashed(string(b[pvOffUUID:][:idLen]))
	if !ok {
		return nil, ondisk.Corruptf(format, "PV header", at, "UUID %q", b[pvOffUUID:][:idLen])
	}
	h := &header{uuid: uuid, size: le.Uint64(b[pvOffSize:])}
	pos, ok := skipAreas(b, pvOffAreas)
	if !ok {
		return nil, ondisk.Corruptf(format, "PV header", at+pvOffAreas, "the list of data areas has no end")
	}
	for ; ; pos += locnSize {
		if pos+locnSize > len(b) || len(h.mdas) > maxAreas {
			return nil, ondisk.Corruptf(format, "PV header", at+int64(pos), "the list of metadata areas has no end")
		}
		r := region{le.Uint64(b[pos+locnOffStart:]), le.Uint64(b[pos+locnOffSize:])}
		if r.off == 0 {
			return h, nil
		}
		h.mdas = append(h.mdas, r)
	}
}

// skipAreas returns where the list of areas at pos ends. Where the data begin is
// also told by the metadata, which LVM2 itself goes by.
func skipAreas(b []byte, pos int) (int, bool) {
	for ; pos+locnSize <= len(b); pos += locnSize {
		if binary.LittleEndian.Uint64(b[pos+locnOffStart:]) == 0 {
			return pos + locnSize, true
		}
	}
	return 0, false
}

// dashed returns an ID of 32 characters as LVM2 prints it, in groups of 6, 4, 4, 4,
// 4, 4 and 6; false when there are characters that an ID doesn't have.
func dashed(id string) (string, bool) {
	if len(id) != idLen {
		return "", false
	}
	for _, c := range []byte(id) {
		if !alnum(c) && c != '!' && c != '#' { // lib/uuid/uuid.c
			return "", false
		}
	}
	parts := []string{id[:6]}
	for i := 6; i < 26; i += 4 {
		parts = append(parts, id[i:i+4])
	}
	return strings.Join(append(parts, id[26:]), "-"), true
}

// undashed is the reverse of dashed, for IDs in the metadata.
func undashed(id string) (string, bool) {
	bare := strings.ReplaceAll(id, "-", "")
	again, ok := dashed(bare)
	return bare, ok && again == id
}

func alnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
