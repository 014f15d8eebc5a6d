// Package vhd reads and writes Virtual Hard Disk images: fixed, dynamic and
// differencing, by Microsoft's "Virtual Hard Disk Image Format Specification"
// 1.0 of October 2006, and as the programs that write them really do.
//
// Where text and practice leave a choice:
//
//   - A cleared bit in the sector bitmap of a dynamic disk means zeros, whatever
//     the block holds there. So says [Block Allocation Table and Data Blocks]
//     ("never been modified"), so read VirtualBox, DiscUtils and Xen's tapdisk.
//     QEMU ignores the bitmap, and sets all its bits when it writes.
//   - The trailing footer counts; its copy at the start stands in for it when it
//     is damaged. The block allocation table has no checksum and no copy, so its
//     entries are checked for sense when they are used, and a bad one fails
//     the reads of its block only. That two entries name one block isn't
//     noticed: it would take the whole table to see.
//   - Sectors of a differencing disk beyond its parent's end are zeros.
package vhd

import (
	"context"
	"log/slog"
	"sync"

	"yester/imageformats"
	"yester/internal/block"
)

// Format recognises and opens VHD images.
var Format = imageformats.Format{Name: "vhd", Probe: probe, Open: open}

func probe(ctx context.Context, file block.Reader) (imageformats.Info, error) {
	m, err := readMeta(ctx, file)
	if err != nil {
		return imageformats.Info{}, err
	}
	return m.info, nil
}

// Image is an opened disk with all its parents. It is safe for parallel use and
// holds no file of its own: Close has nothing to release.
type Image struct {
	meta *meta
	// layers is the chain from this file (first) to the oldest parent. Layers
	// are shared with the parents' Images; nothing in them changes but caches.
	layers []*layer
	// reach says of each layer up to where this disk shows it, bytes: none shows
	// through one above it that is shorter, not even where that one has a longer
	// child again.
	reach []int64
	// parallel says that reads may wait on something slower than a local file,
	// so that the runs of one request are better fetched side by side.
	parallel bool
	plans    sync.Pool // of *plan
	far      bool      // a layer's file takes hints
	hints    hints
}

var (
	_ imageformats.Image  = (*Image)(nil)
	_ block.ContextReader = (*Image)(nil)
	_ block.Mapper        = (*Image)(nil)
)

func open(ctx context.Context, file block.Reader, opt imageformats.OpenOptions) (imageformats.Image, error) {
	m, err := readMeta(ctx, file)
	if err != nil {
		return nil, err
	}
	log := opt.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	img := &Image{meta: m}
	img.layers = append(img.layers, newLayer(file, m, opt.Name))
	if m.diskType == typeDifferencing {
		warning, err := m.checkParent(opt)
		if err != nil {
			return nil, err
		}
		if warning != "" {
			m.warnf("%s", warning)
		}
		if p, ok := opt.Parent.(*Image); ok {
			img.layers = append(img.layers, p.layers...)
			img.parallel = p.parallel
		} else {
			img.layers = append(img.layers, flatLayer(opt.Parent, opt.ParentName))
			img.parallel = !local(ctx, opt.Parent)
		}
	}
	reach := m.limit
	for _, l := range img.layers {
		reach = min(reach, l.limit)
		img.reach = append(img.reach, reach)
	}
	for _, w := range m.info.Warnings {
		log.Warn("vhd: "+w, "image", opt.Name)
	}
	if !local(ctx, file) {
		img.parallel = true
	}
	for _, l := range img.layers {
		img.far = block.Prefetch(l.file) || img.far
	}
	img.hints.ctx, img.hints.cancel = context.WithCancel(context.Background())
	img.plans.New = func() any { return new(plan) }
	return img, nil
}

// local reports whether r's bytes lie in a host file for good: those of a cache
// may have to be fetched.
func local(ctx context.Context, r block.Reader) bool {
	if r.Size() == 0 {
		return true
	}
	e, err := block.ExtentAt(ctx, r, 0, 1)
	return err == nil && (e.File != nil && e.Stamp == 0 || e.Zero)
}

// Size returns the size of the disk that the guest saw, bytes.
func (img *Image) Size() int64 { return img.meta.size }

// Info returns what the headers say, with warnings found by Open.
func (img *Image) Info() imageformats.Info { return img.meta.info }

// Close implements io.Closer.
func (img *Image) Close() error {
	img.hints.close()
	return nil
}
