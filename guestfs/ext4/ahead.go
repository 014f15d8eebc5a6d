package ext4

import (
	"context"
	"slices"

	"yester/internal/block"
)

// Where the device lies far away, it is told what will be read next, many pieces
// at a time: each that is met one after the other would cost a round trip. What
// goes wrong on the way is met again, and said, where it is needed.
const (
	// maxDescHint bounds the group descriptors asked for at once, in bytes: those
	// of 4 TiB with groups of 128 MiB.
	maxDescHint = 2 << 20
	// dirAhead is how many blocks of a directory are looked through at once for
	// what their entries need: some four thousand entries.
	dirAhead = 64
	// maxDirHint bounds what of a directory is asked for at once, in bytes.
	maxDirHint = 4 << 20
	// hintGap is how far two wanted pieces may lie apart and still be asked for as
	// one, in bytes: no origin fetches less.
	hintGap = 64 << 10
	// maxFileHints bounds the pieces of a fragmented file asked for at once.
	maxFileHints = 1024
	// maxReadNoted is the longest question about a file's place, in bytes, that is
	// one about what is about to be read there.
	maxReadNoted = 1 << 20
)

// hintOpen asks for what opening the filesystem reads: the superblock and the
// group descriptors behind it.
func (f *FS) hintOpen() {
	if !f.far {
		return
	}
	n := int64(superOffset + superSize)
	if f.sb.incompat&incompatMetaBG == 0 {
		n = (int64(f.descBlock(f.sb.groups-1)) + 1) << f.sb.blockBits
	}
	block.Prefetch(f.dev, block.Range{Len: min(n, maxDescHint)})
}

// newFile returns the content of an inode whose data lie in blocks.
func (f *FS) newFile(in *inode) *file {
	r := &file{fs: f, in: in}
	if f.far {
		r.ahead = new(block.Ahead)
	}
	return r
}

// readAhead takes notice of a read of n bytes at off, and asks for what follows
// along the file's extents when it is one of a sequence.
func (r *file) readAhead(ctx context.Context, off, n int64) {
	g, ok := r.ahead.Note(off, n, r.in.size)
	if !ok {
		return
	}
	block.Prefetch(r.fs.dev, r.places(ctx, g, maxFileHints)...)
}

// places returns where a range of the file lies on the device, at most limit pieces.
func (r *file) places(ctx context.Context, g block.Range, limit int) []block.Range {
	var places []block.Range
	for at, end := g.Off, g.Off+g.Len; at < end && len(places) < limit; {
		s, err := r.stretch(ctx, at, end-at)
		if err != nil {
			break
		}
		if !s.zero {
			places = append(places, block.Range{Off: s.pos, Len: s.n})
		}
		at += s.n
	}
	return places
}

// hintDir asks for the blocks of a directory from lblk on.
func (f *FS) hintDir(ctx context.Context, in *inode, lblk uint64) {
	at := int64(lblk) << f.sb.blockBits
	if n := min(in.size-at, maxDirHint); n > int64(f.sb.blockSize()) {
		block.Prefetch(f.dev, (&file{fs: f, in: in}).places(ctx, block.Range{Off: at, Len: n}, maxFileHints)...)
	}
}

// hintEntries asks for the inodes that the next dirAhead blocks of a directory
// name: whoever lists it is likely to look at them.
func (f *FS) hintEntries(ctx context.Context, in *inode, lblk, blocks uint64) {
	if lblk*uint64(f.sb.blockSize())%maxDirHint == 0 {
		f.hintDir(ctx, in, lblk)
	}
	c := dirCursor{f: f, in: in}
	var want []block.Range
	for end := min(lblk+dirAhead, blocks); lblk < end; lblk++ {
		m, hole, err := c.block(ctx, lblk)
		if err != nil || m == nil {
			if ctx.Err() != nil {
				return
			}
			lblk += max(hole, 1) - 1
			continue
		}
		for off := 0; off < len(m.data); {
			e, err := f.parseEntry(m.data, off)
			if err != nil {
				break
			}
			off = e.next
			if e.skip() {
				continue
			}
			if _, known := f.inodeCache.get(uint64(e.ino)); known {
				continue
			}
			if blk, err := f.inodeBlock(ctx, e.ino); err == nil {
				want = append(want, block.Range{Off: int64(blk) << f.sb.blockBits, Len: int64(f.sb.blockSize())})
			}
		}
	}
	block.Prefetch(f.dev, joined(want)...)
}

// inodeBlock returns the block in which inode ino lies.
func (f *FS) inodeBlock(ctx context.Context, ino uint32) (uint64, error) {
	gr, err := f.group(ctx, (ino-1)/f.sb.inodesPerGroup)
	at := uint64((ino-1)%f.sb.inodesPerGroup) * uint64(f.sb.inodeSize)
	return gr.inodeTable + at>>f.sb.blockBits, err
}

// joined sorts ranges and joins those that lie close together.
func joined(list []block.Range) []block.Range {
	slices.SortFunc(list, func(a, b block.Range) int { return int(min(max(a.Off-b.Off, -1), 1)) })
	var out []block.Range
	for _, g := range list {
		if k := len(out) - 1; k >= 0 && g.Off <= out[k].Off+out[k].Len+hintGap {
			out[k].Len = max(out[k].Len, g.Off+g.Len-out[k].Off)
			continue
		}
		out = append(out, g)
	}
	return out
}
