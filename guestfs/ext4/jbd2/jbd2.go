// Package jbd2 replays the journal of ext3 and ext4 in memory: what recovery
// would write to the filesystem is shown by an overlay, and the device stays
// untouched.
//
// Where the log ends and what counts as damage follows fs/jbd2/recovery.c of
// the Linux kernel: a transaction without a valid commit block ends the log, a
// block of a committed transaction whose checksum is wrong is an error.
package jbd2

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"yester/internal/block"
	"yester/internal/ondisk"
)

const format = "jbd2" // in errors

var be = binary.BigEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's: inverted neither at the start nor at the end.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }

// Options describe the filesystem that the journal belongs to.
type Options struct {
	BlockSize uint32 // of the filesystem, in bytes; the journal must have the same
	Blocks    uint64 // in the filesystem: no block beyond is ever written
}

// Journal is what recovery found in a log.
type Journal struct {
	log    block.Reader
	bits   uint
	writes []write // ascending by target

	// Empty: the log holds nothing (s_start is 0), which is its state after a
	// clean unmount.
	Empty bool
	// Transactions is how many were complete.
	Transactions int
	// Next is the number of the transaction that would follow. Fast commits that
	// carry it belong to the state that the log leads to.
	Next uint32
	// FastStart and FastEnd bound the blocks of the journal reserved for fast
	// commits: [FastStart, FastEnd); both 0 without the feature.
	FastStart, FastEnd uint32
}

// write is one block that recovery writes.
type write struct {
	target  uint64 // block of the filesystem
	source  uint32 // block of the journal that holds the data
	escaped bool   // the data began with the journal's magic, stored as zeros
}

// journal is the decoded superblock and what the passes over the log share.
type journal struct {
	log              block.Reader
	size             uint32 // of a block
	first, last, end uint32 // the log is [first, last), the journal [0, end)
	start, sequence  uint32
	compat, incompat uint32
	seed             uint32
	fsBlocks         uint64
}

func (j *journal) csumV23() bool { return j.incompat&(incompatCsumV2|incompatCsumV3) != 0 }

// Recover scans log, the content of a journal from its superblock on, and
// returns what recovery would write.
func Recover(ctx context.Context, log block.Reader, opt Options) (*Journal, error) {
	j, err := readSuper(ctx, log, opt)
	if err != nil {
		return nil, err
	}
	out := &Journal{log: log}
	for b := j.size; b > 1; b >>= 1 {
		out.bits++
	}
	if j.incompat&incompatFastCommit != 0 && j.last < j.end {
		out.FastStart, out.FastEnd = j.last+1, j.end
	}
	if j.start == 0 {
		out.Empty = true
		out.Next = j.sequence
		return out, nil
	}
	r := recovery{journal: j, ctx: ctx}
	if err := r.run(); err != nil {
		return nil, err
	}
	out.Transactions = int(r.endID - j.sequence)
	out.Next = r.endID
	out.writes = make([]write, 0, len(r.writes))
	for _, w := range r.writes {
		out.writes = append(out.writes, w)
	}
	slices.SortFunc(out.writes, func(a, b write) int { return cmp.Compare(a.target, b.target) })
	return out, nil
}

// Writes returns how many blocks recovery writes.
func (j *Journal) Writes() int { return len(j.writes) }

func readSuper(ctx context.Context, log block.Reader, opt Options) (*journal, error) {
	sb := make([]byte, superSize)
	if err := block.ReadFull(ctx, log, sb, 0); err != nil {
		return nil, fmt.Errorf("jbd2: superblock: %w", err)
	}
	bad := func(field string, off int64, msg string, args ...any) error {
		return ondisk.Corruptf(format, "journal superblock "+field, off, msg, args...)
	}
	typ := be.Uint32(sb[hType:])
	if m := be.Uint32(sb[hMagic:]); m != magic || typ != typeSuperV1 && typ != typeSuperV2 {
		return nil, bad("magic", 0, "%#08x, type %d", m, typ)
	}
	j := &journal{
		log: log, size: be.Uint32(sb[sBlockSize:]), fsBlocks: opt.Blocks,
		first: be.Uint32(sb[sFirst:]), end: be.Uint32(sb[sMaxLen:]),
		start: be.Uint32(sb[sStart:]), sequence: be.Uint32(sb[sSequence:]),
	}
	if typ == typeSuperV2 {
		j.compat, j.incompat = be.Uint32(sb[sFeatureCompat:]), be.Uint32(sb[sFeatureIncomp:])
		if u := j.incompat &^ incompatKnown; u != 0 {
			return nil, ondisk.Unsupportedf(format, "journal features", sFeatureIncomp, "incompatible %#x", u)
		}
		if u := be.Uint32(sb[sFeatureROComp:]); u != 0 {
			return nil, ondisk.Unsupportedf(format, "journal features", sFeatureROComp, "read-only compatible %#x", u)
		}
	}
	if j.incompat&incompatCsumV2 != 0 && j.incompat&incompatCsumV3 != 0 || j.compat&compatChecksum != 0 && j.csumV23() {
		return nil, bad("features", sFeatureCompat, "checksums of several versions at once: %#x, %#x", j.compat, j.incompat)
	}
	if j.csumV23() {
		if t := sb[sChecksumType]; t != checksumCRC32C {
			return nil, ondisk.Unsupportedf(format, "journal checksum type", sChecksumType, "%d", t)
		}
		want := be.Uint32(sb[sChecksum:])
		clear(sb[sChecksum : sChecksum+4])
		if got := crc32c(^uint32(0), sb); got != want {
			return nil, bad("checksum", sChecksum, "computed %#08x, stored %#08x", got, want)
		}
		j.seed = crc32c(^uint32(0), sb[sUUID:sUUID+uuidSize])
	}
	if j.size != opt.BlockSize {
		return nil, bad("block size", sBlockSize, "%d, the filesystem's is %d", j.size, opt.BlockSize)
	}
	if uint64(j.end)*uint64(j.size) > uint64(log.Size()) {
		return nil, bad("length", sMaxLen, "%d blocks in a journal of %d bytes", j.end, log.Size())
	}
	j.last = j.end
	if j.incompat&incompatFastCommit != 0 {
		n := be.Uint32(sb[sNumFCBlocks:])
		if n == 0 {
			n = defaultFCBlocks
		}
		if n > j.end {
			return nil, bad("fast commit blocks", sNumFCBlocks, "%d of %d", n, j.end)
		}
		if j.end-n >= minBlocks {
			j.last = j.end - n
		}
	}
	if j.first == 0 || j.first >= j.last {
		return nil, bad("first block", sFirst, "%d of %d", j.first, j.last)
	}
	if j.start != 0 && (j.start < j.first || j.start >= j.last) {
		return nil, bad("start", sStart, "block %d outside %d..%d", j.start, j.first, j.last)
	}
	return j, nil
}

// ReadFast reads block i of the fast commit area.
func (j *Journal) ReadFast(ctx context.Context, i uint32) ([]byte, error) {
	if uint64(j.FastStart)+uint64(i) >= uint64(j.FastEnd) {
		return nil, fmt.Errorf("jbd2: fast commit block %d of %d", i, j.FastEnd-j.FastStart)
	}
	b := make([]byte, 1<<j.bits)
	err := block.ReadFull(ctx, j.log, b, int64(j.FastStart+i)<<j.bits)
	return b, err
}

// String tells what recovery does.
func (j *Journal) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%d transactions, %d blocks", j.Transactions, len(j.writes))
	return s.String()
}
