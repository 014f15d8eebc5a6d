package vhdx

import (
	"bytes"
	"slices"
	"testing"
)

// update is what one descriptor of a log entry does: a sector of data, or zeros
// when data is nil.
type update struct {
	at   int64
	data []byte
	n    uint64
}

// logWriter writes log entries into an image, by [MS-VHDX] 2.3.
type logWriter struct {
	m       *mem
	guid    guid
	pos     uint32 // in the log, of the next entry
	seq     uint64 // of the next entry
	tail    uint32
	flushed uint64
	last    uint64
}

var logID = guid{0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 1, 2, 3}

// newLog makes m's log a dirty one, without entries yet.
func newLog(m *mem, pos uint32) *logWriter {
	w := &logWriter{m: m, guid: logID, pos: pos, seq: 7, tail: pos, flushed: uint64(m.size), last: uint64(m.size)}
	setHeader(m, func(h *header) { h.logGUID = w.guid })
	return w
}

// setHeader changes both headers of m.
func setHeader(m *mem, f func(h *header)) {
	for i, at := range []int64{header1Off, header2Off} {
		h := decodeHeader(m.get(at, headerSize))
		h.sequence = uint64(i + 10)
		f(&h)
		m.put(at, encodeHeader(h)...)
	}
}

// entry returns an entry of updates, with its checksum.
func (w *logWriter) entry(updates ...update) []byte {
	count := uint32(len(updates))
	b := make([]byte, logEntry{count: count}.descSectors()*logSector)
	copy(b, entrySig)
	le.PutUint32(b[offEntryTail:], w.tail)
	le.PutUint64(b[offEntrySeq:], w.seq)
	le.PutUint32(b[offEntryCount:], count)
	putGUID(b[offEntryGUID:], w.guid)
	le.PutUint64(b[offFlushed:], w.flushed)
	le.PutUint64(b[offLast:], w.last)
	for i, u := range updates {
		d := b[entryHeadSize+i*descSize:]
		le.PutUint64(d[offDescOffset:], uint64(u.at))
		le.PutUint64(d[offDescSeq:], w.seq)
		if u.data == nil {
			copy(d, zeroSig)
			le.PutUint64(d[offZeroLength:], u.n)
			continue
		}
		copy(d, descSig)
		copy(d[offLeading:offLeading+leadingSize], u.data)
		copy(d[offTrailing:offTrailing+trailingSize], u.data[logSector-trailingSize:])
		sector := slices.Clone(u.data)
		copy(sector, dataSig)
		le.PutUint32(sector[offSeqHigh:], uint32(w.seq>>32))
		le.PutUint32(sector[offSeqLow:], uint32(w.seq))
		b = append(b, sector...)
	}
	le.PutUint32(b[offEntryLength:], uint32(len(b)))
	sumEntry(b)
	return b
}

func sumEntry(b []byte) { le.PutUint32(b[offEntrySum:], checksum(b, offEntrySum)) }

// add writes an entry of updates.
func (w *logWriter) add(updates ...update) { w.write(w.entry(updates...)) }

// write puts the bytes of an entry where the next one belongs.
func (w *logWriter) write(b []byte) {
	for i := 0; i < len(b); i += logSector {
		w.m.put(writeLogOff+int64(w.pos), b[i:i+logSector]...)
		w.pos = (w.pos + logSector) % writeLogSize
	}
	w.seq++
}

// now returns the update that makes the sector at off what it is in m.
func now(m *mem, off int64) update { return update{at: off, data: m.get(off, logSector)} }

// rubbish returns an update to other bytes.
func rubbish(off int64, seed byte) update {
	return update{at: off, data: bytes.Repeat([]byte{seed, 0xbd}, logSector/2)}
}

// staleImage is an image of data whose metadata lie in its log only: where they
// belong there is rubbish. It holds an update of every kind of structure, in
// entries from pos on in the log, beside everything else that a log may hold.
func staleImage(t testing.TB, sound *mem, pos uint32) *mem {
	t.Helper()
	m := sound.clone()
	bat := int64(writeBATOff)
	first := int64(le.Uint64(sound.get(bat, 8))&^(mib-1)) + 64*kib // in the first block
	var all []update
	for _, at := range []int64{bat, writeMetadataOff, writeMetadataOff + tableSize, first, first + 12*kib} {
		all = append(all, now(sound, at))
		m.put(at, rubbish(at, 0x11).data...)
	}
	for at := int64(region1Off); at < region2Off+tableSize; at += logSector {
		all = append(all, now(sound, at))
		m.put(at, rubbish(at, 0x12).data...)
	}
	// An older sequence, whole; and one of another log.
	old := newLog(m, 0x80000)
	old.seq = 1
	old.add(rubbish(bat, 0x21), rubbish(writeMetadataOff, 0x22))
	other := newLog(m, 0x90000)
	other.guid[0]++
	other.seq = 1 << 40
	other.add(rubbish(bat, 0x23))

	w := newLog(m, pos)
	w.add(rubbish(bat, 0x31)) // written through already: before the tail
	w.tail = w.pos
	w.add(rubbish(bat, 0x32), rubbish(writeMetadataOff, 0x33), update{at: first, n: 64 * kib}) // undone below
	w.add()                                                                                    // an empty one
	w.add(all...)
	zeroed := first + 20*kib // sectors that are zeros, all at once
	rest := []update{{at: zeroed, n: 16 * kib}, now(sound, zeroed), now(sound, zeroed+3*logSector), {at: zeroed + 4*logSector, n: 0}}
	for i := int64(0); i < 64*kib; i += logSector {
		if at := first + i; i != 0 && i != 12*kib && (at < zeroed || at >= zeroed+16*kib) {
			rest = append(rest, now(sound, at))
		}
	}
	sound.put(zeroed+logSector, make([]byte, 2*logSector)...) // so is the sound image
	w.add(rest...)
	torn := w.entry(rubbish(bat, 0x41), rubbish(writeMetadataOff, 0x42))
	torn[len(torn)-100]++
	w.write(torn)
	return m
}
