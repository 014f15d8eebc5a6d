package vmdk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// meta is what a file says of the disk that it holds or describes.
type meta struct {
	*descriptor
	self int // the extent that the file itself is; -1 when it is a descriptor only
	// atEnd: the file has a footer, which counts where it differs from the header
	// that was written before all else. Only Open reads it.
	atEnd bool
	// files says of each extent which of info.Files it lies in; -1: in none.
	files []int
	info  imageformats.Info
}

// readMeta reads the descriptor of a disk, in a file of its own or inside an
// extent. An extent without one is an error matching imageformats.ErrPart.
func readMeta(ctx context.Context, file block.Reader) (*meta, error) {
	f := &source{r: file, size: file.Size()}
	var head [sectorSize]byte
	n := min(f.size, sectorSize)
	if err := f.read(ctx, head[:n], 0); err != nil {
		return nil, fmt.Errorf("vmdk: header: %w", err)
	}
	var m *meta
	var err error
	switch {
	case string(head[:4]) == sparseMagic:
		m, err = f.embedded(ctx)
	case string(head[:4]) == cowdMagic && le.Uint32(head[offCowdVersion:]) == cowdVersion:
		return nil, part("ESX Server sparse extent")
	case le.Uint64(head[:]) == seMagic && le.Uint64(head[offSeVersion:]) == seVersion:
		return nil, part("seSparse extent")
	default:
		signed, possible := looksLikeDescriptor(head[:n])
		if !possible {
			return nil, &ondisk.FormatError{Format: "vmdk", Field: "header", Off: 0, Msg: "neither an extent nor a descriptor", Err: ondisk.ErrFormat}
		}
		m, err = f.text(ctx, 0, f.size)
		if err != nil && !signed && errors.Is(err, ondisk.ErrCorrupt) {
			// Without a signature it was a guess.
			return nil, &ondisk.FormatError{Format: "vmdk", Field: "descriptor", Off: 0, Msg: err.Error(), Err: ondisk.ErrFormat}
		}
	}
	if err != nil {
		return nil, err
	}
	m.setInfo()
	return m, nil
}

// part is the error about an extent that names no disk.
func part(what string) error {
	return &ondisk.FormatError{Format: "vmdk", Field: what, Off: 0, Msg: "without its descriptor", Err: imageformats.ErrPart}
}

// text reads the descriptor in the n bytes at off.
func (f *source) text(ctx context.Context, off, n int64) (*meta, error) {
	if n > maxDescriptor {
		return nil, f.corrupt("descriptor", off, "%d bytes, more than %d", n, maxDescriptor)
	}
	b := make([]byte, n)
	if err := f.read(ctx, b, off); err != nil {
		return nil, fmt.Errorf("vmdk: descriptor at %#x: %w", off, err)
	}
	d, err := parseDescriptor(b, off)
	if err != nil {
		return nil, err
	}
	return &meta{descriptor: d, self: -1}, nil
}

// embedded reads the descriptor inside a hosted sparse extent.
func (f *source) embedded(ctx context.Context) (*meta, error) {
	h, err := f.readSparseHeader(ctx)
	if err != nil {
		return nil, err
	}
	if h.descOffset == 0 || h.descSize == 0 {
		return nil, part("sparse extent")
	}
	end := uint64(f.size) >> sectorShift
	if h.descOffset > end || h.descSize > end-h.descOffset {
		return nil, f.corrupt("descriptor", offDescOffset, "%#x sectors at sector %#x lie outside the file (%#x bytes)", h.descSize, h.descOffset, f.size)
	}
	at := int64(h.descOffset) << sectorShift
	// The extents of a split disk by QEMU have room for a descriptor, and none.
	var first [1]byte
	if err := f.read(ctx, first[:], at); err != nil {
		return nil, fmt.Errorf("vmdk: descriptor at %#x: %w", at, err)
	}
	if first[0] == 0 {
		return nil, part("sparse extent")
	}
	m, err := f.text(ctx, at, int64(h.descSize)<<sectorShift)
	if err != nil {
		return nil, err
	}
	if h.capacity == 0 { // only a wrapping for the descriptor
		return m, nil
	}
	if err := f.checkHeader(&h); err != nil {
		return nil, err
	}
	// The file may have been renamed, so its own name isn't looked for.
	m.self = slices.IndexFunc(m.extents, func(e extentLine) bool { return e.kind == "SPARSE" })
	if m.self < 0 {
		return nil, f.corrupt("descriptor", at, "none of its %d extents is the sparse one that it lies in", len(m.extents))
	}
	m.info.BlockSize = int64(h.grainSize) << sectorShift
	if m.atEnd = h.gd == gdAtEnd; m.atEnd {
		return m, nil
	}
	if h.unclean {
		m.warnf("the image is marked as in use: it was not closed, or copied while the machine ran")
	}
	if h.capacity < m.extents[m.self].sectors {
		m.warnf("the header's capacity is %d sectors, the descriptor's %d: what lies beyond can't be read", h.capacity, m.extents[m.self].sectors)
	}
	return m, nil
}

func (m *meta) warnf(format string, args ...any) {
	m.info.Warnings = append(m.info.Warnings, fmt.Sprintf(format, args...))
}

func (m *meta) setInfo() {
	m.info.Format = "vmdk"
	m.info.Variant = m.createType
	m.info.Size = int64(m.sectors) << sectorShift
	m.info.SectorSize = sectorSize
	m.info.ID = cidText(m.cid)
	for i, e := range m.extents {
		no := -1
		if i != m.self && e.file != "" && e.access != "NOACCESS" {
			if no = slices.Index(m.info.Files, e.file); no < 0 {
				no = len(m.info.Files)
				m.info.Files = append(m.info.Files, e.file)
			}
		}
		m.files = append(m.files, no)
	}
	if m.parentCID != noParent {
		p := &imageformats.Parent{ID: cidText(m.parentCID), IDShared: true}
		if m.parentHint != "" {
			p.Name = m.parentHint[strings.LastIndexAny(m.parentHint, `\/`)+1:]
			p.Locators = []imageformats.Locator{{Platform: "hint", Path: m.parentHint, Relative: !absolute(m.parentHint)}}
		}
		m.info.Parent = p
	}
}

// absolute reports whether a path of Windows or Unix is one from the root.
func absolute(path string) bool {
	return strings.HasPrefix(path, "/") || strings.HasPrefix(path, `\`) || len(path) > 1 && path[1] == ':'
}

// checkParent proves that the given parent is the one that this image was made
// from: its content id is the one that was recorded. Whoever writes to an image
// gives it another id, so a parent that has changed since is noticed.
func (m *meta) checkParent(opt imageformats.OpenOptions) (parent *Image, warning string, err error) {
	child, name := orName(opt.Name, "this image"), orName(opt.ParentName, "the given parent")
	want := m.info.Parent
	if want == nil {
		if opt.Parent != nil {
			return nil, "", fmt.Errorf("vmdk: %s: opened with a parent, and has none", child)
		}
		return nil, "", nil
	}
	if opt.Parent == nil {
		return nil, "", fmt.Errorf("vmdk: %s: opened without its parent %q (content id %s)", child, want.Name, want.ID)
	}
	parent, ok := opt.Parent.(*Image)
	if !ok {
		return nil, "", ondisk.Unsupportedf("vmdk", "parent", -1, "%s was made from %s, which is no VMDK", child, name)
	}
	if id := parent.info.ID; id != want.ID {
		msg := fmt.Sprintf("%s was made when its parent's content id was %s, but %s has %s: it was written to since, or is another",
			child, want.ID, name, id)
		if !opt.AllowChangedParent {
			return nil, "", ondisk.Corruptf("vmdk", "parent", -1, "%s", msg)
		}
		return parent, msg, nil
	}
	return parent, "", nil
}

func orName(name, alt string) string {
	if name == "" {
		return alt
	}
	return name
}
