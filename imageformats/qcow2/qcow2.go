// Package qcow2 reads and writes QEMU's disk images: versions 2 and 3, with
// compressed clusters, subclusters, external data files, backing files and
// internal snapshots, by the "Qcow2 Image File Format" (QEMU, docs/interop/qcow2).
//
// Where text and practice leave a choice:
//
//   - Reference counts aren't read: they tell a writer what is free. So the dirty
//     bit, which says that they may be wrong, is a warning only.
//   - Reserved bits in table entries, and clusters that lie over the header or the
//     tables, are damage. QEMU ignores the former when it reads.
//   - A cluster that the file ends before is an error; QEMU reads zeros there.
//   - The backing format, once stated, is the only one that the backing file may
//     have: a guest could write any container's header into its raw disk.
package qcow2

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"yester/imageformats"
	"yester/internal/block"
)

// Format recognises and opens qcow2 images.
var Format = imageformats.Format{Name: "qcow2", Probe: probe, Open: open}

func probe(ctx context.Context, file block.Reader) (imageformats.Info, error) {
	m, err := readMeta(ctx, file)
	if err != nil {
		return imageformats.Info{}, err
	}
	return m.info, nil
}

// Image is an opened disk, or one of its snapshots, with all its backing files.
// It is safe for parallel use and holds no file of its own.
type Image struct {
	meta *meta
	// layers is the chain from this file (first) to the last backing file. Layers
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
	m, err := readMeta(ctx, file)
	if err != nil {
		return nil, err
	}
	s := m.active
	if opt.Snapshot != "" {
		if s, err = m.find(ctx, file, opt.Snapshot); err != nil {
			return nil, err
		}
		m.info.Size = int64(s.size)
	}
	data := file
	if m.incompatible.has(dataFile) {
		if len(opt.Files) != 1 {
			return nil, fmt.Errorf("qcow2: %s: opened with %d further files, needs its external data file %q", opt.Name, len(opt.Files), m.info.Files[0])
		}
		data = opt.Files[0]
	}
	img := &Image{meta: m, layers: []*layer{newLayer(m, s, file, data, opt.Name)}}
	img.parallel = !local(ctx, file) || !local(ctx, data)
	if err := img.addParent(ctx, opt); err != nil {
		return nil, err
	}
	reach := int64(s.size)
	for _, l := range img.layers {
		reach = min(reach, l.limit)
		img.reach = append(img.reach, reach)
	}
	if log := opt.Logger; log != nil {
		for _, w := range m.info.Warnings {
			log.LogAttrs(ctx, slog.LevelWarn, "qcow2: "+w, slog.String("image", opt.Name))
		}
	}
	img.plans.New = func() any { return new(plan) }
	return img, nil
}

var errNoParent = errors.New("opened without its backing file")

// addParent appends the layers of the backing file. Nothing in the format proves
// that it is the right one; that its format is the stated one is all there is.
func (img *Image) addParent(ctx context.Context, opt imageformats.OpenOptions) error {
	want := img.meta.info.Parent
	switch {
	case want == nil && opt.Parent != nil:
		return fmt.Errorf("qcow2: %s: opened with a backing file, and has none", opt.Name)
	case want == nil:
		return nil
	case opt.Parent == nil:
		return fmt.Errorf("qcow2: %s: %w %q", opt.Name, errNoParent, want.Name)
	case want.Format != "" && opt.ParentInfo != nil && opt.ParentInfo.Format != want.Format:
		return fmt.Errorf("qcow2: %s: its backing file is stated to be %.20q, %s was opened as %q", opt.Name, want.Format, opt.ParentName, opt.ParentInfo.Format)
	}
	if p, ok := opt.Parent.(*Image); ok {
		img.layers = append(img.layers, p.layers...)
		// What the parent shows ends where its own disk does, whatever is below.
		img.parallel = img.parallel || p.parallel
		return nil
	}
	img.layers = append(img.layers, flatLayer(opt.Parent, opt.ParentName))
	img.parallel = img.parallel || !local(ctx, opt.Parent)
	return nil
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
func (img *Image) Size() int64 { return img.meta.info.Size }

// Info returns what the headers say; of a snapshot, its own size.
func (img *Image) Info() imageformats.Info { return img.meta.info }

// Close drops what is kept of decompressed clusters. Images that this one is the
// parent of must be closed before.
func (img *Image) Close() error {
	img.layers[0].units.Close()
	return nil
}
