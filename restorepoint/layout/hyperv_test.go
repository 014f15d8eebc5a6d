package layout

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"unicode/utf16"
)

// storeBuilder makes a .vmcx file: headers, an empty log, one table of objects with
// one table of keys.
type storeBuilder struct{ keys []byte }

// add appends a key and returns its offset in the table, by which children name it.
func (b *storeBuilder) add(parent uint32, kind uint16, name string, value []byte) uint32 {
	at := uint32(keysHeader + len(b.keys))
	le := binary.LittleEndian
	e := le.AppendUint16(nil, kind)
	e = le.AppendUint32(e, uint32(keyHeader+len(name)+1+len(value)))
	if parent == 0 {
		e = le.AppendUint16(e, 0)
	} else {
		e = le.AppendUint16(e, 1)
	}
	e = le.AppendUint32(e, parent)
	e = le.AppendUint64(e, 0) // checksum, insertion sequence
	e = append(e, byte(len(name)+1))
	e = append(append(e, name...), 0)
	b.keys = append(b.keys, append(e, value...)...)
	return at
}

const keyNodeType = 9

func (b *storeBuilder) node(parent uint32, name string) uint32 {
	return b.add(parent, keyNodeType, name, make([]byte, 12))
}

func (b *storeBuilder) text(parent uint32, name, value string) {
	var w []byte
	for _, u := range utf16.Encode([]rune(value + "\x00")) {
		w = binary.LittleEndian.AppendUint16(w, u)
	}
	b.add(parent, keyString, name, append(binary.LittleEndian.AppendUint32(nil, uint32(len(w))), w...))
}

func (b *storeBuilder) bytes() []byte {
	le := binary.LittleEndian
	const keysAt, logAt = 0x4000, 0x3000
	table := le.AppendUint16(nil, keysMagic)
	table = le.AppendUint16(table, 1) // index
	table = append(table, make([]byte, keysHeader-4)...)
	table = append(append(table, b.keys...), make([]byte, 64)...)
	data := make([]byte, keysAt)
	for i, at := range []int{0, storageHeaders} {
		le.PutUint32(data[at:], storageMagic)
		le.PutUint16(data[at+headerSequence:], uint16(i))
		le.PutUint32(data[at+headerVersion:], storageVersion)
		le.PutUint64(data[at+headerLog:], logAt)
	}
	le.PutUint32(data[logAt:], logMagic)
	le.PutUint32(data[objectsOffset:], objectsMagic)
	le.PutUint32(data[objectsOffset+4:], 1)
	e := data[objectsOffset+objectsHeader:]
	e[0] = objectKeys
	le.PutUint64(e[5:], keysAt)
	le.PutUint32(e[13:], uint32(len(table)))
	e[17] = 1
	return append(data, table...)
}

// checkpoint is the store that testdata/checkpoint.vmcx holds.
func checkpoint() []byte {
	var b storeBuilder
	root := b.node(0, "configuration")
	props := b.node(root, "properties")
	b.text(props, "name", "exch - after SP3")
	device := b.node(root, "_83f8638b-8dca-4152-9eda-2ca8b33039b4_")
	drive := b.node(b.node(device, "controller0"), "drive0")
	b.text(drive, "pathname", `C:\VMs\exch\Virtual Hard Disks\exch_AAAA.avhd`)
	b.text(drive, "type", "VHD")
	return b.bytes()
}

func TestStore(t *testing.T) {
	data := checkpoint()
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile("testdata/checkpoint.vmcx", data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if kept, err := os.ReadFile("testdata/checkpoint.vmcx"); err != nil || !bytes.Equal(kept, data) {
		t.Errorf("testdata/checkpoint.vmcx is not what is made here (%v); UPDATE=1 writes it", err)
	}
	h, ok, err := ParseHyperV(data)
	if !ok || err != nil || h.Name != "exch - after SP3" || len(h.Disks) != 1 || h.Disks[0].Node != "0:0" || h.Disks[0].File != `C:\VMs\exch\Virtual Hard Disks\exch_AAAA.avhd` {
		t.Errorf("%+v, %v, %v", h, ok, err)
	}
	le := binary.LittleEndian
	for _, c := range []struct {
		what   string
		damage func(d []byte)
	}{
		{"replay log: 3 changes", func(d []byte) { le.PutUint32(d[0x3008:], 3) }},
		{"replay log: none at", func(d []byte) { le.PutUint64(d[storageHeaders+headerLog:], 1<<63) }},
		{"version 0x500", func(d []byte) { le.PutUint32(d[storageHeaders+headerVersion:], 0x500) }},
		{"object table: wrong signature", func(d []byte) { d[objectsOffset] = 0 }},
		{"object table: entry", func(d []byte) { le.PutUint32(d[objectsOffset+4:], 1<<31) }},
		{"lie past the end", func(d []byte) { le.PutUint64(d[objectsOffset+objectsHeader+5:], 1<<40) }},
		{"key table: a key of", func(d []byte) { le.PutUint32(d[0x4000+keysHeader+2:], 1<<30) }},
		{"the parent of", func(d []byte) { le.PutUint16(d[0x4000+keysHeader+6:], 9) }},
	} {
		d := bytes.Clone(data)
		c.damage(d)
		if _, _, err := ParseHyperV(d); err == nil || !strings.Contains(err.Error(), c.what) {
			t.Errorf("%v, want %q", err, c.what)
		}
	}
}
