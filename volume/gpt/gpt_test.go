package gpt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/volumetest"
	"yester/volume"
)

// disk unpacks one of the disks that ../testdata.sh made.
func disk(t testing.TB, name string) []byte {
	t.Helper()
	return volumetest.Disk(t, "testdata/"+name+".gz")
}

// seal makes the checksums of the header at lba right again.
func seal(b []byte, sector, lba int) {
	le := binary.LittleEndian
	h := b[lba*sector:][:sector]
	n := uint64(le.Uint32(h[80:])) * uint64(le.Uint32(h[84:]))
	off := le.Uint64(h[72:])
	if off < uint64(len(b)/sector) {
		if off *= uint64(sector); n <= uint64(len(b))-off {
			le.PutUint32(h[88:], crc32.ChecksumIEEE(b[off:off+n]))
		}
	}
	if size := le.Uint32(h[12:]); uint64(size) <= uint64(len(h)) {
		clear(h[16:20])
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:size]))
	}
}

func TestDamage(t *testing.T) {
	le := binary.LittleEndian
	const sector = 512
	type want struct {
		err    error
		text   string // in the error or the warnings
		number []int  // of the partitions shown
		size   int
	}
	ok := []int{1, 3, 4}
	tests := []struct {
		name string
		disk string
		edit func(b []byte) []byte
		want want
	}{
		{"as made", "gpt512", nil, want{number: ok}},
		{"4096", "gpt4096", nil, want{number: []int{1}, size: 4096}},
		{"short table", "short512", nil, want{number: []int{2}}},
		{"hybrid", "hybrid512", nil, want{number: ok}},
		{"both headers damaged", "gpt512", func(b []byte) []byte {
			b[sector+57] ^= 1
			b[len(b)-sector+57] ^= 1
			return b
		}, want{err: ondisk.ErrCorrupt, text: "primary header at 0x200: checksum"}},
		{"both gone", "gpt512", func(b []byte) []byte {
			clear(b[sector : 2*sector])
			clear(b[len(b)-sector:])
			return b
		}, want{err: ondisk.ErrCorrupt, text: "there is a protective MBR, but no GUID partition table"}},
		{"hybrid, both gone", "hybrid512", func(b []byte) []byte {
			clear(b[sector : 2*sector])
			clear(b[len(b)-sector:])
			return b
		}, want{err: ondisk.ErrCorrupt}},
		{"cut off, primary damaged", "gpt512", func(b []byte) []byte {
			b[sector+57] ^= 1
			return b[:len(b)/2]
		}, want{err: ondisk.ErrCorrupt}},
		{"cut off", "gpt512", func(b []byte) []byte { return b[:88*sector] },
			want{number: ok, text: "partition p3 ends at 0xc000, past the end of the disk (0xb000): the image is cut off, and 4096 of the partition's 8192 bytes can be read"}},
		{"cut off before partitions", "gpt512", func(b []byte) []byte { return b[:40*sector] },
			want{number: ok, text: "0 of the partition's"}},
		{"table itself cut off", "gpt512", func(b []byte) []byte { return b[:20*sector] },
			want{err: ondisk.ErrCorrupt, text: "entries at LBA 2, 16384 bytes, lie past the end"}},
		{"only an MBR", "gpt512", func(b []byte) []byte { return b[:sector] }, want{err: ondisk.ErrCorrupt}},
		{"empty", "gpt512", func(b []byte) []byte { return nil }, want{err: ondisk.ErrFormat}},
		{"no protective MBR", "gpt512", func(b []byte) []byte {
			b[450] = 0x83
			return b
		}, want{err: ondisk.ErrFormat}},
		{"larger header", "gpt512", func(b []byte) []byte {
			le.PutUint32(b[sector+12:], 512)
			b[sector+500] = 7
			seal(b, sector, 1)
			return b
		}, want{number: ok}},
		{"header size 91", "gpt512", func(b []byte) []byte {
			le.PutUint32(b[sector+12:], 91)
			seal(b, sector, 1)
			return b
		}, want{number: ok, text: "header size 91 outside 92..512"}},
		{"header size 2^32-1", "gpt512", func(b []byte) []byte {
			le.PutUint32(b[sector+12:], math.MaxUint32)
			return b
		}, want{number: ok, text: "header size"}},
		{"header of another place", "gpt512", func(b []byte) []byte {
			le.PutUint64(b[sector+24:], 2)
			seal(b, sector, 1)
			return b
		}, want{number: ok, text: "LBA 2"}},
		{"entry size 0", "gpt512", entrySize(0), want{number: ok, text: "entry size 0"}},
		{"entry size 64", "gpt512", entrySize(64), want{number: ok, text: "entry size 64"}},
		{"entry size 192", "gpt512", entrySize(192), want{number: ok, text: "entry size 192"}},
		{"entry size 256", "gpt512", func(b []byte) []byte {
			le.PutUint32(b[sector+84:], 256)
			le.PutUint32(b[sector+80:], 64)
			seal(b, sector, 1)
			return b
		}, want{number: []int{1, 2}}}, // every second entry of before
		{"2^32-1 entries", "gpt512", func(b []byte) []byte {
			le.PutUint32(b[sector+80:], math.MaxUint32)
			seal(b, sector, 1)
			return b
		}, want{number: ok, text: "4294967295 partition entries of 128 bytes"}},
		{"entries at LBA 2^63", "gpt512", func(b []byte) []byte {
			le.PutUint64(b[sector+72:], 1<<63)
			seal(b, sector, 1)
			return b
		}, want{number: ok, text: "past the end of the disk"}},
		{"entries at LBA 1", "gpt512", func(b []byte) []byte {
			le.PutUint64(b[sector+72:], 1)
			seal(b, sector, 1)
			return b
		}, want{number: ok, text: "entries at LBA 1"}},
		{"no entries", "gpt512", func(b []byte) []byte {
			le.PutUint32(b[sector+80:], 0)
			seal(b, sector, 1)
			return b
		}, want{}},
		{"partition ends before it starts", "gpt512", func(b []byte) []byte {
			le.PutUint64(b[2*sector+40:], 39)
			seal(b, sector, 1)
			return b
		}, want{number: []int{3, 4}, text: "partition p1 is not shown: it goes from LBA 40 to 39"}},
		{"partition ends at 2^64-1", "gpt512", func(b []byte) []byte {
			le.PutUint64(b[2*sector+40:], math.MaxUint64)
			seal(b, sector, 1)
			return b
		}, want{number: []int{3, 4}, text: "p1 is not shown"}},
		{"partition ends at 2^54-2", "gpt512", func(b []byte) []byte {
			le.PutUint64(b[2*sector+40:], math.MaxInt64/sector-1)
			seal(b, sector, 1)
			return b
		}, want{number: ok, text: "partition p1 ends at 0x7ffffffffffffe00"}},
		{"overlap", "gpt512", func(b []byte) []byte {
			le.PutUint64(b[2*sector+40:], 90)
			seal(b, sector, 1)
			return b
		}, want{number: ok, text: "partitions p1 and p4 overlap at 0x8000\npartitions p1 and p3 overlap at 0xa000"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := disk(t, test.disk)
			if test.edit != nil {
				b = test.edit(b)
			}
			table, err := open(t.Context(), bytes.NewReader(b), volume.Options{})
			if !errors.Is(err, test.want.err) || (err == nil) != (test.want.err == nil) {
				t.Fatalf("error %v, want %v", err, test.want.err)
			}
			if err != nil {
				if !strings.Contains(err.Error(), test.want.text) {
					t.Errorf("error %q lacks %q", err, test.want.text)
				}
				return
			}
			warned := strings.Join(table.Warnings, "\n")
			if test.want.text == "" && warned != "" || !strings.Contains(warned, test.want.text) {
				t.Errorf("warnings %q, want %q", warned, test.want.text)
			}
			var got []int
			for _, v := range table.Volumes {
				got = append(got, v.Number)
			}
			if !slices.Equal(got, test.want.number) {
				t.Errorf("partitions %v, want %v", got, test.want.number)
			}
			if test.want.size != 0 && table.SectorSize != test.want.size {
				t.Errorf("sector size %d", table.SectorSize)
			}
		})
	}
}

func entrySize(n uint32) func([]byte) []byte {
	return func(b []byte) []byte {
		binary.LittleEndian.PutUint32(b[512+84:], n)
		seal(b, 512, 1)
		return b
	}
}

func TestFields(t *testing.T) {
	table, err := open(t.Context(), bytes.NewReader(disk(t, "gpt512")), volume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if table.ID != "8d2a3c2e-7a0f-4b64-9d26-0123456789ab" || table.SectorSize != 512 || table.Scheme != "gpt" {
		t.Errorf("%+v", table)
	}
	v := table.Volumes[0]
	v.Reader = nil
	want := volume.Volume{Name: "p1", Scheme: "gpt", Number: 1, Start: 40 * 512, Type: "0fc63daf-8483-4772-8e79-3d69d8477de4",
		Label: "größe 日本", ID: "11111111-2222-3333-4444-555555555555"}
	if !reflect.DeepEqual(v, want) {
		t.Errorf("got %+v\nwant %+v", v, want)
	}
	if v := table.Volumes[2]; !v.Active || v.Type != "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" {
		t.Errorf("%+v", v)
	}
}

// TestSectorSize: what the container says is tried first, but not alone.
func TestSectorSize(t *testing.T) {
	b := disk(t, "gpt4096")
	table, err := open(t.Context(), bytes.NewReader(b), volume.Options{SectorSize: 512})
	if err != nil || table.SectorSize != 4096 || len(table.Warnings) != 1 {
		t.Errorf("%+v, %v", table, err)
	}
	if _, err := open(t.Context(), bytes.NewReader(b), volume.Options{SectorSize: 1 << 40}); !errors.Is(err, ondisk.ErrUnsupported) {
		t.Errorf("sector size of 1 TiB: %v", err)
	}
}

// TestReadErrors: a primary that can't be read is served by the backup; when
// nothing can be read, the error is the reader's own, neither ErrFormat (which
// would present the disk as one volume) nor ErrCorrupt.
func TestReadErrors(t *testing.T) {
	b := disk(t, "gpt512")
	cause := errors.New("medium error")
	dev := volumetest.Broken{Reader: bytes.NewReader(b), From: 512, To: 1024, Err: cause}
	table, err := open(t.Context(), dev, volume.Options{})
	if err != nil || len(table.Warnings) != 1 || !strings.Contains(table.Warnings[0], "medium error") {
		t.Errorf("primary unreadable: %+v, %v", table, err)
	}
	for _, from := range []int64{0, 512} {
		dev := volumetest.Broken{Reader: bytes.NewReader(b), From: from, To: int64(len(b)), Err: cause}
		_, err = open(t.Context(), dev, volume.Options{})
		if !errors.Is(err, cause) || errors.Is(err, ondisk.ErrFormat) || errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("all unreadable from %d: %v", from, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(ctx, bytes.NewReader(b), volume.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPartialReads(t *testing.T) {
	b := disk(t, "gpt512")[:88*512]
	for i := range 8 * 512 {
		b[80*512+i] = byte(i % 251)
	}
	table, err := open(t.Context(), bytes.NewReader(b), volume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v := table.Volumes[1]
	p := make([]byte, 100)
	if n, err := v.ReadAt(p, 8*512-100); n != 100 || err != nil || !bytes.Equal(p, b[len(b)-100:]) {
		t.Errorf("last bytes that are there: %d, %v", n, err)
	}
	n, err := v.ReadAt(p, 8*512-60)
	if n != 60 || !errors.Is(err, ondisk.ErrCorrupt) || errors.Is(err, io.EOF) || !bytes.Equal(p[:n], b[len(b)-60:]) {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if n, err = v.ReadAt(p, 9*512); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("past the end: %d, %v", n, err)
	}
	if n, err = v.ReadAt(p, 16*512); n != 0 || err != io.EOF {
		t.Errorf("at the partition's end: %d, %v", n, err)
	}
	if e, err := block.ExtentAt(t.Context(), v, 9*512, 512); err != nil || e.Zero || e.Len != 512 {
		t.Errorf("extent past the end: %+v, %v", e, err)
	}
}

// FuzzOpen builds a disk of kib KiB from its first and last bytes; with sealed,
// the checksums of both copies are made right first.
func FuzzOpen(f *testing.F) {
	for _, name := range []string{"gpt512", "gpt4096", "short512", "hybrid512"} {
		b := disk(f, name)
		for _, sealed := range []bool{false, true} {
			f.Add(bytes.TrimRight(b[:len(b)/2], "\x00"), bytes.TrimLeft(b[len(b)/2:], "\x00"), uint16(len(b)/1024), uint8(0), sealed)
		}
	}
	f.Fuzz(func(t *testing.T, head, tail []byte, kib uint16, sector uint8, sealed bool) {
		b := make([]byte, int(kib%512)*1024)
		copy(b, head)
		copy(b[max(0, len(b)-len(tail)):], tail)
		size := []int{0, 512, 4096, 520}[sector%4]
		if sealed {
			for _, s := range []int{512, 4096} {
				if len(b) >= 2*s {
					seal(b, s, 1)
					seal(b, s, len(b)/s-1)
				}
			}
		}
		start := time.Now()
		table, err := open(t.Context(), bytes.NewReader(b), volume.Options{SectorSize: size})
		if d := time.Since(start); d > 10*time.Second {
			t.Fatalf("took %v", d)
		}
		if err != nil {
			return
		}
		volumetest.Check(t, table, b, 50)
	})
}
