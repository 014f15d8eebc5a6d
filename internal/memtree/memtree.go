// Package memtree is a guestfs.Tree held in memory, for tests: of whatever stands
// on a Tree, without an image and its reader.
package memtree

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"yester/guestfs"
	"yester/internal/block"
)

// Tree is a tree under construction until it's first read; then it must not be
// changed any more.
type Tree struct {
	info  guestfs.Info
	nodes []*Node // by Ino-rootIno
	mu    sync.Mutex
	// closed counts the calls of Close.
	closed int
}

// rootIno is the root's inode number, as in ext4.
const rootIno = 2

// Node is a file. Fields may be set until the tree is read.
type Node struct {
	// Attr's Size, Nlink and type bits are kept by the Tree.
	Attr   guestfs.Attr
	Data   []byte // of a regular file
	Target string // of a symbolic link
	Xattrs map[string][]byte
	// Content, when set, is what Open returns, in place of Data.
	Content block.Reader
	// Err, when set, is returned by whatever is asked of the file or directory,
	// except that Lookup and ReadDir of its parent find it.
	Err error
	// NoType leaves the type out of directory entries, as some filesystems do.
	NoType bool

	id      guestfs.ID
	entries []entry // of a directory, in the order they were made
}

type entry struct {
	name string
	node *Node
}

// ID returns the file's ID.
func (n *Node) ID() guestfs.ID { return n.id }

// New returns a tree with an empty root directory.
func New(info guestfs.Info) *Tree {
	t := &Tree{info: info}
	t.node(guestfs.ModeDir | 0o755).Attr.Nlink = 2
	return t
}

func (t *Tree) node(mode uint32) *Node {
	n := &Node{id: guestfs.ID{Ino: rootIno + uint64(len(t.nodes))}}
	n.Attr = guestfs.Attr{Mode: mode, Nlink: 1, Mtime: guestfs.Time{Sec: 1_700_000_000}}
	t.nodes = append(t.nodes, n)
	return n
}

// Add makes a file of the given mode (type and permissions), and the directories
// that lead to it. It panics when the name is taken: tests want to know.
func (t *Tree) Add(name string, mode uint32) *Node {
	n := t.node(mode)
	t.link(name, n)
	return n
}

func (t *Tree) link(name string, n *Node) {
	dir, base := path.Split("/" + strings.Trim(name, "/"))
	d := t.Mkdir(dir)
	if base == "" || d.find(base) != nil {
		panic("memtree: " + name + " exists")
	}
	d.entries = append(d.entries, entry{base, n})
	if n.Attr.IsDir() {
		n.Attr.Nlink = 2
		d.Attr.Nlink++
	}
}

// Mkdir returns the directory of that name, making it and those that lead to it.
func (t *Tree) Mkdir(name string) *Node {
	d := t.nodes[0]
	for base := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if base == "" {
			continue
		}
		c := d.find(base)
		if c == nil {
			c = t.node(guestfs.ModeDir | 0o755)
			c.Attr.Nlink = 2
			d.Attr.Nlink++
			d.entries = append(d.entries, entry{base, c})
		}
		d = c
	}
	return d
}

// File makes a regular file.
func (t *Tree) File(name, data string) *Node {
	n := t.Add(name, guestfs.ModeRegular|0o644)
	n.Data = []byte(data)
	return n
}

// Symlink makes a symbolic link.
func (t *Tree) Symlink(name, target string) *Node {
	n := t.Add(name, guestfs.ModeSymlink|0o777)
	n.Target = target
	return n
}

// Link gives n another name.
func (t *Tree) Link(name string, n *Node) {
	t.link(name, n)
	n.Attr.Nlink++
}

func (n *Node) find(name string) *Node {
	for _, e := range n.entries {
		if e.name == name {
			return e.node
		}
	}
	return nil
}

// Closed returns how often the tree was closed.
func (t *Tree) Closed() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// get returns the node of id, of the given type unless that is 0.
func (t *Tree) get(ctx context.Context, id guestfs.ID, kind uint32, wrong error) (*Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if id.Sub != 0 || id.Ino < rootIno || id.Ino-rootIno >= uint64(len(t.nodes)) {
		return nil, fmt.Errorf("inode %d:%d: %w", id.Sub, id.Ino, guestfs.ErrNotExist)
	}
	n := t.nodes[id.Ino-rootIno]
	if n.Err != nil {
		return nil, n.Err
	}
	if kind != 0 && n.Attr.Mode&guestfs.ModeType != kind {
		return nil, wrong
	}
	return n, nil
}

// Root implements guestfs.Tree.
func (t *Tree) Root() guestfs.ID { return guestfs.ID{Ino: rootIno} }

// Attr implements guestfs.Tree.
func (t *Tree) Attr(ctx context.Context, id guestfs.ID) (guestfs.Attr, error) {
	n, err := t.get(ctx, id, 0, nil)
	if err != nil {
		return guestfs.Attr{}, err
	}
	a := n.Attr
	switch {
	case a.IsSymlink():
		a.Size = int64(len(n.Target))
	case n.Content != nil:
		a.Size = n.Content.Size()
	case a.IsRegular():
		a.Size = int64(len(n.Data))
	}
	a.Blocks = (a.Size + 511) / 512
	return a, nil
}

// Lookup implements guestfs.Tree.
func (t *Tree) Lookup(ctx context.Context, dir guestfs.ID, name string) (guestfs.ID, error) {
	d, err := t.get(ctx, dir, guestfs.ModeDir, guestfs.ErrNotDir)
	if err != nil {
		return guestfs.ID{}, err
	}
	if c := d.find(name); c != nil {
		return c.id, nil
	}
	return guestfs.ID{}, guestfs.ErrNotExist
}

// ReadDir implements guestfs.Tree.
func (t *Tree) ReadDir(ctx context.Context, dir guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	d, err := t.get(ctx, dir, guestfs.ModeDir, guestfs.ErrNotDir)
	if err != nil {
		return err
	}
	for i := from; i < uint64(len(d.entries)); i++ {
		e := d.entries[i]
		kind := e.node.Attr.Mode & guestfs.ModeType
		if e.node.NoType {
			kind = 0
		}
		if !emit(guestfs.Dirent{Name: e.name, ID: e.node.id, Type: kind, Next: i + 1}) {
			return nil
		}
	}
	return nil
}

// ReadLink implements guestfs.Tree.
func (t *Tree) ReadLink(ctx context.Context, id guestfs.ID) (string, error) {
	n, err := t.get(ctx, id, guestfs.ModeSymlink, guestfs.ErrInvalid)
	if err != nil {
		return "", err
	}
	return n.Target, nil
}

// ListXattr implements guestfs.Tree.
func (t *Tree) ListXattr(ctx context.Context, id guestfs.ID) ([]string, error) {
	n, err := t.get(ctx, id, 0, nil)
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range n.Xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// Xattr implements guestfs.Tree.
func (t *Tree) Xattr(ctx context.Context, id guestfs.ID, name string) ([]byte, error) {
	n, err := t.get(ctx, id, 0, nil)
	if err != nil {
		return nil, err
	}
	if v, ok := n.Xattrs[name]; ok {
		return bytes.Clone(v), nil
	}
	return nil, guestfs.ErrNoXattr
}

// Open implements guestfs.Tree.
func (t *Tree) Open(ctx context.Context, id guestfs.ID) (block.Reader, error) {
	n, err := t.get(ctx, id, 0, nil)
	switch {
	case err != nil:
		return nil, err
	case n.Attr.IsDir():
		return nil, guestfs.ErrIsDir
	case !n.Attr.IsRegular():
		return nil, guestfs.ErrInvalid
	case n.Content != nil:
		return n.Content, nil
	}
	return bytes.NewReader(n.Data), nil
}

// Info implements guestfs.Tree.
func (t *Tree) Info() guestfs.Info { return t.info }

// Close implements guestfs.Tree.
func (t *Tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed++
	return nil
}
