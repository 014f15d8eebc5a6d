package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/sparse"
)

// ErrTooLarge says that a disk doesn't fit a VHDX.
var ErrTooLarge = errors.New("a VHDX holds at most 64 TiB")

// defaultBlock is the block size of dynamic disks that Hyper-V makes, bytes;
// those of differencing ones are of 2 MiB.
const defaultBlock = 32 * mib

// WriteOptions say what a written image's headers hold. The same options and
// source give the same bytes.
type WriteOptions struct {
	ID       [16]byte         // DataWriteGuid, in the order of its text
	DiskID   [16]byte         // VirtualDiskId, likewise
	Progress func(done int64) // bytes of the source dealt with; may be nil
	// BlockSize in bytes, a power of two from 1 MiB to 256 MiB; 0 means 32 MiB.
	BlockSize int64
	// SectorSize in bytes, 512 or 4096; 0 means 512.
	SectorSize int64
}

// DiffOptions say what a differencing image's headers hold of its parent.
type DiffOptions struct {
	WriteOptions
	ParentID    [16]byte // the parent's DataWriteGuid
	ParentAltID [16]byte // another that it may have (parent_linkage2); zero for none
	// Locators may have the platforms relative_path, volume_path and
	// absolute_win32_path, each once.
	Locators []imageformats.Locator
}

// WriteFixed writes src as a fixed VHDX, all of whose blocks are in the file.
// Holes of src aren't written, so w must be new and, as a file, is left sparse.
func WriteFixed(ctx context.Context, w io.WriterAt, src block.Reader, opt WriteOptions) error {
	b, err := newBuilder(w, src.Size(), leaveAllocated, DiffOptions{WriteOptions: opt})
	if err != nil {
		return err
	}
	for no := range (b.size + b.opt.BlockSize - 1) / b.opt.BlockSize {
		if err := b.allocate(no, fullyPresent); err != nil {
			return err
		}
	}
	start := b.end - (b.size+b.opt.BlockSize-1)/b.opt.BlockSize*b.opt.BlockSize
	err = sparse.Scan(ctx, src, sparse.Options{Chunk: piece, Progress: opt.Progress}, func(off int64, data []byte) error {
		return sparse.WriteData(b, data, start+off, grain)
	})
	if err != nil {
		return fmt.Errorf("vhdx: write fixed: %w", err)
	}
	return b.finish()
}

// WriteDynamic writes src as a dynamic VHDX in which blocks that are all zeros
// take no room. w must be new and empty: what isn't written is taken to read as
// zeros. A size that is no multiple of the sector size is rounded up, with zeros.
// Headers go last, so that an image cut short is not taken for a whole one.
func WriteDynamic(ctx context.Context, w io.WriterAt, src block.Reader, opt WriteOptions) error {
	b, err := newBuilder(w, src.Size(), 0, DiffOptions{WriteOptions: opt})
	if err != nil {
		return err
	}
	last, at := int64(-1), int64(0)
	err = sparse.Scan(ctx, src, sparse.Options{Chunk: piece, Progress: opt.Progress}, func(off int64, data []byte) error {
		if no := off / b.opt.BlockSize; no != last {
			last, at = no, b.end
			if err := b.allocate(no, fullyPresent); err != nil {
				return err
			}
		}
		return sparse.WriteData(b, data, at+off%b.opt.BlockSize, grain)
	})
	if err != nil {
		return fmt.Errorf("vhdx: write dynamic: %w", err)
	}
	return b.finish()
}

// WriteDiff writes the sectors in which src differs from parent as a
// differencing VHDX. Blocks that differ in all sectors are fully present, the
// others partially. Sectors beyond the parent's end are compared with zeros.
func WriteDiff(ctx context.Context, w io.WriterAt, src, parent block.Reader, opt DiffOptions) error {
	b, err := newBuilder(w, src.Size(), hasParent, opt)
	if err != nil {
		return err
	}
	chunk := bitmapBits * b.opt.SectorSize
	for off := int64(0); off < b.size; off += chunk {
		if err := b.diffChunk(ctx, src, parent, off, min(chunk, b.size-off)); err != nil {
			return fmt.Errorf("vhdx: write differencing: %w", err)
		}
	}
	return b.finish()
}

const (
	piece = mib // bytes looked at and written at once; divides all block sizes
	// grain is the least run of zeros that isn't written, bytes: the block of
	// most filesystems.
	grain = 4 * kib
)

// builder lays out an image: header section, log, metadata, BAT, blocks.
type builder struct {
	w       io.WriterAt
	opt     DiffOptions
	size    int64 // of the disk
	params  uint32
	batSize int64
	locator []byte
	ratio   int64
	end     int64 // of what is laid out so far
	written int64 // end of what is written so far
}

// WriteAt implements io.WriterAt: it writes to b.w and remembers how far.
func (b *builder) WriteAt(p []byte, off int64) (int, error) {
	b.written = max(b.written, off+int64(len(p)))
	return b.w.WriteAt(p, off)
}

func newBuilder(w io.WriterAt, srcSize int64, params uint32, opt DiffOptions) (*builder, error) {
	if opt.BlockSize == 0 {
		opt.BlockSize = defaultBlock
	}
	if opt.SectorSize == 0 {
		opt.SectorSize = 512
	}
	if bs := opt.BlockSize; bs < minBlock || bs > maxBlock || bs&(bs-1) != 0 {
		return nil, fmt.Errorf("vhdx: block size %d is no power of two from 1 MiB to 256 MiB", bs)
	}
	if opt.SectorSize != 512 && opt.SectorSize != 4096 {
		return nil, fmt.Errorf("vhdx: sector size %d is neither 512 nor 4096", opt.SectorSize)
	}
	if srcSize > maxSize {
		return nil, fmt.Errorf("vhdx: disk of %d bytes: %w", srcSize, ErrTooLarge)
	}
	b := &builder{w: w, opt: opt, params: params, size: (srcSize + opt.SectorSize - 1) &^ (opt.SectorSize - 1)}
	b.ratio = bitmapBits * opt.SectorSize / opt.BlockSize
	payload := (b.size + opt.BlockSize - 1) / opt.BlockSize
	entries := (payload + b.ratio - 1) / b.ratio * (b.ratio + 1)
	b.batSize = max(mib, (entries*batEntrySize+mib-1)&^(mib-1))
	b.end = writeBATOff + b.batSize
	if params&hasParent != 0 {
		var err error
		if b.locator, err = encodeLocator(opt); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// setEntry writes a BAT entry.
func (b *builder) setEntry(idx, at int64, s blockState) error {
	return sparse.WriteAt(b, le.AppendUint64(nil, uint64(at)|uint64(s)), writeBATOff+idx*batEntrySize)
}

// allocate gives payload block no the room at b.end.
func (b *builder) allocate(no int64, s blockState) error {
	at := b.end
	b.end += b.opt.BlockSize
	return b.setEntry(no+no/b.ratio, at, s)
}

// diffChunk writes what differs in the n bytes at off, which share one sector
// bitmap.
func (b *builder) diffChunk(ctx context.Context, src, parent block.Reader, off, n int64) error {
	var bitmap []byte
	now, was := make([]byte, piece), make([]byte, piece)
	for start := off; start < off+n; start += b.opt.BlockSize {
		blockLen := min(b.opt.BlockSize, off+n-start)
		if hole, err := sparse.HoleInBoth(ctx, src, parent, start, blockLen); err != nil {
			return err
		} else if hole {
			if b.opt.Progress != nil {
				b.opt.Progress(min(start+blockLen, src.Size()))
			}
			continue
		}
		at, changed := b.end, int64(0) // changed counts sectors
		for rel := int64(0); rel < blockLen; rel += piece {
			m := min(piece, blockLen-rel)
			if err := readZeroed(ctx, src, now, start+rel, m); err != nil {
				return err
			}
			if err := readZeroed(ctx, parent, was, start+rel, m); err != nil {
				return fmt.Errorf("parent: %w", err)
			}
			before := changed
			for i := int64(0); i < m; i += b.opt.SectorSize {
				if bytes.Equal(now[i:i+b.opt.SectorSize], was[i:i+b.opt.SectorSize]) {
					clear(now[i : i+b.opt.SectorSize]) // not in the file
					continue
				}
				if bitmap == nil {
					bitmap = make([]byte, bitmapSize)
				}
				sector := (start + rel + i - off) / b.opt.SectorSize
				bitmap[sector/8] |= 1 << (sector % 8)
				changed++
			}
			if changed > before {
				if err := sparse.WriteData(b, now[:m], at+rel, grain); err != nil {
					return err
				}
			}
			if b.opt.Progress != nil {
				b.opt.Progress(min(start+rel+m, src.Size()))
			}
		}
		if changed == 0 {
			continue
		}
		state := partiallyPresent
		if changed == b.opt.BlockSize/b.opt.SectorSize {
			state = fullyPresent
		}
		if err := b.allocate(start/b.opt.BlockSize, state); err != nil {
			return err
		}
	}
	if bitmap == nil {
		return nil
	}
	at := b.end
	b.end += bitmapSize
	chunk := off / (bitmapBits * b.opt.SectorSize)
	if err := b.setEntry(chunk*(b.ratio+1)+b.ratio, at, fullyPresent); err != nil {
		return err
	}
	return sparse.WriteData(b, bitmap, at, grain)
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

// finish writes what goes last: the file's end, metadata, region tables, headers
// and the file type identifier.
func (b *builder) finish() error {
	h := header{sequence: 1, dataGUID: b.opt.ID, version: fileVersion, logLength: writeLogSize, logOffset: writeLogOff}
	second := h
	second.sequence = 2
	regions := encodeRegions(b.batSize)
	if b.written < b.end { // the last block ends in a hole
		if err := sparse.WriteAt(b, []byte{0}, b.end-1); err != nil {
			return fmt.Errorf("vhdx: %w", err)
		}
	}
	for _, p := range []struct {
		data []byte
		at   int64
	}{
		{encodeMetadata(b.opt.WriteOptions, b.size, b.params, b.locator), writeMetadataOff},
		{regions, region1Off},
		{regions, region2Off},
		{encodeHeader(h), header1Off},
		{encodeHeader(second), header2Off},
		{encodeFileType(), fileTypeOff},
	} {
		if err := sparse.WriteAt(b, p.data, p.at); err != nil {
			return fmt.Errorf("vhdx: %w", err)
		}
	}
	return nil
}
