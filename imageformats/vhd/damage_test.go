package vhd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// buffer is an image in memory to write to and to damage.
type buffer struct{ b []byte }

func (w *buffer) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(w.b) {
		w.b = append(w.b, make([]byte, need-len(w.b))...)
	}
	return copy(w.b[off:], p), nil
}

// dynamicImage returns a dynamic VHD of data in blocks of 4 KiB.
func dynamicImage(t testing.TB, data readertest.Bytes, opt WriteOptions) []byte {
	t.Helper()
	var w buffer
	if opt.BlockSize == 0 {
		opt.BlockSize = 4096
	}
	if err := WriteDynamic(context.Background(), &w, data, opt); err != nil {
		t.Fatal(err)
	}
	return w.b
}

// fullDisk is a disk without a zero, so that all its blocks are in the file.
func fullDisk(size int) readertest.Bytes {
	b := make(readertest.Bytes, size)
	for i := range b {
		b[i] = byte(i/512)%250 + 1
	}
	return b
}

// fixSums makes the checksums of a changed image right again.
func fixSums(b []byte) {
	sum := func(at, n, off int) {
		if at >= 0 && at+n <= len(b) {
			be.PutUint32(b[at+off:], checksum(b[at:at+n], off))
		}
	}
	if len(b) >= footerSize && string(b[:8]) == footerCookie {
		sum(0, footerSize, offFooterSum)
		if at := be.Uint64(b[offDataOffset:]); at < uint64(len(b)) {
			sum(int(at), headerSize, offHeaderSum)
		}
	}
	if at := len(b) - footerSize; at > 0 && string(b[at:at+8]) == footerCookie {
		sum(at, footerSize, offFooterSum)
	}
}

// both writes v into the footer and its copy at off.
func both(b []byte, off int, v []byte) {
	copy(b[off:], v)
	copy(b[len(b)-footerSize+off:], v)
	fixSums(b)
}

func probeBytes(t testing.TB, b []byte) (imageformats.Info, error) {
	t.Helper()
	return Format.Probe(t.Context(), readertest.Bytes(b))
}

// TestFooters checks which footer counts, and what is said of the other.
func TestFooters(t *testing.T) {
	data := fullDisk(64 << 10)
	for _, c := range []struct {
		name   string
		damage func(b []byte) []byte
		warn   string // part of the only warning; none when empty
		err    error
		msg    string
	}{
		{"sound", func(b []byte) []byte { return b }, "", nil, ""},
		{"trailer's sum", func(b []byte) []byte { b[len(b)-100]++; return b }, "wrong checksum; its copy at the start is used", nil, ""},
		{"trailer gone", func(b []byte) []byte { return b[:len(b)-footerSize] }, "no footer at the end", nil, ""},
		{"junk behind", func(b []byte) []byte { return append(b, make([]byte, 4096)...) }, "no footer at the end", nil, ""},
		{"copy's sum", func(b []byte) []byte { b[100]++; return b }, "copy at the start has a wrong checksum", nil, ""},
		{"copy gone", func(b []byte) []byte { clear(b[:footerSize]); return b }, "copy at the start is missing", nil, ""},
		{"differ", func(b []byte) []byte { b[offUniqueID]++; fixSums(b); return b }, "differ", nil, ""},
		{"old footer", func(b []byte) []byte { return b[:len(b)-1] }, "", nil, ""},
		{"saved state", func(b []byte) []byte { both(b, offSavedState, []byte{1}); return b }, "saved state", nil, ""},
		{"both sums", func(b []byte) []byte { b[100]++; b[len(b)-100]++; return b }, "", ondisk.ErrCorrupt, "footer at 0x"},
		{"copy's sum, trailer gone", func(b []byte) []byte { b[100]++; return b[:len(b)-footerSize] }, "", ondisk.ErrCorrupt, "footer copy at 0x0"},
		{"both gone", func(b []byte) []byte { clear(b[:footerSize]); return b[:len(b)-footerSize] }, "", ondisk.ErrFormat, ""},
		{"nothing", func(b []byte) []byte { return nil }, "", ondisk.ErrFormat, ""},
		{"510 bytes", func(b []byte) []byte { return b[:510] }, "", ondisk.ErrFormat, ""},
		{"type 5", func(b []byte) []byte { both(b, offDiskType, []byte{0, 0, 0, 5}); return b }, "", ondisk.ErrUnsupported, "disk type 5"},
		{"version 2", func(b []byte) []byte { both(b, offVersion, []byte{0, 2, 0, 0}); return b }, "", ondisk.ErrUnsupported, "version 0x20000"},
		{"size", func(b []byte) []byte { both(b, offCurrent, slices.Repeat([]byte{0xff}, 8)); return b }, "", ondisk.ErrCorrupt, "current size"},
		{"odd size", func(b []byte) []byte { b[offCurrent+7], b[len(b)-footerSize+offCurrent+7] = 1, 1; fixSums(b); return b }, "rounded down", nil, ""},
		{"header's sum", func(b []byte) []byte { b[footerSize+900]++; return b }, "", ondisk.ErrCorrupt, "dynamic header at 0x200: checksum"},
		{"header's cookie", func(b []byte) []byte { b[footerSize]++; fixSums(b); return b }, "", ondisk.ErrCorrupt, "cookie"},
		{"header outside", func(b []byte) []byte { both(b, offDataOffset, slices.Repeat([]byte{0xff}, 8)); return b }, "", ondisk.ErrCorrupt, "dynamic header"},
		{"header inside the footer", func(b []byte) []byte { both(b, offDataOffset, make([]byte, 8)); return b }, "", ondisk.ErrCorrupt, "dynamic header"},
		{"header version", func(b []byte) []byte { b[footerSize+offHeaderVer+1] = 7; fixSums(b); return b }, "", ondisk.ErrUnsupported, "0x70000"},
		{"block size 0", func(b []byte) []byte { clear(b[footerSize+offBlockSize:][:4]); fixSums(b); return b }, "", ondisk.ErrCorrupt, "block size"},
		{"block size 3", func(b []byte) []byte { b[footerSize+offBlockSize+1] = 3; fixSums(b); return b }, "", ondisk.ErrCorrupt, "block size"},
		{"short table", func(b []byte) []byte { b[footerSize+offTableEntries+3] = 15; fixSums(b); return b }, "", ondisk.ErrCorrupt, "15 entries of 4096 bytes"},
		{"table outside", func(b []byte) []byte { b[footerSize+offTableOffset] = 0xff; fixSums(b); return b }, "", ondisk.ErrCorrupt, "outside the file"},
		{"table cut off", func(b []byte) []byte { return b[:footerSize+headerSize+63] }, "", ondisk.ErrCorrupt, "outside the file"},
		// A table of a thousand million entries of which the disk needs few is
		// no harm; memory follows the need.
		{"boundless table", func(b []byte) []byte { b[footerSize+offTableEntries] = 0xff; fixSums(b); return b }, "", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.damage(dynamicImage(t, data, WriteOptions{ID: [16]byte{9}, Created: epoch.Add(time.Hour)}))
			info, err := probeBytes(t, b)
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
			img, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			readertest.Run(t, img, data)
		})
	}
}

// TestFixedFooters reads fixed disks, which have no copy of their footer.
func TestFixedFooters(t *testing.T) {
	data := fullDisk(10_240)
	var w buffer
	if err := WriteFixed(t.Context(), &w, data, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	open := func(b []byte) imageformats.Image {
		img, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	readertest.Run(t, open(w.b), data)
	readertest.Run(t, open(w.b[:len(w.b)-1]), data) // of 511 bytes
	bad := slices.Clone(w.b)
	bad[len(bad)-1]++
	if _, err := probeBytes(t, bad); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("wrong checksum: %v", err)
	}
	if _, err := probeBytes(t, data); !errors.Is(err, ondisk.ErrFormat) {
		t.Errorf("no footer: %v", err)
	}
	// A fixed disk whose guest keeps a VHD in its first sectors is itself.
	nested := append(slices.Clone(w.b[len(w.b)-footerSize:]), w.b[footerSize:]...)
	readertest.Run(t, open(nested), readertest.Bytes(nested[:len(data)]))
	// Cut off in the middle, with the footer kept: the start can be read.
	short := append(slices.Clone(w.b[:5000]), w.b[len(data):]...)
	img := open(short)
	p := make([]byte, 5000)
	if n, err := img.ReadAt(p, 0); n != 5000 || err != nil || string(p) != string(data[:5000]) {
		t.Errorf("what is there: %d, %v", n, err)
	}
	if n, err := img.ReadAt(p, 4000); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || errors.Is(err, io.EOF) {
		t.Errorf("what is cut off: %d, %v", n, err)
	}
}

// TestBadEntries checks that a bad BAT entry fails the reads of its block, with
// its number and place, and no others.
func TestBadEntries(t *testing.T) {
	data := fullDisk(64 << 10)
	for name, c := range map[string]struct {
		entry uint32
		msg   string
	}{
		"past the end": {0x7fffffff, "past the end"},
		"just past":    {uint32(footerSize+headerSize+512+16*(512+4096)) / 512, "past the end"},
		"footer copy":  {0, "over the footer copy"},
		"header":       {1, "over the dynamic header"},
		"header's end": {2, "over the dynamic header"},
		"table":        {3, "over the BAT"},
		"near the end": {uint32(footerSize+headerSize+512+15*(512+4096))/512 + 4, "past the end"},
	} {
		t.Run(name, func(t *testing.T) {
			b := dynamicImage(t, data, WriteOptions{})
			be.PutUint32(b[footerSize+headerSize+5*4:], c.entry)
			img, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{Name: "x.vhd"})
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 4096)
			for i := int64(0); i < 16; i++ {
				n, err := img.ReadAt(p, i*4096)
				if i != 5 {
					if n != 4096 || err != nil && err != io.EOF || string(p) != string(data[i*4096:][:4096]) {
						t.Errorf("block %d: %d, %v", i, n, err)
					}
					continue
				}
				if n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), c.msg) ||
					!strings.Contains(err.Error(), "BAT entry 5 at 0x614") || !strings.Contains(err.Error(), "x.vhd") {
					t.Errorf("block 5: %d, %v", n, err)
				}
			}
			if n, err := img.ReadAt(make([]byte, 64<<10), 0); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) {
				t.Errorf("whole: %d, %v", n, err)
			}
			// Extents before the block are told, up to it.
			for off := int64(0); ; {
				e, err := block.ExtentAt(t.Context(), img, off, math.MaxInt64)
				if err != nil {
					if off != 5*4096 {
						t.Errorf("extent at %#x: %v", off, err)
					}
					break
				}
				off += e.Len
			}
		})
	}
}

// TestTruncated cuts an image at every sector: what lies before the cut is read,
// what doesn't is an error, and nothing is made up.
func TestTruncated(t *testing.T) {
	data := fullDisk(32 << 10)
	b := dynamicImage(t, data, WriteOptions{})
	for cut := footerSize + headerSize + 512; cut < len(b); cut += 512 {
		img, err := Format.Open(t.Context(), readertest.Bytes(b[:cut]), imageformats.OpenOptions{})
		if err != nil {
			t.Fatalf("cut at %#x: %v", cut, err)
		}
		p := make([]byte, 512)
		for off := 0; off < len(data); off += 512 {
			blockAt := footerSize + headerSize + 512 + off/4096*(512+4096)
			there := blockAt+512+off%4096+512 <= cut
			n, err := img.ReadAt(p, int64(off))
			if there && (n != 512 || err != nil && err != io.EOF || string(p) != string(data[off:off+512])) || !there && !errors.Is(err, ondisk.ErrCorrupt) {
				t.Fatalf("cut at %#x, sector at %#x: %d, %v", cut, off, n, err)
			}
		}
	}
}

// TestSectorBitmap clears bits of a dynamic image: such sectors are zeros, in
// either order of bits.
func TestSectorBitmap(t *testing.T) {
	data := fullDisk(16 << 10)
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprint(old), func(t *testing.T) {
			b := dynamicImage(t, data, WriteOptions{BlockSize: 16 << 10})
			want := slices.Clone(data)
			bitmap := footerSize + headerSize + 512
			b[bitmap], b[bitmap+1], b[bitmap+3] = 0b1101_1111, 0, 0b1111_0000
			if old {
				b[bitmap], b[bitmap+3] = 0b1111_1011, 0b0000_1111
				both(b, offCreatorApp, []byte("tap\x00\x00\x00\x00\x01"))
			}
			clear(want[2*512 : 3*512])
			clear(want[8*512 : 16*512])
			clear(want[28*512 : 32*512])
			img, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			readertest.Run(t, img, want)
			e, err := block.ExtentAt(t.Context(), img, 8*512, math.MaxInt64)
			if err != nil || !e.Zero || e.Len != 8*512 {
				t.Errorf("extent of cleared sectors = %+v, %v", e, err)
			}
		})
	}
}

// TestSize checks whose size is the geometry's.
func TestSize(t *testing.T) {
	for _, c := range []struct {
		app      string
		geometry []byte
		size     int64
	}{
		{"vpc ", []byte{0, 3, 4, 17}, 3 * 4 * 17 * 512},
		{"vs  ", []byte{0, 3, 4, 17}, 3 * 4 * 17 * 512},
		{"qemu", []byte{0, 3, 4, 17}, 3 * 4 * 17 * 512},
		{"qemu", []byte{0xff, 0xff, 16, 255}, 256 << 10}, // the maximum tells nothing
		{"vpc ", []byte{0, 0, 0, 0}, 256 << 10},
		{"vpc ", []byte{1, 0, 4, 17}, 256 << 10}, // more than there is
		{"qem2", []byte{0, 3, 4, 17}, 256 << 10},
		{"win ", []byte{0, 3, 4, 17}, 256 << 10},
		{"d2v\x00", []byte{0, 3, 4, 17}, 256 << 10},
		{"d2v ", []byte{0, 3, 4, 17}, 256 << 10},
		{"tap\x00", []byte{0, 3, 4, 17}, 256 << 10},
		{"CTXS", []byte{0, 3, 4, 17}, 256 << 10},
		{"wa\x00\x00", []byte{0, 3, 4, 17}, 256 << 10},
		{"vbox", []byte{0, 3, 4, 17}, 256 << 10},
	} {
		data := fullDisk(256 << 10)
		b := dynamicImage(t, data, WriteOptions{})
		both(b, offCreatorApp, []byte(c.app))
		both(b, offGeometry, c.geometry)
		img, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{})
		if err != nil || img.Size() != c.size {
			t.Errorf("%q with geometry %v: %d bytes, %v; want %d", c.app, c.geometry, img.Size(), err, c.size)
			continue
		}
		readertest.Run(t, img, data[:c.size])
	}
}
