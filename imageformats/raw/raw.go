// Package raw takes disks that lie in a file as they are: `dd` copies, `.raw`
// and `.img` files, logical volumes of the host, and such disks split into
// parts. It also writes them, sparse.
//
// Nothing marks a raw disk, so Probe looks for what a disk begins with: a
// partition table, or the magic of a filesystem or volume manager. It is to be
// asked last, after all formats that have a header of their own.
package raw

import (
	"context"
	"fmt"
	"io"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// Format recognises and opens raw disks.
var Format = imageformats.Format{Name: "raw", Probe: probe, Open: open}

func probe(ctx context.Context, file block.Reader) (imageformats.Info, error) {
	name, err := Sniff(ctx, file)
	if err != nil {
		return imageformats.Info{}, err
	}
	if name == "" {
		return imageformats.Info{}, &ondisk.FormatError{Format: "raw", Field: "content", Off: -1,
			Msg: "no partition table, filesystem or volume is known by it", Err: ondisk.ErrFormat}
	}
	return imageformats.Info{Format: "raw", Variant: name, Size: file.Size()}, nil
}

// open opens any file, recognised or not: who names the format knows best.
func open(ctx context.Context, file block.Reader, opt imageformats.OpenOptions) (imageformats.Image, error) {
	if opt.Parent != nil {
		return nil, fmt.Errorf("raw: %s: opened with a parent, and has none", opt.Name)
	}
	return &Image{file}, ctx.Err()
}

// Image is a raw disk. Its bytes, holes and places in host files are those of
// the file it was opened from.
type Image struct{ file block.Reader }

var (
	_ imageformats.Image  = (*Image)(nil)
	_ block.ContextReader = (*Image)(nil)
	_ block.Mapper        = (*Image)(nil)
)

// Size returns the file's size, bytes.
func (img *Image) Size() int64 { return img.file.Size() }

// ReadAt implements block.Reader.
func (img *Image) ReadAt(p []byte, off int64) (int, error) { return img.file.ReadAt(p, off) }

// ReadAtContext implements block.ContextReader.
func (img *Image) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return block.ReadAt(ctx, img.file, p, off)
}

// Extent implements block.Mapper.
func (img *Image) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	return block.ExtentAt(ctx, img.file, off, n)
}

// Prefetch implements block.Prefetcher.
func (img *Image) Prefetch(ranges []block.Range) bool { return block.Prefetch(img.file, ranges...) }

// Close implements io.Closer; the file stays open.
func (img *Image) Close() error { return nil }

var _ io.ReaderAt = (*Image)(nil)
