package layout

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"yester/internal/ondisk"
)

// HyperV is what the configuration of a Hyper-V machine, or of one of its
// checkpoints, says.
type HyperV struct {
	Name string
	// Created is when the checkpoint was made; zero when it isn't noted.
	Created time.Time
	Disks   []Disk
}

// ParseHyperV reads a configuration: XML up to Windows Server 2012 R2 (.xml), a
// binary store from then on (.vmcx). ok is false for a file of another kind.
func ParseHyperV(data []byte) (h HyperV, ok bool, err error) {
	var root *element
	if len(data) >= 4 && binary.LittleEndian.Uint32(data) == storageMagic {
		root, err = parseStore(data)
	} else if bytes.Contains(data[:min(len(data), 4096)], []byte("<configuration")) || bytes.Contains(data[:min(len(data), 4096)], []byte("<\x00c\x00o\x00n\x00f\x00i\x00g\x00u\x00r\x00a\x00t\x00i\x00o\x00n\x00")) {
		root, err = parseXML("hyper-v configuration", data)
	} else {
		return h, false, nil
	}
	if err != nil {
		return h, true, err
	}
	if root.name != "configuration" {
		root = root.child("configuration")
	}
	p := root.child("properties")
	h.Name = p.child("name").value()
	h.Created = fileTime(p.child("creation_time"))
	if err := h.collect(root, "", 0); err != nil {
		return h, true, err
	}
	return h, true, nil
}

// collect finds the disks: each is a "drive" of a "controller" that belongs to a
// device, with its path in "pathname".
func (h *HyperV) collect(e *element, controller string, depth int) error {
	if depth > maxNesting {
		return nil
	}
	for _, c := range e.children {
		at := controller
		if strings.HasPrefix(c.name, "controller") {
			at = c.name
		}
		if path := c.child("pathname").value(); strings.HasPrefix(c.name, "drive") && path != "" && at != "" {
			if t := c.child("type").value(); t == "" || strings.EqualFold(t, "VHD") {
				field := at + "/" + c.name
				h.Disks = append(h.Disks, Disk{Node: strings.TrimPrefix(at, "controller") + ":" + strings.TrimPrefix(c.name, "drive"), File: path, Field: field + "/pathname"})
			}
			if len(h.Disks) > maxDisks {
				return corrupt("hyper-v configuration", "pathname", "more than %d disks", maxDisks)
			}
		}
		if err := h.collect(c, at, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// fileTime reads a time in units of 100 ns since 1601 ([MS-DTYP] 2.3.3), kept as
// base 64 of its bytes or as a number.
func fileTime(e *element) time.Time {
	raw, err := base64.StdEncoding.DecodeString(e.value())
	if err != nil || len(raw) != 8 {
		return time.Time{}
	}
	const between1601And1970 = 11644473600 // seconds
	ticks := binary.LittleEndian.Uint64(raw)
	if ticks>>62 != 0 || ticks < between1601And1970*1e7 {
		return time.Time{}
	}
	ticks -= between1601And1970 * 1e7
	return time.Unix(int64(ticks/1e7), int64(ticks%1e7)*100).UTC()
}

// The store that .vmcx files are, as far as it is known from the files themselves
// (dissect.hypervisor, descriptor/c_hyperv.py, which goes back to VmDataStore.dll;
// Microsoft documents nothing of it). All numbers are little-endian.
const (
	storageMagic   = 0x01282014
	storageHeaders = 0x1000 // the second header's offset; the first is at 0
	storageVersion = 0x400
	objectsOffset  = 0x2000 // of the table of objects
	objectsMagic   = 0x01110001
	logMagic       = 0x01110003

	// Offsets in a header.
	headerSequence, headerVersion, headerLog = 8, 10, 26
	// Sizes: of the table's header and of its entries; of a key table's header and
	// of what is before a key.
	objectsHeader, objectEntry, keysHeader, keyHeader = 8, 18, 10, 21

	objectKeys  = 2 // types of objects
	keysMagic   = 0x0002
	keyFree     = 1 // types of keys
	keyString   = 6
	keyArray    = 7
	keyIsInFile = 0x100 // the value is a size and an offset of it in the file
)

// storeKey is a key of a store.
type storeKey struct {
	element
	parentTable  uint16
	parentOffset uint32
}

// parseStore reads a store as if it were XML: keys are elements, an array's value
// its base 64. A store with changes in its log that have not been carried out is
// not read.
func parseStore(data []byte) (*element, error) {
	le := binary.LittleEndian
	if len(data) < objectsOffset+objectsHeader || len(data) > MaxText {
		return nil, corrupt("vmcx", "size", "%d bytes", len(data))
	}
	header := data[:storageHeaders]
	if second := data[storageHeaders:]; le.Uint32(second) == storageMagic && le.Uint16(second[headerSequence:]) > le.Uint16(header[headerSequence:]) {
		header = second
	}
	if v := le.Uint32(header[headerVersion:]); v != storageVersion {
		return nil, fmt.Errorf("vmcx: version %#x: %w", v, ondisk.ErrUnsupported)
	}
	log := le.Uint64(header[headerLog:])
	if log > uint64(len(data)-12) || le.Uint32(data[log:]) != logMagic {
		return nil, corrupt("vmcx", "replay log", "none at %#x", log)
	}
	if n := le.Uint32(data[log+8:]); n != 0 {
		return nil, fmt.Errorf("vmcx: replay log: %d changes are not in the file yet: %w", n, ondisk.ErrUnsupported)
	}
	objects := data[objectsOffset:]
	if le.Uint32(objects) != objectsMagic {
		return nil, corrupt("vmcx", "object table", "wrong signature")
	}
	tables := make(map[uint16]map[uint32]*storeKey)
	sequence := make(map[uint16]uint16)
	for i := range uint64(le.Uint32(objects[4:])) {
		at := objectsHeader + i*objectEntry
		if at+objectEntry > uint64(len(objects)) {
			return nil, corrupt("vmcx", "object table", "entry %d lies past the end", i)
		}
		e := objects[at:]
		off, size := le.Uint64(e[5:]), uint64(le.Uint32(e[13:]))
		if e[0] != objectKeys || e[17] == 0 {
			continue
		}
		if off > uint64(len(data)) || size > uint64(len(data))-off {
			return nil, corrupt("vmcx", "object table", "entry %d: %#x bytes at %#x lie past the end", i, size, off)
		}
		table := data[off : off+size]
		if len(table) < keysHeader || le.Uint16(table) != keysMagic {
			return nil, corrupt("vmcx", "key table", "wrong signature at %#x", off)
		}
		index, seq := le.Uint16(table[2:]), le.Uint16(table[4:])
		if tables[index] != nil && sequence[index] >= seq {
			continue
		}
		keys, err := parseKeys(data, table)
		if err != nil {
			return nil, err
		}
		tables[index], sequence[index] = keys, seq
	}
	return assembleStore(tables)
}

// parseKeys reads the keys of a table by their offset in it.
func parseKeys(data, table []byte) (map[uint32]*storeKey, error) {
	le := binary.LittleEndian
	keys := make(map[uint32]*storeKey)
	for at := keysHeader; at+keyHeader <= len(table); {
		e := table[at:]
		kind, size := le.Uint16(e), uint64(le.Uint32(e[2:]))
		if size == 0 {
			break
		}
		nameEnd := keyHeader + int(e[20])
		if size < keyHeader || size > uint64(len(e)) || uint64(nameEnd) > size {
			return nil, corrupt("vmcx", "key table", "a key of %d bytes at %#x of %#x", size, at, len(table))
		}
		value := e[nameEnd:size]
		k := &storeKey{parentTable: le.Uint16(e[6:]), parentOffset: le.Uint32(e[8:])}
		k.name = string(bytes.TrimRight(e[keyHeader:nameEnd], "\x00"))
		var err error
		switch t := kind & 0xff; t {
		case keyFree:
			k = nil
		case keyString, keyArray:
			if value, err = storeValue(data, value, kind&keyIsInFile != 0); err != nil {
				return nil, fmt.Errorf("vmcx: key %.40q: %w", k.name, err)
			}
			if k.text = base64.StdEncoding.AppendEncode(nil, value); t == keyString {
				k.text = []byte(wideString(value))
			}
		}
		if k != nil {
			keys[uint32(at)] = k
		}
		at += int(size)
	}
	return keys, nil
}

// storeValue returns the bytes of a value of variable length.
func storeValue(data, value []byte, inFile bool) ([]byte, error) {
	le := binary.LittleEndian
	if inFile {
		if len(value) < 12 {
			return nil, fmt.Errorf("a place of %d bytes: %w", len(value), ondisk.ErrCorrupt)
		}
		size, off := uint64(le.Uint32(value)), le.Uint64(value[4:])
		if off > uint64(len(data)) || size > uint64(len(data))-off {
			return nil, fmt.Errorf("%#x bytes at %#x lie past the end: %w", size, off, ondisk.ErrCorrupt)
		}
		return data[off : off+size], nil
	}
	if len(value) < 4 || uint64(le.Uint32(value)) > uint64(len(value)-4) {
		return nil, fmt.Errorf("a value of %d bytes is cut short: %w", len(value), ondisk.ErrCorrupt)
	}
	return value[4 : 4+le.Uint32(value)], nil
}

// assembleStore hangs keys below their parents, in the order in which they lie.
func assembleStore(tables map[uint16]map[uint32]*storeKey) (*element, error) {
	root := &element{}
	count := 0
	for _, index := range sortedKeys(tables) {
		for _, off := range sortedKeys(tables[index]) {
			k := tables[index][off]
			if count++; count > maxElements {
				return nil, corrupt("vmcx", "key table", "more than %d keys", maxElements)
			}
			parent := root
			if k.parentTable != 0 {
				p := tables[k.parentTable][k.parentOffset]
				if p == nil {
					return nil, corrupt("vmcx", "key table", "the parent of %.40q is not there", k.name)
				}
				parent = &p.element
			}
			parent.children = append(parent.children, &k.element)
		}
	}
	// Keys that are each other's parents hang nowhere; the others end, since none
	// is below two.
	return root, nil
}

func sortedKeys[K uint16 | uint32, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// wideString decodes UTF-16 without its closing zero.
func wideString(b []byte) string {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return strings.TrimRight(string(utf16.Decode(u)), "\x00")
}
