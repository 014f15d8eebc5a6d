package mbr

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"yester/internal/ondisk"
	"yester/internal/volumetest"
	"yester/volume"
)

// disk unpacks one of the disks that ../testdata.sh made.
func disk(t testing.TB, name string) []byte {
	t.Helper()
	return volumetest.Disk(t, "testdata/"+name+".gz")
}

func put(b []byte, sector, slot int, kind byte, start, length uint32) {
	e := b[sector*512+entriesOff+slot*entrySize:][:entrySize]
	e[4] = kind
	binary.LittleEndian.PutUint32(e[8:], start)
	binary.LittleEndian.PutUint32(e[12:], length)
}

func TestOpen(t *testing.T) {
	const first = 8 // sector of logical512's extended partition
	tests := []struct {
		name   string
		disk   string
		edit   func(b []byte) []byte
		err    error
		number []int
		warn   string
	}{
		{"primaries", "primary512", nil, nil, []int{1, 3}, ""},
		{"logicals", "logical512", nil, nil, []int{1, 3, 5, 6, 7}, ""},
		{"4096", "logical4096", nil, nil, []int{5, 6}, ""},
		{"empty disk", "primary512", func(b []byte) []byte { return nil }, ondisk.ErrFormat, nil, ""},
		{"no signature", "primary512", func(b []byte) []byte { b[511] = 0; return b }, ondisk.ErrFormat, nil, ""},
		{"no partitions", "primary512", func(b []byte) []byte { clear(b[446:510]); return b }, ondisk.ErrFormat, nil, ""},
		{"boot flag", "primary512", func(b []byte) []byte { b[446+48] = 0x20; return b }, ondisk.ErrFormat, nil, ""},
		{"protective", "primary512", func(b []byte) []byte { put(b, 0, 1, 0xee, 1, 100); return b }, ondisk.ErrFormat, nil, ""},
		{"record without signature", "logical512", func(b []byte) []byte { b[first*512+511] = 0; return b }, nil, []int{1, 3},
			"extended partition 2, boot record at 0x1000: the record has no signature; logical partitions from p5 on are not shown"},
		{"second record damaged", "logical512", func(b []byte) []byte {
			link := binary.LittleEndian.Uint32(b[first*512+entriesOff+entrySize+8:])
			clear(b[(first+link)*512:][:512])
			return b
		}, nil, []int{1, 3, 5}, "no signature; logical partitions from p6 on"},
		{"record past the end", "logical512", func(b []byte) []byte {
			put(b, first, 1, typeExtendedCHS, 1<<31, 8)
			return b
		}, nil, []int{1, 3, 5}, "the record lies past the end of the disk"},
		{"chain that returns to itself", "logical512", func(b []byte) []byte {
			put(b, first, 1, typeExtendedCHS, 0, 64)
			return b
		}, nil, []int{1, 3, 5}, "boot record at 0x1000: the chain of logical partitions returns"},
		{"two extended partitions, one chain", "logical512", func(b []byte) []byte {
			put(b, 0, 3, typeExtendedLnx, first, 64)
			return b
		}, nil, []int{1, 3, 5, 6, 7}, "extended partition 4, boot record at 0x1000: the chain of logical partitions returns"},
		{"rubbish in third entry", "logical512", func(b []byte) []byte {
			put(b, first, 2, 0x83, 40, 4000)
			return b
		}, nil, []int{1, 3, 5, 6, 7}, ""},
		{"third entry in use", "logical512", func(b []byte) []byte {
			put(b, first, 2, 0x83, 11, 2)
			return b
		}, nil, []int{1, 3, 5, 6, 7, 8}, ""},
		{"cut off", "primary512", func(b []byte) []byte { return b[:40*512] }, nil, []int{1, 3}, "4096 of the partition's 8192 bytes can be read"},
		{"largest numbers", "primary512", func(b []byte) []byte { put(b, 0, 1, 0x83, 0xffffffff, 0xffffffff); return b }, nil, []int{1, 2, 3}, "0 of the partition's 2199023255040 bytes"},
		{"overlap", "primary512", func(b []byte) []byte { put(b, 0, 1, 0x83, 40, 10); return b }, nil, []int{1, 2, 3}, "partitions p3 and p2 overlap at 0x5000"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := disk(t, test.disk)
			if test.edit != nil {
				b = test.edit(b)
			}
			table, err := open(t.Context(), bytes.NewReader(b), volume.Options{})
			if !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if err != nil {
				return
			}
			var got []int
			for _, v := range table.Volumes {
				got = append(got, v.Number)
			}
			if !slices.Equal(got, test.number) {
				t.Errorf("partitions %v, want %v", got, test.number)
			}
			warned := strings.Join(table.Warnings, "\n")
			if test.warn == "" && warned != "" || !strings.Contains(warned, test.warn) {
				t.Errorf("warnings %q, want %q", warned, test.warn)
			}
		})
	}
}

func TestFields(t *testing.T) {
	table, err := open(t.Context(), bytes.NewReader(disk(t, "logical4096")), volume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if table.SectorSize != 4096 || table.ID != "1a2b3c4d" || table.Scheme != "mbr" {
		t.Errorf("%+v", table)
	}
	v := table.Volumes[1]
	if v.Size() != 8*4096 {
		t.Errorf("size %d", v.Size())
	}
	v.Reader = nil
	if want := (volume.Volume{Name: "p6", Scheme: "mbr", Number: 6, Start: 24 * 4096, Type: "0x83", ID: "1a2b3c4d-06"}); !reflect.DeepEqual(v, want) {
		t.Errorf("got %+v\nwant %+v", v, want)
	}
}

// TestLongChain: numbers are hexadecimal in PARTUUIDs, and a chain without end
// isn't followed for ever.
func TestLongChain(t *testing.T) {
	const n = 400
	b := make([]byte, (n+2)*512)
	put(b, 0, 0, typeExtendedLBA, 1, n)
	for i := range n {
		put(b, 1+i, 0, 0x83, 1, 1)
		put(b, 1+i, 1, typeExtendedCHS, uint32(i+1), 1)
		binary.LittleEndian.PutUint16(b[(1+i)*512+510:], signature)
	}
	binary.LittleEndian.PutUint16(b[510:], signature)
	binary.LittleEndian.PutUint32(b[diskSigOff:], 0xabcdef01)
	table, err := open(t.Context(), bytes.NewReader(b), volume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(table.Volumes) != maxRecords || !strings.Contains(fmt.Sprint(table.Warnings), "more than 256 records") {
		t.Errorf("%d volumes, %q", len(table.Volumes), table.Warnings)
	}
	if id := table.Volumes[11].ID; id != "abcdef01-10" {
		t.Errorf("ID of p16 is %s", id)
	}
}

// TestReadErrors: what can't be read may hold partitions, so it isn't passed over.
func TestReadErrors(t *testing.T) {
	b := disk(t, "logical512")
	cause := errors.New("medium error")
	for _, from := range []int64{0, 512, 9 * 512} {
		_, err := open(t.Context(), volumetest.Broken{Reader: bytes.NewReader(b), From: from, To: int64(len(b)), Err: cause}, volume.Options{})
		if !errors.Is(err, cause) || errors.Is(err, ondisk.ErrFormat) || errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("unreadable from %d: %v", from, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(ctx, bytes.NewReader(b), volume.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// FuzzOpen checks that no disk, whose first and last bytes are given, makes Open
// panic, linger, or hand out a volume that reads something else than its bytes.
func FuzzOpen(f *testing.F) {
	for _, name := range []string{"primary512", "logical512", "logical4096"} {
		b := disk(f, name)
		f.Add(bytes.TrimRight(b, "\x00"), uint16(len(b)/1024), uint8(0))
	}
	f.Fuzz(func(t *testing.T, head []byte, kib uint16, sector uint8) {
		b := make([]byte, int(kib%512)*1024)
		copy(b, head)
		start := time.Now()
		table, err := open(t.Context(), bytes.NewReader(b), volume.Options{SectorSize: []int{0, 512, 4096, 520}[sector%4]})
		if d := time.Since(start); d > 10*time.Second {
			t.Fatalf("took %v", d)
		}
		if err != nil {
			return
		}
		if len(table.Volumes) > 4+4*maxRecords {
			t.Errorf("%d volumes", len(table.Volumes))
		}
		volumetest.Check(t, table, b, len(table.Volumes))
	})
}
