package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"yester/internal/block"
	"yester/internal/sparse"
)

var be = binary.BigEndian

// ErrTooLarge says that a disk is beyond what QEMU opens with this cluster size.
var ErrTooLarge = errors.New("a qcow2 image of 64 KiB clusters holds at most 2 PiB")

// WriteOptions tune Write.
type WriteOptions struct {
	Progress func(done int64) // bytes of the source dealt with; may be nil
}

// grain is the least run of zeros that isn't written, bytes: the block of most
// filesystems.
const grain = 4 << 10

// Write writes src as a qcow2 image in which clusters of zeros take no room. w
// must be new and empty: what isn't written is taken to read as zeros. A size
// that is no multiple of 512 is rounded up, with zeros, as QEMU counts sectors.
// The same source gives the same bytes. The header goes last, so that an image
// cut short is not taken for a whole one.
func Write(ctx context.Context, w io.WriterAt, src block.Reader, opt WriteOptions) error {
	size := (src.Size() + 511) &^ 511
	if size > maxSize {
		return fmt.Errorf("qcow2: disk of %d bytes: %w", size, ErrTooLarge)
	}
	b := &builder{w: w, l1: make([]uint64, (size+l2Span-1)/l2Span)}
	b.l1Table = clusterSize
	b.end = b.l1Table + roundUp(int64(len(b.l1))*8)
	err := sparse.Scan(ctx, src, sparse.Options{Chunk: 1 << 20, Progress: opt.Progress}, b.add)
	if err == nil {
		err = b.finish(size)
	}
	if err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	return nil
}

func roundUp(n int64) int64 { return (n + clusterSize - 1) &^ (clusterSize - 1) }

// builder lays out an image: header, L1 table, then data clusters with the L2
// tables that map them behind each 512 MiB, last the reference counts.
type builder struct {
	w       io.WriterAt
	l1      []uint64
	l1Table int64
	l2      [l2Entries]uint64
	region  int64 // which L1 entry l2 belongs to
	dirty   bool  // l2 has entries
	end     int64 // of what is laid out so far; a multiple of the cluster
}

// add appends the clusters of data, which begins at off of the disk, that
// aren't zeros. A chunk never spans two L2 tables.
func (b *builder) add(off int64, data []byte) error {
	if r := off / l2Span; r != b.region {
		if err := b.flush(); err != nil {
			return err
		}
		b.region = r
	}
	for i := 0; i < len(data); i += clusterSize {
		piece := data[i:min(i+clusterSize, len(data))]
		if sparse.Zero(piece) {
			continue
		}
		if err := sparse.WriteData(b.w, piece, b.end, grain); err != nil {
			return err
		}
		b.l2[(off+int64(i))%l2Span/clusterSize] = uint64(b.end) | copied
		b.dirty = true
		b.end += clusterSize
	}
	return nil
}

// flush writes the L2 table of the region that is complete.
func (b *builder) flush() error {
	if !b.dirty {
		return nil
	}
	if err := writeTable(b.w, b.l2[:], b.end); err != nil {
		return err
	}
	b.l1[b.region] = uint64(b.end) | copied
	b.end += clusterSize
	clear(b.l2[:])
	b.dirty = false
	return nil
}

// finish writes the tables and the header.
func (b *builder) finish(size int64) error {
	if err := b.flush(); err != nil {
		return err
	}
	if err := writeTable(b.w, b.l1, b.l1Table); err != nil {
		return err
	}
	// The counts count their own clusters too, so their number is found by
	// growing it until it suffices.
	used := b.end / clusterSize
	var blocks, tables int64
	for {
		total := used + blocks + tables
		nb := (total + blockEntries - 1) / blockEntries
		nt := (nb + tableEntries - 1) / tableEntries
		if nb == blocks && nt == tables {
			break
		}
		blocks, tables = nb, nt
	}
	total := used + blocks + tables
	table := make([]uint64, blocks)
	buf := make([]byte, clusterSize)
	for i := range table {
		table[i] = uint64(b.end) + uint64(i)*clusterSize
		clear(buf)
		for j := range min(blockEntries, total-int64(i)*blockEntries) {
			be.PutUint16(buf[j*2:], 1)
		}
		if err := sparse.WriteAt(b.w, buf, int64(table[i])); err != nil {
			return err
		}
	}
	tableAt := b.end + blocks*clusterSize
	if err := writeTable(b.w, table, tableAt); err != nil {
		return err
	}
	h := make([]byte, clusterSize) // zeros: no extensions, no backing file
	copy(h, magic)
	be.PutUint32(h[offVersion:], version)
	be.PutUint32(h[offClusterBits:], clusterBits)
	be.PutUint64(h[offSize:], uint64(size))
	be.PutUint32(h[offL1Size:], uint32(len(b.l1)))
	be.PutUint64(h[offL1Table:], uint64(b.l1Table))
	be.PutUint64(h[offRefcountTable:], uint64(tableAt))
	be.PutUint32(h[offRefcountCluster:], uint32(tables))
	be.PutUint32(h[offRefcountOrder:], refcountOrder)
	be.PutUint32(h[offHeaderLength:], headerLength)
	return sparse.WriteAt(b.w, h, 0)
}

// writeTable writes entries, padded with zeros to whole clusters.
func writeTable(w io.WriterAt, entries []uint64, at int64) error {
	b := make([]byte, roundUp(int64(len(entries))*8))
	for i, e := range entries {
		be.PutUint64(b[i*8:], e)
	}
	return sparse.WriteAt(w, b, at)
}
