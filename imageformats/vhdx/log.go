package vhdx

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"math"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// Bounds on what a log may cost to replay. Windows makes logs of 1 MiB.
const (
	maxLog         = 256 * mib // bytes; read and summed up about once
	maxDescriptors = 1 << 18   // of one sequence: a gigabyte of data sectors, some 40 MiB of memory
	// sumBudget is how many times a log's length may be summed up. Sound entries
	// don't overlap, so that only a log made to cost time takes more than two.
	sumBudget = 4
	logWindow = mib // bytes of the log held at once
)

// logEntry is a log entry that has been verified.
type logEntry struct {
	at      uint32 // in the log
	length  uint32
	tail    uint32
	count   uint32
	seq     uint64
	flushed uint64
	last    uint64
}

// logReader reads the circular log of a file.
type logReader struct {
	file   block.Reader
	off    int64
	length uint32
	guid   guid
	budget int64 // bytes that may still be summed up

	window   [logWindow]byte
	windowAt int64 // in the log; -1 when there is none
}

// replay verifies the log that h tells of and returns file with it replayed.
func replay(ctx context.Context, file block.Reader, h header) (*replayed, error) {
	off, size := int64(h.logOffset), file.Size()
	switch {
	case h.logVersion != logVersion:
		return nil, ondisk.Unsupportedf("vhdx", "log", off, "version %d", h.logVersion)
	case h.logLength > maxLog:
		return nil, ondisk.Unsupportedf("vhdx", "log", off, "%#x bytes, at most %#x are read", h.logLength, maxLog)
	case off > size || int64(h.logLength) > size-off:
		return nil, ondisk.Corruptf("vhdx", "log", off, "%#x bytes lie past the end of the file (%#x)", h.logLength, size)
	}
	r := &logReader{file: file, off: off, length: h.logLength, guid: h.logGUID, budget: sumBudget * int64(h.logLength), windowAt: -1}
	entries, err := r.scan(ctx)
	if err != nil {
		return nil, err
	}
	seq, err := r.active(entries)
	if err != nil {
		return nil, err
	}
	head := seq[len(seq)-1]
	if uint64(size) < head.flushed {
		return nil, ondisk.Corruptf("vhdx", "log entry", r.fileOff(head.at)+offFlushed,
			"the file had at least %#x bytes and has %#x: it was cut off", head.flushed, size)
	}
	if head.last > maxFile {
		return nil, ondisk.Corruptf("vhdx", "log entry", r.fileOff(head.at)+offLast, "file size %#x", head.last)
	}
	var updates []patch
	for _, e := range seq {
		if updates, err = r.descriptors(ctx, e, updates); err != nil {
			return nil, err
		}
	}
	return newReplayed(file, int64(head.last), updates), nil
}

// fileOff returns where the byte at of the log lies in the file.
func (r *logReader) fileOff(at uint32) int64 { return r.off + int64(at%r.length) }

// sector returns the sector at an offset in the log, wrapping at its end; it is
// valid until the next call.
func (r *logReader) sector(ctx context.Context, at uint32) ([]byte, error) {
	rel := int64(at % r.length)
	if r.windowAt < 0 || rel < r.windowAt || rel >= r.windowAt+logWindow {
		r.windowAt = -1
		start := rel &^ (logWindow - 1) // the length is a multiple of it
		if err := block.ReadFull(ctx, r.file, r.window[:], r.off+start); err != nil {
			return nil, fmt.Errorf("vhdx: log at %#x: %w", r.off+start, err)
		}
		r.windowAt = start
	}
	return r.window[rel-r.windowAt:][:logSector], nil
}

// scan returns the sound entries of the log, ascending by their place.
func (r *logReader) scan(ctx context.Context) ([]logEntry, error) {
	var entries []logEntry
	for at := uint32(0); at < r.length; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, ok, err := r.entry(ctx, at)
		if err != nil {
			return nil, err
		}
		if !ok {
			at += logSector
			continue
		}
		entries = append(entries, e)
		at += e.length // at most 512 MiB in all
	}
	return entries, nil
}

// entry reads and verifies the log entry at an offset in the log. One that isn't
// there, that is another log's, or that was torn, is not ok.
func (r *logReader) entry(ctx context.Context, at uint32) (e logEntry, ok bool, err error) {
	b, err := r.sector(ctx, at)
	if err != nil {
		return e, false, err
	}
	stored := r.guid.swapped()
	if string(b[:len(entrySig)]) != entrySig || !bytes.Equal(b[offEntryGUID:][:len(stored)], stored[:]) {
		return e, false, nil
	}
	e = logEntry{
		at:      at,
		length:  le.Uint32(b[offEntryLength:]),
		tail:    le.Uint32(b[offEntryTail:]),
		count:   le.Uint32(b[offEntryCount:]),
		seq:     le.Uint64(b[offEntrySeq:]),
		flushed: le.Uint64(b[offFlushed:]),
		last:    le.Uint64(b[offLast:]),
	}
	if e.length < logSector || e.length%logSector != 0 || e.length > r.length {
		return e, false, nil
	}
	if r.budget -= int64(e.length); r.budget < 0 {
		return e, false, ondisk.Corruptf("vhdx", "log", r.off, "its entries overlap")
	}
	want := le.Uint32(b[offEntrySum:])
	var sum uint32
	for i := uint32(0); i < e.length; i += logSector {
		if b, err = r.sector(ctx, at+i); err != nil {
			return e, false, err
		}
		if i == 0 {
			sum = checksum(b, offEntrySum)
		} else {
			sum = crc32.Update(sum, castagnoli, b)
		}
	}
	if sum != want {
		return e, false, nil // torn
	}
	// From here on nothing is a matter of chance: an entry that is wrong although
	// its checksum is right was written so, and to pass it over for an older
	// sequence would be to guess.
	if e.seq == 0 || e.tail%logSector != 0 || e.tail >= r.length {
		return e, false, ondisk.Corruptf("vhdx", "log entry", r.fileOff(at), "sequence number %d, tail %#x", e.seq, e.tail)
	}
	if uint64(e.count) > uint64(e.length)/descSize || e.descSectors()*logSector > uint64(e.length) {
		return e, false, ondisk.Corruptf("vhdx", "log entry", r.fileOff(at)+offEntryCount, "%d descriptors in %#x bytes", e.count, e.length)
	}
	return e, true, nil
}

// descSectors returns how many sectors header and descriptors take ([2.3.1]).
func (e logEntry) descSectors() uint64 {
	return (entryHeadSize + uint64(e.count)*descSize + logSector - 1) / logSector
}

// active returns the active sequence of the log, from tail to head ([2.3.3]):
// the newest run of entries, each with the next sequence number right behind the
// one before, whose last entry names as its tail one of them. Runs that begin
// later within another end with the same head, so only the longest count.
func (r *logReader) active(entries []logEntry) ([]logEntry, error) {
	byPlace := make(map[uint32]int, len(entries))
	for i, e := range entries {
		byPlace[e.at] = i
	}
	// Sound entries share no sectors, hence each has one successor at most.
	next := func(e logEntry) (int, bool) {
		i, ok := byPlace[(e.at+e.length)%r.length]
		return i, ok && entries[i].seq == e.seq+1
	}
	inner := make([]bool, len(entries))
	for _, e := range entries {
		if i, ok := next(e); ok {
			inner[i] = true
		}
	}
	var best []logEntry
	for i := range entries {
		if inner[i] {
			continue
		}
		run := []logEntry{entries[i]}
		for j, ok := next(entries[i]); ok; j, ok = next(entries[j]) {
			run = append(run, entries[j])
		}
		head := run[len(run)-1]
		if best != nil && head.seq <= best[len(best)-1].seq {
			continue
		}
		for k := range run {
			if run[k].at == head.tail {
				best = run[k:]
				break
			}
		}
	}
	if best == nil {
		return nil, ondisk.Corruptf("vhdx", "log", r.off, "it holds no whole sequence of entries")
	}
	return best, nil
}

// descriptors appends the updates of entry e.
func (r *logReader) descriptors(ctx context.Context, e logEntry, updates []patch) ([]patch, error) {
	if len(updates)+int(e.count) > maxDescriptors {
		return nil, ondisk.Unsupportedf("vhdx", "log", r.off, "more than %d updates", maxDescriptors)
	}
	first := len(updates)
	for i := range e.count {
		pos := entryHeadSize + i*descSize // of a multiple of sectors, so none is split
		b, err := r.sector(ctx, e.at+pos&^(logSector-1))
		if err != nil {
			return nil, err
		}
		d := b[pos%logSector:][:descSize]
		at := r.fileOff(e.at + pos)
		p := patch{at: int64(le.Uint64(d[offDescOffset:])), n: logSector}
		sig := string(d[:4])
		switch sig {
		case zeroSig:
			n := le.Uint64(d[offZeroLength:])
			if n > maxFile || n%logSector != 0 {
				return nil, ondisk.Corruptf("vhdx", "zero descriptor", at+offZeroLength, "%#x bytes", n)
			}
			p.n, p.zero = int64(n), true
		case descSig:
			p.leading, p.trailing = [leadingSize]byte(d[offLeading:]), [trailingSize]byte(d[offTrailing:])
		default:
			return nil, ondisk.Corruptf("vhdx", "log descriptor", at, "signature %q", sig)
		}
		if seq := le.Uint64(d[offDescSeq:]); seq != e.seq {
			return nil, ondisk.Corruptf("vhdx", "log descriptor", at+offDescSeq, "sequence number %d in an entry of %d", seq, e.seq)
		}
		if off := le.Uint64(d[offDescOffset:]); off%logSector != 0 || off > uint64(maxFile-p.n) {
			return nil, ondisk.Corruptf("vhdx", "log descriptor", at+offDescOffset, "%#x bytes to %#x", p.n, off)
		}
		if p.n == 0 {
			continue
		}
		if what := r.forbidden(p); what != "" {
			return nil, ondisk.Corruptf("vhdx", "log descriptor", at+offDescOffset, "%#x bytes to %#x, over the %s", p.n, p.at, what)
		}
		updates = append(updates, p)
	}
	return updates, r.dataSectors(ctx, e, updates[first:])
}

// forbidden names what an update may not touch: headers, which are never written
// through the log ([2.2.2]), and the log itself.
func (r *logReader) forbidden(p patch) string {
	switch {
	case p.at < region1Off:
		return "headers"
	case p.at < r.off+int64(r.length) && r.off < p.at+p.n:
		return "log"
	}
	return ""
}

// dataSectors finds the data sectors of entry e's updates and verifies that each
// is of that entry.
func (r *logReader) dataSectors(ctx context.Context, e logEntry, updates []patch) error {
	pos := e.descSectors() * logSector
	for i := range updates {
		if updates[i].zero {
			continue
		}
		if pos+logSector > uint64(e.length) {
			return ondisk.Corruptf("vhdx", "log entry", r.fileOff(e.at)+offEntryLength, "%#x bytes don't hold all data sectors", e.length)
		}
		b, err := r.sector(ctx, e.at+uint32(pos))
		if err != nil {
			return err
		}
		at := r.fileOff(e.at + uint32(pos))
		seq := uint64(le.Uint32(b[offSeqHigh:]))<<32 | uint64(le.Uint32(b[offSeqLow:]))
		if string(b[:len(dataSig)]) != dataSig || seq != e.seq {
			return ondisk.Corruptf("vhdx", "log data sector", at, "signature %q, sequence number %d in an entry of %d", b[:len(dataSig)], seq, e.seq)
		}
		updates[i].src = at
		pos += logSector
	}
	if pos != uint64(e.length) {
		return ondisk.Corruptf("vhdx", "log entry", r.fileOff(e.at)+offEntryLength, "%#x bytes, but its sectors take %#x", e.length, pos)
	}
	return nil
}

// maxFile bounds offsets in a file, bytes: beyond what any host can have, and
// small enough that sums of two can't overflow.
const maxFile = math.MaxInt64 / 4
