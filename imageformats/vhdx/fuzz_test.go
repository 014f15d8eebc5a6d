package vhdx

import (
	"bytes"
	"io"
	"math"
	"slices"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
)

// fuzzAreas are the places where a fuzzed image differs from a sound one. Images
// are megabytes of zeros, so that inputs say what to change, not what is there:
// records of area, 16-bit offset, length and bytes.
var fuzzAreas = []int64{
	fileTypeOff, header1Off, header2Off, region1Off, region2Off,
	writeMetadataOff, writeMetadataOff + tableSize,
	writeBATOff, writeBATOff + bitmapBits*512/mib*batEntrySize, // payload blocks, the first sector bitmap
	writeLogOff, writeLogOff + 0x8000, writeLogOff + writeLogSize - 0x10000,
	writeBATOff + mib, writeBATOff + 2*mib, writeBATOff + 3*mib,
}

// record encodes a change for a seed.
func record(area int, off uint16, b ...byte) []byte {
	return append([]byte{byte(area), byte(off), byte(off >> 8), byte(len(b))}, b...)
}

// mutate applies the records of in.
func mutate(m *mem, in []byte) {
	for len(in) >= 4 {
		area, off, n := int(in[0])%(len(fuzzAreas)+1), int64(le.Uint16(in[1:])), int(in[3])
		in = in[4:]
		n = min(n, len(in))
		if area == len(fuzzAreas) { // cut off, at a multiple of 4 KiB and some
			*m = *m.cut(min(m.size, off*logSector+int64(n)))
		} else if at := fuzzAreas[area] + off; at+int64(n) <= m.size {
			m.put(at, in[:n]...)
		}
		in = in[n:]
	}
}

// fixSums makes all checksums right, so that what they guard is reached.
func fixSums(m *mem) {
	for _, at := range []int64{header1Off, header2Off} {
		m.sum(at, headerSize, offHeaderSum)
	}
	for _, at := range []int64{region1Off, region2Off} {
		m.sum(at, tableSize, offRegionSum)
	}
	for at := int64(writeLogOff); at < min(m.size, writeLogOff+writeLogSize); at += logSector {
		n := int64(le.Uint32(m.get(at+offEntryLength, 4)))
		if string(m.get(at, 4)) == entrySig && n >= logSector && at+n <= writeLogOff+writeLogSize {
			m.sum(at, int(n), offEntrySum)
		}
	}
}

// FuzzVHDX opens hostile images. Nothing may panic; a map must tile the disk; a
// read in pieces must give what a whole read gives.
func FuzzVHDX(f *testing.F) {
	data := disk(3<<20+512, 1, 3)
	opt := WriteOptions{ID: [16]byte{1}, BlockSize: mib}
	next := slices.Clone(data)
	copy(next[2<<20+5000:], "changed")
	next[4096]++
	base := dynamicImage(f, data, opt)
	diff := diffImage(f, next, data, DiffOptions{WriteOptions: opt, ParentID: opt.ID, Locators: ParentLocators(`.\base.vhdx`, `C:\base.vhdx`)})
	dirty := staleImage(f, dynamicImage(f, fullDisk(1<<20), opt), 0)
	wrapped := staleImage(f, dynamicImage(f, fullDisk(1<<20), opt), writeLogSize-0x8000)
	dirtyDiff := diff.clone()
	newLog(dirtyDiff, 0).add(now(dirtyDiff, dirtyDiff.size-bitmapSize), update{at: writeBATOff + 4096, n: 8192})
	images := []*mem{base, diff, dirty, wrapped, dirtyDiff}
	parent := openMem(f, base, imageformats.OpenOptions{})
	for i := range images {
		f.Add(byte(i), []byte{}, false, false)
		f.Add(byte(i), []byte{}, true, true)
		f.Add(byte(i), record(7, 0, u64(writeBATOff+2*mib|6)...), true, false)   // another's block
		f.Add(byte(i), record(7, 16, u64(1<<40|7)...), true, false)              // past the end
		f.Add(byte(i), record(6, 8, u64(1<<40)...), true, false)                 // a large disk
		f.Add(byte(i), record(6, 0, u32(256*mib)...), true, true)                // of large blocks
		f.Add(byte(i), record(3, regionHeadSize+16, u64(1<<62)...), true, false) // a region far away
		f.Add(byte(i), record(9, offEntryTail, u32(0x2000)...), true, false)     // another tail
		f.Add(byte(i), record(9, entryHeadSize+offZeroLength, u64(1<<40)...), true, false)
		f.Add(byte(i), record(12, 3, 0x55, 0xaa), false, false)
		f.Add(byte(i), record(len(fuzzAreas), 1030, 1), false, false) // cut
	}
	f.Fuzz(func(t *testing.T, which byte, in []byte, sums, ignore bool) {
		if len(in) > 1<<10 {
			return // shrinking takes the square of the length
		}
		m := images[int(which)%len(images)].clone()
		mutate(m, in)
		if sums && m.size > writeLogOff {
			fixSums(m)
		}
		info, err := Format.Probe(t.Context(), m)
		if err != nil {
			return
		}
		opt := imageformats.OpenOptions{AllowChangedParent: true, IgnoreLog: ignore}
		if info.Parent != nil {
			opt.Parent = parent
		}
		img, err := Format.Open(t.Context(), m, opt)
		if err != nil {
			return
		}
		if !ignore && img.Size() != info.Size || img.Size() < 0 || img.Size() > maxSize {
			t.Fatalf("Open sees %d bytes, Probe %d", img.Size(), info.Size)
		}
		walk(t, img)
		last := max(0, img.Size()-64<<10)
		for _, off := range []int64{0, mib - 700, 2<<20 + 4800, last, last / 2} {
			pieces(t, img, off, min(64<<10, max(0, img.Size()-off)))
		}
	})
}

// walk follows the map for a bounded number of extents. Each is read in part;
// where the map has an answer, so has the read, and holes are zeros.
func walk(t *testing.T, img imageformats.Image) {
	buf := make([]byte, 4096)
	off := int64(0)
	for range 200 {
		if off >= img.Size() {
			break
		}
		e, err := block.ExtentAt(t.Context(), img, off, math.MaxInt64)
		if err != nil {
			if n, rerr := img.ReadAt(buf[:1], off); rerr == nil || n != 0 {
				t.Fatalf("at %#x the map fails (%v), and a read gives %d, %v", off, err, n, rerr)
			}
			off += 512 << 10 // what comes behind the damage?
			continue
		}
		n := int(min(e.Len, int64(len(buf))))
		got, err := img.ReadAt(buf[:n], off)
		if got != n {
			t.Fatalf("extent %+v at %#x: read %d, %v", e, off, got, err)
		}
		if e.Zero && len(bytes.Trim(buf[:n], "\x00")) > 0 {
			t.Fatalf("hole %+v at %#x isn't zeros", e, off)
		}
		off += e.Len
	}
}

// pieces compares a read of n bytes with reads of its parts.
func pieces(t *testing.T, img imageformats.Image, off, n int64) {
	if n <= 0 {
		return
	}
	whole := make([]byte, n)
	m, err := img.ReadAt(whole, off)
	if err != nil && err != io.EOF {
		if m != 0 {
			t.Fatalf("failed read at %#x gives %d bytes", off, m)
		}
		return
	}
	part := make([]byte, 777)
	for at := int64(0); at < n; at += int64(len(part)) {
		p := part[:min(int64(len(part)), n-at)]
		if m, err := img.ReadAt(p, off+at); m != len(p) || !bytes.Equal(p, whole[at:at+int64(m)]) {
			t.Fatalf("%d bytes at %#x: %d, %v, or other bytes than the whole read's", len(p), off+at, m, err)
		}
	}
}

// FuzzLog replays sound logs of any updates, a byte each for kind, place and
// length, and compares with a file that they are made to one by one.
func FuzzLog(f *testing.F) {
	const span = 64 // sectors that updates go to, the last ones beyond the file's end
	var base mem
	w := WriteOptions{BlockSize: mib}
	if err := WriteDynamic(f.Context(), &base, fullDisk(1<<20), w); err != nil {
		f.Fatal(err)
	}
	start := base.size - span/2*logSector
	f.Add(byte(0), []byte{1, 2, 3})
	f.Add(byte(255), []byte{1, 2, 3, 0, 0, 64, 2, 0, 0, 1, 60, 2, 0, 3, 9, 1, 3, 1, 0, 61, 16})
	f.Add(byte(254), []byte{0, 0, 64, 3, 0, 0, 1, 1, 1, 1, 0, 0, 3, 0, 0, 3, 0, 0, 1, 63, 0, 0, 5, 9})
	f.Fuzz(func(t *testing.T, pos byte, in []byte) {
		if len(in) > 300 {
			return // 100 updates: they fit the log
		}
		m, want := base.clone(), base.clone()
		log := newLog(m, uint32(pos)*logSector)
		log.last = 0
		var entry []update
		for i := 0; i+3 <= len(in); i += 3 {
			at, n := start+int64(in[i+1]%span)*logSector, uint64(in[i+2])%16
			switch in[i] % 4 {
			case 0:
				entry = append(entry, update{at: at, n: n * logSector})
				if n > 0 {
					want.put(at, make([]byte, n*logSector)...)
				}
			case 3:
				log.add(entry...)
				entry = nil
			default:
				u := rubbish(at, in[i+2])
				entry = append(entry, u)
				want.put(at, u.data...)
			}
		}
		log.add(entry...)
		got, err := replay(t.Context(), m, decodeHeader(m.get(header1Off, headerSize)))
		if err != nil {
			t.Fatal(err)
		}
		if got.Size() != want.size {
			t.Fatalf("%#x bytes, want %#x", got.Size(), want.size)
		}
		for off := start - 100; off < want.size; off += 5000 {
			p := make([]byte, min(5000, want.size-off))
			if n, err := got.ReadAt(p, off); n != len(p) || !bytes.Equal(p, want.get(off, n)) {
				t.Fatalf("at %#x: %d bytes, %v, or other ones", off, n, err)
			}
			if e, err := got.Extent(t.Context(), off, 5000); err != nil || e.Zero && len(bytes.Trim(want.get(off, int(e.Len)), "\x00")) > 0 {
				t.Fatalf("extent at %#x: %+v, %v", off, e, err)
			}
		}
	})
}
