package rdiff

import (
	"bytes"
	"context"
	"io"
	"sort"

	"yester/guestfs"
)

// chunked is a list that grows without copying more than its last part, so that
// building it never takes twice its memory.
type chunked[T any] struct {
	parts [][]T
	n     int
}

const chunkBits = 12 // 4096 elements a part

func (c *chunked[T]) add(v T) int {
	if c.n>>chunkBits == len(c.parts) {
		c.parts = append(c.parts, make([]T, 0, min(c.n, 1<<chunkBits)))
	}
	last := &c.parts[len(c.parts)-1]
	*last = append(*last, v)
	c.n++
	return c.n - 1
}

func (c *chunked[T]) at(i uint32) *T { return &c.parts[i>>chunkBits][i&(1<<chunkBits-1)] }

// text holds strings, each within one part.
type text struct {
	parts [][]byte
}

const textBits = 20 // 1 MiB a part

// add keeps s, which is no longer than maxPath, and returns where.
func (t *text) add(s []byte) uint32 {
	if len(t.parts) == 0 || len(t.parts[len(t.parts)-1])+len(s) > 1<<textBits {
		t.parts = append(t.parts, make([]byte, 0, min(len(t.parts), 1)<<textBits))
	}
	i := len(t.parts) - 1
	at := uint32(i)<<textBits | uint32(len(t.parts[i]))
	t.parts[i] = append(t.parts[i], s...)
	return at
}

func (t *text) full() bool { return len(t.parts) >= maxText>>textBits }

func (t *text) get(at, n uint32) []byte {
	b := t.parts[at>>textBits]
	at &= 1<<textBits - 1
	return b[at : at+n : at+n]
}

// record is what a table keeps of one path, in 48 bytes.
type record struct {
	path    uint32 // in the table's text
	mode    uint32 // type and permissions; 0: the path does not exist
	owner   uint32 // in owners
	digest  uint32 // in digests, plus one; 0: none
	links   uint32 // in links, plus one; 0: one name only
	pathLen uint16
	nameLen uint16 // of the last component
	// size of a regular file, -1 when it isn't known; of a symbolic link: the
	// target's place in the text and, in the lower 16 bits, its length; of a
	// device: its numbers.
	size  int64
	mtime int64
}

// noSize is a size that no record tells: of a file in a repository that has lost
// its metadata.
const noSize = -1

// owner is who a file belongs to.
type owner struct {
	uid, gid     uint32
	uname, gname string
}

// hardLink says which file a path is a name of.
type hardLink struct {
	inode, device uint64
	n             uint32 // names it has, in and out of the source
}

// apple is what macOS keeps beside the data.
type apple struct {
	fork   []byte
	finder []byte
	set    fieldSet
}

// table is one metadata file in memory, by ascending path.
type table struct {
	name    string
	text    text
	records chunked[record]
	digests chunked[[20]byte]
	links   chunked[hardLink]
	owners  []owner
	alt     map[uint32]altNames // by record
	apple   map[uint32]apple
	lost    *lostNames // nil but where the table stands for metadata that are lost

	lastOwner uint32
	byOwner   map[owner]uint32
}

// readTable reads a metadata file.
func readTable(ctx context.Context, in io.Reader, name string) (*table, error) {
	t := &table{name: name}
	s := newScanner(ctx, in, name)
	for {
		switch err := s.scan(); err {
		case nil:
		case io.EOF:
			t.byOwner = nil
			return t, nil
		default:
			return nil, err
		}
		if err := t.take(s); err != nil {
			return nil, err
		}
	}
}

// take adds the record that s has read.
func (t *table) take(s *scanner) error {
	if t.text.full() {
		return s.corrupt("more than %d bytes of paths", maxText)
	}
	t.add(&s.fields)
	return nil
}

func (t *table) add(f *fields) {
	r := record{path: t.text.add(f.path), pathLen: uint16(len(f.path)), mode: f.mode, size: f.size, mtime: f.mtime}
	r.nameLen = uint16(len(f.path) - 1 - bytes.LastIndexByte(f.path, '/'))
	i := uint32(t.records.n)
	switch f.mode & guestfs.ModeType {
	case 0:
		t.records.add(r)
		return
	case guestfs.ModeSymlink:
		r.size = int64(t.text.add(f.target))<<16 | int64(len(f.target))
	case guestfs.ModeChar, guestfs.ModeBlock:
		r.size = int64(f.major)<<32 | int64(f.minor)
	case guestfs.ModeRegular:
		if f.set&hasDigest != 0 {
			r.digest = uint32(t.digests.add(f.digest)) + 1
		}
		if f.links > 1 && f.set&(hasInode|hasDeviceLoc) == hasInode|hasDeviceLoc {
			r.links = uint32(t.links.add(hardLink{f.inode, f.device, f.links})) + 1
		}
	}
	r.owner = t.ownerIndex(f)
	t.records.add(r)
	if f.alt != (altNames{}) {
		if t.alt == nil {
			t.alt = make(map[uint32]altNames)
		}
		t.alt[i] = f.alt
	}
	if f.set&hasFork != 0 || len(f.finder) > 0 {
		if t.apple == nil {
			t.apple = make(map[uint32]apple)
		}
		t.apple[i] = apple{bytes.Clone(f.fork), bytes.Clone(f.finder), f.set}
	}
}

// ownerIndex finds or makes the owner of f: most files have that of the one before.
func (t *table) ownerIndex(f *fields) uint32 {
	if len(t.owners) > 0 {
		if o := &t.owners[t.lastOwner]; o.uid == f.uid && o.gid == f.gid && o.uname == string(f.uname) && o.gname == string(f.gname) {
			return t.lastOwner
		}
	}
	if t.byOwner == nil {
		t.byOwner = make(map[owner]uint32)
	}
	o := owner{f.uid, f.gid, string(f.uname), string(f.gname)}
	i, ok := t.byOwner[o]
	if !ok {
		i = uint32(len(t.owners))
		t.owners = append(t.owners, o)
		t.byOwner[o] = i
	}
	t.lastOwner = i
	return i
}

func (t *table) pathOf(r *record) []byte { return t.text.get(r.path, uint32(r.pathLen)) }

func (t *table) nameOf(r *record) []byte {
	return t.text.get(r.path+uint32(r.pathLen-r.nameLen), uint32(r.nameLen))
}

func (t *table) targetOf(r *record) []byte {
	return t.text.get(uint32(r.size>>16), uint32(r.size&0xffff))
}

// search returns the first record from i on whose path isn't before path.
func (t *table) search(i int, path []byte) int {
	return i + sort.Search(t.records.n-i, func(k int) bool {
		return comparePaths(t.pathOf(t.records.at(uint32(i+k))), path) >= 0
	})
}

// find returns the record of path.
func (t *table) find(path []byte) (uint32, bool) {
	i := t.search(0, path)
	if i == t.records.n || !bytes.Equal(t.pathOf(t.records.at(uint32(i))), path) {
		return 0, false
	}
	return uint32(i), true
}
