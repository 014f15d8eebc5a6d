package vhdx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// meta is everything a file says about itself, read by Probe and Open alike.
type meta struct {
	header     header
	areas      []area // what isn't a block: log and regions
	bat        area
	metadata   area
	size       int64 // of the disk, bytes
	blockSize  int64
	sectorSize int64
	diff       bool // it has a parent
	ratio      int64
	entries    uint64 // of the BAT, as many as the disk needs or, without its last bitmaps, has
	info       imageformats.Info
}

// logMode says what to do with a log that isn't empty.
type logMode int

const (
	logReplay logMode = iota // or fail
	logTry                   // replay it if possible, else go on without
	logIgnore
)

// readMeta reads and verifies everything but the BAT. It returns the file as it
// is with its log replayed.
func readMeta(ctx context.Context, file block.Reader, mode logMode) (*meta, block.Reader, error) {
	m := &meta{}
	if err := m.readFileType(ctx, file); err != nil {
		return nil, nil, err
	}
	if err := m.readHeaders(ctx, file); err != nil {
		return nil, nil, err
	}
	if m.header.logGUID != (guid{}) {
		r, err := m.openLog(ctx, file, mode)
		if err != nil {
			return nil, nil, err
		}
		file = r
	}
	if err := m.readRegions(ctx, file); err != nil {
		return nil, nil, err
	}
	if err := m.readMetadata(ctx, file); err != nil {
		return nil, nil, err
	}
	if err := m.checkBAT(file); err != nil {
		return nil, nil, err
	}
	m.info.Format = "vhdx"
	m.info.Size, m.info.BlockSize, m.info.SectorSize = m.size, m.blockSize, int(m.sectorSize)
	m.info.ID = m.header.dataGUID.String()
	return m, file, nil
}

// openLog returns file with its log replayed, by mode.
func (m *meta) openLog(ctx context.Context, file block.Reader, mode logMode) (block.Reader, error) {
	if mode == logIgnore {
		m.warnf("the log holds updates that are ignored: the disk may be stale or inconsistent")
		return file, nil
	}
	r, err := replay(ctx, file, m.header)
	switch {
	case err == nil:
		m.warnf("the file was not closed: its log of %d updates is replayed in memory", r.updates)
		return r, nil
	case mode == logTry && isDamage(err):
		m.warnf("the file was not closed, and its log can't be replayed: %v", err)
		return file, nil
	}
	return nil, fmt.Errorf("the log can't be replayed: %w", err)
}

// isDamage tells what is wrong with the file from what is wrong with its reading.
func isDamage(err error) bool {
	return errors.Is(err, ondisk.ErrCorrupt) || errors.Is(err, ondisk.ErrUnsupported)
}

func (m *meta) warnf(format string, args ...any) {
	m.info.Warnings = append(m.info.Warnings, fmt.Sprintf(format, args...))
}

// item is an entry of the metadata table.
type item struct {
	id    guid
	flags uint32
	off   int64 // in the file
	n     int64
	entry int64 // where the entry lies in the file
}

// readMetadata reads the metadata table and the known items.
func (m *meta) readMetadata(ctx context.Context, file block.Reader) error {
	items, err := m.readTable(ctx, file)
	if err != nil {
		return err
	}
	var known = map[guid]*item{itemParams: nil, itemSize: nil, itemDiskID: nil, itemLogical: nil, itemPhysical: nil, itemLocator: nil}
	for i, it := range items {
		_, ours := known[it.id]
		switch {
		case ours && it.flags&itemUser == 0:
			known[it.id] = &items[i]
		case it.flags&itemRequired != 0:
			return ondisk.Unsupportedf("vhdx", "metadata table", it.entry, "required item %s", it.id)
		}
	}
	var params [8]byte
	if err := m.readItem(ctx, file, known[itemParams], "file parameters", params[:]); err != nil {
		return err
	}
	var size [8]byte
	if err := m.readItem(ctx, file, known[itemSize], "virtual disk size", size[:]); err != nil {
		return err
	}
	var sector [4]byte
	if err := m.readItem(ctx, file, known[itemLogical], "logical sector size", sector[:]); err != nil {
		return err
	}
	for _, c := range []struct {
		id   guid
		name string
	}{{itemDiskID, "virtual disk id"}, {itemPhysical, "physical sector size"}} {
		if known[c.id] == nil { // nothing here depends on them
			m.warnf("the metadata lack the %s", c.name)
		}
	}
	blockSize, flags := le.Uint32(params[offBlockSize:]), le.Uint32(params[offParams:])
	if blockSize < minBlock || blockSize > maxBlock || blockSize&(blockSize-1) != 0 {
		return ondisk.Corruptf("vhdx", "block size", known[itemParams].off, "%d is no power of two from 1 MiB to 256 MiB", blockSize)
	}
	logical := le.Uint32(sector[:])
	if logical != 512 && logical != 4096 {
		return ondisk.Corruptf("vhdx", "logical sector size", known[itemLogical].off, "%d is neither 512 nor 4096", logical)
	}
	n := le.Uint64(size[:])
	if n > maxSize || n%uint64(logical) != 0 {
		return ondisk.Corruptf("vhdx", "virtual disk size", known[itemSize].off, "%#x bytes, with sectors of %d", n, logical)
	}
	m.size, m.blockSize, m.sectorSize = int64(n), int64(blockSize), int64(logical)
	m.ratio = bitmapBits * m.sectorSize / m.blockSize // [2.4]; at least 16
	m.diff = flags&hasParent != 0
	switch {
	case m.diff:
		m.info.Variant = "differencing"
		return m.readParent(ctx, file, known[itemLocator])
	case flags&leaveAllocated != 0:
		m.info.Variant = "fixed"
	default:
		m.info.Variant = "dynamic"
	}
	return nil
}

// readTable reads the entries of the metadata table.
func (m *meta) readTable(ctx context.Context, file block.Reader) ([]item, error) {
	at := m.metadata.off
	if size := file.Size(); at > size || size-at < tableSize {
		return nil, ondisk.Corruptf("vhdx", "metadata region", at, "lies past the end of the file (%#x)", size)
	}
	var head [itemHeadSize]byte
	if err := block.ReadFull(ctx, file, head[:], at); err != nil {
		return nil, fmt.Errorf("vhdx: metadata table at %#x: %w", at, err)
	}
	if string(head[:len(metadataSig)]) != metadataSig {
		return nil, ondisk.Corruptf("vhdx", "metadata table", at, "signature %q", head[:len(metadataSig)])
	}
	count := int(le.Uint16(head[offItemCount:]))
	if count > maxEntries {
		return nil, ondisk.Corruptf("vhdx", "metadata table", at+offItemCount, "%d entries, at most %d", count, maxEntries)
	}
	table := make([]byte, count*itemEntrySize)
	if err := block.ReadFull(ctx, file, table, at+itemHeadSize); err != nil {
		return nil, fmt.Errorf("vhdx: metadata table at %#x: %w", at, err)
	}
	type key struct {
		id   guid
		user bool
	}
	seen := make(map[key]bool, count)
	items := make([]item, 0, count)
	users := 0
	for i := range count {
		e := table[i*itemEntrySize:]
		it := item{id: readGUID(e[offItemID:]), flags: le.Uint32(e[offItemFlags:]), entry: at + itemHeadSize + int64(i)*itemEntrySize}
		off, n := int64(le.Uint32(e[offItemOffset:])), int64(le.Uint32(e[offItemLength:]))
		k := key{it.id, it.flags&itemUser != 0}
		if k.user {
			users++
		}
		switch {
		case n > maxItem || n > 0 && (off < tableSize || off+n > m.metadata.n):
			return nil, ondisk.Corruptf("vhdx", fmt.Sprintf("metadata table entry %d", i), it.entry+offItemOffset,
				"item %s: %#x bytes at %#x of a region of %#x", it.id, n, off, m.metadata.n)
		case seen[k] || users > maxUserItems:
			return nil, ondisk.Corruptf("vhdx", fmt.Sprintf("metadata table entry %d", i), it.entry,
				"item %s is there twice, or one of too many", it.id)
		}
		seen[k] = true
		it.off, it.n = at+off, n
		items = append(items, it)
	}
	return items, checkItems(items)
}

// checkItems refuses items that overlap ([2.6.1.2]).
func checkItems(items []item) error {
	sorted := slices.Clone(items)
	slices.SortFunc(sorted, func(a, b item) int { return cmp.Compare(a.off, b.off) })
	end, last := int64(0), guid{}
	for _, it := range sorted {
		if it.n == 0 {
			continue
		}
		if it.off < end {
			return ondisk.Corruptf("vhdx", "metadata table", it.entry+offItemOffset, "items %s and %s overlap", last, it.id)
		}
		end, last = it.off+it.n, it.id
	}
	return nil
}

// readItem fills b with an item that must be there, and of b's length.
func (m *meta) readItem(ctx context.Context, file block.Reader, it *item, name string, b []byte) error {
	if it == nil {
		return ondisk.Corruptf("vhdx", "metadata table", m.metadata.off, "no %s", name)
	}
	if it.n != int64(len(b)) {
		return ondisk.Corruptf("vhdx", name, it.entry+offItemLength, "%d bytes, want %d", it.n, len(b))
	}
	if size := file.Size(); it.off > size || it.n > size-it.off {
		return ondisk.Corruptf("vhdx", name, it.off, "lies past the end of the file (%#x)", size)
	}
	if err := block.ReadFull(ctx, file, b, it.off); err != nil {
		return fmt.Errorf("vhdx: %s at %#x: %w", name, it.off, err)
	}
	return nil
}

// checkBAT checks that the part of the BAT that the disk needs lies in its region
// and in the file.
func (m *meta) checkBAT(file block.Reader) error {
	payload := uint64((m.size + m.blockSize - 1) / m.blockSize)
	if payload == 0 {
		return nil
	}
	ratio := uint64(m.ratio)
	m.entries = payload + (payload-1)/ratio // up to the last payload block, [2.5]
	have := uint64(m.bat.n) / batEntrySize
	if m.entries > have {
		return ondisk.Corruptf("vhdx", "BAT", m.bat.off, "%d entries can't hold a disk of %#x bytes in blocks of %#x", have, m.size, m.blockSize)
	}
	if m.diff { // and up to the last sector bitmap
		m.entries = min((payload+ratio-1)/ratio*(ratio+1), have)
	}
	if size := file.Size(); m.bat.off > size || m.entries*batEntrySize > uint64(size-m.bat.off) {
		return ondisk.Corruptf("vhdx", "BAT", m.bat.off, "%d entries lie past the end of the file (%#x)", m.entries, size)
	}
	return nil
}
