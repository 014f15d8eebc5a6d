package rdiff

import (
	"bytes"
	"fmt"
	"sort"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// state is what the metadata say of one point: tables[0] is a whole one, and every
// further one holds what was different at an earlier time. Tables are shared
// between points.
type state struct {
	tables []*table
	base   []uint32 // number of records in the tables before
}

// ref names a record of a state: its table's base plus its place there.
type ref = uint32

func newState(tables []*table) *state {
	s := &state{tables: tables}
	n := uint32(0)
	for _, t := range tables {
		s.base = append(s.base, n)
		n += uint32(t.records.n)
	}
	return s
}

// rec returns a record and its table.
func (s *state) rec(r ref) (*record, *table) {
	k := len(s.base) - 1
	for s.base[k] > r {
		k--
	}
	t := s.tables[k]
	return t.records.at(r - s.base[k]), t
}

func (s *state) path(r ref) []byte {
	rec, t := s.rec(r)
	return t.pathOf(rec)
}

// find returns the record of path, when path exists.
func (s *state) find(path []byte) (ref, bool) {
	for k := len(s.tables) - 1; k >= 0; k-- {
		if i, ok := s.tables[k].find(path); ok {
			return s.base[k] + i, s.tables[k].records.at(i).mode != 0
		}
	}
	return 0, false
}

// merged returns the records of all paths that exist, in order.
func (s *state) merged() ([]ref, error) {
	total := 0
	for _, t := range s.tables {
		total += t.records.n
	}
	if total > maxRecords {
		return nil, ondisk.Corruptf(format, "metadata", -1, "%d records make up one point", total)
	}
	var patch []ref
	for k := 1; k < len(s.tables); k++ {
		patch = s.overlay(patch, k)
	}
	whole := s.tables[0]
	out := make([]ref, 0, whole.records.n+len(patch))
	at := 0
	whole0 := func(to int) {
		for ; at < to; at++ {
			if whole.records.at(uint32(at)).mode != 0 {
				out = append(out, uint32(at))
			}
		}
	}
	for _, p := range patch {
		rec, t := s.rec(p)
		path := t.pathOf(rec)
		i := whole.search(at, path)
		whole0(i)
		if i < whole.records.n && bytes.Equal(whole.pathOf(whole.records.at(uint32(i))), path) {
			at = i + 1
		}
		if rec.mode != 0 {
			out = append(out, p)
		}
	}
	whole0(whole.records.n)
	return out, nil
}

// overlay merges table k over the ones before it; where both have a path, k's
// record counts, which is of the earlier time.
func (s *state) overlay(patch []ref, k int) []ref {
	t, base := s.tables[k], s.base[k]
	n := uint32(t.records.n)
	out := make([]ref, 0, len(patch)+int(n))
	j := 0
	for i := uint32(0); i < n; i++ {
		path := t.pathOf(t.records.at(i))
		c := -1
		for j < len(patch) {
			if c = comparePaths(s.path(patch[j]), path); c >= 0 {
				break
			}
			out = append(out, patch[j])
			j++
		}
		if j < len(patch) && c == 0 {
			j++
		}
		out = append(out, base+i)
	}
	return append(out, patch[j:]...)
}

// node is a path of a point. Its number is its place in the order of paths.
type node struct {
	rec    ref
	parent uint32
	first  uint32 // of a directory: where its entries are in index.children
	n      uint32 // and how many
}

// index is the tree of a point.
type index struct {
	*state
	nodes    []node
	children []uint32
	leaders  map[uint32]uint32 // of a hard link: the first path of the file
	digests  map[uint32]uint32 // of a leader without a digest: the path that has it
	implied  int               // directories that have no record
	size     int64             // bytes of all regular files
}

// newIndex builds the tree. Directories that no record speaks of, but records of
// what is in them, are made up, so that nothing is hidden.
//
// Unless whole is set, the tree is that of the paths up to bound: further ones of
// tables[0] aren't known.
func newIndex(s *state, bound []byte, whole bool) (*index, error) {
	refs, err := s.merged()
	if err != nil {
		return nil, err
	}
	if !whole {
		refs = refs[:sort.Search(len(refs), func(i int) bool { return comparePaths(s.path(refs[i]), bound) > 0 })]
	}
	extra := &table{name: "made up", owners: []owner{{}}}
	x := &index{state: newState(append(append([]*table(nil), s.tables...), extra)), nodes: make([]node, 0, len(refs)+1)}
	extraBase := x.base[len(x.base)-1]
	var stack []uint32 // directories down to where we are
	push := func(rec ref, mode uint32) error {
		i := uint32(len(x.nodes))
		if i >= maxRecords {
			return ondisk.Corruptf(format, "metadata", -1, "more than %d paths", maxRecords)
		}
		parent := uint32(0)
		if len(stack) > 0 {
			parent = stack[len(stack)-1]
			x.nodes[parent].n++
		}
		x.nodes = append(x.nodes, node{rec: rec, parent: parent})
		if mode&guestfs.ModeType == guestfs.ModeDir {
			stack = append(stack, i)
		}
		return nil
	}
	imply := func(path []byte) error {
		x.implied++
		extra.add(&fields{path: path, mode: guestfs.ModeDir | 0o700, set: hasType | hasPerms})
		return push(extraBase+uint32(extra.records.n-1), guestfs.ModeDir)
	}
	if len(refs) == 0 || len(x.path(refs[0])) != 0 {
		if err := imply(nil); err != nil {
			return nil, err
		}
	}
	var last []byte // the last path that is no directory
	for _, rf := range refs {
		rec, t := x.rec(rf)
		path := t.pathOf(rec)
		if len(path) > 0 {
			for !x.within(stack[len(stack)-1], path) {
				stack = stack[:len(stack)-1]
			}
			if last != nil && len(path) > len(last) && path[len(last)] == '/' && bytes.HasPrefix(path, last) {
				return nil, ondisk.Corruptf(format, t.name, -1, "%q lies in %q, which is no directory", clip(path), clip(last))
			}
			at := len(x.path(x.nodes[stack[len(stack)-1]].rec))
			if at > 0 {
				at++
			}
			for {
				n := bytes.IndexByte(path[at:], '/')
				if n < 0 {
					break
				}
				if err := imply(path[:at+n]); err != nil {
					return nil, err
				}
				at += n + 1
			}
		}
		if err := push(rf, rec.mode); err != nil {
			return nil, err
		}
		if rec.mode&guestfs.ModeType != guestfs.ModeDir {
			last = path
		}
		if rec.mode&guestfs.ModeType == guestfs.ModeRegular && rec.size > 0 {
			x.size += rec.size
		}
	}
	x.link()
	x.join()
	return x, nil
}

// within reports whether path is below the directory dir.
func (x *index) within(dir uint32, path []byte) bool {
	d := x.path(x.nodes[dir].rec)
	return len(d) == 0 || len(path) > len(d) && path[len(d)] == '/' && bytes.HasPrefix(path, d)
}

// link lists the entries of each directory, which come in the order of their names.
func (x *index) link() {
	at := uint32(0)
	for i := range x.nodes {
		x.nodes[i].first = at
		at += x.nodes[i].n
		x.nodes[i].n = 0
	}
	x.children = make([]uint32, at)
	for i := 1; i < len(x.nodes); i++ {
		d := &x.nodes[x.nodes[i].parent]
		x.children[d.first+d.n] = uint32(i)
		d.n++
	}
}

// join finds which paths are names of the same file. Two are when they had the same
// inode, and their records agree; when these don't, the file was changed during the
// session, and each path is shown as it was recorded.
func (x *index) join() {
	any := false
	for _, t := range x.tables {
		any = any || t.links.n > 0
	}
	if !any {
		return
	}
	type fileKey struct{ inode, device uint64 }
	first := make(map[fileKey]uint32)
	x.leaders = make(map[uint32]uint32)
	x.digests = make(map[uint32]uint32)
	for i := range x.nodes {
		rec, t := x.rec(x.nodes[i].rec)
		if rec.links == 0 {
			continue
		}
		l := t.links.at(rec.links - 1)
		key := fileKey{l.inode, l.device}
		leader, ok := first[key]
		if !ok {
			first[key] = uint32(i)
			continue
		}
		lead, lt := x.rec(x.nodes[leader].rec)
		if lead.size != rec.size || lead.mtime != rec.mtime || lead.mode != rec.mode || lt.owners[lead.owner] != t.owners[rec.owner] {
			continue
		}
		if have := x.digestOf(leader); rec.digest != 0 {
			if have == nil {
				x.digests[leader] = uint32(i)
			} else if *have != *t.digests.at(rec.digest - 1) {
				continue
			}
		}
		x.leaders[uint32(i)] = leader
	}
}

// leader returns the node whose record and chain stand for i's file.
func (x *index) leader(i uint32) uint32 {
	if l, ok := x.leaders[i]; ok {
		return l
	}
	return i
}

// digestOf returns the SHA-1 of the content of node i, a leader; nil when none is
// recorded.
func (x *index) digestOf(i uint32) *[20]byte {
	rec, t := x.rec(x.nodes[i].rec)
	if rec.digest != 0 {
		return t.digests.at(rec.digest - 1)
	}
	if j, ok := x.digests[i]; ok {
		rec, t := x.rec(x.nodes[j].rec)
		return t.digests.at(rec.digest - 1)
	}
	return nil
}

// name returns the last component of node i's path.
func (x *index) name(i uint32) []byte {
	rec, t := x.rec(x.nodes[i].rec)
	return t.nameOf(rec)
}

// entry finds a name in the directory d.
func (x *index) entry(d uint32, name string) (uint32, bool) {
	list := x.children[x.nodes[d].first:][:x.nodes[d].n]
	k := sort.Search(len(list), func(k int) bool { return string(x.name(list[k])) >= name })
	if k == len(list) || string(x.name(list[k])) != name {
		return 0, false
	}
	return list[k], true
}

// node returns the node of a path.
func (x *index) node(path []byte) (uint32, bool) {
	i := sort.Search(len(x.nodes), func(i int) bool { return comparePaths(x.path(x.nodes[i].rec), path) >= 0 })
	if i == len(x.nodes) || !bytes.Equal(x.path(x.nodes[i].rec), path) {
		return 0, false
	}
	return uint32(i), true
}

// describe names a path in messages.
func describe(path []byte) string {
	if len(path) == 0 {
		return `"/"`
	}
	return fmt.Sprintf("%q", clip(path))
}
