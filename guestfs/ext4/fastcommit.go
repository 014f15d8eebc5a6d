package ext4

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// fastCommits is what fast commits changed: not blocks, but inodes, ranges of
// files and names. The kernel's recovery applies them to the filesystem; here
// they are kept beside it and consulted first. Nothing changes after applyFast.
type fastCommits struct {
	inodes map[uint32]*fastInode
	dirs   map[uint32]*fastDir
}

// fastInode is an inode with its changes.
type fastInode struct {
	in     *inode      // as changed
	raw    []byte      // its bytes, likewise
	ranges []fastRange // ascending, not overlapping
	fresh  []fastRange // what came since, in order: a later one hides earlier ones
}

// fastRange is a stretch of logical blocks whose mapping changed.
type fastRange struct {
	start, end uint64 // [start, end)
	phys       uint64 // of start
	hole       bool
	unwritten  bool
}

// fastDir is the changes of one directory.
type fastDir struct {
	fresh   bool // made by a fast commit: nothing of it lies in blocks
	removed map[string]bool
	added   []fastName     // in the order in which they came
	at      map[string]int // where in added the living names are
}

func newFastDir(fresh bool) *fastDir {
	return &fastDir{fresh: fresh, removed: make(map[string]bool), at: make(map[string]int)}
}

// fastName is an added entry; ino is 0 once it was removed again.
type fastName struct {
	name string
	ino  uint32
}

// fastCookie is where the cookies of added entries begin, past any position in
// a directory.
const fastCookie = 1 << 62

// find returns the place of a living name in added, or -1.
func (d *fastDir) find(name string) int {
	if i, ok := d.at[name]; ok {
		return i
	}
	return -1
}

// applyFast applies the tags to f, which nobody else uses yet.
func (f *FS) applyFast(ctx context.Context, tags []fcTag) error {
	f.fast = &fastCommits{inodes: make(map[uint32]*fastInode), dirs: make(map[uint32]*fastDir)}
	le := binary.LittleEndian
	for _, t := range tags {
		v := t.value
		err := ctx.Err()
		if err != nil {
			return err
		}
		switch t.tag {
		case fcInode:
			err = f.fastSetInode(ctx, le.Uint32(v), v[fcIno:])
		case fcAdd:
			e := v[fcIno:]
			n := uint64(le.Uint16(e[eeLen:]))
			r := fastRange{start: uint64(le.Uint32(e[eeBlock:]))}
			if n > eeMaxInitLen {
				n -= eeMaxInitLen
				r.unwritten = true
			}
			r.end = r.start + n
			r.phys = uint64(le.Uint32(e[eeStartLo:])) | uint64(le.Uint16(e[eeStartHi:]))<<32
			if n == 0 || r.end > math.MaxUint32 || r.phys >= f.sb.blocks || n > f.sb.blocks-r.phys {
				return ondisk.Corruptf(format, "fast commit", -1, "range of %d blocks at block %d", n, r.phys)
			}
			err = f.fastSetRange(ctx, le.Uint32(v), r)
		case fcDel:
			start := uint64(le.Uint32(v[4:]))
			err = f.fastSetRange(ctx, le.Uint32(v), fastRange{start: start, end: start + uint64(le.Uint32(v[8:])), hole: true})
		case fcCreat, fcLink, fcUnlink:
			err = f.fastName(ctx, t.tag, le.Uint32(v), le.Uint32(v[4:]), string(v[fcDentry:]))
		}
		if err != nil {
			return fmt.Errorf("fast commit: %w", err)
		}
	}
	for _, c := range f.fast.inodes {
		c.settle() // from here on readers share it
	}
	return nil
}

// fastInode returns the changes of an inode, at first none.
func (f *FS) fastInode(ctx context.Context, ino uint32) (*fastInode, error) {
	if c := f.fast.inodes[ino]; c != nil {
		return c, nil
	}
	in, err := f.loadInode(ctx, ino)
	if err != nil {
		return nil, err
	}
	raw, err := f.raw(ctx, in)
	if err != nil {
		return nil, err
	}
	c := &fastInode{raw: slices.Clone(raw)}
	own := *in
	own.fast = c
	c.in = &own
	f.fast.inodes[ino] = c
	return c, nil
}

// fastSetInode replaces an inode, except for its mapping, for which ranges come,
// and for attributes behind its fields.
func (f *FS) fastSetInode(ctx context.Context, ino uint32, v []byte) error {
	le := binary.LittleEndian
	c := f.fast.inodes[ino]
	if c == nil {
		// The inode on the disk may never have been in use: only its bytes count.
		raw, _, _, err := f.inodeBytes(ctx, ino)
		if err != nil {
			return err
		}
		c = &fastInode{raw: slices.Clone(raw)}
	}
	copy(c.raw[:inBlock], v)
	copy(c.raw[inGeneration:], v[inGeneration:])
	mode, flags := le.Uint16(c.raw[inMode:]), le.Uint32(c.raw[inFlags:])
	iblock := c.raw[inBlock : inBlock+inBlockSize]
	switch typ := uint32(mode) & guestfs.ModeType; {
	case flags&flInline != 0 || typ != guestfs.ModeRegular && typ != guestfs.ModeDir && flags&flExtents == 0:
		// Inline data, the target of a short link, a device number.
		copy(iblock, v[inBlock:])
	case flags&flExtents != 0 && le.Uint16(iblock) != ehMagic:
		clear(iblock)
		le.PutUint16(iblock, ehMagic)
		le.PutUint16(iblock[ehMax:], (inBlockSize-ehSize)/eeSize)
	}
	in, err := f.decodeInode(ino, c.raw, -1, false)
	if err != nil {
		return err
	}
	in.fast = c
	c.in = in
	f.fast.inodes[ino] = c
	return nil
}

// fastSetRange lays r over the mapping of an inode.
func (f *FS) fastSetRange(ctx context.Context, ino uint32, r fastRange) error {
	c, err := f.fastInode(ctx, ino)
	if err != nil {
		return err
	}
	if r.start < r.end {
		c.fresh = append(c.fresh, r)
	}
	return nil
}

// settle merges the ranges that came since the last time into the others: a
// sweep over all their ends, at each of which the latest range shows.
func (c *fastInode) settle() {
	if len(c.fresh) == 0 {
		return
	}
	all := append(c.ranges, c.fresh...) // later ones hide earlier ones
	order := make([]int, len(all))
	bounds := make([]uint64, 0, 2*len(all))
	for i, r := range all {
		order[i] = i
		bounds = append(bounds, r.start, r.end)
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(all[a].start, all[b].start) })
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	var out []fastRange
	var open intHeap // ranges that have begun, the latest on top
	for i, at := range bounds[:len(bounds)-1] {
		for len(order) > 0 && all[order[0]].start <= at {
			heap.Push(&open, order[0])
			order = order[1:]
		}
		for len(open) > 0 && all[open[0]].end <= at {
			heap.Pop(&open)
		}
		if len(open) == 0 {
			continue
		}
		r := all[open[0]]
		r.phys += at - r.start
		r.start, r.end = at, bounds[i+1]
		out = append(out, r)
	}
	c.ranges, c.fresh = out, nil
}

// intHeap is a heap of numbers, the greatest on top (container/heap).
type intHeap []int

func (h intHeap) Len() int           { return len(h) }
func (h intHeap) Less(i, j int) bool { return h[i] > h[j] }
func (h intHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *intHeap) Push(x any)        { *h = append(*h, x.(int)) }
func (h *intHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

// mapFast returns the run at lblk if a range covers it; else ok is false and
// limit is where the next range begins.
func (c *fastInode) mapFast(lblk uint64) (r run, ok bool, limit uint64) {
	c.settle()
	i, found := slices.BinarySearchFunc(c.ranges, lblk, func(r fastRange, b uint64) int { return cmp.Compare(r.start, b) })
	if !found {
		i--
	}
	if i >= 0 && lblk < c.ranges[i].end {
		o := c.ranges[i]
		return run{phys: o.phys + lblk - o.start, n: o.end - lblk, zero: o.hole || o.unwritten}, true, 0
	}
	if i+1 < len(c.ranges) {
		return run{}, false, c.ranges[i+1].start
	}
	return run{}, false, math.MaxUint64
}

// fastName adds or removes a name. As in the kernel's recovery a name that
// exists isn't replaced, and one that has come to mean another inode isn't removed.
func (f *FS) fastName(ctx context.Context, tag uint16, parent, ino uint32, name string) error {
	dir, err := f.inode(ctx, parent)
	if err != nil {
		return err
	}
	if !dir.isDir() {
		return ondisk.Corruptf(format, dir.name(), -1, "entry %q in no directory", name)
	}
	in, err := f.inode(ctx, ino)
	if err != nil {
		if tag == fcUnlink {
			return nil // gone already
		}
		return err
	}
	d := f.fast.dirs[parent]
	if d == nil {
		d = newFastDir(false)
		f.fast.dirs[parent] = d
	}
	old, err := f.lookup(ctx, dir, name)
	if err != nil && !errors.Is(err, guestfs.ErrNotExist) {
		return err
	}
	switch tag {
	case fcUnlink:
		if old != ino {
			return nil
		}
		if i := d.find(name); i >= 0 {
			d.added[i].ino = 0
			delete(d.at, name)
		} else {
			d.removed[name] = true
		}
	default:
		if tag == fcCreat && in.isDir() {
			if err := f.fastMakeDir(ctx, ino); err != nil {
				return err
			}
		}
		if old != 0 {
			return nil
		}
		d.at[name] = len(d.added)
		d.added = append(d.added, fastName{name, ino})
	}
	if !in.isDir() || dir.nlink == 1 {
		return nil
	}
	c, err := f.fastInode(ctx, parent)
	if err != nil {
		return err
	}
	own := *c.in // others may hold the old one
	if tag == fcUnlink {
		own.nlink--
	} else {
		own.nlink++
	}
	c.in = &own
	return nil
}

// fastMakeDir makes an empty directory of one block out of a new inode.
func (f *FS) fastMakeDir(ctx context.Context, ino uint32) error {
	c, err := f.fastInode(ctx, ino)
	if err != nil {
		return err
	}
	own := *c.in
	if own.flags&flInline == 0 {
		own.size = int64(f.sb.blockSize())
		own.blocks = own.size >> 9
	}
	c.in = &own
	f.fast.dirs[ino] = newFastDir(true)
	return nil
}
