package vhd

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// meta is everything a file says about itself, read by Probe and Open alike.
type meta struct {
	footer
	header           // zero when fixed
	size       int64 // of the disk as the guest saw it, bytes
	limit      int64 // bytes that the footer's Current Size says the file describes
	dataEnd    int64 // where the trailing footer begins, or the file's end
	cut        bool  // there is no good footer at the file's end
	bitmapSize int64 // bytes of a block's sector bitmap, padded to sectors
	info       imageformats.Info
}

// readMeta reads and verifies footer, header and parent locators.
func readMeta(ctx context.Context, file block.Reader) (*meta, error) {
	m := &meta{}
	if err := m.readFooters(ctx, file); err != nil {
		return nil, err
	}
	if m.footer.version&majorMask != formatVersion {
		return nil, ondisk.Unsupportedf("vhd", "footer", -1, "file format version %#x", m.footer.version)
	}
	if m.currentSize > maxSize {
		return nil, ondisk.Corruptf("vhd", "current size", m.dataEnd+offCurrent, "%#x bytes", m.currentSize)
	}
	m.setSize()
	switch m.diskType {
	case typeFixed:
	case typeDynamic, typeDifferencing:
		if err := m.readHeader(ctx, file); err != nil {
			return nil, err
		}
	default:
		return nil, ondisk.Unsupportedf("vhd", "footer", -1, "disk type %d", uint32(m.diskType))
	}
	m.setInfo()
	if m.diskType == typeDifferencing {
		m.readParent(ctx, file)
	}
	return m, nil
}

func (m *meta) warnf(format string, args ...any) {
	m.info.Warnings = append(m.info.Warnings, fmt.Sprintf(format, args...))
}

// footerState says what is at one of the places where a footer may be.
type footerState int

const (
	noFooter  footerState = iota // no cookie
	badFooter                    // a cookie, but a wrong checksum
	goodFooter
)

// footerAt reads the footer of n bytes (footerSize or oldFooterSize) at off.
func footerAt(ctx context.Context, file block.Reader, off int64, n int) (footer, footerState, error) {
	var b [footerSize]byte // the byte that an old footer lacks is a zero, and reserved
	if off < 0 || off > file.Size()-int64(n) {
		return footer{}, noFooter, nil
	}
	if err := block.ReadFull(ctx, file, b[:n], off); err != nil {
		return footer{}, noFooter, fmt.Errorf("vhd: footer at %#x: %w", off, err)
	}
	if string(b[:len(footerCookie)]) != footerCookie {
		return footer{}, noFooter, nil
	}
	if checksum(b[:], offFooterSum) != be.Uint32(b[offFooterSum:]) {
		return footer{}, badFooter, nil
	}
	return decodeFooter(b[:]), goodFooter, nil
}

// readFooters finds the footer at the file's end or, when that is damaged, its
// copy at the file's start, which dynamic and differencing images have.
func (m *meta) readFooters(ctx context.Context, file block.Reader) error {
	size := file.Size()
	end := size - footerSize
	foot, state, err := footerAt(ctx, file, end, footerSize)
	if err != nil {
		return err
	}
	if state == noFooter {
		f, s, err := footerAt(ctx, file, size-oldFooterSize, oldFooterSize)
		if err != nil {
			return err
		}
		if s != noFooter {
			foot, state, end = f, s, size-oldFooterSize
		}
	}
	if state == goodFooter && foot.diskType == typeFixed {
		m.footer, m.dataEnd = foot, end
		return nil
	}
	dup, dupState, err := footerAt(ctx, file, 0, footerSize)
	if err != nil {
		return err
	}
	// A copy of type fixed is no copy: it is the disk's own first sector.
	if dupState == goodFooter && dup.diskType == typeFixed {
		dupState = noFooter
	}
	switch {
	case state == goodFooter:
		m.footer, m.dataEnd = foot, end
		switch {
		case dupState == noFooter:
			m.warnf("the footer's copy at the start is missing")
		case dupState == badFooter:
			m.warnf("the footer's copy at the start has a wrong checksum")
		case dup != foot:
			m.warnf("the footer at the end and its copy at the start differ; the one at the end is used")
		}
	case dupState == goodFooter:
		m.footer, m.dataEnd, m.cut = dup, size, true
		if state == badFooter {
			m.dataEnd = end
			m.warnf("the footer at the end (%#x) has a wrong checksum; its copy at the start is used", end)
		} else {
			m.warnf("there is no footer at the end (file cut off at %#x?); its copy at the start is used", size)
		}
	case state == badFooter:
		return ondisk.Corruptf("vhd", "footer", end, "wrong checksum, and no good copy at the start")
	case dupState == badFooter:
		return ondisk.Corruptf("vhd", "footer copy", 0, "wrong checksum, and no footer at the end")
	default:
		return &ondisk.FormatError{Format: "vhd", Field: "footer", Off: -1, Msg: "no cookie", Err: ondisk.ErrFormat}
	}
	return nil
}

// sizeByGeometry lists the creator applications that show the guest cylinders ×
// heads × sectors, a little less than Current Size says: Virtual PC, Virtual
// Server, and QEMU without force_size. All others go by Current Size, among them
// Hyper-V "win ", Disk2vhd "d2v", QEMU with force_size "qem2", XenServer "tap",
// XenConvert "CTXS", Azure "wa" and VirtualBox "vbox". So decides QEMU since
// release 10 (block/vpc.c, vpc_open); older ones list the latter applications
// instead and go by geometry for those that they don't know.
var sizeByGeometry = []string{"vpc ", "vs  ", "qemu"}

// setSize decides how long the disk is. Whatever the creator, a geometry at its
// maximum means that the size can't be told by it, so Current Size is taken.
func (m *meta) setSize() {
	current := m.currentSize &^ (sectorSize - 1)
	if current != m.currentSize {
		m.warnf("current size %d is no multiple of %d: rounded down", m.currentSize, sectorSize)
	}
	m.limit, m.size = int64(current), int64(current)
	if !slices.Contains(sizeByGeometry, m.creatorApp) {
		return
	}
	chs := int64(m.cylinders) * int64(m.heads) * int64(m.sectors)
	switch {
	case chs == maxGeometry:
	case chs == 0 && current != 0:
		m.warnf("the footer has no geometry; the current size is used")
	case chs*sectorSize > m.size:
		m.warnf("the geometry (%d bytes) exceeds the current size (%d bytes); the latter is used", chs*sectorSize, m.size)
	default:
		m.size = chs * sectorSize
	}
}

// readHeader reads and verifies the dynamic disk header, and that the part of
// the BAT that the disk needs lies in the file.
func (m *meta) readHeader(ctx context.Context, file block.Reader) error {
	size := uint64(file.Size())
	at := m.dataOffset
	if at < footerSize || at > size || size-at < headerSize {
		return ondisk.Corruptf("vhd", "dynamic header", int64(min(at, math.MaxInt64)), "outside the file (%#x bytes)", size)
	}
	var b [headerSize]byte
	if err := block.ReadFull(ctx, file, b[:], int64(at)); err != nil {
		return fmt.Errorf("vhd: dynamic header at %#x: %w", at, err)
	}
	if string(b[:len(headerCookie)]) != headerCookie {
		return ondisk.Corruptf("vhd", "dynamic header", int64(at), "cookie %q", b[:len(headerCookie)])
	}
	if got, want := checksum(b[:], offHeaderSum), be.Uint32(b[offHeaderSum:]); got != want {
		return ondisk.Corruptf("vhd", "dynamic header", int64(at), "checksum %#x, by its content %#x", want, got)
	}
	h := decodeHeader(b[:])
	if h.version&majorMask != formatVersion {
		return ondisk.Unsupportedf("vhd", "dynamic header", int64(at), "version %#x", h.version)
	}
	if h.blockSize < sectorSize || h.blockSize&(h.blockSize-1) != 0 {
		return ondisk.Corruptf("vhd", "block size", int64(at)+offBlockSize, "%d is no power of two of at least %d", h.blockSize, sectorSize)
	}
	need := blocks(m.limit, h.blockSize)
	if need > uint64(h.tableEntries) {
		return ondisk.Corruptf("vhd", "BAT", int64(at)+offTableEntries, "%d entries of %d bytes can't hold a disk of %d bytes",
			h.tableEntries, h.blockSize, m.limit)
	}
	// need <= 2³² entries of 4 bytes, so nothing here overflows.
	if h.tableOffset < footerSize || h.tableOffset > size || size-h.tableOffset < need*4 {
		return ondisk.Corruptf("vhd", "BAT", int64(min(h.tableOffset, math.MaxInt64)), "%d entries lie outside the file (%#x bytes)", need, size)
	}
	m.header = h
	m.bitmapSize = bitmapBytes(int64(h.blockSize))
	return nil
}

// bitmapBytes returns the size of the sector bitmap before a block of blockSize
// bytes: a bit for each sector, padded to whole sectors ([Block Allocation Table
// and Data Blocks]).
func bitmapBytes(blockSize int64) int64 {
	return max(sectorSize, (blockSize/sectorSize/8+sectorSize-1)&^(sectorSize-1))
}

// blocks returns how many blocks of blockSize cover n bytes.
func blocks(n int64, blockSize uint32) uint64 {
	return (uint64(n) + uint64(blockSize) - 1) / uint64(blockSize)
}

func (m *meta) setInfo() {
	w := m.info.Warnings
	m.info = imageformats.Info{
		Format:     "vhd",
		Variant:    m.diskType.String(),
		Size:       m.size,
		BlockSize:  int64(m.blockSize),
		SectorSize: sectorSize,
		ID:         uuid(m.id),
		Created:    stamp(m.timeStamp),
		Creator:    strings.TrimSpace(printable(m.creatorApp)) + fmt.Sprintf(" %d.%d", m.major, m.minor),
		Warnings:   w,
	}
	if os := strings.TrimSpace(printable(m.creatorOS)); os != "" {
		m.info.Creator += " (" + os + ")"
	}
	if m.savedState {
		m.warnf("the disk belongs to a virtual machine in saved state: what its memory held is not on it")
	}
}

// printable drops what isn't printable ASCII from a field of characters.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}

// stamp converts a time stamp; zero, which several writers leave there, is the
// zero time.
func stamp(sec uint32) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	return epoch.Add(time.Duration(sec) * time.Second)
}

// uuid formats an id, whose bytes lie in the order of its text.
func uuid(id [16]byte) string {
	s := hex.EncodeToString(id[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
