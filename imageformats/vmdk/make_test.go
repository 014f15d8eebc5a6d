package vmdk

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// file is an image that is being made, sector by sector.
type file struct{ b []byte }

// sector returns the number of the next sector, with the file padded up to it.
func (f *file) sector() int {
	f.b = append(f.b, make([]byte, -len(f.b)&(sectorSize-1))...)
	return len(f.b) / sectorSize
}

// add appends b from the next sector on, whose number it returns.
func (f *file) add(b []byte) int {
	n := f.sector()
	f.b = append(f.b, b...)
	f.sector()
	return n
}

// sparseOptions tell how makeSparse lays an extent out.
type sparseOptions struct {
	version    uint32 // 0: 1
	grain      int    // sectors; 0: 128
	gtes       int    // 0: 512
	redundant  bool
	zeroed     bool // write zeros that hide a parent's data as gteZeroed
	stream     bool // compressed, with markers and a footer
	unmarked   bool // compressed, without markers
	descriptor string
	room       int // sectors for the descriptor; 0: 20
	unclean    bool
	plainZeros bool // store grains of zeros, too
}

// grainsOf cuts data into grains. A nil grain is absent: zeros without a parent,
// or the parent's; an empty one is known to be zeros.
func grainsOf(data, parent []byte, size int, storeZeros bool) (grains [][]byte) {
	for off := 0; off < len(data); off += size {
		g := data[off:min(off+size, len(data))]
		var old []byte
		if parent != nil {
			old = parent[off:min(off+size, len(data))]
		} else if !storeZeros {
			old = make([]byte, len(g))
		}
		switch {
		case bytes.Equal(g, old):
			grains = append(grains, nil)
		case len(bytes.Trim(g, "\x00")) == 0 && !storeZeros:
			grains = append(grains, []byte{})
		default:
			grains = append(grains, g)
		}
	}
	return grains
}

func pack(data []byte) []byte {
	var z bytes.Buffer
	w, _ := zlib.NewWriterLevel(&z, 1)
	w.Write(data)
	w.Close()
	return z.Bytes()
}

// makeSparse makes a hosted sparse extent of data, over a parent's unless nil.
func makeSparse(data, parent []byte, o sparseOptions) []byte {
	if o.grain == 0 {
		o.grain = 128
	}
	if o.gtes == 0 {
		o.gtes = tableEntries
	}
	h := make([]byte, sparseHeaderSize)
	copy(h, sparseMagic)
	flags := uint32(flagNewlines)
	if o.redundant {
		flags |= flagRedundant
	}
	if o.zeroed {
		flags |= flagZeroedGTE
	}
	if o.stream || o.unmarked {
		flags |= flagCompressed
		le.PutUint16(h[offCompress:], deflate)
	}
	if o.stream {
		flags |= flagMarkers
	}
	le.PutUint32(h[offVersion:], max(1, o.version))
	le.PutUint32(h[offFlags:], flags)
	le.PutUint64(h[offCapacity:], uint64(len(data)/sectorSize))
	le.PutUint64(h[offGrainSize:], uint64(o.grain))
	le.PutUint32(h[offGTEs:], uint32(o.gtes))
	copy(h[offNewlines:], newlines)
	if o.unclean {
		h[offUnclean] = 1
	}
	f := &file{}
	f.add(h)
	if o.descriptor != "" {
		le.PutUint64(h[offDescOffset:], 1)
		if o.room == 0 {
			o.room = 20
		}
		le.PutUint64(h[offDescSize:], uint64(o.room))
		f.add(append([]byte(o.descriptor), make([]byte, o.room*sectorSize-len(o.descriptor))...))
	}
	grains := grainsOf(data, parent, o.grain*sectorSize, o.plainZeros)
	tables := (len(grains) + o.gtes - 1) / o.gtes
	metadata := func() (dir int, table []int) {
		dir = f.add(make([]byte, tables*4))
		for i := range tables {
			table = append(table, f.add(make([]byte, o.gtes*4)))
			le.PutUint32(f.b[dir*sectorSize+i*4:], uint32(table[i]))
		}
		return dir, table
	}
	gtes := make([]uint32, len(grains))
	fill := func(table []int) {
		for i, e := range gtes {
			le.PutUint32(f.b[table[i/o.gtes]*sectorSize+i%o.gtes*4:], e)
		}
	}
	var first, second []int
	if !o.stream {
		if o.redundant {
			var dir int
			dir, second = metadata()
			le.PutUint64(h[offRGD:], uint64(dir))
		}
		var dir int
		dir, first = metadata()
		le.PutUint64(h[offGD:], uint64(dir))
	} else {
		le.PutUint64(h[offGD:], gdAtEnd)
	}
	order := make([]int, len(grains))
	for i := range order {
		order[i] = i
	}
	// Grains lie in the order in which they were written; some runs stay whole.
	rng := rand.New(rand.NewPCG(uint64(len(data)), 2))
	if k := len(order) / 3; !o.stream && k > 0 {
		rng.Shuffle(k, func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	for _, i := range order {
		g := grains[i]
		switch {
		case g == nil:
			continue
		case len(g) == 0 && o.zeroed:
			gtes[i] = gteZeroed
			continue
		case len(g) == 0:
			g = make([]byte, min(o.grain*sectorSize, len(data)-i*o.grain*sectorSize))
		}
		if o.stream {
			z := pack(g)
			m := make([]byte, grainMarker, grainMarker+len(z))
			le.PutUint64(m[offMarkerLBA:], uint64(i*o.grain))
			le.PutUint32(m[offMarkerSize:], uint32(len(z)))
			gtes[i] = uint32(f.add(append(m, z...)))
		} else if o.unmarked {
			gtes[i] = uint32(f.add(pack(g)))
		} else {
			gtes[i] = uint32(f.add(g))
		}
	}
	if !o.stream {
		fill(first)
		if o.redundant {
			fill(second)
		}
		copy(f.b, h)
		return f.b
	}
	marker := func(kind uint32, sectors int) {
		m := make([]byte, sectorSize)
		le.PutUint64(m, uint64(sectors))
		le.PutUint32(m[offMarkerType:], kind)
		f.add(m)
	}
	copy(f.b, h)
	marker(1, 4)
	dir, table := metadata()
	fill(table)
	marker(2, 1)
	le.PutUint64(h[offGD:], uint64(dir))
	marker(markerFooter, 1)
	f.add(h)
	f.add(make([]byte, sectorSize))
	return f.b
}

// makeCowd makes an ESX Server sparse extent with grains of so many sectors.
func makeCowd(data, parent []byte, grain int) []byte {
	h := make([]byte, cowdHeaderSize)
	copy(h, cowdMagic)
	grains := grainsOf(data, parent, grain*sectorSize, false)
	tables := (len(grains) + cowdTable - 1) / cowdTable
	le.PutUint32(h[offCowdVersion:], cowdVersion)
	le.PutUint32(h[offCowdFlags:], 3)
	le.PutUint32(h[offCowdCapacity:], uint32(len(data)/sectorSize))
	le.PutUint32(h[offCowdGrain:], uint32(grain))
	le.PutUint32(h[offCowdGD:], 4)
	le.PutUint32(h[offCowdGDEs:], uint32(tables))
	f := &file{}
	f.add(h)
	dir := f.add(make([]byte, tables*4))
	for i, g := range grains {
		if g == nil {
			continue
		}
		de := f.b[dir*sectorSize+i/cowdTable*4:]
		if le.Uint32(de) == 0 { // tables lie between the grains, as they were needed
			t := f.add(make([]byte, cowdTable*4))
			le.PutUint32(f.b[dir*sectorSize+i/cowdTable*4:], uint32(t))
		}
		if len(g) == 0 {
			g = make([]byte, min(grain*sectorSize, len(data)-i*grain*sectorSize))
		}
		at := f.add(g)
		t := int(le.Uint32(f.b[dir*sectorSize+i/cowdTable*4:]))
		le.PutUint32(f.b[t*sectorSize+i%cowdTable*4:], uint32(at))
	}
	return f.b
}

// makeSe makes a seSparse extent whose grains lie in another order than the disk's.
func makeSe(data, parent []byte) []byte {
	const perTable = seTableSectors * sectorSize / seEntrySize
	grains := grainsOf(data, parent, seGrain*sectorSize, false)
	tables := (len(grains) + perTable - 1) / perTable
	h, v := make([]byte, seHeaderSize), make([]byte, seHeaderSize)
	area := func(off, at, n int) {
		le.PutUint64(h[off:], uint64(at))
		le.PutUint64(h[off+8:], uint64(n))
	}
	le.PutUint64(h, seMagic)
	le.PutUint64(h[offSeVersion:], seVersion)
	le.PutUint64(h[offSeCapacity:], uint64(len(data)/sectorSize))
	le.PutUint64(h[offSeGrain:], seGrain)
	le.PutUint64(h[offSeTable:], seTableSectors)
	le.PutUint64(v, seVolatileMagic)
	dirSectors := (tables*seEntrySize + sectorSize - 1) / sectorSize
	area(offSeVolatile, 1, 1)
	area(offSeVolatile+16, 2, 2) // journal header, journal, then the directory
	area(offSeVolatile+32, 4, 2)
	area(offSeDir, 6, dirSectors)
	area(offSeTables, 6+dirSectors, tables*seTableSectors)
	first := 6 + dirSectors + tables*seTableSectors
	area(offSeGrains, first, len(grains)*seGrain)
	f := &file{}
	f.add(h)
	f.add(v)
	f.add(make([]byte, (first-2)*sectorSize))
	order := rand.New(rand.NewPCG(uint64(len(data)), 3)).Perm(tables) // tables are numbered as they were needed
	number := 0
	for i, g := range grains {
		if g == nil {
			continue
		}
		t := order[i/perTable]
		le.PutUint64(f.b[6*sectorSize+i/perTable*seEntrySize:], uint64(seDirPresent)<<seTypeShift|uint64(t))
		e := f.b[(6+dirSectors+t*seTableSectors)*sectorSize+i%perTable*seEntrySize:]
		if len(g) == 0 {
			le.PutUint64(e, uint64(seZero-i%2)<<seTypeShift) // zero, or unmapped
			continue
		}
		n := uint64(number)
		le.PutUint64(e, uint64(sePresent)<<seTypeShift|n&seGrainLowMask<<seGrainLowShift|n>>12)
		f.add(slices.Concat(g, make([]byte, seGrain*sectorSize-len(g))))
		number++
	}
	return f.b
}

// lines makes a descriptor. A parent is its content id and file name, or empty.
func lines(createType, pcid, parent string, extents ...string) string {
	if pcid == "" {
		pcid = "ffffffff"
	}
	s := "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fedc1234\nparentCID=" + pcid + "\ncreateType=\"" + createType + "\"\n"
	if parent != "" {
		s += "parentFileNameHint=\"" + parent + "\"\n"
	}
	s += "\n# Extent description\n"
	for _, e := range extents {
		s += e + "\n"
	}
	return s + "\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\n"
}

// line is a line of the extent description.
func line(t testing.TB, size int64, kind, name string) string {
	t.Helper()
	if size%sectorSize != 0 {
		t.Fatalf("%d bytes are no sectors", size)
	}
	s := fmt.Sprintf("RW %d %s %q", size/sectorSize, kind, name)
	if kind == "FLAT" {
		s += " 0"
	}
	return s
}
