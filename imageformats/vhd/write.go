package vhd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/sparse"
)

// creator is the Creator Application of what this package writes. The geometry
// is left at its maximum, which makes every reader that would go by it take
// Current Size instead, QEMU and this package included.
const creator = "yest"

// ErrTooLarge says that a disk doesn't fit a VHD.
var ErrTooLarge = errors.New("a dynamic VHD holds at most 2040 GiB")

// WriteOptions say what a written image's headers hold. The same options and
// source give the same bytes.
type WriteOptions struct {
	ID       [16]byte         // unique id, in the order of its text
	Created  time.Time        // footer's time stamp; must lie in 2000 to 2136
	Progress func(done int64) // bytes of the source dealt with; may be nil
	// BlockSize in bytes, a power of two of at least 512; 0 means 2 MiB, the
	// only one that every program accepts.
	BlockSize int64
}

// DiffOptions say what a differencing image's headers hold of its parent. Only
// locators of platforms W2ru, W2ku, Wi2r, Wi2k and MacX can be written.
type DiffOptions struct {
	WriteOptions
	ParentID       [16]byte
	ParentModified time.Time
	ParentName     string // file name
	Locators       []imageformats.Locator
}

// WriteFixed writes src as a fixed VHD: its bytes, then a footer. Holes of src
// aren't written, so w must be new and, as a file, is left sparse.
func WriteFixed(ctx context.Context, w io.WriterAt, src block.Reader, opt WriteOptions) error {
	size := (src.Size() + sectorSize - 1) &^ (sectorSize - 1)
	foot, err := encodeFooter(opt, typeFixed, size)
	if err != nil {
		return err
	}
	err = sparse.Scan(ctx, src, sparse.Options{Chunk: 1 << 20, Progress: opt.Progress}, func(off int64, data []byte) error {
		return sparse.WriteAt(w, data, off)
	})
	if err != nil {
		return fmt.Errorf("vhd: write fixed: %w", err)
	}
	return wrapWrite(sparse.WriteAt(w, foot, size))
}

// WriteDynamic writes src as a dynamic VHD in which blocks that are all zeros
// take no room. w must be new and empty: what isn't written is taken to read as
// zeros. A size that is no multiple of 512 is rounded up, with zeros. Headers go
// last, so that an image cut short is not taken for a whole one.
func WriteDynamic(ctx context.Context, w io.WriterAt, src block.Reader, opt WriteOptions) error {
	b, err := newBuilder(w, src.Size(), typeDynamic, DiffOptions{WriteOptions: opt})
	if err != nil {
		return err
	}
	err = sparse.Scan(ctx, src, sparse.Options{Chunk: int(b.blockSize), Progress: opt.Progress}, func(off int64, data []byte) error {
		return b.add(off, data, nil)
	})
	if err != nil {
		return fmt.Errorf("vhd: write dynamic: %w", err)
	}
	return b.finish()
}

// WriteDiff writes the sectors in which src differs from parent as a
// differencing VHD, with sector bitmaps that mark just these. Sectors beyond the
// parent's end are compared with zeros.
func WriteDiff(ctx context.Context, w io.WriterAt, src, parent block.Reader, opt DiffOptions) error {
	b, err := newBuilder(w, src.Size(), typeDifferencing, opt)
	if err != nil {
		return err
	}
	now, was := make([]byte, b.blockSize), make([]byte, b.blockSize)
	bitmap := make([]byte, b.bitmapSize)
	for off := int64(0); off < src.Size(); off += b.blockSize {
		n := min(b.blockSize, src.Size()-off)
		if hole, err := sparse.HoleInBoth(ctx, src, parent, off, n); err != nil {
			return fmt.Errorf("vhd: write differencing: %w", err)
		} else if hole {
			if opt.Progress != nil {
				opt.Progress(off + n)
			}
			continue
		}
		if err := readZeroed(ctx, src, now, off, n); err != nil {
			return fmt.Errorf("vhd: write differencing: %w", err)
		}
		if err := readZeroed(ctx, parent, was, off, n); err != nil {
			return fmt.Errorf("vhd: write differencing: parent: %w", err)
		}
		clear(bitmap)
		changed := false
		for s := int64(0); s*sectorSize < n; s++ {
			at := s * sectorSize
			if string(now[at:at+sectorSize]) != string(was[at:at+sectorSize]) {
				bitmap[s/8] |= 0x80 >> (s % 8)
				changed = true
			} else {
				clear(now[at : at+sectorSize]) // not in the file
			}
		}
		if changed {
			if err := b.add(off, now[:(n+sectorSize-1)&^(sectorSize-1)], bitmap); err != nil {
				return fmt.Errorf("vhd: write differencing: %w", err)
			}
		}
		if opt.Progress != nil {
			opt.Progress(off + n)
		}
	}
	return b.finish()
}

// readZeroed reads n bytes of r at off into p, with zeros beyond r's end and up
// to p's.
func readZeroed(ctx context.Context, r block.Reader, p []byte, off, n int64) error {
	have := max(0, min(n, r.Size()-off))
	clear(p[have:])
	if have == 0 {
		return nil
	}
	return block.ReadFull(ctx, r, p[:have], off)
}

// builder lays out a dynamic or differencing image: footer copy, header, BAT,
// locator data, blocks, footer.
type builder struct {
	w          io.WriterAt
	foot       []byte
	head       []byte
	locators   []locatorData
	bat        []byte
	blockSize  int64
	bitmapSize int64
	full       []byte // the bitmap of a block that is all there
	end        int64
}

type locatorData struct {
	at   int64
	data []byte
}

func newBuilder(w io.WriterAt, srcSize int64, t diskType, opt DiffOptions) (*builder, error) {
	if opt.BlockSize == 0 {
		opt.BlockSize = defaultBlockSize
	}
	if bs := opt.BlockSize; bs < sectorSize || bs > 1<<30 || bs&(bs-1) != 0 {
		return nil, fmt.Errorf("vhd: block size %d is no power of two from 512 to 2^30", bs)
	}
	size := (srcSize + sectorSize - 1) &^ (sectorSize - 1)
	if size > maxDynamicSize {
		return nil, fmt.Errorf("vhd: disk of %d bytes: %w", size, ErrTooLarge)
	}
	b := &builder{w: w, blockSize: opt.BlockSize}
	b.bitmapSize = bitmapBytes(opt.BlockSize)
	b.full = make([]byte, b.bitmapSize)
	for i := int64(0); i < opt.BlockSize/sectorSize; i++ {
		b.full[i/8] |= 0x80 >> (i % 8)
	}
	var err error
	if b.foot, err = encodeFooter(opt.WriteOptions, t, size); err != nil {
		return nil, err
	}
	n := blocks(size, uint32(opt.BlockSize))
	b.bat = make([]byte, (n*4+sectorSize-1)&^(sectorSize-1))
	for i := range b.bat {
		b.bat[i] = 0xff
	}
	b.end = footerSize + headerSize + int64(len(b.bat))
	if err := b.encodeHeader(uint32(n), t, opt); err != nil {
		return nil, err
	}
	return b, nil
}

// add appends the block at off of the disk. bitmap nil means all its sectors.
func (b *builder) add(off int64, data, bitmap []byte) error {
	if bitmap == nil {
		bitmap = b.full
	}
	if b.end/sectorSize >= unallocated {
		return ErrTooLarge
	}
	be.PutUint32(b.bat[off/b.blockSize*4:], uint32(b.end/sectorSize))
	if err := sparse.WriteAt(b.w, bitmap, b.end); err != nil {
		return err
	}
	at := b.end + b.bitmapSize
	// Zeros inside the block are left out of a file that reads so anyway.
	if err := sparse.WriteData(b.w, data, at, grain); err != nil {
		return err
	}
	b.end = at + b.blockSize
	return nil
}

// grain is the least run of zeros that isn't written, bytes: the block of most
// filesystems.
const grain = 4 << 10

// finish writes what goes last: locators, BAT, header, and both footers.
func (b *builder) finish() error {
	for _, l := range b.locators {
		if err := sparse.WriteAt(b.w, l.data, l.at); err != nil {
			return wrapWrite(err)
		}
	}
	for _, p := range []struct {
		data []byte
		at   int64
	}{{b.bat, footerSize + headerSize}, {b.foot, b.end}, {b.head, footerSize}, {b.foot, 0}} {
		if err := sparse.WriteAt(b.w, p.data, p.at); err != nil {
			return wrapWrite(err)
		}
	}
	return nil
}

func wrapWrite(err error) error {
	if err != nil {
		err = fmt.Errorf("vhd: %w", err)
	}
	return err
}
