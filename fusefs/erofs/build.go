package erofs

import (
	"context"
	"errors"
	"fmt"

	"yester/guestfs"
	"yester/internal/ondisk"
)

const (
	// maxDepth bounds how deep directories are nested: a path of PATH_MAX has no
	// more.
	maxDepth = 2048 + 1
	// maxBlocks bounds the metadata of one tree: a gibibyte is ten million files.
	maxBlocks = 1 << 18
)

// MaxSize is the length that a region may have, in bytes.
const MaxSize = HeadSize + maxBlocks*BlockSize

// builder makes a Tree.
type builder struct {
	ctx    context.Context
	src    guestfs.Tree
	space  Space
	failed func(error)
	t      *Tree
	links  map[guestfs.ID]uint64 // inodes of several names that have been written

	open    uint32 // the block that inodes are being put into
	used    int    // bytes of it; 0: there is none
	badNID  uint64 // the next inode that can't be read
	scratch []byte
}

// root writes the root directory; its inode is the head's.
func (b *builder) root() error {
	entries, err := b.list(b.src.Root(), b.t.Root(), b.t.Parent)
	if err != nil {
		return err
	}
	first, _ := dirBlocks(entries, b.t.RootBlocks)
	at, err := b.blocks(b.t.RootBlocks)
	if err != nil {
		return err
	}
	if len(first) != b.t.RootBlocks {
		return fmt.Errorf("%d blocks instead of %d: %w", len(first), b.t.RootBlocks, ErrRootBlocks)
	}
	if err := b.children(entries, b.t.Root(), 1); err != nil {
		return err
	}
	b.putDir(at, first, entries, nil)
	return nil
}

// list returns the sorted entries of a directory with "." and "..".
func (b *builder) list(dir guestfs.ID, self, parent uint64) ([]dirEntry, error) {
	entries := []dirEntry{{name: ".", typ: guestfs.ModeDir, nid: self}, {name: "..", typ: guestfs.ModeDir, nid: parent}}
	var bad error
	err := b.src.ReadDir(b.ctx, dir, 0, func(d guestfs.Dirent) bool {
		if !validName(d.Name) {
			bad = fmt.Errorf("the name %q: %w", d.Name, guestfs.ErrInvalid)
			return false
		}
		entries = append(entries, dirEntry{name: d.Name, typ: d.Type, id: d.ID})
		return true
	})
	if err == nil {
		err = bad
	}
	sortEntries(entries)
	return entries, err
}

// children writes what is in a directory, and notes the numbers in its entries.
func (b *builder) children(entries []dirEntry, self uint64, depth int) error {
	for i := range entries {
		e := &entries[i]
		if e.name == "." || e.name == ".." {
			continue
		}
		if err := b.ctx.Err(); err != nil {
			return err
		}
		var err error
		if e.nid, err = b.inode(e, self, depth); err != nil {
			return err
		}
	}
	return nil
}

// inode writes an inode with what is below it and returns its number.
func (b *builder) inode(e *dirEntry, parent uint64, depth int) (uint64, error) {
	if nid := b.links[e.id]; nid != 0 {
		return nid, nil
	}
	a, xattrs, err := b.about(e.id)
	if err != nil {
		return b.unreadable(e, err)
	}
	e.typ = a.Mode
	var nid uint64
	switch a.Mode & guestfs.ModeType {
	case guestfs.ModeDir:
		return b.dir(e, &a, xattrs, parent, depth)
	case guestfs.ModeRegular:
		nid, err = b.file(e, &a, xattrs)
	case guestfs.ModeSymlink:
		nid, err = b.symlink(e, &a, xattrs)
	case guestfs.ModeChar, guestfs.ModeBlock:
		nid, err = b.plain(&a, xattrs, Rdev(a.Major, a.Minor))
	default:
		nid, err = b.plain(&a, xattrs, 0)
	}
	if err == nil && a.Nlink > 1 {
		b.links[e.id] = nid
	}
	return nid, err
}

// about asks for all that an inode tells but its data.
func (b *builder) about(id guestfs.ID) (guestfs.Attr, []byte, error) {
	a, err := b.src.Attr(b.ctx, id)
	if err != nil {
		return a, nil, err
	}
	names, err := b.src.ListXattr(b.ctx, id)
	if err != nil {
		return a, nil, attributesError{err}
	}
	attrs := make([]Xattr, len(names))
	for i, name := range names {
		attrs[i].Name = name
		if attrs[i].Value, err = b.src.Xattr(b.ctx, id, name); err != nil {
			return a, nil, attributesError{err}
		}
	}
	packed, left, err := packXattrs(attrs)
	for _, name := range left {
		b.t.Lacking[name] = true
	}
	return a, packed, err
}

// unreadable returns the number of an inode that can't be read, in place of one
// that the tree can't tell.
func (b *builder) unreadable(e *dirEntry, why error) (uint64, error) {
	if !lasting(why) {
		return 0, why
	}
	b.failed(fmt.Errorf("%q: %w", e.name, why))
	if b.badNID%(BlockSize/nidSize) == 0 {
		i, err := b.blocks(1)
		if err != nil {
			return 0, err
		}
		b.t.bad[i] = true
		b.badNID = b.nid(i, 0)
	}
	nid := b.badNID
	b.badNID += inodeSize / nidSize
	return nid, nil
}

// attributesError is about extended attributes. They mostly lie together apart from
// all else, so that it is hardly ever about one inode alone.
type attributesError struct{ error }

func (e attributesError) Unwrap() error { return e.error }

// lasting reports whether an error is of what was recorded of one inode, so that it
// will always be there: a tree that is made once and for all must not keep any other.
func lasting(err error) bool {
	if errors.As(err, &attributesError{}) {
		return false
	}
	for _, known := range []error{ErrTooLarge, guestfs.ErrInvalid, ondisk.ErrCorrupt, ondisk.ErrUnsupported} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// dir writes a directory and what is below it. One that can't be listed whole gets
// an inode whose data can't be read.
func (b *builder) dir(e *dirEntry, a *guestfs.Attr, xattrs []byte, parent uint64, depth int) (uint64, error) {
	if depth >= maxDepth {
		return 0, fmt.Errorf("%d directories in each other: %w", depth, ErrTooLarge)
	}
	entries, err := b.list(e.id, 0, parent) // its own number is noted below
	if err != nil {
		return b.badDir(e, a, xattrs, err)
	}
	first, tail := dirBlocks(entries, 1)
	whole, inline := len(first), inodeSize+len(xattrs)+tail <= BlockSize
	if inline {
		whole--
	}
	at, err := b.blocks(whole)
	if err != nil {
		return 0, err
	}
	size, form, room := int64(whole)*BlockSize, uint16(layoutPlain), inodeSize+len(xattrs)
	if inline {
		size, form, room = size+int64(tail), layoutInline, room+tail
	}
	nid, to, err := b.space4(room)
	if err != nil {
		return 0, err
	}
	b.put(to, a, form, size, b.blockNumber(at), xattrs)
	for i := range entries {
		if entries[i].name == "." {
			entries[i].nid = nid
		}
	}
	if err := b.children(entries, nid, depth+1); err != nil {
		return 0, err
	}
	var rest []byte
	if inline {
		rest = to.in(b.t)[inodeSize+len(xattrs):]
	}
	b.putDir(at, first, entries, rest)
	return nid, nil
}

// badDir writes a directory that can't be listed.
func (b *builder) badDir(e *dirEntry, a *guestfs.Attr, xattrs []byte, why error) (uint64, error) {
	if !lasting(why) {
		return 0, why
	}
	b.failed(fmt.Errorf("the directory %q: %w", e.name, why))
	at, err := b.blocks(1)
	if err != nil {
		return 0, err
	}
	b.t.bad[at] = true
	nid, to, err := b.space4(inodeSize + len(xattrs))
	if err == nil {
		b.put(to, a, layoutPlain, BlockSize, b.blockNumber(at), xattrs)
	}
	return nid, err
}

// putDir writes the entries of a directory into whole blocks from at on; those of
// the last block into rest, unless it is nil.
func (b *builder) putDir(at uint32, first []int, entries []dirEntry, rest []byte) {
	for k, from := range first {
		to := len(entries)
		if k+1 < len(first) {
			to = first[k+1]
		}
		if k == len(first)-1 && rest != nil {
			putDirBlock(rest, entries[from:to])
		} else {
			putDirBlock(b.t.block(at+uint32(k)), entries[from:to])
		}
	}
}

// file writes a regular file, whose content gets its place.
func (b *builder) file(e *dirEntry, a *guestfs.Attr, xattrs []byte) (uint64, error) {
	if a.Size <= 0 {
		return b.plain(a, xattrs, 0)
	}
	at, err := b.space.take(a.Size)
	if err != nil {
		return b.unreadable(e, err)
	}
	b.t.Files = append(b.t.Files, File{Block: at, Size: a.Size, ID: e.id})
	bits := 0
	for bits < maxChunkBits && a.Size > BlockSize<<bits {
		bits++
	}
	n := int((a.Size + BlockSize<<bits - 1) / (BlockSize << bits))
	index := roundUp(inodeSize+len(xattrs), chunkIndexSize)
	nid, to, err := b.space4(index + n*chunkIndexSize)
	if err != nil {
		return 0, err
	}
	b.put(to, a, layoutChunks, a.Size, chunkIndexes|uint32(bits), xattrs)
	for k := range n {
		c := to.plus(index + k*chunkIndexSize).in(b.t)
		le.PutUint16(c[chunkIndexDevice:], uint16(at>>32)+1)
		le.PutUint32(c[chunkIndexBlock:], uint32(at)+uint32(k)<<bits)
	}
	return nid, nil
}

// symlink writes a symbolic link.
func (b *builder) symlink(e *dirEntry, a *guestfs.Attr, xattrs []byte) (uint64, error) {
	target, err := b.src.ReadLink(b.ctx, e.id)
	if err != nil {
		return b.unreadable(e, err)
	}
	if len(target) > BlockSize {
		return b.unreadable(e, fmt.Errorf("a symbolic link of %d bytes: %w", len(target), ErrTooLarge))
	}
	if inodeSize+len(xattrs)+len(target) <= BlockSize {
		nid, to, err := b.space4(inodeSize + len(xattrs) + len(target))
		if err == nil {
			b.put(to, a, layoutInline, int64(len(target)), 0, xattrs)
			copy(to.in(b.t)[inodeSize+len(xattrs):], target)
		}
		return nid, err
	}
	at, err := b.blocks(1)
	if err != nil {
		return 0, err
	}
	copy(b.t.block(at), target)
	nid, to, err := b.space4(inodeSize + len(xattrs))
	if err == nil {
		b.put(to, a, layoutPlain, int64(len(target)), b.blockNumber(at), xattrs)
	}
	return nid, err
}

// plain writes an inode without data.
func (b *builder) plain(a *guestfs.Attr, xattrs []byte, where uint32) (uint64, error) {
	nid, to, err := b.space4(inodeSize + len(xattrs))
	if err == nil {
		b.put(to, a, layoutPlain, 0, where, xattrs)
	}
	return nid, err
}

// spot is where an inode lies in a tree's blocks.
type spot struct {
	block uint32
	off   int
}

// in returns the rest of the spot's block.
func (s spot) in(t *Tree) []byte { return t.block(s.block)[s.off:] }

// plus returns the spot n bytes on.
func (s spot) plus(n int) spot {
	n += s.off
	return spot{s.block + uint32(n>>BlockBits), n & (BlockSize - 1)}
}

// space4 finds a place for n bytes that begin with an inode: in one block, or from
// the beginning of several.
func (b *builder) space4(n int) (uint64, spot, error) {
	n = roundUp(n, nidSize)
	if n > BlockSize {
		at, err := b.blocks(roundUp(n, BlockSize) / BlockSize)
		return b.nid(at, 0), spot{at, 0}, err
	}
	if b.used == 0 || b.used+n > BlockSize {
		at, err := b.blocks(1)
		if err != nil {
			return 0, spot{}, err
		}
		b.open, b.used = at, 0
	}
	s := spot{b.open, b.used}
	b.used += n
	return b.nid(s.block, s.off), s, nil
}

// put writes an inode with its extended attributes, over as many blocks as that
// takes.
func (b *builder) put(to spot, a *guestfs.Attr, form uint16, size int64, where uint32, xattrs []byte) {
	b.scratch = append(b.scratch[:0], make([]byte, inodeSize+len(xattrs))...)
	putInode(b.scratch, a, form, size, where, xattrs)
	for whole := b.scratch; len(whole) > 0; {
		n := copy(to.in(b.t), whole)
		whole, to = whole[n:], to.plus(n)
	}
}

// blocks takes n blocks in a row.
func (b *builder) blocks(n int) (uint32, error) {
	at := b.t.n
	if int64(at)+int64(n) > maxBlocks {
		return 0, fmt.Errorf("metadata of more than %d bytes: %w", int64(maxBlocks)*BlockSize, ErrTooLarge)
	}
	b.t.n += uint32(n)
	for len(b.t.slabs)*slabBlocks < int(b.t.n) {
		b.t.slabs = append(b.t.slabs, make([]byte, slabBlocks*BlockSize))
	}
	return at, nil
}

// blockNumber returns a block's number in the image.
func (b *builder) blockNumber(i uint32) uint32 {
	return uint32(b.t.Base>>BlockBits) + headBlocks + i
}

// nid returns the number of an inode.
func (b *builder) nid(block uint32, off int) uint64 {
	return (uint64(b.blockNumber(block))<<BlockBits + uint64(off)) >> nidBits
}
