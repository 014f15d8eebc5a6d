// Package vhdx reads and writes Virtual Hard Disk v2 images: fixed, dynamic and
// differencing, by [MS-VHDX], and as the programs that write them really do.
//
// Where text and practice leave a choice:
//
//   - A log that isn't empty is replayed, in memory: the file itself is never
//     written to.
//   - Blocks whose contents the text leaves undefined (of a disk without a
//     parent, those that are not present; undefined and unmapped ones of any) are
//     zeros, as they are to Windows and QEMU.
//   - Neither the block allocation table nor the metadata have a checksum or a
//     copy. So the metadata are checked as a whole, and the table's entries, a page
//     of them at a time, when they are used; a bad one fails the reads of its
//     block only.
//   - Sectors of a differencing disk beyond its parent's end are zeros.
package vhdx

import (
	"context"
	"log/slog"
	"sync"

	"yester/imageformats"
	"yester/internal/block"
)

// Format recognises and opens VHDX images.
var Format = imageformats.Format{Name: "vhdx", Probe: probe, Open: open}

func probe(ctx context.Context, file block.Reader) (imageformats.Info, error) {
	m, _, err := readMeta(ctx, file, logTry)
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
}

var (
	_ imageformats.Image  = (*Image)(nil)
	_ block.ContextReader = (*Image)(nil)
	_ block.Mapper        = (*Image)(nil)
)

func open(ctx context.Context, file block.Reader, opt imageformats.OpenOptions) (imageformats.Image, error) {
	mode := logReplay
	if opt.IgnoreLog {
		mode = logIgnore
	}
	m, file, err := readMeta(ctx, file, mode)
	if err != nil {
		return nil, err
	}
	log := opt.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	img := &Image{meta: m, parallel: !local(ctx, file)}
	img.layers = append(img.layers, newLayer(file, m, opt.Name))
	if m.diff {
		warning, err := m.checkParent(opt)
		if err != nil {
			return nil, err
		}
		if warning != "" {
			m.warnf("%s", warning)
		}
		if p, ok := opt.Parent.(*Image); ok {
			img.layers = append(img.layers, p.layers...)
			img.parallel = img.parallel || p.parallel
		} else {
			img.layers = append(img.layers, flatLayer(opt.Parent, opt.ParentName))
			img.parallel = img.parallel || !local(ctx, opt.Parent)
		}
	}
	reach := m.size
	for _, l := range img.layers {
		reach = min(reach, l.size)
		img.reach = append(img.reach, reach)
	}
	for _, w := range m.info.Warnings {
		log.Warn("vhdx: "+w, "image", opt.Name)
	}
	img.plans.New = func() any { return new(plan) }
	return img, nil
}

// local reports whether r's bytes lie in a host file.
func local(ctx context.Context, r block.Reader) bool {
	if r.Size() == 0 {
		return true
	}
	e, err := block.ExtentAt(ctx, r, 0, 1)
	return err == nil && (e.File != nil || e.Zero)
}

// Size returns the size of the disk that the guest saw, bytes.
func (img *Image) Size() int64 { return img.meta.size }

// Info returns what the headers say, with warnings found by Open.
func (img *Image) Info() imageformats.Info { return img.meta.info }

// Close implements io.Closer; there is nothing to release.
func (img *Image) Close() error { return nil }
