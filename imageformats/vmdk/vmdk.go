// Package vmdk reads VMware virtual disks: by VMware's "Virtual Disk Format 5.0",
// and as the programs that write them really do. A disk is a descriptor, a text,
// in a file of its own or inside its only extent; and extents, which are flat,
// sparse (hosted, ESX Server, space-efficient), stream-optimised, or zeros.
//
// Where text and practice leave a choice:
//
//   - How long the disk is, and where each extent begins, says the descriptor. A
//     sparse extent's header that knows less than that fails the reads beyond.
//   - An embedded descriptor's first sparse extent is the file that it lies in,
//     whatever name it gives: images are renamed.
//   - Directories and tables have no checksum, so their entries are checked for
//     sense when they are used. A bad one is looked up in the redundant directory,
//     where there is one, and fails the reads of its grains otherwise. That two
//     entries name one grain isn't noticed.
//   - An extent whose header is damaged fails the reads of its part of the disk.
//   - Sectors beyond a parent's end are zeros.
package vmdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// Format recognises and opens VMDK images.
var Format = imageformats.Format{Name: "vmdk", Probe: probe, Open: open}

func probe(ctx context.Context, file block.Reader) (imageformats.Info, error) {
	m, err := readMeta(ctx, file)
	if err != nil {
		return imageformats.Info{}, err
	}
	return m.info, nil
}

// Image is an opened disk with all its parents. It is safe for parallel use.
type Image struct {
	info imageformats.Info
	size int64
	// layers is the chain from this disk (first) to the oldest parent. Layers are
	// shared with the parents' Images; nothing in them changes but caches.
	layers []*layer
	// reach says of each layer up to where this disk shows it, bytes: none shows
	// through one above it that is shorter.
	reach []int64
	// parallel says that reads may wait on something slower than a local file, so
	// that the runs of one request are better fetched side by side.
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
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if len(opt.Files) != len(m.info.Files) {
		return nil, fmt.Errorf("vmdk: %s: opened with %d files, its descriptor names %d", orName(opt.Name, "this image"), len(opt.Files), len(m.info.Files))
	}
	parent, warning, err := m.checkParent(opt)
	if err != nil {
		return nil, err
	}
	if warning != "" {
		m.warnf("%s", warning)
	}
	img := &Image{size: m.info.Size}
	l, err := m.openLayer(ctx, file, opt)
	if err != nil {
		return nil, err
	}
	img.info = m.info
	img.layers = append(img.layers, l)
	if parent != nil {
		img.layers = append(img.layers, parent.layers...)
		img.parallel = parent.parallel
	}
	reach := img.size
	for _, l := range img.layers {
		reach = min(reach, l.size)
		img.reach = append(img.reach, reach)
	}
	for _, w := range m.info.Warnings {
		opt.Logger.Warn("vmdk: "+w, "image", opt.Name)
	}
	for _, r := range append([]block.Reader{file}, opt.Files...) {
		img.parallel = img.parallel || !local(ctx, r)
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

// openLayer opens the extents of the disk that m describes. One that is damaged is
// an error where it is read, unless there is no other; what can't be read for
// other reasons is an error now.
func (m *meta) openLayer(ctx context.Context, file block.Reader, opt imageformats.OpenOptions) (*layer, error) {
	l := &layer{size: m.info.Size, extents: make([]placed, 0, len(m.extents))}
	var firstErr error
	bad := 0
	for i, line := range m.extents {
		f := &source{r: file, name: opt.Name, size: file.Size()}
		if no := m.files[i]; no >= 0 {
			r := opt.Files[no]
			f = &source{r: r, name: m.info.Files[no], size: r.Size()}
		}
		e, warnings, err := openExtent(ctx, line, f, opt)
		m.info.Warnings = append(m.info.Warnings, warnings...)
		if s, ok := e.(*sparse); ok && (i != m.self || m.atEnd) { // else the header has been looked at
			m.checkSparse(s, line)
		}
		if err != nil {
			// What the file says of itself is wrong; other errors are the reading's.
			if structural := (*ondisk.FormatError)(nil); !errors.As(err, &structural) {
				l.close()
				return nil, err
			}
			if firstErr == nil {
				firstErr = err
			}
			bad++
			e = damaged{err}
			if bad < len(m.extents) {
				m.warnf("extent %d can't be read: %v", i, err)
			}
		}
		l.extents = append(l.extents, placed{extent: e, start: int64(line.start) << sectorShift, n: int64(line.sectors) << sectorShift})
	}
	if bad == len(m.extents) {
		return nil, firstErr
	}
	return l, nil
}

// openExtent opens the extent that a line of the descriptor describes, in f.
func openExtent(ctx context.Context, line extentLine, f *source, opt imageformats.OpenOptions) (extent, []string, error) {
	n := int64(line.sectors) << sectorShift
	switch {
	case line.kind == "ZERO":
		return zeros{}, nil, nil
	case line.access == "NOACCESS":
		return damaged{ondisk.Unsupportedf("vmdk", "extent line", line.at, "%d sectors are out of bounds (NOACCESS)", line.sectors)}, nil, nil
	case line.kind == "FLAT" || line.kind == "VMFS":
		e := &flat{source: f, off: int64(line.offset) << sectorShift}
		if e.off+n > f.size {
			return e, []string{fmt.Sprintf("%sends at %#x, the descriptor has data there up to %#x", f.prefix(), f.size, e.off+n)}, nil
		}
		return e, nil, nil
	}
	var magic [8]byte
	if f.size < int64(len(magic)) {
		return nil, nil, f.corrupt("extent header", 0, "cut off: the file ends at %#x", f.size)
	}
	if err := f.read(ctx, magic[:], 0); err != nil {
		return nil, nil, fmt.Errorf("vmdk: %sextent header: %w", f.prefix(), err)
	}
	var s *sparse
	var warnings []string
	var err error
	// QEMU, too, goes by what the file says where that and the line differ.
	switch {
	case line.kind == "SESPARSE":
		s, warnings, err = openSe(ctx, f, opt.Logger, opt.IgnoreLog)
	case string(magic[:4]) == sparseMagic:
		s, warnings, err = openHosted(ctx, f, opt.Logger)
	case string(magic[:4]) == cowdMagic:
		s, err = openCowd(ctx, f, opt.Logger)
	default:
		err = f.corrupt("extent header", 0, "%q is no sparse extent's magic", magic[:4])
	}
	if err != nil {
		return nil, nil, err
	}
	return s, warnings, nil
}

// checkSparse warns of what the header of an extent, in a file of its own, says.
func (m *meta) checkSparse(s *sparse, line extentLine) {
	if s.unclean {
		m.warnf("%sis marked as in use: it was not closed, or copied while the machine ran", s.prefix())
	}
	if n := int64(line.sectors) << sectorShift; s.capacity < n {
		m.warnf("%sits header's capacity is %#x bytes, the descriptor's %#x: what lies beyond can't be read", s.prefix(), s.capacity, n)
	}
}

// Size returns the size of the disk that the guest saw, bytes.
func (img *Image) Size() int64 { return img.size }

// Info returns what the headers say, with warnings found by Open.
func (img *Image) Info() imageformats.Info { return img.info }

// Close drops what is kept of decompressed grains.
func (img *Image) Close() error {
	img.layers[0].close()
	return nil
}
