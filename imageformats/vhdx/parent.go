package vhdx

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf16"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// longestKey bounds the keys that are looked at, bytes: those known are shorter.
const longestKey = 64

// readParent reads the parent locator into info.Parent.
func (m *meta) readParent(ctx context.Context, file block.Reader, it *item) error {
	if it == nil {
		return ondisk.Corruptf("vhdx", "metadata table", m.metadata.off, "the file has a parent but no parent locator")
	}
	if it.n < locatorHeadSize {
		return ondisk.Corruptf("vhdx", "parent locator", it.entry+offItemLength, "%d bytes", it.n)
	}
	b := make([]byte, it.n) // at most maxItem
	if err := m.readItem(ctx, file, it, "parent locator", b); err != nil {
		return err
	}
	if id := readGUID(b); id != locatorVHDX {
		return ondisk.Unsupportedf("vhdx", "parent locator", it.off, "type %s", id)
	}
	values, err := m.readPairs(b, it.off)
	if err != nil {
		return err
	}
	p := &imageformats.Parent{}
	for _, l := range []struct {
		key string
		dst *string
	}{{keyLinkage, &p.ID}, {keyLinkage2, &p.AltID}} {
		s, ok := values[l.key]
		if !ok {
			continue
		}
		id, ok := parseGUID(s)
		if !ok {
			return ondisk.Corruptf("vhdx", "parent locator", it.off, "%s is %q", l.key, s)
		}
		if id != (guid{}) || l.key == keyLinkage { // Windows writes a parent_linkage2 of zeros
			*l.dst = id.String()
		}
	}
	if p.ID == "" {
		return ondisk.Corruptf("vhdx", "parent locator", it.off, "no %s", keyLinkage)
	}
	for _, key := range []string{keyRelative, keyVolume, keyAbsolute} { // in the order of [2.6.2.6.3]
		if s := values[key]; s != "" {
			p.Locators = append(p.Locators, imageformats.Locator{Platform: key, Path: s, Relative: key == keyRelative})
			if p.Name == "" {
				p.Name = s[strings.LastIndexAny(s, `\/`)+1:]
			}
		}
	}
	m.info.Parent = p
	return nil
}

// readPairs returns the values of the known keys of the parent locator b, which
// lies at off in the file.
func (m *meta) readPairs(b []byte, off int64) (map[string]string, error) {
	n := int(le.Uint16(b[offPairCount:]))
	if locatorHeadSize+n*pairSize > len(b) {
		return nil, ondisk.Corruptf("vhdx", "parent locator", off+offPairCount, "%d pairs in %d bytes", n, len(b))
	}
	values := make(map[string]string)
	for i := range n {
		e := b[locatorHeadSize+i*pairSize:]
		part := func(at uint32, n uint16) ([]byte, bool) {
			if uint64(at)+uint64(n) > uint64(len(b)) {
				return nil, false
			}
			return b[at:][:n], true
		}
		k, ok := part(le.Uint32(e[offKey:]), le.Uint16(e[offKeyLen:]))
		v, ok2 := part(le.Uint32(e[offValue:]), le.Uint16(e[offValueLen:]))
		if !ok || !ok2 {
			return nil, ondisk.Corruptf("vhdx", fmt.Sprintf("parent locator pair %d", i), off+locatorHeadSize+int64(i)*pairSize,
				"lies past the item's end (%d bytes)", len(b))
		}
		if len(k) > longestKey {
			continue
		}
		switch key := decodeUTF16(k); key {
		case keyLinkage, keyLinkage2, keyRelative, keyVolume, keyAbsolute:
			if _, twice := values[key]; twice {
				return nil, ondisk.Corruptf("vhdx", fmt.Sprintf("parent locator pair %d", i), off, "a second %s", key)
			}
			values[key] = decodeUTF16(v)
		}
	}
	return values, nil
}

// decodeUTF16 decodes b up to its first NUL.
func decodeUTF16(b []byte) string {
	u := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2; b = b[2:] {
		c := le.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// checkParent proves that the given parent is the one that this image was made
// from: DataWriteGuid changes whenever what is on a disk does, so that it tells
// the parent and its state at once.
func (m *meta) checkParent(opt imageformats.OpenOptions) (warning string, err error) {
	child, parent := orName(opt.Name, "this image"), orName(opt.ParentName, "the given parent")
	p := m.info.Parent
	if opt.Parent == nil {
		return "", fmt.Errorf("vhdx: %s: opened without its parent %q (id %s)", child, p.Name, p.ID)
	}
	info := opt.ParentInfo
	if img, ok := opt.Parent.(*Image); ok {
		info = &img.meta.info // what was read, not what was told
	}
	if info == nil {
		return "", fmt.Errorf("vhdx: %s: nothing is known of %s that could prove it", child, parent)
	}
	if info.SectorSize != 0 && int64(info.SectorSize) != m.sectorSize { // [2.6.2.4]
		return "", ondisk.Corruptf("vhdx", "parent", -1, "%s has logical sectors of %d bytes, but %s has such of %d", child, m.sectorSize, parent, info.SectorSize)
	}
	if strings.EqualFold(info.ID, p.ID) || p.AltID != "" && strings.EqualFold(info.ID, p.AltID) {
		return "", nil
	}
	id := p.ID
	if p.AltID != "" {
		id += " or " + p.AltID
	}
	msg := fmt.Sprintf("%s was made from the image with id %s, but %s has id %q: it is another, or was written to since", child, id, parent, info.ID)
	if opt.AllowChangedParent {
		return msg, nil
	}
	return "", ondisk.Corruptf("vhdx", "parent", -1, "%s", msg)
}

func orName(name, alt string) string {
	if name == "" {
		return alt
	}
	return name
}
