package vmdk

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// full is a disk without a zero, so that all its grains are in the file.
func full(size int) readertest.Bytes {
	b := make(readertest.Bytes, size)
	for i := range b {
		b[i] = byte(i/512)%250 + 1
	}
	return b
}

// openBytes opens an image in memory, with files for what its descriptor names.
func openBytes(t testing.TB, b []byte, files ...[]byte) (*Image, error) {
	t.Helper()
	opt := imageformats.OpenOptions{Name: "disk.vmdk"}
	for _, f := range files {
		opt.Files = append(opt.Files, readertest.Bytes(f))
	}
	img, err := Format.Open(t.Context(), readertest.Bytes(b), opt)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { img.Close() })
	return img.(*Image), nil
}

const testSize = 256 << 10

func monolithic(t testing.TB, data []byte, o sparseOptions) []byte {
	t.Helper()
	o.descriptor = lines("monolithicSparse", "", "", line(t, int64(len(data)), "SPARSE", "disk.vmdk"))
	return makeSparse(data, nil, o)
}

func put32(b []byte, off int, v uint32) []byte { le.PutUint32(b[off:], v); return b }
func put64(b []byte, off int, v uint64) []byte { le.PutUint64(b[off:], v); return b }

// TestHeader damages the header of a disk in one file.
func TestHeader(t *testing.T) {
	data := full(testSize)
	for _, c := range []struct {
		name   string
		damage func(b []byte) []byte
		warn   string // part of the only warning; none when empty
		err    error
		msg    string
	}{
		{"sound", func(b []byte) []byte { return b }, "", nil, ""},
		{"in use", func(b []byte) []byte { b[offUnclean] = 1; return b }, "in use", nil, ""},
		{"sent as text", func(b []byte) []byte { b[offNewlines] = '\r'; return b }, "", ondisk.ErrCorrupt, "newline bytes at 0x49: \"\\r \\r\\n\""},
		{"without newline bytes", func(b []byte) []byte {
			clear(b[offNewlines : offNewlines+4])
			return put32(b, offFlags, flagRedundant)
		}, "", nil, ""},
		{"version 4", func(b []byte) []byte { return put32(b, offVersion, 4) }, "", ondisk.ErrUnsupported, "version 4"},
		{"version 0", func(b []byte) []byte { return put32(b, offVersion, 0) }, "", ondisk.ErrUnsupported, "version 0"},
		{"unknown flag", func(b []byte) []byte { return put32(b, offFlags, 1<<20|1) }, "", ondisk.ErrUnsupported, "flags 0x100001"},
		{"compression", func(b []byte) []byte { b[offCompress] = 2; return b }, "", ondisk.ErrUnsupported, "compression method 2"},
		{"compressed by none", func(b []byte) []byte { return put32(b, offFlags, flagCompressed) }, "", ondisk.ErrCorrupt, "no method"},
		{"grain of 3 sectors", func(b []byte) []byte { return put64(b, offGrainSize, 3) }, "", ondisk.ErrCorrupt, "grain size"},
		{"grain of 0", func(b []byte) []byte { return put64(b, offGrainSize, 0) }, "", ondisk.ErrCorrupt, "grain size"},
		{"grain of 2^63", func(b []byte) []byte { return put64(b, offGrainSize, 1<<63) }, "", ondisk.ErrCorrupt, "grain size"},
		{"no table entries", func(b []byte) []byte { return put32(b, offGTEs, 0) }, "", ondisk.ErrCorrupt, "0 entries"},
		{"boundless table", func(b []byte) []byte { return put32(b, offGTEs, math.MaxUint32) }, "", ondisk.ErrCorrupt, "entries in a grain table"},
		{"capacity 2^63", func(b []byte) []byte { return put64(b, offCapacity, 1<<63) }, "", ondisk.ErrCorrupt, "capacity at 0xc"},
		{"capacity 2^49", func(b []byte) []byte { return put64(b, offCapacity, 1<<49) }, "cut off by the end", nil, ""},
		{"directory outside", func(b []byte) []byte { return put64(b, offGD, 1<<40) }, "the redundant one is used", nil, ""},
		{"directory at 2^63", func(b []byte) []byte { return put64(b, offGD, 1<<63) }, "the redundant one is used", nil, ""},
		{"no directory", func(b []byte) []byte { return put64(b, offGD, 0) }, "", nil, ""},
		{"redundant outside", func(b []byte) []byte { return put64(b, offRGD, 1<<40) }, "redundant grain directory at", nil, ""},
		{"both outside", func(b []byte) []byte { return put64(put64(b, offRGD, 1<<40), offGD, 1<<63) }, "", ondisk.ErrCorrupt, "lie outside the file"},
		{"directory over the descriptor", func(b []byte) []byte { return put64(b, offGD, 2) }, "", ondisk.ErrCorrupt, "over the descriptor"},
		{"descriptor outside", func(b []byte) []byte { return put64(b, offDescOffset, 1<<62) }, "", ondisk.ErrCorrupt, "descriptor"},
		{"boundless descriptor", func(b []byte) []byte { return put64(b, offDescSize, math.MaxUint64) }, "", ondisk.ErrCorrupt, "descriptor"},
		{"descriptor overwritten", func(b []byte) []byte { copy(b[512:], bytes.Repeat([]byte("x"), 5000)); return b }, "", ondisk.ErrCorrupt, "no createType"},
		{"no descriptor", func(b []byte) []byte { return put64(b, offDescOffset, 0) }, "", imageformats.ErrPart, "without its descriptor"},
		{"empty descriptor", func(b []byte) []byte { clear(b[512:5000]); return b }, "", imageformats.ErrPart, "without its descriptor"},
		{"cut off", func(b []byte) []byte { return b[:300] }, "", ondisk.ErrCorrupt, "cut off"},
		{"capacity too small", func(b []byte) []byte { return put64(b, offCapacity, 100) }, "capacity is 100 sectors", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.damage(monolithic(t, data, sparseOptions{redundant: true, grain: 8}))
			img, err := openBytes(t, b)
			if c.err != nil {
				if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.msg) {
					t.Fatalf("%v; want %v with %q", err, c.err, c.msg)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if w := img.info.Warnings; c.warn == "" && len(w) > 0 || c.warn != "" && (len(w) != 1 || !strings.Contains(w[0], c.warn)) {
				t.Errorf("warnings %q, want one with %q", w, c.warn)
			}
			got := make([]byte, 4096)
			if _, err := img.ReadAt(got, 0); c.name != "capacity 2^49" && (err != nil || !bytes.Equal(got, data[:4096])) {
				t.Errorf("the first grain: %v, or other bytes", err)
			}
		})
	}
}

// TestTables damages directory and table entries: grains that can be found by the
// redundant directory are, others are errors, and all the rest is read.
func TestTables(t *testing.T) {
	data := full(testSize)
	for _, redundant := range []bool{false, true} {
		for name, damage := range map[string]func(b []byte, dir, table int) (entry int){
			"table past the end":         func(b []byte, dir, _ int) int { put32(b, dir, 0xffffff); return dir },
			"table over the header":      func(b []byte, dir, _ int) int { put32(b, dir, 0xffffffff); return dir },
			"table over the descriptor":  func(b []byte, dir, _ int) int { put32(b, dir, 1); return dir },
			"grain past the end":         func(b []byte, _, table int) int { put32(b, table, 0xfffffff0); return table },
			"grain over the descriptor":  func(b []byte, _, table int) int { put32(b, table, 7); return table },
			"grain over the directory":   func(b []byte, dir, table int) int { put32(b, table, uint32(dir/512)); return table },
			"grain over its own table":   func(b []byte, _, table int) int { put32(b, table, uint32(table/512)); return table },
			"grain 1 without the flag":   func(b []byte, _, table int) int { put32(b, table, 1); return table },
			"grain that ends in a table": func(b []byte, _, table int) int { put32(b, table, uint32(table/512-1)); return table },
		} {
			t.Run(fmt.Sprintf("%s/redundant=%t", name, redundant), func(t *testing.T) {
				b := monolithic(t, data, sparseOptions{redundant: redundant, grain: 8, gtes: 16})
				dir := int(le.Uint64(b[offGD:])) * sectorSize
				table := int(le.Uint32(b[dir:])) * sectorSize
				damage(b, dir, table)
				var log bytes.Buffer
				r, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{Name: "disk.vmdk", Logger: slog.New(slog.NewTextHandler(&log, nil))})
				if err != nil {
					t.Fatal(err)
				}
				if redundant {
					readertest.Run(t, r, data)
					if strings.Count(log.String(), "the redundant one is used") != 1 {
						t.Errorf("log: %s", log.String())
					}
					return
				}
				buf := make([]byte, 4096)
				if n, err := r.ReadAt(buf, 0); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), "disk.vmdk: grain ") {
					t.Errorf("the damaged grain gives %d bytes, %v", n, err)
				}
				if _, err := block.ExtentAt(t.Context(), r, 0, 4096); !errors.Is(err, ondisk.ErrCorrupt) {
					t.Errorf("extent: %v", err)
				}
				rest := make([]byte, testSize-16*4096)
				if _, err := r.ReadAt(rest, 16*4096); err != nil || !bytes.Equal(rest, data[16*4096:]) {
					t.Errorf("what lies behind the damaged table: %v, or other bytes", err)
				}
			})
		}
	}
}

// TestStream damages stream-optimised images.
func TestStream(t *testing.T) {
	data := full(testSize)
	sound := makeSparse(data, nil, sparseOptions{version: 3, stream: true, grain: 16,
		descriptor: lines("streamOptimized", "", "", line(t, testSize, "SPARSE", "disk.vmdk"))})
	const first = 21 * sectorSize // the first grain's marker
	if le.Uint64(sound[first:]) != 0 || le.Uint32(sound[first+offMarkerSize:]) == 0 {
		t.Fatal("the first grain isn't where it was thought to be")
	}
	end := len(sound)
	repack := func(b []byte, data []byte) []byte {
		z := pack(data)
		if len(z)+grainMarker > sectorSize {
			t.Fatal("too long for a sector")
		}
		put32(b, first+offMarkerSize, uint32(len(z)))
		copy(b[first+grainMarker:], z)
		return b
	}
	for _, c := range []struct {
		name   string
		damage func(b []byte) []byte
		open   string // part of the error of opening
		read   string // part of the error of reading the first grain
	}{
		{"sound", func(b []byte) []byte { return b }, "", ""},
		{"padded with zeros", func(b []byte) []byte { return append(b, make([]byte, 10240)...) }, "", ""},
		{"in use when it was begun", func(b []byte) []byte { b[offUnclean] = 1; return b }, "", ""},
		{"in use", func(b []byte) []byte { b[end-1024+offUnclean] = 1; return b }, "", ""},
		{"no end-of-stream marker", func(b []byte) []byte { return b[:end-512] }, "no end-of-stream", ""},
		{"no footer", func(b []byte) []byte { return b[:end-1024] }, "footer", ""},
		{"cut off", func(b []byte) []byte { return b[:end/2] }, "footer", ""},
		{"no footer marker", func(b []byte) []byte { b[end-1536+offMarkerType] = 0; return b }, "footer marker", ""},
		{"another's footer", func(b []byte) []byte { b[end-1024+offCapacity]++; return b }, "is not that of the header", ""},
		{"footer without a directory", func(b []byte) []byte { return put64(b, end-1024+offGD, gdAtEnd) }, "is not that of the header", ""},
		{"directory outside", func(b []byte) []byte { return put64(b, end-1024+offGD, 1<<40) }, "lie outside the file", ""},
		{"another grain's marker", func(b []byte) []byte { b[first]++; return b }, "", "its marker is that of sector 0x1, not 0x0"},
		{"size 0", func(b []byte) []byte { return put32(b, first+offMarkerSize, 0) }, "", "0x0 bytes for a grain of 0x2000"},
		{"size 2^32", func(b []byte) []byte { return put32(b, first+offMarkerSize, math.MaxUint32) }, "", "0xffffffff bytes for a grain"},
		{"size too short", func(b []byte) []byte { return put32(b, first+offMarkerSize, 20) }, "", "unexpected EOF"},
		{"no zlib", func(b []byte) []byte { b[first+grainMarker] = 0xff; return b }, "", "invalid header"},
		{"checksum", func(b []byte) []byte {
			b[first+grainMarker+int(le.Uint32(b[first+offMarkerSize:]))-1]++
			return b
		}, "", "checksum"},
		{"bomb", func(b []byte) []byte { return repack(b, make([]byte, 64<<10)) }, "", "more data than a grain holds"},
		{"one byte too many", func(b []byte) []byte { return repack(b, make([]byte, 8193)) }, "", "more data than a grain holds"},
		{"one byte short", func(b []byte) []byte { return repack(b, make([]byte, 8191)) }, "", "0x1fff bytes decompressed, want 0x2000"},
		{"empty", func(b []byte) []byte { return repack(b, nil) }, "", "0x0 bytes decompressed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := openBytes(t, c.damage(bytes.Clone(sound)))
			if c.open != "" {
				if !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), c.open) {
					t.Fatalf("opens with %v; want %q", err, c.open)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if w := img.info.Warnings; (len(w) > 0) != (c.name == "in use") {
				t.Errorf("warnings %q", w)
			}
			buf := make([]byte, 8192)
			n, err := img.ReadAt(buf, 0)
			if c.read == "" && (err != nil || !bytes.Equal(buf, data[:8192])) {
				t.Errorf("%v, or other bytes", err)
			}
			if c.read != "" && (n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), c.read) || !strings.Contains(err.Error(), "disk.vmdk: compressed grain 0 at 0x2a")) {
				t.Errorf("%d bytes, %v; want %q", n, err, c.read)
			}
			rest := make([]byte, testSize-8192)
			if _, err := img.ReadAt(rest, 8192); err != nil || !bytes.Equal(rest, data[8192:]) {
				t.Errorf("the other grains: %v, or other bytes", err)
			}
		})
	}
}

// TestESXDamage damages ESX Server's and space-efficient extents, one of two that
// a disk has: the other is read all the same.
func TestESXDamage(t *testing.T) {
	data := full(testSize)
	cowd := func(t *testing.T) []byte { return makeCowd(data, nil, 8) }
	se := func(t *testing.T) []byte { return makeSe(data, nil) }
	const seDir, seTab = 6 * sectorSize, 7 * sectorSize
	for _, c := range []struct {
		name, kind string
		make       func(t *testing.T) []byte
		damage     func(b []byte) []byte
		err        error
		msg        string
	}{
		{"version", "VMFSSPARSE", cowd, func(b []byte) []byte { return put32(b, offCowdVersion, 2) }, ondisk.ErrUnsupported, "version 2"},
		{"grain size", "VMFSSPARSE", cowd, func(b []byte) []byte { return put32(b, offCowdGrain, 7) }, ondisk.ErrCorrupt, "grain size"},
		{"short directory", "VMFSSPARSE", cowd, func(b []byte) []byte { return put32(b, offCowdGDEs, 0) }, ondisk.ErrCorrupt, "0 entries"},
		{"directory in the header", "VMFSSPARSE", cowd, func(b []byte) []byte { return put32(b, offCowdGD, 1) }, ondisk.ErrCorrupt, "outside"},
		{"directory outside", "VMFSSPARSE", cowd, func(b []byte) []byte { return put32(b, offCowdGD, math.MaxUint32) }, ondisk.ErrCorrupt, "outside"},
		{"cut off", "VMFSSPARSE", cowd, func(b []byte) []byte { return b[:2000] }, ondisk.ErrCorrupt, "cut off"},
		{"grain past the end", "VMFSSPARSE", cowd, func(b []byte) []byte { return put32(b, 5*512, math.MaxUint32) }, ondisk.ErrCorrupt, "past the end"},
		{"no extent", "VMFSSPARSE", cowd, func(b []byte) []byte { return full(4096) }, ondisk.ErrCorrupt, "magic"},
		{"empty", "VMFSSPARSE", cowd, func(b []byte) []byte { return nil }, ondisk.ErrCorrupt, "cut off"},

		{"se magic", "SESPARSE", se, func(b []byte) []byte { b[0]++; return b }, ondisk.ErrCorrupt, "magic"},
		{"se version", "SESPARSE", se, func(b []byte) []byte { b[offSeVersion]++; return b }, ondisk.ErrUnsupported, "version 0x200000002"},
		{"se grain size", "SESPARSE", se, func(b []byte) []byte { b[offSeGrain] = 16; return b }, ondisk.ErrUnsupported, "grains of 16"},
		{"se table size", "SESPARSE", se, func(b []byte) []byte { b[offSeTable] = 32; return b }, ondisk.ErrUnsupported, "tables of 32"},
		{"se flags", "SESPARSE", se, func(b []byte) []byte { b[offSeFlags] = 1; return b }, ondisk.ErrUnsupported, "flags 0x1"},
		{"se volatile", "SESPARSE", se, func(b []byte) []byte { b[512]++; return b }, ondisk.ErrCorrupt, "volatile header"},
		{"se volatile outside", "SESPARSE", se, func(b []byte) []byte { return put64(b, offSeVolatile, 1<<48) }, ondisk.ErrCorrupt, "volatile header"},
		{"se journal", "SESPARSE", se, func(b []byte) []byte { b[512+offSeReplay] = 1; return b }, ondisk.ErrUnsupported, "journal"},
		{"se directory outside", "SESPARSE", se, func(b []byte) []byte { return put64(b, offSeDir, 1<<48) }, ondisk.ErrCorrupt, "grain directory"},
		{"se directory short", "SESPARSE", se, func(b []byte) []byte { return put64(b, offSeDir+8, 0) }, ondisk.ErrCorrupt, "grain directory"},
		{"se grains at 2^63", "SESPARSE", se, func(b []byte) []byte { return put64(b, offSeGrains, 1<<63) }, ondisk.ErrCorrupt, "grains"},
		{"se directory entry", "SESPARSE", se, func(b []byte) []byte { return put64(b, seDir, 0x2<<60) }, ondisk.ErrCorrupt, "grain directory entry 0 at 0xc00"},
		{"se table number", "SESPARSE", se, func(b []byte) []byte { return put64(b, seDir, 0x1<<60|7) }, ondisk.ErrCorrupt, "table 7"},
		{"se type", "SESPARSE", se, func(b []byte) []byte { return put64(b, seTab, 0x5<<60) }, ondisk.ErrCorrupt, "grain table entry 0 at 0xe00"},
		{"se type 0, yet", "SESPARSE", se, func(b []byte) []byte { return put64(b, seTab, 1) }, ondisk.ErrCorrupt, "grain table entry 0"},
		{"se boundless grain", "SESPARSE", se, func(b []byte) []byte { return put64(b, seTab, 0x3fffffffffffffff) }, ondisk.ErrCorrupt, "grain table entry 0"},
		{"se grain past the end", "SESPARSE", se, func(b []byte) []byte { return put64(b, seTab, 0x3fff000000000000) }, ondisk.ErrCorrupt, "past the end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := lines("vmfsSparse", "", "", line(t, testSize, c.kind, "a"), line(t, testSize, c.kind, "b"))
			img, err := openBytes(t, []byte(text), c.damage(c.make(t)), c.make(t))
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, testSize)
			if n, err := img.ReadAt(buf[:512], 0); n != 0 || !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.msg) || !strings.Contains(err.Error(), "vmdk: a: ") {
				t.Errorf("%d bytes, %v; want %v with %q", n, err, c.err, c.msg)
			}
			if n, err := img.ReadAt(buf, testSize); n != testSize || !bytes.Equal(buf, data) {
				t.Errorf("the other extent: %d bytes, %v", n, err)
			}
			// With none other, opening fails, or the read.
			if img, err := openBytes(t, []byte(lines("vmfsSparse", "", "", line(t, testSize, c.kind, "a"))), c.damage(c.make(t))); err == nil {
				_, err = img.ReadAt(buf[:512], 0)
				if !errors.Is(err, c.err) {
					t.Errorf("alone: %v", err)
				}
			} else if !errors.Is(err, c.err) {
				t.Errorf("alone: %v", err)
			}
		})
	}
}

// TestCutOff shortens files: what is there is read, what isn't is an error.
func TestCutOff(t *testing.T) {
	data := full(testSize)
	flat := []byte(lines("monolithicFlat", "", "", line(t, testSize, "FLAT", "a")))
	img, err := openBytes(t, flat, data[:testSize-5000])
	if err != nil || len(img.info.Warnings) != 1 {
		t.Fatalf("%+v, %v", img, err)
	}
	cutOff(t, img, data, testSize-5000)
	sparse := monolithic(t, data, sparseOptions{grain: 128})
	for _, n := range []int{len(sparse) - 5000, len(sparse) - 1, len(sparse) - 70000} {
		img, err := openBytes(t, sparse[:n])
		if err != nil {
			t.Fatal(err)
		}
		cutOff(t, img, data, -1)
	}
}

// cutOff reads sector by sector: each is right or an error, and the first sectors
// up to good are right, unless that is negative.
func cutOff(t *testing.T, img *Image, data []byte, good int) {
	t.Helper()
	bad := 0
	for off := 0; off < len(data); off += 512 {
		buf := make([]byte, 512)
		n, err := img.ReadAt(buf, int64(off))
		switch {
		case err == nil && bytes.Equal(buf, data[off:off+512]):
		case n == 0 && errors.Is(err, ondisk.ErrCorrupt) && (good < 0 || off+512 > good):
			bad++
		default:
			t.Fatalf("sector at %#x: %d bytes, %v", off, n, err)
		}
	}
	if bad == 0 {
		t.Error("nothing is missing")
	}
}

// TestSweep changes bytes of a compressed grain: its checksum finds each.
func TestSweep(t *testing.T) {
	data := disk(128<<10, 3, 6)
	b := makeSparse(data, nil, sparseOptions{stream: true, grain: 16, descriptor: lines("streamOptimized", "", "", line(t, 128<<10, "SPARSE", "x"))})
	const first = 21 * sectorSize
	for off := first + grainMarker; off < first+grainMarker+int(le.Uint32(b[first+offMarkerSize:])); off += 7 {
		b[off] ^= 0x10
		img, err := openBytes(t, b)
		if err != nil {
			t.Fatal(err)
		}
		g := int64(le.Uint64(b[first:])) * sectorSize
		buf := make([]byte, 16*sectorSize)
		if n, err := img.ReadAt(buf, g); (err == nil || n != 0) && !bytes.Equal(buf, data[g:g+int64(len(buf))]) {
			t.Fatalf("the change at %#x goes unnoticed", off)
		}
		b[off] ^= 0x10
	}
}
