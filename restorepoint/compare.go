package restorepoint

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// Scope says which tree of a point is looked at, and how closely.
type Scope struct {
	// Tree returns the tree of an opened point in which paths are; nil: the point's
	// own, or the guest view of its disks.
	Tree func(ctx context.Context, o *Opened) (guestfs.Tree, error)
	// Content compares the contents of files whose size and time of modification
	// agree, too, unless they are known to be the same in another way.
	Content bool
}

// tree opens the tree of p. The result is closed together with the point.
func (sc *Scope) tree(ctx context.Context, s *Source, p Point) (*Opened, guestfs.Tree, error) {
	o, err := s.OpenPoint(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	tree, err := sc.of(ctx, o)
	if err != nil {
		o.Close()
		return nil, nil, err
	}
	return o, tree, nil
}

// of returns the tree of an opened point.
func (sc *Scope) of(ctx context.Context, o *Opened) (guestfs.Tree, error) {
	switch {
	case sc.Tree != nil:
		return sc.Tree(ctx, o)
	case o.Tree != nil:
		return o.Tree, nil
	}
	return o.GuestView(ctx)
}

// file is a file of one of two trees that are compared; nil where it isn't there.
type file struct {
	tree guestfs.Tree
	id   guestfs.ID
	attr guestfs.Attr
}

func newFile(ctx context.Context, tree guestfs.Tree, id guestfs.ID) (*file, error) {
	attr, err := tree.Attr(ctx, id)
	if err != nil {
		return nil, err
	}
	return &file{tree, id, attr}, nil
}

// untouched reports whether a and b are one inode that nothing has happened to:
// what writes to an inode or its attributes sets the time of its last change. (Trees
// whose IDs aren't inodes are compared by their own repository.)
func untouched(a, b *file) bool {
	return a.id == b.id && a.attr.Ctime == b.attr.Ctime && a.attr.Ctime != (guestfs.Time{}) && a.attr.Mtime == b.attr.Mtime &&
		a.attr.Size == b.attr.Size && a.attr.Mode == b.attr.Mode && a.attr.Nlink == b.attr.Nlink
}

// closeness says how two files are compared.
type closeness struct {
	content bool // as Scope.Content
	// links counts the names of a file. In dated folders they tell how many dates
	// share it, nothing of the file.
	links bool
}

func (sc *Scope) closeness(p *Point) closeness {
	return closeness{content: sc.Content, links: p.Kind == KindDisks}
}

// compareFiles tells in what two versions of a file differ. Of directories the
// size and the number of links are not compared: they follow from what is in them.
func compareFiles(ctx context.Context, a, b *file, how closeness) (imageformats.Change, error) {
	if untouched(a, b) {
		return 0, nil
	}
	kind := a.attr.Mode & guestfs.ModeType
	if kind != b.attr.Mode&guestfs.ModeType {
		return imageformats.ChangeType, nil
	}
	var c imageformats.Change
	add := func(is bool, what imageformats.Change) {
		if is {
			c |= what
		}
	}
	add(a.attr.Mode != b.attr.Mode, imageformats.ChangeMode)
	add(a.attr.UID != b.attr.UID || a.attr.GID != b.attr.GID, imageformats.ChangeOwner)
	add(a.attr.Mtime != b.attr.Mtime, imageformats.ChangeMtime)
	var err error
	var other bool
	switch kind {
	case guestfs.ModeRegular:
		add(how.links && a.attr.Nlink != b.attr.Nlink, imageformats.ChangeLinks)
		other, err = contentDiffers(ctx, a, b, how.content)
	case guestfs.ModeSymlink:
		var ta, tb string
		if ta, err = a.tree.ReadLink(ctx, a.id); err == nil {
			tb, err = b.tree.ReadLink(ctx, b.id)
		}
		other = ta != tb
	case guestfs.ModeBlock, guestfs.ModeChar:
		other = a.attr.Major != b.attr.Major || a.attr.Minor != b.attr.Minor
	}
	add(other, imageformats.ChangeContent)
	if err != nil {
		return c, err
	}
	other, err = xattrsDiffer(ctx, a, b)
	add(other, imageformats.ChangeXattrs)
	return c, err
}

// contentDiffers compares the contents of two regular files, by reading them only
// where their attributes leave a doubt: an inode that was changed, or another time
// of modification. Two inodes of one size and time are taken for copies, as rsync
// does, unless all is set.
func contentDiffers(ctx context.Context, a, b *file, all bool) (bool, error) {
	if a.attr.Size != b.attr.Size {
		return true, nil
	}
	if a.attr.Mtime == b.attr.Mtime && a.id != b.id && !all {
		return false, nil
	}
	ra, err := a.tree.Open(ctx, a.id)
	if err != nil {
		return false, err
	}
	rb, err := b.tree.Open(ctx, b.id)
	if err != nil {
		return false, err
	}
	same, err := sameBytes(ctx, ra, rb)
	return !same, err
}

// compareChunk is how many bytes of two files are compared at a time.
const compareChunk = 256 << 10

// sameBytes compares two contents. What lies at one place of the host, or is a hole
// of both, is not read.
func sameBytes(ctx context.Context, a, b block.Reader) (bool, error) {
	if a.Size() != b.Size() {
		return false, nil
	}
	var bufs [2][]byte
	for off, size := int64(0), a.Size(); off < size; {
		ea, err := block.ExtentAt(ctx, a, off, size-off)
		if err != nil {
			return false, err
		}
		eb, err := block.ExtentAt(ctx, b, off, ea.Len)
		if err != nil {
			return false, err
		}
		n := min(ea.Len, eb.Len)
		if ea.Zero && eb.Zero || ea.File != nil && ea.File == eb.File && ea.Off == eb.Off {
			off += n
			continue
		}
		n = min(n, compareChunk)
		for i, r := range []block.Reader{a, b} {
			if bufs[i] == nil {
				bufs[i] = make([]byte, min(size, compareChunk))
			}
			if err := block.ReadFull(ctx, r, bufs[i][:n], off); err != nil {
				return false, fmt.Errorf("read at %d: %w", off, err)
			}
		}
		if !bytes.Equal(bufs[0][:n], bufs[1][:n]) {
			return false, nil
		}
		off += n
	}
	return true, nil
}

func xattrsDiffer(ctx context.Context, a, b *file) (bool, error) {
	var names [2][]string
	for i, f := range []*file{a, b} {
		list, err := f.tree.ListXattr(ctx, f.id)
		if err != nil {
			return false, err
		}
		names[i] = slices.Sorted(slices.Values(list))
	}
	if !slices.Equal(names[0], names[1]) {
		return true, nil
	}
	for _, name := range names[0] {
		va, err := a.tree.Xattr(ctx, a.id, name)
		if err != nil {
			return false, err
		}
		vb, err := b.tree.Xattr(ctx, b.id, name)
		if err != nil {
			return false, err
		}
		if !bytes.Equal(va, vb) {
			return true, nil
		}
	}
	return false, nil
}

const (
	// maxCompareDepth bounds how deep two trees are descended, as in package copyout.
	maxCompareDepth = 1000
	// maxCompareEntries bounds the entries of one directory that are compared: they
	// are held in memory, sorted.
	maxCompareEntries = 1 << 22
)

// comparison compares two trees, directory by directory.
type comparison struct {
	// names compares nothing but which paths there are.
	names bool
	how   closeness
	emit  func(Difference) bool

	seen [2]map[guestfs.ID]bool // directories descended into, by tree
	done bool                   // emit has had enough
}

func newComparison(emit func(Difference) bool) *comparison {
	return &comparison{emit: emit, seen: [2]map[guestfs.ID]bool{{}, {}}}
}

// tell passes a difference on.
func (c *comparison) tell(d Difference) {
	if !c.done {
		c.done = !c.emit(d)
	}
}

// walk compares the file at path, and what is below it, in two trees: a directory
// before what is in it, by name. The error is one that ends the comparison; what
// can't be read of the trees is told in its place.
func (c *comparison) walk(ctx context.Context, path string, a, b *file, depth int) error {
	if err := ctx.Err(); err != nil || c.done {
		return err
	}
	d := Difference{Path: path}
	switch {
	case b == nil:
		d.Changed, d.Old = imageformats.ChangeRemoved, a.attr
	case a == nil:
		d.Changed, d.New = imageformats.ChangeAdded, b.attr
	case c.names:
	default:
		d.Old, d.New = a.attr, b.attr
		if d.Changed, d.Err = compareFiles(ctx, a, b, c.how); d.Err != nil && ctx.Err() != nil {
			return d.Err
		}
	}
	if d.Changed != 0 || d.Err != nil {
		c.tell(d)
	}
	var dirs [2]*file
	for i, f := range []*file{a, b} {
		if f == nil || !f.attr.IsDir() || c.names && i == 1 && a == nil {
			continue
		}
		switch {
		case c.seen[i][f.id]:
			c.tell(Difference{Path: path, Err: fmt.Errorf("directory has another name already: %w", ondisk.ErrCorrupt)})
		case depth >= maxCompareDepth:
			c.tell(Difference{Path: path, Err: fmt.Errorf("nested deeper than %d directories: %w", maxCompareDepth, ondisk.ErrUnsupported)})
		default:
			c.seen[i][f.id] = true
			dirs[i] = f
		}
	}
	if dirs[0] == nil && dirs[1] == nil {
		return nil
	}
	return c.below(ctx, path, dirs[0], dirs[1], depth)
}

// below compares what is in two directories.
func (c *comparison) below(ctx context.Context, path string, a, b *file, depth int) error {
	var entries [2][]guestfs.Dirent
	for i, dir := range []*file{a, b} {
		if dir == nil {
			continue
		}
		list, err := guestfs.ReadDir(ctx, dir.tree, dir.id, maxCompareEntries)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			// What isn't known to be gone must not be told to be.
			c.tell(Difference{Path: path, Err: err})
			return nil
		}
		entries[i] = list
	}
	for ea, eb := entries[0], entries[1]; (len(ea) > 0 || len(eb) > 0) && !c.done; {
		var pair [2]*guestfs.Dirent
		if len(ea) > 0 && (len(eb) == 0 || ea[0].Name <= eb[0].Name) {
			pair[0] = &ea[0]
		}
		if len(eb) > 0 && (pair[0] == nil || eb[0].Name == pair[0].Name) {
			pair[1] = &eb[0]
		}
		var files [2]*file
		var name string
		var err error
		for i, e := range pair {
			if e == nil {
				continue
			}
			name = e.Name
			dir := []*file{a, b}[i]
			if c.names && e.Type != 0 && (i == 1 || pair[1] != nil) { // attributes aren't asked for
				files[i] = &file{dir.tree, e.ID, guestfs.Attr{Mode: e.Type}}
				continue
			}
			if files[i], err = newFile(ctx, dir.tree, e.ID); err != nil {
				break
			}
		}
		if pair[0] != nil {
			ea = ea[1:]
		}
		if pair[1] != nil {
			eb = eb[1:]
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			c.tell(Difference{Path: joinPath(path, name), Err: err})
			continue
		}
		if c.names && pair[0] == nil {
			continue
		}
		if err := c.walk(ctx, joinPath(path, name), files[0], files[1], depth+1); err != nil {
			return err
		}
	}
	return nil
}

// joinPath joins a path relative to the root ("" is the root) and a name.
func joinPath(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}
