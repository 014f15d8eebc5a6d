package ebs

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/bits"
	"slices"
	"sync"

	"yester/internal/ondisk"
)

// page is one answer of a list call.
type page struct {
	blocks []int64  // ascending
	tokens []string // of blocks; nil for a list of changes
	next   string   // NextToken; "" at the end
	expiry int64    // of the tokens, seconds since 1970; 0 when unknown
}

// lister makes one list call: from a block on, or what token continues.
type lister func(ctx context.Context, from int64, token string) (page, error)

// span is the range [from, to) of blocks.
type span struct{ from, to int64 }

// chunkBits are the bits of a chunk: 4 KiB of bitmap, allocated at its first bit.
const (
	chunkBits  = 1 << 15
	chunkWords = chunkBits / 64
)

// rangeMap is a bitmap of blocks, learnt range by range from a list: those
// written in a snapshot, or changed between two. What is known stays true, as
// snapshots don't change. A volume of 16 TiB takes 4 MiB.
type rangeMap struct {
	blocks int64
	list   lister
	learnt func(page) // called for every page, before it counts as known; may be nil

	mu     sync.RWMutex
	chunks []*[chunkWords]uint64
	known  []span // sorted, apart
	news   chan struct{}
	flight map[int64]*flight // listings under way, by region
	dirty  bool              // changed since it was encoded
}

// flight is a listing under way; err is valid once done is closed.
type flight struct {
	done chan struct{}
	err  error
}

func newRangeMap(blocks int64, list lister, learnt func(page)) *rangeMap {
	return &rangeMap{
		blocks: blocks, list: list, learnt: learnt,
		chunks: make([]*[chunkWords]uint64, (blocks+chunkBits-1)/chunkBits),
		news:   make(chan struct{}), flight: map[int64]*flight{},
	}
}

// knownTo returns how far the map is known from n on; n itself when it isn't.
// The lock is held.
func (m *rangeMap) knownTo(n int64) int64 {
	i, found := slices.BinarySearchFunc(m.known, n, func(s span, n int64) int { return int(min(max(s.from-n, -1), 1)) })
	if !found {
		i--
	}
	if i < 0 || m.known[i].to <= n {
		return n
	}
	return m.known[i].to
}

// gap returns the first range from n on that isn't known; ok is false when there
// is none.
func (m *rangeMap) gap(n int64) (s span, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	from := m.knownTo(n)
	if from >= m.blocks {
		return span{}, false
	}
	to := m.blocks
	for _, k := range m.known {
		if k.from > from {
			to = k.from
			break
		}
	}
	return span{from, to}, true
}

// has returns block n's bit, and whether it is known.
func (m *rangeMap) has(n int64) (set, known bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.knownTo(n) == n {
		return false, false
	}
	c := m.chunks[n/chunkBits]
	return c != nil && c[n%chunkBits/64]>>(n%64)&1 == 1, true
}

// knowsRegion reports whether all of a region is known.
func (m *rangeMap) knowsRegion(region int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.knownTo(region*regionBlocks) >= min((region+1)*regionBlocks, m.blocks)
}

// next returns the first set block from n on as far as the map is known: where
// the known part ends when there is none in it.
func (m *rangeMap) next(n int64) (at int64, set bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	end := m.knownTo(n)
	for n < end {
		c := m.chunks[n/chunkBits]
		if c == nil {
			n = (n/chunkBits + 1) * chunkBits
			continue
		}
		w := c[n%chunkBits/64] >> (n % 64)
		if w != 0 {
			if n += int64(bits.TrailingZeros64(w)); n < end {
				return n, true
			}
			break
		}
		n = (n/64 + 1) * 64
	}
	return end, false
}

// count returns how many blocks are set, and whether all of the map is known.
func (m *rangeMap) count() (set int64, whole bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, c := range m.chunks {
		if c != nil {
			for _, w := range c {
				set += int64(bits.OnesCount64(w))
			}
		}
	}
	return set, m.knownTo(0) == m.blocks
}

// learn takes in what a page says of [from, to).
func (m *rangeMap) learn(p page, s span) {
	if m.learnt != nil {
		m.learnt(p)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range p.blocks {
		c := &m.chunks[n/chunkBits]
		if *c == nil {
			*c = new([chunkWords]uint64)
		}
		(*c)[n%chunkBits/64] |= 1 << (n % 64)
	}
	m.add(s)
	m.dirty = true
	close(m.news)
	m.news = make(chan struct{})
}

// add joins s to the known spans. The lock is held.
func (m *rangeMap) add(s span) {
	if s.from >= s.to {
		return
	}
	i := 0
	for i < len(m.known) && m.known[i].to < s.from {
		i++
	}
	j := i
	for j < len(m.known) && m.known[j].from <= s.to {
		s.from, s.to = min(s.from, m.known[j].from), max(s.to, m.known[j].to)
		j++
	}
	m.known = slices.Replace(m.known, i, j, s)
}

// run lists from the start of s until all of s is known. wait is called before
// each page, and may delay it.
func (m *rangeMap) run(ctx context.Context, s span, wait func(context.Context) error) error {
	at, token, empty := s.from, "", 0
	for {
		if err := wait(ctx); err != nil {
			return err
		}
		p, err := m.list(ctx, at, token)
		if err != nil {
			// An hour has passed since the token was given out: begin again from here.
			if empty++; token != "" && errors.Is(err, errBadPage) && empty <= maxEmptyPages {
				token = ""
				continue
			}
			return err
		}
		last := at - 1
		for _, n := range p.blocks {
			if n <= last || n >= m.blocks {
				return ondisk.Corruptf("ebs", "block list", -1, "block %d after %d of %d: out of order or past the end", n, last, m.blocks)
			}
			last = n
		}
		end := last + 1
		if p.next == "" {
			end = m.blocks
		}
		m.learn(p, span{at, end})
		if empty++; end > at {
			empty = 0
		}
		if empty > maxEmptyPages {
			return ondisk.Corruptf("ebs", "block list", -1, "%d empty pages in a row", empty)
		}
		at, token = end, p.next
		m.mu.RLock()
		reached := m.knownTo(at)
		m.mu.RUnlock()
		if reached >= s.to {
			return nil
		}
		if token == "" {
			return ondisk.Corruptf("ebs", "block list", -1, "ends at block %d", at)
		}
	}
}

// ensure waits until block n is known (all of its region when whole), listing its
// region where nobody does. start runs a listing in the background.
func (m *rangeMap) ensure(ctx context.Context, n int64, whole bool, start func(func(context.Context))) error {
	region := n / regionBlocks
	for {
		m.mu.Lock()
		from := region * regionBlocks
		to := min(from+regionBlocks, m.blocks)
		from = m.knownTo(from)
		if whole && from >= to || !whole && m.knownTo(n) > n {
			m.mu.Unlock()
			return nil
		}
		f := m.flight[region]
		if f == nil {
			f = &flight{done: make(chan struct{})}
			m.flight[region] = f
			start(func(ctx context.Context) {
				f.err = m.fill(ctx, span{from, to})
				m.mu.Lock()
				delete(m.flight, region)
				m.mu.Unlock()
				close(f.done)
			})
		}
		news := m.news
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		case <-f.done:
			if _, known := m.has(n); f.err != nil && (whole || !known) {
				return f.err
			}
		}
	}
}

// fill lists what isn't known of s.
func (m *rangeMap) fill(ctx context.Context, s span) error {
	for {
		g, ok := m.gap(s.from)
		if !ok || g.from >= s.to {
			return nil
		}
		g.to = min(g.to, s.to)
		if err := m.run(ctx, g, func(ctx context.Context) error { return ctx.Err() }); err != nil {
			return err
		}
	}
}

// The encoding of a rangeMap in a blob: magic, blocks, spans, then the lengths of
// the runs of clear and set blocks within each span, all uvarints, and a CRC32C.
const mapMagic = "EBM1"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns what is known, and false when nothing is new since the last time.
func (m *rangeMap) encode() ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirty {
		return nil, false
	}
	m.dirty = false
	b := []byte(mapMagic)
	b = binary.AppendUvarint(b, uint64(m.blocks))
	b = binary.AppendUvarint(b, uint64(len(m.known)))
	for _, s := range m.known {
		b = binary.AppendUvarint(b, uint64(s.from))
		b = binary.AppendUvarint(b, uint64(s.to-s.from))
		set := false
		for n := s.from; n < s.to; set = !set {
			end := m.runEnd(n, s.to, set)
			b = binary.AppendUvarint(b, uint64(end-n))
			n = end
		}
	}
	return sealBlob(b), true
}

// runEnd returns where the run of bits like set that begins at n ends, at most
// to. The lock is held.
func (m *rangeMap) runEnd(n, to int64, set bool) int64 {
	for n < to {
		var w uint64
		if c := m.chunks[n/chunkBits]; c != nil {
			w = c[n%chunkBits/64]
		} else if !set {
			n = (n/chunkBits + 1) * chunkBits
			continue
		}
		if set {
			w = ^w
		}
		if w >>= n % 64; w != 0 {
			return min(n+int64(bits.TrailingZeros64(w)), to)
		}
		n = (n/64 + 1) * 64
	}
	return to
}

var errBlob = errors.New("damaged blob")

// sealBlob appends the checksum that checkBlob looks for.
func sealBlob(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// checkBlob returns what lies between a blob's magic and its checksum.
func checkBlob(p []byte, magic string) ([]byte, error) {
	if len(p) < len(magic)+4 || string(p[:len(magic)]) != magic {
		return nil, errBlob
	}
	body := p[:len(p)-4]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(p[len(p)-4:]) {
		return nil, errBlob
	}
	return body[len(magic):], nil
}

// decode takes in what encode wrote; an error leaves m as it was.
func (m *rangeMap) decode(p []byte) error {
	p, err := checkBlob(p, mapMagic)
	if err != nil {
		return err
	}
	uvarint := func() int64 {
		v, n := binary.Uvarint(p)
		if n <= 0 || v > uint64(m.blocks) {
			err, p = errBlob, nil
			return 0
		}
		p = p[n:]
		return int64(v)
	}
	if uvarint() != m.blocks {
		return errBlob
	}
	spans := uvarint()
	d := newRangeMap(m.blocks, nil, nil)
	for ; spans > 0 && err == nil; spans-- {
		from := uvarint()
		s := span{from, from + uvarint()}
		if s.to > m.blocks || s.from >= s.to {
			return errBlob
		}
		set := false
		for n := s.from; n < s.to && err == nil; set = !set {
			end := n + uvarint()
			if end > s.to || end == n && n > s.from {
				return errBlob
			}
			if set {
				d.fillBits(n, end)
			}
			n = end
		}
		d.add(s)
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chunks, m.known = d.chunks, d.known
	return nil
}

func (m *rangeMap) fillBits(n, end int64) {
	for n < end {
		c := &m.chunks[n/chunkBits]
		if *c == nil {
			*c = new([chunkWords]uint64)
		}
		stop := min(end, (n/64+1)*64)
		mask := ^uint64(0) << (n % 64)
		if rest := stop % 64; rest != 0 {
			mask &= 1<<rest - 1
		}
		(*c)[n%chunkBits/64] |= mask
		n = stop
	}
}
