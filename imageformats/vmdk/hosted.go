package vmdk

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"

	"yester/internal/decoded"
)

// checkHeader verifies what a hosted sparse extent's header says of itself.
func (f *source) checkHeader(h *sparseHeader) error {
	switch {
	case h.version < 1 || h.version > maxVersion:
		return f.unsupported("sparse header", offVersion, "version %d", h.version)
	case h.flags&flagNewlines != 0 && h.newlines != newlines:
		return f.corrupt("newline bytes", offNewlines, "%q, not %q: the file was transferred as text", h.newlines, newlines)
	case h.flags&flagsIncompatible&^(flagCompressed|flagMarkers) != 0:
		return f.unsupported("sparse header", offFlags, "flags %#x", h.flags)
	case h.compress > deflate:
		return f.unsupported("sparse header", offCompress, "compression method %d", h.compress)
	case h.flags&flagCompressed != 0 && h.compress != deflate:
		return f.corrupt("sparse header", offCompress, "compressed by no method")
	case h.gtes == 0 || h.gtes > maxTable:
		return f.corrupt("sparse header", offGTEs, "%d entries in a grain table", h.gtes)
	case h.compress == deflate && h.grainSize > maxPacked>>sectorShift:
		return f.unsupported("grain size", offGrainSize, "compressed grains of %d sectors", h.grainSize)
	}
	return f.checkGrains(h.capacity, h.grainSize, offCapacity, offGrainSize)
}

// readSparseHeader reads the header of a hosted sparse extent.
func (f *source) readSparseHeader(ctx context.Context) (sparseHeader, error) {
	var b [sparseHeaderSize]byte
	if f.size < int64(len(b)) {
		return sparseHeader{}, f.corrupt("sparse header", 0, "cut off: the file ends at %#x", f.size)
	}
	if err := f.read(ctx, b[:], 0); err != nil {
		return sparseHeader{}, fmt.Errorf("vmdk: %ssparse header: %w", f.prefix(), err)
	}
	return decodeSparse(b[:]), nil
}

// openHosted opens a hosted sparse extent.
func openHosted(ctx context.Context, f *source, log *slog.Logger) (*sparse, []string, error) {
	h, err := f.readSparseHeader(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := f.checkHeader(&h); err != nil {
		return nil, nil, err
	}
	s := &sparse{source: f, log: log}
	s.taken = []area{{0, sparseHeaderSize, "header"}}
	if h.descOffset != 0 && h.descOffset <= maxSectors && h.descSize <= maxDescriptor>>sectorShift {
		s.taken = append(s.taken, area{int64(h.descOffset) << sectorShift, int64(h.descSize) << sectorShift, "descriptor"})
	}
	if h.gd == gdAtEnd {
		foot, at, err := f.readFooter(ctx)
		if err != nil {
			return nil, nil, err
		}
		if foot.capacity != h.capacity || foot.grainSize != h.grainSize || foot.gtes != h.gtes || foot.gd == gdAtEnd {
			return nil, nil, f.corrupt("footer", at, "is not that of the header")
		}
		h = foot
	}
	s.setGrains(h.capacity, h.grainSize, int64(h.gtes), 4)
	s.zeroedGTE = h.flags&flagZeroedGTE != 0
	if h.compress == deflate {
		s.compressed, s.marked = true, h.flags&flagMarkers != 0
		s.units = decoded.New(s.decode)
	}
	warnings, err := s.setDirectories(&h)
	if err != nil {
		return nil, nil, err
	}
	s.unclean = h.unclean
	return s, warnings, nil
}

// setDirectories chooses between the two grain directories: the first one that
// lies whole in the file, with the other to fall back on.
func (s *sparse) setDirectories(h *sparseHeader) (warnings []string, err error) {
	offset := func(sector uint64) int64 {
		if sector > maxSectors {
			return math.MaxInt64
		}
		return int64(sector) << sectorShift
	}
	first, second := offset(h.gd), int64(0)
	if h.flags&flagRedundant != 0 {
		second = offset(h.rgd)
	}
	switch {
	case s.holds(first):
		s.dir = first
		if s.holds(second) {
			s.redundant = second
		} else if second != 0 {
			warnings = append(warnings, fmt.Sprintf("%sthe redundant grain directory at %#x lies outside the file (%#x bytes)", s.prefix(), second, s.size))
		}
	case s.holds(second):
		s.dir = second
		if first != 0 {
			warnings = append(warnings, fmt.Sprintf("%sthe grain directory at %#x lies outside the file (%#x bytes); the redundant one is used", s.prefix(), first, s.size))
		}
	case first > 0 && first < s.size:
		s.dir = first
		warnings = append(warnings, fmt.Sprintf("%sthe grain directory at %#x is cut off by the end of the file (%#x bytes)", s.prefix(), first, s.size))
	default:
		return nil, s.corrupt("grain directory", offGD, "%d entries at %#x lie outside the file (%#x bytes)", s.dirLen, first, s.size)
	}
	for _, dir := range []int64{s.dir, s.redundant} {
		if over := s.overlap(dir, 1); dir != 0 && over != "" {
			return nil, s.corrupt("grain directory", offGD, "at %#x lies over the %s", dir, over)
		}
	}
	s.taken = append(s.taken, area{s.dir, s.dirLen * s.entrySize, "grain directory"})
	if s.redundant != 0 {
		s.taken = append(s.taken, area{s.redundant, s.dirLen * s.entrySize, "redundant grain directory"})
	}
	return warnings, nil
}

// maxTail is how far from the end a footer is looked for, bytes: copies by tape or
// in tar archives pad files with zeros up to a block.
const maxTail = 64 << 10

// readFooter finds the footer of a stream-optimised extent by one read: it is the
// last sector that isn't zeros, since the end-of-stream marker is all zeros.
func (f *source) readFooter(ctx context.Context) (sparseHeader, int64, error) {
	n := min(maxTail, f.size&^(sectorSize-1))
	at := f.size&^(sectorSize-1) - n
	b := make([]byte, n)
	if err := f.read(ctx, b, at); err != nil {
		return sparseHeader{}, 0, fmt.Errorf("vmdk: %sfooter: %w", f.prefix(), err)
	}
	end := (len(bytes.TrimRight(b, "\x00")) + sectorSize - 1) &^ (sectorSize - 1)
	foot := end - sectorSize
	if foot < sectorSize || string(b[foot:foot+4]) != sparseMagic {
		return sparseHeader{}, 0, f.corrupt("footer", f.size, "there is none before the end: the file was cut off")
	}
	mark := b[foot-sectorSize:]
	at += int64(foot)
	if le.Uint32(mark[offMarkerSize:]) != 0 || le.Uint32(mark[offMarkerType:]) != markerFooter {
		return sparseHeader{}, 0, f.corrupt("footer", at, "no footer marker before it")
	}
	if int(n) == end {
		return sparseHeader{}, 0, f.corrupt("footer", at, "no end-of-stream marker behind it")
	}
	h := decodeSparse(b[foot : foot+sectorSize])
	return h, at, f.checkHeader(&h)
}
