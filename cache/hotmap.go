package cache

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"time"
)

// A hot map's record is our own: magic, then as varints the block size and the
// number of entries, then for each, in the order in which they were used, the
// difference of its number to the one before (zigzag), that of its time in
// milliseconds, and one byte of weight in units of 1/weightUnit; then the CRC-32C
// of all before. It only says what to fetch first: a wrong one costs requests,
// never wrong bytes.
const (
	hotMagic   = "YHOT\x01"
	weightUnit = 60
	// maxHot is the longest record in bytes: more than maxTouched entries take.
	maxHot = 1 << 20
	// maxHotTime is the latest time of use that is told apart.
	maxHotTime = 24 * time.Hour
)

// hotBlock is a block that former looks have used.
type hotBlock struct {
	n      uint32
	at     time.Duration // when in a look, on average
	weight float64       // about how many of the last looks have used it
}

const (
	// decay is how much a look that uses as many blocks as are in the map takes of
	// the weight of those that it doesn't use; a small one takes less.
	decay = 0.3
	// leastHot is the weight below which a block isn't prefetched: the last three
	// looks of that size passed it over.
	leastHot = 0.35
	// leastKept is the weight below which it is forgotten.
	leastKept = 0.1
	// mostWeight bounds the weight, so that what has become cold is given up.
	mostWeight = 4
)

// mergeHot puts a look into a map.
func mergeHot(base []hotBlock, touched []touchedBlock) []hotBlock {
	if len(touched) == 0 {
		return base
	}
	all := make(map[uint32]hotBlock, len(base)+len(touched))
	share := min(1, float64(len(touched))/float64(max(1, len(base))))
	for _, h := range base {
		h.weight *= 1 - decay*share
		all[h.n] = h
	}
	for _, t := range touched {
		h, ok := all[t.n]
		if ok {
			h.at = time.Duration((float64(h.at)*h.weight + float64(t.at)) / (h.weight + 1))
		} else {
			h = hotBlock{n: t.n, at: t.at}
		}
		h.weight = min(h.weight+1, mostWeight)
		all[t.n] = h
	}
	merged := make([]hotBlock, 0, len(all))
	for _, h := range all {
		if h.weight >= leastKept {
			merged = append(merged, h)
		}
	}
	if len(merged) > maxTouched {
		slices.SortFunc(merged, func(a, b hotBlock) int {
			return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.at, b.at), cmp.Compare(a.n, b.n))
		})
		merged = merged[:maxTouched]
	}
	sortHot(merged)
	return merged
}

// sortHot puts them into the order of their use.
func sortHot(list []hotBlock) {
	slices.SortFunc(list, func(a, b hotBlock) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.n, b.n)) })
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeHot(list []hotBlock, blockSize int64) []byte {
	b := append([]byte(nil), hotMagic...)
	b = binary.AppendUvarint(b, uint64(blockSize))
	b = binary.AppendUvarint(b, uint64(len(list)))
	var n int64
	var at time.Duration
	for _, h := range list {
		t := min(h.at, maxHotTime).Truncate(time.Millisecond)
		b = binary.AppendVarint(b, int64(h.n)-n)
		b = binary.AppendUvarint(b, uint64(max(0, (t-at)/time.Millisecond)))
		b = append(b, byte(min(255, max(1, h.weight*weightUnit))))
		n, at = int64(h.n), max(at, t)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parseHot returns the map that a record holds; nothing when it isn't a whole
// one, or one of blocks of another size.
func parseHot(b []byte, blockSize int64) []hotBlock {
	if len(b) < len(hotMagic)+4 || len(b) > maxHot || string(b[:len(hotMagic)]) != hotMagic {
		return nil
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil
	}
	body = body[len(hotMagic):]
	ok := true
	uvarint := func() uint64 {
		v, n := binary.Uvarint(body)
		if n <= 0 {
			ok = false
			return 0
		}
		body = body[n:]
		return v
	}
	size, count := uvarint(), uvarint()
	if !ok || size != uint64(blockSize) || count > maxTouched {
		return nil
	}
	list := make([]hotBlock, 0, count)
	var n int64
	var at time.Duration
	for range count {
		d, k := binary.Varint(body)
		if k <= 0 {
			return nil
		}
		body = body[k:]
		ms := uvarint()
		if !ok || len(body) == 0 || d < -1<<32 || d > 1<<32 || ms > uint64(maxHotTime/time.Millisecond) {
			return nil
		}
		n += d
		at += time.Duration(ms) * time.Millisecond
		if n < 0 || n >= 1<<32 || at > maxHotTime {
			return nil
		}
		list = append(list, hotBlock{n: uint32(n), at: at, weight: float64(body[0]) / weightUnit})
		body = body[1:]
	}
	return list
}
