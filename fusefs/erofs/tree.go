package erofs

import (
	"context"
	"errors"
	"fmt"

	"yester/guestfs"
)

// ErrUnreadable is what a read of a part of an image gets that stands for
// something that the tree could not tell.
var ErrUnreadable = errors.New("this part of the tree can't be read")

// Region says where in an image the metadata of a tree lie, before they are made.
type Region struct {
	Base       int64  // address in the image, a multiple of BlockSize below 16 TiB
	RootBlocks int    // blocks of the root directory; at least 1
	Parent     uint64 // NID that the root's ".." shows
}

// headBlocks is what a region begins with: the root's inode and its extended
// attributes, which can be told before the tree is read.
const headBlocks = 1 + (inodeSize+maxXattrBytes-1)/BlockSize

// HeadSize is the length of what Head returns at most, in bytes.
const HeadSize = headBlocks * BlockSize

// Root returns the number of the root directory's inode.
func (r *Region) Root() uint64 { return NID(r.Base) }

// NID returns the number of the inode at an address in an image.
func NID(at int64) uint64 { return uint64(at) >> nidBits }

// Head returns the beginning of the region, for a root with these attributes.
func (r *Region) Head(root *guestfs.Attr, xattrs []Xattr) (head []byte, left []string, err error) {
	packed, left, err := packXattrs(xattrs)
	if err != nil {
		return nil, nil, err
	}
	head = make([]byte, roundUp(inodeSize+len(packed), BlockSize))
	putInode(head, root, layoutPlain, int64(r.RootBlocks)*BlockSize, uint32(r.Base>>BlockBits)+headBlocks, packed)
	return head, left, nil
}

// FewRootBlocks is how many blocks a root directory takes that is known to have no
// more than so many entries, with so many bytes in their names; 0 when that is too
// many to know it.
func FewRootBlocks(entries, names int) int {
	// "." and ".." are two entries, so that two blocks can always be filled; each may
	// end where the next entry would have begun.
	if (entries+2)*direntSize+names+3+2*(direntSize+maxName) > 2*BlockSize {
		return 0
	}
	return 2
}

// RootBlocks returns how many blocks the root directory of src takes.
func RootBlocks(ctx context.Context, src guestfs.Tree) (int, error) {
	b := builder{ctx: ctx, src: src}
	entries, err := b.list(src.Root(), 0, 0)
	first, _ := dirBlocks(entries, 1)
	return len(first), err
}

// ErrRootBlocks means that a root directory doesn't take as many blocks as its
// region says.
var ErrRootBlocks = errors.New("the root directory takes another number of blocks")

// File is a file's content: where the image says that it lies.
type File struct {
	Block uint64 // device (from 0) << 32 | block on it
	Size  int64  // bytes
	ID    guestfs.ID
}

// Tree is the metadata of a tree.
type Tree struct {
	Region
	Files []File // by ascending Block, of those that aren't empty
	End   uint64 // of the last one's space
	// Lacking are the names of extended attributes that the format has no place for.
	Lacking map[string]bool

	slabs [][]byte // from the end of the head on
	n     uint32   // blocks in use
	bad   map[uint32]bool
}

// slabBlocks is how many blocks are allocated at a time.
const slabBlocks = 256

// block returns a block behind the head.
func (t *Tree) block(i uint32) []byte {
	in := i % slabBlocks * BlockSize
	return t.slabs[i/slabBlocks][in : in+BlockSize : in+BlockSize]
}

// Space is where the contents of files are said to lie.
type Space struct {
	Next    uint64 // the first block that is free: device << 32 | block on it
	Devices int
	Gap     uint64 // blocks that are left free behind each file
}

// take gives a file of that size its place, on one device.
func (s *Space) take(size int64) (uint64, error) {
	n := (uint64(size) + BlockSize - 1) >> BlockBits
	if n >= noBlock-s.Gap {
		return 0, fmt.Errorf("file of %d bytes: %w", size, ErrTooLarge)
	}
	if s.Next&noBlock+n >= noBlock {
		s.Next = (s.Next>>32 + 1) << 32
	}
	if s.Next>>32 >= uint64(s.Devices) {
		return 0, fmt.Errorf("files of more than %d bytes in all: %w", uint64(s.Devices)<<(32+BlockBits), ErrTooLarge)
	}
	at := s.Next
	s.Next += n + s.Gap
	return at, nil
}

// Build makes the metadata of src, which lie at r, and gives each file a place in
// space. An inode or a directory that is damaged, or more than the format can hold,
// becomes one that can't be read; failed is called with why. Any other error, which
// may not be there the next time, is returned.
func Build(ctx context.Context, src guestfs.Tree, r Region, space Space, failed func(error)) (*Tree, error) {
	b := &builder{
		ctx: ctx, src: src, space: space, failed: failed,
		t:     &Tree{Region: r, Lacking: make(map[string]bool), bad: make(map[uint32]bool)},
		links: make(map[guestfs.ID]uint64),
	}
	if err := b.root(); err != nil {
		return nil, err
	}
	b.t.End = b.space.Next
	return b.t, nil
}
