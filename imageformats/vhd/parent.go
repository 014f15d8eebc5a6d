package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// maxLocator bounds a parent locator, bytes: Windows paths end at 32767 UTF-16
// units, so a longer one is damage.
const maxLocator = 64 << 10

// locatorRank orders the platforms: a relative path survives a copy of the
// chain to another place, an absolute one seldom does. "Mac " holds a Mac OS
// alias, a blob without a documented form, and is left out.
var locatorRank = []string{"W2ru", "Wi2r", "W2ku", "Wi2k", "MacX"}

// readParent fills info.Parent. A locator that can't be read is a warning: the
// id and the others may suffice.
func (m *meta) readParent(ctx context.Context, file block.Reader) {
	p := &imageformats.Parent{
		ID:       uuid(m.parentID),
		Modified: stamp(m.parentTime),
		Name:     baseName(decodeUTF16(m.parentName[:], binary.BigEndian)),
	}
	for _, platform := range locatorRank {
		for i, l := range m.locators {
			if l.platform != platform || l.length == 0 {
				continue
			}
			path, err := readLocator(ctx, file, l)
			if err != nil {
				m.warnf("parent locator %d (%s): %v", i, platform, err)
				continue
			}
			loc := imageformats.Locator{Platform: platform, Path: path, Relative: platform[3] == 'r' || platform[2] == 'r'}
			if platform == "MacX" {
				loc.Path, loc.Relative = macPath(path)
			}
			p.Locators = append(p.Locators, loc)
		}
	}
	m.info.Parent = p
}

// readLocator reads one locator's data. W2ru and W2ku are UTF-16LE, unlike all
// else in the file; the older Wi2r and Wi2k were written in both the system's
// 8-bit code and UTF-16LE, told apart by the zero bytes.
func readLocator(ctx context.Context, file block.Reader, l locator) (string, error) {
	size := uint64(file.Size())
	if l.length > maxLocator || l.offset > size || uint64(l.length) > size-l.offset {
		return "", fmt.Errorf("%d bytes at %#x lie outside the file (%#x bytes)", l.length, l.offset, size)
	}
	b := make([]byte, l.length)
	if err := block.ReadFull(ctx, file, b, int64(l.offset)); err != nil {
		return "", err
	}
	trimmed := bytes.TrimRight(b, "\x00")
	wide := l.platform[0:2] == "W2" || l.platform[0:2] == "Wi" && bytes.IndexByte(trimmed, 0) >= 0
	switch {
	case wide:
		return decodeUTF16(b, binary.LittleEndian), nil
	case utf8.Valid(trimmed):
		return string(trimmed), nil
	}
	r := make([]rune, len(trimmed)) // an unknown 8-bit code: keep the bytes apart
	for i, c := range trimmed {
		r[i] = rune(c)
	}
	return string(r), nil
}

// decodeUTF16 decodes b up to its first NUL, without a byte order mark.
func decodeUTF16(b []byte, order binary.ByteOrder) string {
	u := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2; b = b[2:] {
		c := order.Uint16(b)
		if c == 0 {
			break
		}
		if c == 0xfeff && len(u) == 0 {
			continue
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// baseName is the last element of a Windows or POSIX path: the parent's name
// is a bare name by the specification, and a full path in snapshots of Hyper-V.
func baseName(s string) string {
	return s[strings.LastIndexAny(s, `\/`)+1:]
}

// macPath turns a file URL into a path. Tapdisk writes "file://./name" for a
// relative one, which has no meaning as a URL.
func macPath(s string) (path string, relative bool) {
	rest, ok := strings.CutPrefix(s, "file://")
	if !ok {
		return s, !strings.HasPrefix(s, "/")
	}
	if !strings.HasPrefix(rest, ".") {
		if i := strings.IndexByte(rest, '/'); i > 0 {
			rest = rest[i:] // drop the host, "localhost" as a rule
		}
	}
	if p, err := url.PathUnescape(rest); err == nil {
		rest = p
	}
	return rest, !strings.HasPrefix(rest, "/")
}

// stampTolerance is how far apart two time stamps of one parent may lie: FAT
// keeps modification times in steps of two seconds, and copies round them.
const stampTolerance = 2 * time.Second

// checkParent proves that the given parent is the one that this image was made
// from: by its id, and by the time stamp that the child took of it.
//
// What that stamp is depends on the writer. [Dynamic Disk Header Format] says
// "modification time stamp of the parent hard disk"; VirtualBox, Xen's libvhd
// and DiscUtils store the parent file's modification time, others the time
// stamp of the parent's footer. So either will do. A stamp of zero was never
// set and proves nothing.
func (m *meta) checkParent(opt imageformats.OpenOptions) (warning string, err error) {
	child, parent := orName(opt.Name, "this image"), orName(opt.ParentName, "the given parent")
	p := m.info.Parent
	if opt.Parent == nil {
		return "", fmt.Errorf("vhd: %s: opened without its parent %q (id %s)", child, p.Name, p.ID)
	}
	info := opt.ParentInfo
	if img, ok := opt.Parent.(*Image); ok {
		info = &img.meta.info // what was read, not what was told
	}
	if info == nil {
		return "", fmt.Errorf("vhd: %s: nothing is known of %s that could prove it", child, parent)
	}
	// A parent that isn't a VHD (Xen: a raw disk) has no id, and the child's
	// field is all zeros then.
	id := info.ID
	if id == "" {
		id = uuid([16]byte{})
	}
	if !strings.EqualFold(id, p.ID) {
		return "", ondisk.Corruptf("vhd", "parent", -1, "%s was made from the image with id %s, but %s has id %s", child, p.ID, parent, id)
	}
	if p.Modified.IsZero() || near(p.Modified, info.Created) || near(p.Modified, opt.ParentModTime) {
		return "", nil
	}
	msg := fmt.Sprintf("%s was made when its parent's time stamp was %s, but %s has %s in its footer and was modified %s",
		child, p.Modified.Format(time.RFC3339), parent, showTime(info.Created), showTime(opt.ParentModTime))
	if opt.AllowChangedParent {
		return msg, nil
	}
	return "", ondisk.Corruptf("vhd", "parent", -1, "%s", msg)
}

func near(a, b time.Time) bool {
	return !b.IsZero() && a.Sub(b).Abs() <= stampTolerance
}

func showTime(t time.Time) string {
	if t.IsZero() {
		return "at an unknown time"
	}
	return t.UTC().Format(time.RFC3339)
}

func orName(name, alt string) string {
	if name == "" {
		return alt
	}
	return name
}
