package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"strings"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// header is the decoded [Header].
type header struct {
	version        uint32
	backingOffset  uint64
	backingSize    uint32
	clusterBits    uint32
	size           uint64 // of the disk, bytes
	crypt          uint32
	l1Entries      uint32
	l1Table        uint64
	refTable       uint64
	refClusters    uint32
	snapshots      uint32
	snapshotTable  uint64
	incompatible   features
	length         uint32
	compression    uint8
	subclusterable bool // L2 entries are extended
}

// state is one set of tables: the active one's or a snapshot's.
type state struct {
	size      uint64 // of the disk, bytes
	l1Table   uint64
	l1Entries uint32
}

// meta is everything a file says about itself, read by Probe and Open alike.
type meta struct {
	header
	active state
	snaps  []snapshot
	info   imageformats.Info
}

// readMeta reads and verifies header, extensions and snapshot table.
func readMeta(ctx context.Context, file block.Reader) (*meta, error) {
	m := &meta{}
	if err := m.readHeader(ctx, file); err != nil {
		return nil, err
	}
	m.active = state{m.size, m.l1Table, m.l1Entries}
	if m.incompatible.has(dirty) {
		m.warnf("the image was not closed cleanly (dirty bit): its reference counts may be wrong, which reading doesn't need")
	}
	if m.incompatible.has(corrupt) {
		m.warnf("the image is marked as corrupt: what is read may be wrong")
	}
	ext, err := m.readExtensions(ctx, file)
	if unknown := m.incompatible &^ known; unknown != 0 {
		return nil, ondisk.Unsupportedf("qcow2", "incompatible features", offIncompatible, "%s", nameFeatures(ctx, file, unknown, ext))
	}
	if err != nil {
		return nil, err
	}
	if err := m.checkFeatures(); err != nil {
		return nil, err
	}
	if err := m.checkTables(m.active, "L1 table", offL1Table, uint64(file.Size())); err != nil {
		return nil, err
	}
	m.info = imageformats.Info{
		Format:    "qcow2",
		Variant:   fmt.Sprintf("version %d", m.version),
		Size:      int64(m.size),
		BlockSize: 1 << m.clusterBits,
		Warnings:  m.info.Warnings,
	}
	if m.incompatible.has(dataFile) {
		if ext.dataFile == "" {
			return nil, ondisk.Unsupportedf("qcow2", "external data file", -1, "the image doesn't name it")
		}
		m.info.Files = []string{ext.dataFile}
	}
	if m.info.Parent, err = m.readBacking(ctx, file, ext.backingFormat); err != nil {
		return nil, err
	}
	m.readSnapshots(ctx, file)
	return m, nil
}

func (m *meta) warnf(format string, args ...any) {
	m.info.Warnings = append(m.info.Warnings, fmt.Sprintf(format, args...))
}

// readHeader reads the header's fields and checks what concerns them alone.
func (m *meta) readHeader(ctx context.Context, file block.Reader) error {
	size := file.Size()
	var b [headerLength + 8]byte
	n := min(size, int64(len(b)))
	if err := block.ReadFull(ctx, file, b[:n], 0); err != nil {
		return fmt.Errorf("qcow2: header: %w", err)
	}
	if !bytes.HasPrefix(b[:n], []byte(magic)) {
		return &ondisk.FormatError{Format: "qcow2", Field: "header", Off: -1, Msg: "no magic", Err: ondisk.ErrFormat}
	}
	if n < headerLengthV2 {
		return ondisk.Corruptf("qcow2", "header", 0, "cut off after %d bytes", n)
	}
	m.version = be.Uint32(b[offVersion:])
	switch m.version {
	case 2:
		m.length = headerLengthV2
		clear(b[headerLengthV2:])
	case 3:
		if m.length = be.Uint32(b[offHeaderLength:]); n < headerLength || m.length < headerLength || m.length%8 != 0 {
			return ondisk.Corruptf("qcow2", "header length", offHeaderLength, "%d bytes", m.length)
		}
	default:
		// Version 1 is QEMU's older format of its own, "qcow".
		return ondisk.Unsupportedf("qcow2", "version", offVersion, "%d", m.version)
	}
	m.backingOffset = be.Uint64(b[offBackingOffset:])
	m.backingSize = be.Uint32(b[offBackingSize:])
	m.clusterBits = be.Uint32(b[offClusterBits:])
	m.size = be.Uint64(b[offSize:])
	m.crypt = be.Uint32(b[offCrypt:])
	m.l1Entries = be.Uint32(b[offL1Size:])
	m.l1Table = be.Uint64(b[offL1Table:])
	m.refTable = be.Uint64(b[offRefcountTable:])
	m.refClusters = be.Uint32(b[offRefcountCluster:])
	m.snapshots = be.Uint32(b[offSnapshots:])
	m.snapshotTable = be.Uint64(b[offSnapshotTable:])
	m.incompatible = features(be.Uint64(b[offIncompatible:]))
	m.subclusterable = m.incompatible.has(extendedL2)
	if m.length > offCompression && n > offCompression {
		m.compression = b[offCompression]
	}
	if m.clusterBits < minClusterBits || m.clusterBits > maxClusterBits {
		return ondisk.Corruptf("qcow2", "cluster bits", offClusterBits, "%d, must be %d to %d", m.clusterBits, minClusterBits, maxClusterBits)
	}
	if m.length > 1<<m.clusterBits {
		return ondisk.Corruptf("qcow2", "header length", offHeaderLength, "%d bytes, more than a cluster", m.length)
	}
	return nil
}

// checkFeatures refuses what can't be read, and what contradicts itself.
func (m *meta) checkFeatures() error {
	switch m.crypt {
	case 0:
	case cryptAES:
		return ondisk.Unsupportedf("qcow2", "encryption", offCrypt, "AES-encrypted image")
	case cryptLUKS:
		return ondisk.Unsupportedf("qcow2", "encryption", offCrypt, "LUKS-encrypted image")
	default:
		return ondisk.Unsupportedf("qcow2", "encryption", offCrypt, "method %d", m.crypt)
	}
	if m.subclusterable && m.clusterBits < minExtClusterBits {
		return ondisk.Corruptf("qcow2", "cluster bits", offClusterBits, "%d, must be at least %d with extended L2 entries", m.clusterBits, minExtClusterBits)
	}
	switch {
	case m.incompatible.has(compressionType) != (m.compression != compressionZlib):
		return ondisk.Corruptf("qcow2", "compression type", offCompression, "%d contradicts the incompatible features %#x", m.compression, uint64(m.incompatible))
	case m.compression > compressionZstd:
		return ondisk.Unsupportedf("qcow2", "compression type", offCompression, "%d", m.compression)
	}
	return nil
}

// spanBits is the logarithm of the bytes of disk that one L2 table maps.
func (m *meta) spanBits() uint {
	bits := uint(m.clusterBits)*2 - 3
	if m.subclusterable {
		bits--
	}
	return bits
}

// l1Need returns how many L1 entries a disk of size bytes needs; size is at most
// the largest int64.
func (m *meta) l1Need(size uint64) uint64 {
	span := uint64(1) << m.spanBits()
	return (size + span - 1) >> m.spanBits()
}

// checkTables verifies that the L1 table of s is large enough for its disk, not
// larger than QEMU allows, and inside the file.
func (m *meta) checkTables(s state, field string, off int64, fileSize uint64) error {
	if s.size > math.MaxInt64 {
		return ondisk.Corruptf("qcow2", "size", off, "%#x bytes of disk", s.size)
	}
	need := m.l1Need(s.size)
	switch {
	case uint64(s.l1Entries)*8 > maxL1Size:
		return ondisk.Corruptf("qcow2", field, off, "%d entries, more than %d MiB", s.l1Entries, maxL1Size>>20)
	case need > uint64(s.l1Entries):
		return ondisk.Corruptf("qcow2", field, off, "%d entries, but a disk of %d bytes needs %d", s.l1Entries, s.size, need)
	case need == 0:
		return nil
	case s.l1Table&(1<<m.clusterBits-1) != 0 || s.l1Table == 0:
		return ondisk.Corruptf("qcow2", field, off, "its place %#x isn't that of a cluster", s.l1Table)
	case s.l1Table > fileSize || fileSize-s.l1Table < need*8:
		return ondisk.Corruptf("qcow2", field, off, "%d entries at %#x lie outside the file (%#x bytes)", need, s.l1Table, fileSize)
	}
	return nil
}

// extensions are the header extensions that reading needs.
type extensions struct {
	backingFormat, dataFile string
	namesAt                 int64 // where the feature name table is
	namesSize               uint32
}

// readExtensions reads the extensions, which lie between the header and the
// backing file's name or the end of the first cluster.
func (m *meta) readExtensions(ctx context.Context, file block.Reader) (extensions, error) {
	var ext extensions
	end := uint64(1) << m.clusterBits
	if m.backingOffset > uint64(m.length) && m.backingOffset < end {
		end = m.backingOffset
	}
	// A cluster at the end of which the file ends early has no more extensions.
	end = min(end, uint64(file.Size()))
	at := uint64(m.length)
	for range maxExtensions {
		if at+extHeaderSize > end {
			return ext, nil
		}
		var b [extHeaderSize]byte
		if err := block.ReadFull(ctx, file, b[:], int64(at)); err != nil {
			return ext, fmt.Errorf("qcow2: header extension at %#x: %w", at, err)
		}
		kind, size := be.Uint32(b[:]), be.Uint32(b[4:])
		if kind == extEnd {
			return ext, nil
		}
		if uint64(size) > end-at-extHeaderSize {
			return ext, ondisk.Corruptf("qcow2", "header extension", int64(at), "%d bytes of type %#x, beyond %#x", size, kind, end)
		}
		data := int64(at) + extHeaderSize
		var err error
		switch kind {
		case extBackingFormat:
			ext.backingFormat, err = readString(ctx, file, data, size, "backing file format")
		case extDataFile:
			ext.dataFile, err = readString(ctx, file, data, size, "external data file's name")
		case extFeatureNames:
			ext.namesAt, ext.namesSize = data, size
		}
		if err != nil {
			return ext, err
		}
		at += extHeaderSize + (uint64(size)+7)&^7
	}
	return ext, ondisk.Corruptf("qcow2", "header extensions", int64(m.length), "more than %d", maxExtensions)
}

func readString(ctx context.Context, file block.Reader, at int64, n uint32, field string) (string, error) {
	if n > maxName {
		return "", ondisk.Corruptf("qcow2", field, at, "%d bytes long", n)
	}
	b := make([]byte, n)
	if err := block.ReadFull(ctx, file, b, at); err != nil {
		return "", fmt.Errorf("qcow2: %s at %#x: %w", field, at, err)
	}
	return string(b), nil
}

// nameFeatures names the bits of unknown by the image's own table, as far as that
// knows them.
func nameFeatures(ctx context.Context, file block.Reader, unknown features, ext extensions) string {
	table := make([]byte, min(ext.namesSize/featureNameSize, maxFeatureNames)*featureNameSize)
	if err := block.ReadFull(ctx, file, table, ext.namesAt); err != nil {
		table = nil // the bits' numbers must do
	}
	var names []string
	for bit := range 64 {
		if !unknown.has(1 << bit) {
			continue
		}
		name := fmt.Sprintf("bit %d", bit)
		for t := table; len(t) >= featureNameSize; t = t[featureNameSize:] {
			if t[0] == featureIncompat && int(t[1]) == bit {
				name += fmt.Sprintf(" (%s)", printable(string(t[2:featureNameSize])))
			}
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
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
