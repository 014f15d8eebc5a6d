package dated

import "sync"

// index numbers the paths in the trees of a row, and knows at which path of a
// tree a file has been met. The trees are much alike, so they share it: a path is
// kept once, and an inode that is hard-linked into many trees mostly has one path
// in all of them.
//
// A directory is addressed by its path's number, since a rotation may copy it; a
// file by its inode number, by which hard links are known, and which the host
// can't look up. Where the index says that a file is, is a hint: who goes there
// compares the inode.
type index struct {
	mu     sync.RWMutex
	paths  []pathEntry // by number; 0 is the root
	number map[pathEntry]uint32
	at     map[uint64]uint32 // path at which an inode was met first
	// elsewhere holds those that were met at another path, in one tree.
	elsewhere map[placed]uint32
}

// pathEntry is a path: a name in the directory that another path is.
type pathEntry struct {
	dir  uint32
	name string
}

// placed is an inode in the tree with that key.
type placed struct {
	tree string
	ino  uint64
}

func newIndex() *index {
	return &index{
		paths: []pathEntry{{}}, number: map[pathEntry]uint32{},
		at: map[uint64]uint32{}, elsewhere: map[placed]uint32{},
	}
}

// child returns the number of the path of name in the directory dir.
func (x *index) child(dir uint32, name string) uint32 {
	e := pathEntry{dir, name}
	x.mu.RLock()
	n, known := x.number[e]
	x.mu.RUnlock()
	if known {
		return n
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if n, known = x.number[e]; !known {
		n = uint32(len(x.paths))
		x.paths = append(x.paths, e)
		x.number[e] = n
	}
	return n
}

// met notes that in a tree, the inode has been met at the path n.
func (x *index) met(tree string, ino uint64, n uint32) {
	x.mu.RLock()
	at, known := x.at[ino]
	x.mu.RUnlock()
	if known && at == n {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch at, known := x.at[ino]; {
	case !known:
		x.at[ino] = n
	case at != n:
		x.elsewhere[placed{tree, ino}] = n
	}
}

// find returns the numbers of the paths at which an inode may be in a tree, the
// likeliest first.
func (x *index) find(tree string, ino uint64) (candidates []uint32) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if p, ok := x.elsewhere[placed{tree, ino}]; ok {
		candidates = append(candidates, p)
	}
	if p, ok := x.at[ino]; ok {
		candidates = append(candidates, p)
	}
	return candidates
}

// path returns a path relative to the root, with a slash before it; "" for the
// root itself. A number that nobody has given is false.
func (x *index) path(n uint32) (string, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if int(n) >= len(x.paths) {
		return "", false
	}
	size := 0
	for p := n; p != 0; p = x.paths[p].dir {
		size += len(x.paths[p].name) + 1
	}
	buf := make([]byte, size)
	for p := n; p != 0; p = x.paths[p].dir {
		size -= len(x.paths[p].name)
		copy(buf[size:], x.paths[p].name)
		size--
		buf[size] = '/'
	}
	return string(buf), true
}
