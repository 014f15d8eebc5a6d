package qcow2

import (
	"context"
	"fmt"
	"math"
	"sort"
	"time"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// snapshot is an entry of the snapshot table ([Snapshots]).
type snapshot struct {
	id string
	state
}

// tableWindow is how much of the snapshot table is read at a time, bytes: all of
// most tables.
const tableWindow = 16 << 10

// readSnapshots reads the snapshot table. What is wrong with it is no obstacle to
// reading the active state, so it becomes a warning, and the snapshots before it
// are kept.
func (m *meta) readSnapshots(ctx context.Context, file block.Reader) {
	if m.snapshots == 0 {
		return
	}
	if err := m.scanSnapshots(ctx, file); err != nil {
		m.warnf("%d of %d snapshots can be told: %v", len(m.snaps), m.snapshots, err)
	}
	// The table is in the order of creation, unless a clock was changed.
	sort.SliceStable(m.info.Snapshots, func(i, j int) bool { return m.info.Snapshots[i].Time.Before(m.info.Snapshots[j].Time) })
}

func (m *meta) scanSnapshots(ctx context.Context, file block.Reader) error {
	size := uint64(file.Size())
	at := m.snapshotTable
	if m.snapshots > maxSnapshots {
		return ondisk.Corruptf("qcow2", "snapshots", offSnapshots, "%d, QEMU allows %d", m.snapshots, maxSnapshots)
	}
	if at == 0 || at&(1<<m.clusterBits-1) != 0 || at > size || size-at < snapEntrySize {
		return ondisk.Corruptf("qcow2", "snapshot table", offSnapshotTable, "%d entries at %#x, in a file of %#x bytes", m.snapshots, at, size)
	}
	w := window{file: file, end: min(size, at+maxSnapshotTable)}
	seen := make(map[string]bool)
	for i := range m.snapshots {
		field := fmt.Sprintf("snapshot %d", i)
		b, err := w.at(ctx, at, snapEntrySize)
		if err != nil {
			return fmt.Errorf("qcow2: %s at %#x: %w", field, at, err)
		}
		s := snapshot{state: state{size: m.size, l1Table: be.Uint64(b[snapL1Table:]), l1Entries: be.Uint32(b[snapL1Size:])}}
		extra, ids, names := be.Uint32(b[snapExtraSize:]), uint64(be.Uint16(b[snapIDSize:])), uint64(be.Uint16(b[snapNameSize:]))
		stateSize := uint64(be.Uint32(b[snapState:]))
		taken := time.Unix(int64(be.Uint32(b[snapSeconds:])), int64(be.Uint32(b[snapNanos:]))).UTC()
		if extra > maxExtra {
			return ondisk.Corruptf("qcow2", field, int64(at), "%d bytes of extra data", extra)
		}
		if b, err = w.at(ctx, at+snapEntrySize, uint64(extra)+ids+names); err != nil {
			return fmt.Errorf("qcow2: %s at %#x: %w", field, at, err)
		}
		if extra >= snapDiskSize {
			stateSize = be.Uint64(b[snapStateLong:])
		}
		if extra >= snapDiskSize+8 {
			s.size = be.Uint64(b[snapDiskSize:])
		}
		s.id = string(b[extra:][:ids])
		if seen[s.id] || s.id == "" {
			return ondisk.Corruptf("qcow2", field, int64(at), "its id %q is not unique", s.id)
		}
		seen[s.id] = true
		info := imageformats.Snapshot{ID: s.id, Name: string(b[uint64(extra)+ids:][:names]), Time: taken, Size: int64(min(s.size, math.MaxInt64)), Running: stateSize > 0}
		if taken.Unix() == 0 {
			info.Time = time.Time{}
		}
		m.snaps = append(m.snaps, s)
		m.info.Snapshots = append(m.info.Snapshots, info)
		at += (snapEntrySize + uint64(extra) + ids + names + 7) &^ 7
	}
	return nil
}

// find returns the tables of a snapshot.
func (m *meta) find(ctx context.Context, file block.Reader, id string) (state, error) {
	for i, s := range m.snaps {
		if s.id == id {
			return s.state, m.checkTables(s.state, fmt.Sprintf("L1 table of snapshot %d", i), int64(m.snapshotTable), uint64(file.Size()))
		}
	}
	return state{}, fmt.Errorf("qcow2: there is no snapshot with id %q among %d", id, len(m.snaps))
}

// window reads a table through a buffer.
type window struct {
	file  block.Reader
	end   uint64 // nothing is read beyond
	start uint64 // of buf in the file
	buf   []byte
}

// at returns the n bytes at off, valid until the next call.
func (w *window) at(ctx context.Context, off, n uint64) ([]byte, error) {
	if off > w.end || n > w.end-off {
		return nil, fmt.Errorf("%d bytes lie beyond %#x: %w", n, w.end, ondisk.ErrCorrupt)
	}
	if off < w.start || off+n > w.start+uint64(len(w.buf)) {
		w.buf = make([]byte, min(max(n, tableWindow), w.end-off))
		w.start = off
		if err := block.ReadFull(ctx, w.file, w.buf, int64(off)); err != nil {
			w.buf = nil
			return nil, err
		}
	}
	return w.buf[off-w.start:][:n], nil
}
