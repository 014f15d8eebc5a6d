// Package ewf reads Expert Witness files as forensic tools write them (.E01, .E02,
// …): EnCase 1 to 7, FTK Imager, linen, libewf. It verifies every checksum on the
// way to the bytes, those of the chunks on every read.
//
// Version 2 (.Ex01), logical evidence (.L01) and SMART's own variant (.s01) are
// told apart and refused by name.
package ewf

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync/atomic"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/decoded"
	"yester/internal/ondisk"
)

// Format recognises and opens Expert Witness files. Open takes the first segment,
// and the others as OpenOptions.Files: the format names none, so they are found
// by Segments.
var Format = imageformats.Format{Name: "ewf", Probe: probe, Open: open}

// probe reads the first segment. Digests and read errors are in the last one, so
// that they are known here of disks of one segment only.
func probe(ctx context.Context, file block.Reader) (imageformats.Info, error) {
	m := &meta{}
	if _, err := m.readSegment(ctx, newSegment(file, "", 1)); err != nil {
		return imageformats.Info{}, err
	}
	return m.finish()
}

// finish completes the info once all segments at hand have been read.
func (m *meta) finish() (imageformats.Info, error) {
	if !m.seen {
		return imageformats.Info{}, ondisk.Corruptf("ewf", "volume", -1, "there is no sound volume, disk or data section; %q", m.info.Warnings)
	}
	if m.md5 != nil || m.sha1 != nil {
		m.info.Digests = &imageformats.Digests{MD5: hex.EncodeToString(m.md5), SHA1: hex.EncodeToString(m.sha1)}
	}
	return m.info, nil
}

// Image is an opened disk. It is safe for parallel use and holds no file of its
// own.
type Image struct {
	meta  *meta
	log   *slog.Logger
	slots []atomic.Pointer[entries] // of tables, by their number
	units *decoded.Units            // chunks
}

var (
	_ imageformats.Image  = (*Image)(nil)
	_ imageformats.Hasher = (*Image)(nil)
	_ block.ContextReader = (*Image)(nil)
	_ block.Mapper        = (*Image)(nil)
)

// tablesKept bounds the entries kept in memory, bytes: 64 GiB of disk in chunks
// of 32 KiB.
const tablesKept = 8 << 20

func open(ctx context.Context, file block.Reader, opt imageformats.OpenOptions) (imageformats.Image, error) {
	if opt.Parent != nil || opt.Snapshot != "" {
		return nil, fmt.Errorf("ewf: %s: opened with a parent or a snapshot, and has none", opt.Name)
	}
	m := &meta{}
	name := opt.Name
	more := true
	for i, f := range append([]block.Reader{file}, opt.Files...) {
		if !more {
			return nil, ondisk.Corruptf("ewf", "segments", -1, "%s: the set ends with segment %d, but there is a segment %d", opt.Name, i, i+1)
		}
		if i > 0 {
			name = ""
		}
		var err error
		if more, err = m.readSegment(ctx, newSegment(f, name, i+1)); err != nil {
			return nil, err
		}
	}
	if _, err := m.finish(); err != nil {
		return nil, err
	}
	if more {
		return nil, ondisk.Corruptf("ewf", "segments", -1, "%s: segment %d is missing", opt.Name, len(opt.Files)+2)
	}
	if need := (m.size + m.chunk() - 1) / m.chunk(); m.chunks < need {
		return nil, ondisk.Corruptf("ewf", "tables", -1, "%s: they have %d chunks, but a disk of %d bytes needs %d", opt.Name, m.chunks, m.size, need)
	}
	img := &Image{meta: m, log: opt.Logger}
	var largest int64 = 1
	for _, t := range m.tables {
		largest = max(largest, t.count*4)
	}
	img.slots = make([]atomic.Pointer[entries], max(1, min(int64(len(m.tables)), tablesKept/largest)))
	img.units = decoded.New(img.decode)
	if opt.Logger != nil {
		for _, w := range m.info.Warnings {
			opt.Logger.Warn("ewf: "+w, "image", opt.Name)
		}
	}
	return img, nil
}

// Size returns the size of the disk, bytes.
func (img *Image) Size() int64 { return img.meta.size }

// Info returns what the headers of all segments say.
func (img *Image) Info() imageformats.Info { return img.meta.info }

// Hashes implements imageformats.Hasher.
func (img *Image) Hashes() (md5, sha1 []byte) { return img.meta.md5, img.meta.sha1 }

// Close drops what is kept of decoded chunks.
func (img *Image) Close() error {
	img.units.Close()
	return nil
}

// ReadAt implements block.Reader.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	return img.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader. A failed read returns no bytes.
func (img *Image) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), img.meta.size)
	if n == 0 {
		return 0, eof
	}
	chunk := img.meta.chunk()
	if err := img.units.ReadAt(ctx, p[:n], off, chunk); err != nil {
		return 0, err
	}
	if last := (off + int64(n) - 1) / chunk; img.units.Sequential(last) {
		for next := last + 1; next <= last+readAhead && next*chunk < img.meta.size; next++ {
			img.units.Ahead(next)
		}
	}
	return n, eof
}

// readAhead is how many chunks are decoded beyond what a sequential reader asked
// for.
const readAhead = 4

// Extent implements block.Mapper. Chunks are verified when they are read, so none
// is reported as lying in a file, which would let it be read past that.
func (img *Image) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	if off < 0 || off >= img.meta.size || n < 1 {
		return block.Extent{}, fmt.Errorf("ewf: extent of %d bytes at %#x of %#x", n, off, img.meta.size)
	}
	return block.Extent{Len: min(n, img.meta.size-off)}, nil
}
