package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// bothHeaders changes both headers and makes their checksums right.
func bothHeaders(off int64, v ...byte) func(m *mem) {
	return func(m *mem) {
		for _, at := range []int64{header1Off, header2Off} {
			m.put(at+off, v...)
			m.sum(at, headerSize, offHeaderSum)
		}
	}
}

// bothRegions does so to entry i of the region tables; -1 means their heads.
func bothRegions(i int, off int64, v ...byte) func(m *mem) {
	return func(m *mem) {
		for _, at := range []int64{region1Off, region2Off} {
			pos := at + off
			if i >= 0 {
				pos += regionHeadSize + int64(i)*regionEntrySize
			}
			m.put(pos, v...)
			m.sum(at, tableSize, offRegionSum)
		}
	}
}

// inTable changes entry i of the metadata table.
func inTable(i int, off int64, v ...byte) func(m *mem) {
	return func(m *mem) { m.put(writeMetadataOff+itemHeadSize+int64(i)*itemEntrySize+off, v...) }
}

// inItems changes the metadata items, which lie behind each other.
func inItems(off int64, v ...byte) func(m *mem) {
	return func(m *mem) { m.put(writeMetadataOff+tableSize+off, v...) }
}

func at(off int64) func(m *mem) { return func(m *mem) { m.flip(off) } }

func all(f ...func(m *mem)) func(m *mem) {
	return func(m *mem) {
		for _, f := range f {
			f(m)
		}
	}
}

func u64(v uint64) []byte { return le.AppendUint64(nil, v) }
func u32(v uint32) []byte { return le.AppendUint32(nil, v) }

// newItem adds an entry to the metadata table.
func newItem(id guid, flags uint32, off, n uint32) func(m *mem) {
	return func(m *mem) {
		count := le.Uint16(m.get(writeMetadataOff+offItemCount, 2))
		m.put(writeMetadataOff+offItemCount, byte(count+1))
		e := make([]byte, itemEntrySize)
		putGUID(e, id)
		le.PutUint32(e[offItemOffset:], off)
		le.PutUint32(e[offItemLength:], n)
		le.PutUint32(e[offItemFlags:], flags)
		inTable(int(count), 0, e...)(m)
	}
}

// newRegion adds an entry to the region tables.
func newRegion(id guid, off uint64, n, flags uint32) func(m *mem) {
	e := make([]byte, regionEntrySize)
	putGUID(e, id)
	le.PutUint64(e[offRegionOffset:], off)
	le.PutUint32(e[offRegionLength:], n)
	le.PutUint32(e[offRegionFlags:], flags)
	return all(bothRegions(-1, offRegionCount, 3), bothRegions(2, 0, e...))
}

// TestDamage checks what is refused, by which words, and what a second copy
// makes good.
func TestDamage(t *testing.T) {
	data := fullDisk(3<<20 + 512)
	base := dynamicImage(t, data, WriteOptions{ID: [16]byte{9}})
	unknown := guid{1, 2, 3}
	for _, c := range []struct {
		name   string
		damage func(m *mem)
		warn   string // part of the only warning; none when empty
		err    error
		msg    string
	}{
		{"sound", all(), "", nil, ""},
		{"signature", at(0), "", ondisk.ErrFormat, "file type identifier"},
		{"creator", at(20), "", nil, ""},
		{"header 1", at(header1Off + 100), "header 1 at 0x10000: checksum", nil, ""},
		{"header 1's signature", at(header1Off), "signature", nil, ""},
		{"header 2", at(header2Off + offLogGUID), "header 2 at 0x20000: checksum", nil, ""},
		{"both headers", all(at(header1Off+9), at(header2Off+9)), "", ondisk.ErrCorrupt, "nor is header 2 sound"},
		{"same sequence", all(bothHeaders(offSequence, u64(5)...), func(m *mem) {
			m.flip(header2Off + offDataGUID)
			m.sum(header2Off, headerSize, offHeaderSum)
		}), "", ondisk.ErrCorrupt, "both headers have sequence number 5"},
		{"same header twice", bothHeaders(offSequence, u64(5)...), "", nil, ""},
		{"version", bothHeaders(offVersion, 2), "", ondisk.ErrUnsupported, "version 2"},
		{"log length", bothHeaders(offLogLength, 1), "", ondisk.ErrCorrupt, "log length"},
		{"log offset", bothHeaders(offLogOffset, u64(1<<63)...), "", ondisk.ErrCorrupt, "log offset"},
		{"log in the header", bothHeaders(offLogOffset, u64(0)...), "", ondisk.ErrCorrupt, "log offset"},
		{"log over the BAT", bothHeaders(offLogOffset, u64(writeBATOff)...), "", ondisk.ErrCorrupt, "overlap"},
		{"no log", all(bothHeaders(offLogLength, u32(0)...), bothHeaders(offLogOffset, u64(0)...)), "", nil, ""},

		{"region table 1", at(region1Off + 60000), "region table 1 at 0x30000: checksum", nil, ""},
		{"region table 2", at(region2Off + 4), "region table 2 at 0x40000: checksum", nil, ""},
		{"both region tables", all(at(region1Off), at(region2Off+8)), "", ondisk.ErrCorrupt, "nor is region table 2 sound"},
		{"they differ", func(m *mem) { m.flip(region2Off + 5000); m.sum(region2Off, tableSize, offRegionSum) }, "differ", nil, ""},
		{"count", bothRegions(-1, offRegionCount, u32(2048)...), "", ondisk.ErrCorrupt, "2048 entries"},
		{"no BAT", bothRegions(0, offRegionGUID, 1), "", ondisk.ErrUnsupported, "required region 2dc27701-"},
		{"no BAT, not required", all(bothRegions(0, offRegionGUID, 1), bothRegions(0, offRegionFlags, 0)), "", ondisk.ErrCorrupt, "no BAT"},
		{"no metadata", bothRegions(-1, offRegionCount, 1), "", ondisk.ErrCorrupt, "no metadata"},
		{"region offset", bothRegions(0, offRegionOffset, u64(writeBATOff+4096)...), "", ondisk.ErrCorrupt, "region table entry 0 at"},
		{"region offset, huge", bothRegions(1, offRegionOffset, u64(1<<63)...), "", ondisk.ErrCorrupt, "region table entry 1 at"},
		{"region length", bothRegions(1, offRegionLength, 1), "", ondisk.ErrCorrupt, "region table entry 1"},
		{"region length 0", bothRegions(1, offRegionLength, u32(0)...), "", ondisk.ErrCorrupt, "of 0x0 bytes"},
		{"regions overlap", bothRegions(1, offRegionLength, u32(2*mib)...), "", ondisk.ErrCorrupt, "metadata region and BAT overlap"},
		{"BAT twice", newRegion(regionBAT, 64*mib, mib, 1), "", ondisk.ErrCorrupt, "a second BAT"},
		{"unknown region", newRegion(unknown, 64*mib, mib, 0), "", nil, ""},
		{"unknown region, required", newRegion(unknown, 64*mib, mib, 1), "", ondisk.ErrUnsupported, unknown.String()},
		{"metadata outside", bothRegions(1, offRegionOffset, u64(1<<40)...), "", ondisk.ErrCorrupt, "metadata region at 0x10000000000"},
		{"BAT outside", bothRegions(0, offRegionOffset, u64(1<<40)...), "", ondisk.ErrCorrupt, "past the end"},

		{"metadata signature", at(writeMetadataOff), "", ondisk.ErrCorrupt, "metadata table"},
		{"item count", func(m *mem) { m.put(writeMetadataOff+offItemCount, 0, 8) }, "", ondisk.ErrCorrupt, "2048 entries"},
		{"no items", func(m *mem) { m.put(writeMetadataOff+offItemCount, 0) }, "", ondisk.ErrCorrupt, "no file parameters"},
		{"only parameters", func(m *mem) { m.put(writeMetadataOff+offItemCount, 1) }, "", ondisk.ErrCorrupt, "no virtual disk size"},
		{"no disk id", all(inTable(2, 0, 1), inTable(2, offItemFlags, 0)), "lack the virtual disk id", nil, ""},
		{"no physical sector", all(inTable(4, 0, 1), inTable(4, offItemFlags, 0)), "lack the physical", nil, ""},
		{"no logical sector", all(inTable(3, 0, 1), inTable(3, offItemFlags, 0)), "", ondisk.ErrCorrupt, "no logical sector size"},
		{"unknown item", newItem(unknown, 0, 0, 0), "", nil, ""},
		{"unknown user item", newItem(itemSize, itemUser, tableSize+4096, 8), "", nil, ""},
		{"unknown item, required", newItem(unknown, itemRequired, 0, 0), "", ondisk.ErrUnsupported, unknown.String()},
		{"unknown user item, required", newItem(itemSize, itemUser|itemRequired, tableSize+4096, 8), "", ondisk.ErrUnsupported, itemSize.String()},
		{"item twice", newItem(itemSize, 0, tableSize+8, 8), "", ondisk.ErrCorrupt, "twice"},
		{"item in the table", inTable(0, offItemOffset, u32(100)...), "", ondisk.ErrCorrupt, "metadata table entry 0"},
		{"item outside", inTable(0, offItemOffset, u32(mib-4)...), "", ondisk.ErrCorrupt, "metadata table entry 0"},
		{"item over 2^32", inTable(0, offItemOffset, u32(0xffffffff)...), "", ondisk.ErrCorrupt, "metadata table entry 0"},
		{"items overlap", newItem(unknown, 0, tableSize+4, 100), "", ondisk.ErrCorrupt, "overlap"},
		{"item length", inTable(1, offItemLength, 7), "", ondisk.ErrCorrupt, "virtual disk size at"},
		{"item length, huge", inTable(1, offItemLength, u32(1<<31)...), "", ondisk.ErrCorrupt, "metadata table entry 1"},
		{"block size 0", inItems(0, u32(0)...), "", ondisk.ErrCorrupt, "block size"},
		{"block size 3 MiB", inItems(0, u32(3*mib)...), "", ondisk.ErrCorrupt, "block size"},
		{"block size 512 MiB", inItems(0, u32(512*mib)...), "", ondisk.ErrCorrupt, "block size"},
		{"parent without locator", inItems(4, hasParent), "", ondisk.ErrCorrupt, "no parent locator"},
		{"size 2^63", inItems(8, u64(1<<63)...), "", ondisk.ErrCorrupt, "virtual disk size"},
		{"size 65 TiB", inItems(8, u64(65<<40)...), "", ondisk.ErrCorrupt, "virtual disk size"},
		{"size 513", inItems(8, u64(513)...), "", ondisk.ErrCorrupt, "virtual disk size"},
		{"size too large for the BAT", inItems(8, u64(64<<40)...), "", ondisk.ErrCorrupt, "BAT at 0x300000"},
		{"sector size", inItems(32, u32(1024)...), "", ondisk.ErrCorrupt, "logical sector size"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := base.clone()
			c.damage(m)
			info, err := Format.Probe(t.Context(), m)
			if _, operr := Format.Open(t.Context(), m, imageformats.OpenOptions{}); (operr == nil) != (err == nil) {
				t.Errorf("Probe: %v; Open: %v", err, operr)
			}
			if c.err != nil {
				if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.msg) {
					t.Fatalf("Probe: %v; want %v with %q", err, c.err, c.msg)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.warn == "" && len(info.Warnings) > 0 || c.warn != "" && (len(info.Warnings) != 1 || !strings.Contains(info.Warnings[0], c.warn)) {
				t.Errorf("warnings %q, want one with %q", info.Warnings, c.warn)
			}
			same(t, openMem(t, m, imageformats.OpenOptions{}), data)
		})
	}
}

// TestCut opens an image cut off at every megabyte and around each structure:
// it fails, or gives the bytes that are there and errors for the others.
func TestCut(t *testing.T) {
	data := fullDisk(3 << 20)
	base := dynamicImage(t, data, WriteOptions{})
	for size := int64(0); size < base.size; size += 64 * kib {
		for _, d := range []int64{0, 1, -1, 4096} {
			m := base.cut(max(0, size+d))
			img, err := Format.Open(t.Context(), m, imageformats.OpenOptions{})
			if err != nil {
				if size > writeBATOff+4096 || !errors.Is(err, ondisk.ErrCorrupt) && !errors.Is(err, ondisk.ErrFormat) {
					t.Fatalf("cut at %#x: %v", m.size, err)
				}
				continue
			}
			p := make([]byte, 512)
			for off := int64(0); off < int64(len(data)); off += 64 * kib {
				n, err := img.ReadAt(p, off)
				there := writeBATOff + mib + off + 512
				if ok := m.size >= there; ok && (err != nil || !bytes.Equal(p, data[off:off+512])) || !ok && (n != 0 || !errors.Is(err, ondisk.ErrCorrupt)) {
					t.Fatalf("cut at %#x: at %#x %d bytes, %v", m.size, off, n, err)
				}
			}
		}
	}
}

// TestFlips inverts bytes of all that has a checksum: the disk is still right,
// or refused.
func TestFlips(t *testing.T) {
	data := fullDisk(1 << 20)
	m := dynamicImage(t, data, WriteOptions{ID: [16]byte{1}})
	p := make([]byte, len(data))
	for _, area := range []struct{ off, n, step int64 }{
		{header1Off, headerFields, 1}, {header1Off + headerFields, headerSize - headerFields, 61},
		{header2Off, headerFields, 1}, {header2Off + headerFields, headerSize - headerFields, 61},
		{region1Off, regionHeadSize + 2*regionEntrySize, 1}, {region1Off, tableSize, 997},
		{region2Off, regionHeadSize + 2*regionEntrySize, 1}, {region2Off, tableSize, 997},
	} {
		for off := area.off; off < area.off+area.n; off += area.step {
			m.flip(off)
			img, err := Format.Open(t.Context(), m, imageformats.OpenOptions{})
			if err != nil {
				t.Fatalf("byte %#x: %v", off, err)
			}
			if w := img.(*Image).Info().Warnings; len(w) != 1 {
				t.Fatalf("byte %#x: warnings %q", off, w)
			}
			if n, err := img.ReadAt(p, 0); n != len(p) || err != nil && err != io.EOF || !bytes.Equal(p, data) {
				t.Fatalf("byte %#x: %d bytes, %v, or wrong ones", off, n, err)
			}
			m.flip(off)
		}
	}
}

// TestBadEntries checks that a bad BAT entry fails the reads of its block, with
// its number and place, and no others.
func TestBadEntries(t *testing.T) {
	data := fullDisk(6 << 20)
	for name, c := range map[string]struct {
		entry uint64
		msg   string
		other int64 // another block that fails; -1 for none
	}{
		"past the end":    {1<<40 | 6, "past the end", -1},
		"2^64":            {0xfffffffffff00006, "past the end", -1},
		"header section":  {6, "over the header section", -1},
		"log":             {writeLogOff | 6, "over the log", -1},
		"metadata":        {writeMetadataOff | 6, "over the metadata region", -1},
		"BAT":             {writeBATOff | 6, "over the BAT", -1},
		"reserved":        {7*mib | 6 | 1<<10, "reserved bits", -1},
		"reserved, low":   {7*mib | 6 | 8, "reserved bits", -1},
		"state 4":         {7*mib | 4, "state 4", -1},
		"state 5":         {7*mib | 5, "state 5", -1},
		"state 7":         {7*mib | 7, "state 7", -1},
		"another's place": {(writeBATOff + mib) | 6, "overlaps that of BAT entry 0 at 0x400000", 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := dynamicImage(t, data, WriteOptions{})
			m.put64(writeBATOff+3*batEntrySize, c.entry)
			img := openMem(t, m, imageformats.OpenOptions{Name: "x.vhdx"})
			p := make([]byte, mib)
			for no := range int64(6) {
				n, err := img.ReadAt(p, no*mib)
				if no == 3 || no == c.other {
					want := fmt.Sprintf("vhdx: x.vhdx: BAT entry %d (block %d) at %#x: ", no, no, writeBATOff+no*batEntrySize)
					if n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || !strings.HasPrefix(err.Error(), want) || no == 3 && !strings.Contains(err.Error(), c.msg) {
						t.Errorf("block %d: %d, %v", no, n, err)
					}
					if _, err := img.Extent(t.Context(), no*mib, 1); err == nil {
						t.Errorf("block %d has an extent", no)
					}
				} else if n != len(p) || !bytes.Equal(p, data[no*mib:][:mib]) {
					t.Errorf("block %d: %d, %v", no, n, err)
				}
			}
			if n, err := img.ReadAt(make([]byte, 2*mib), 5*mib/2); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) {
				t.Errorf("over two blocks: %d, %v", n, err)
			}
		})
	}
}

// TestStates reads blocks in states that say that there is no data.
func TestStates(t *testing.T) {
	data := fullDisk(6 << 20)
	parent := openMem(t, dynamicImage(t, data, WriteOptions{ID: [16]byte{1}}), imageformats.OpenOptions{})
	for _, diff := range []bool{false, true} {
		var m *mem
		opt := imageformats.OpenOptions{}
		if diff {
			m = diffImage(t, data, nil, DiffOptions{ParentID: [16]byte{1}})
			opt.Parent = parent
		} else {
			m = dynamicImage(t, data, WriteOptions{})
		}
		want := append(readertest.Bytes(nil), data...)
		for i, s := range []blockState{notPresent, undefined, zero, unmapped} {
			// Where the block was, as writers may leave it.
			m.put64(writeBATOff+int64(i)*batEntrySize, le.Uint64(m.get(writeBATOff+int64(i)*batEntrySize, 8))&^7|uint64(s))
			if s != notPresent || !diff {
				clear(want[i<<20 : (i+1)<<20])
			}
		}
		readertest.Run(t, openMem(t, m, opt), want, 1<<20, 2<<20, 3<<20, 4<<20)
	}
}

// TestNoBitmap reads a partially present block whose sector bitmap isn't there.
func TestNoBitmap(t *testing.T) {
	data := fullDisk(3 << 20)
	next := append(readertest.Bytes(nil), data...)
	next[1<<20] = 0
	parent := openMem(t, dynamicImage(t, data, WriteOptions{ID: [16]byte{1}}), imageformats.OpenOptions{})
	sb := int64(writeBATOff + bitmapBits*512/mib*batEntrySize)
	for msg, entry := range map[string]uint64{
		"no sector bitmap, but block 1 is partially present": 0,
		"past the end": 1<<40 | 6,
		"state 7":      1<<40 | 7,
		"over the BAT": writeBATOff | 6,
	} {
		m := diffImage(t, next, data, DiffOptions{ParentID: [16]byte{1}})
		m.put64(sb, entry)
		img := openMem(t, m, imageformats.OpenOptions{Parent: parent})
		p := make([]byte, 512)
		if n, err := img.ReadAt(p, 0); n != 512 || !bytes.Equal(p, data[:512]) {
			t.Errorf("%s: another block: %d, %v", msg, n, err)
		}
		if n, err := img.ReadAt(p, 1<<20); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), msg) ||
			!strings.Contains(err.Error(), fmt.Sprintf("BAT entry 4096 (sector bitmap 0) at %#x", sb)) {
			t.Errorf("%s: %d, %v", msg, n, err)
		}
	}
}
