package vmdk

import (
	"bytes"
	"io"
	"math"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// FuzzDescriptor reads hostile texts: what is accepted is bounded and adds up.
func FuzzDescriptor(f *testing.F) {
	f.Add([]byte(lines("vmfsSparse", "abcd1234", "../a/base.vmdk", "RW 8 VMFSSPARSE \"a-delta.vmdk\"", "RW 16 ZERO", "RDONLY 3 FLAT \"b\" 17")))
	f.Add([]byte("# Disk DescriptorFile\r\nversion=1\r\nencoding=\"GBK\"\r\ncreateType=\"custom\"\r\nNOACCESS 4 FLAT\r\nRW 1125899906842624 SPARSE \"\xb4\xc5\"\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDescriptor(b, 0)
		if err != nil {
			return
		}
		var sum uint64
		for _, e := range d.extents {
			if e.start != sum || e.sectors == 0 || e.offset > maxSectors {
				t.Fatalf("extent %+v at sector %d", e, sum)
			}
			sum += e.sectors
		}
		if sum != d.sectors || sum > maxSectors || len(d.extents) > maxExtents {
			t.Fatalf("%d extents of %d sectors, said to be %d", len(d.extents), sum, d.sectors)
		}
	})
}

// fuzzSize is the size of a disk, bytes.
const fuzzSize = 4 << 10

// Small images of each kind, as the fuzzer's shrinking takes the square of the
// length.
func fuzzSeeds(f *testing.F) (seeds [][]byte, kinds []byte) {
	data, parent := disk(fuzzSize, 1, 3), disk(fuzzSize, 2, 3)
	clear(data[1<<10 : 2<<10])
	const size = fuzzSize
	text := lines("x", "", "", line(f, size, "SPARSE", "x"))
	child := lines("x", "fedc1234", "base", line(f, size, "SPARSE", "x"))
	for _, s := range []struct {
		b    []byte
		kind byte
	}{
		{makeSparse(data, nil, sparseOptions{grain: 1, gtes: 4, redundant: true, room: 1, descriptor: text}), 0},
		{makeSparse(data, parent, sparseOptions{version: 2, grain: 2, gtes: 8, zeroed: true, room: 1, descriptor: child}), 0},
		{makeSparse(data, nil, sparseOptions{version: 3, grain: 1, gtes: 8, room: 1, stream: true, descriptor: text}), 0},
		{makeSparse(data, nil, sparseOptions{grain: 1, gtes: 8, unmarked: true}), 1},
		{makeSparse(data, nil, sparseOptions{grain: 1, gtes: 4}), 1},
		{makeCowd(data, nil, 8), 2},
		{makeSe(data, parent), 3},
		{data, 4},
	} {
		seeds, kinds = append(seeds, s.b), append(kinds, s.kind)
	}
	return seeds, kinds
}

// FuzzHeader opens an extent whose header is hostile and whose rest is sound.
func FuzzHeader(f *testing.F) {
	seeds, kinds := fuzzSeeds(f)
	for i, b := range seeds {
		f.Add(b[:min(len(b), 256)], byte(i))
	}
	f.Fuzz(func(t *testing.T, head []byte, i byte) {
		i %= byte(len(seeds))
		b := bytes.Clone(seeds[i])
		copy(b, head)
		fuzzImage(t, b, kinds[i])
	})
}

// FuzzVMDK opens hostile images, and hostile extents of sound descriptors. Nothing
// may panic; a map must tile the disk; a read in pieces must give what a whole
// read gives.
func FuzzVMDK(f *testing.F) {
	seeds, kinds := fuzzSeeds(f)
	for i, b := range seeds {
		if len(b) < 16<<10 {
			f.Add(b, kinds[i])
			f.Add(b[:len(b)-700], kinds[i])
		}
	}
	f.Fuzz(fuzzImage)
}

func fuzzImage(t *testing.T, b []byte, kind byte) {
	const size = fuzzSize
	file := readertest.Bytes(b)
	opt := imageformats.OpenOptions{AllowChangedParent: true, IgnoreLog: kind&0x80 != 0}
	if k := kind % 5; k > 0 {
		opt.Files = append(opt.Files, file)
		kinds := []string{"SPARSE", "VMFSSPARSE", "SESPARSE", "FLAT"}
		file = readertest.Bytes(lines("x", "", "", "RW 3 ZERO", line(t, size, kinds[k-1], "x")))
	}
	info, err := Format.Probe(t.Context(), file)
	if err != nil {
		return
	}
	for len(opt.Files) < min(len(info.Files), 3) {
		opt.Files = append(opt.Files, readertest.Bytes(b))
	}
	if info.Parent != nil {
		parent, err := openBytes(t, []byte(lines("x", "", "", "RW 7 FLAT \"x\" 0")), full(size))
		if err != nil {
			t.Fatal(err)
		}
		opt.Parent = parent
	}
	img, err := Format.Open(t.Context(), file, opt)
	if err != nil {
		return
	}
	defer img.Close()
	if img.Size() != info.Size || img.Size() < 0 {
		t.Fatalf("Open sees %d bytes, Probe %d", img.Size(), info.Size)
	}
	walk(t, img)
	last := max(0, img.Size()-64<<10)
	for _, off := range []int64{0, 4096 - 700, last, last / 2} {
		pieces(t, img, off, min(64<<10, max(0, img.Size()-off)))
	}
}

// walk follows the map for a bounded number of extents. Each is read in part;
// holes are zeros, and what lies plainly in a file is read.
func walk(t *testing.T, img imageformats.Image) {
	buf := make([]byte, 4096)
	off := int64(0)
	for range 100 {
		if off >= img.Size() {
			break
		}
		e, err := block.ExtentAt(t.Context(), img, off, math.MaxInt64)
		if err != nil {
			if n, rerr := img.ReadAt(buf[:1], off); rerr == nil || n != 0 {
				t.Fatalf("at %#x the map fails (%v), and a read gives %d, %v", off, err, n, rerr)
			}
			off += 512 // what comes behind the damage?
			continue
		}
		n := int(min(e.Len, int64(len(buf))))
		// Data may be compressed, and damaged.
		got, err := img.ReadAt(buf[:n], off)
		if e.Zero && (got != n || len(bytes.Trim(buf[:n], "\x00")) > 0) {
			t.Fatalf("hole %+v at %#x isn't zeros: %d, %v", e, off, got, err)
		}
		off += e.Len
	}
}

// pieces compares a read of n bytes with reads of its parts.
func pieces(t *testing.T, img imageformats.Image, off, n int64) {
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
