package ebsfake

import (
	"maps"
	"math/rand/v2"
	"sync"
	"time"
)

// dice decide about faults.
type dice struct {
	mu  sync.Mutex
	rng *rand.Rand
	row map[string]int // faults in a row by path
}

func (d *dice) reset(seed uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rng = rand.New(rand.NewPCG(seed, 0x65627366616b65))
	d.row = map[string]int{}
}

// roll returns the fault for a request, or "".
func (d *dice) roll(f *Faults, path string, block bool) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	x := d.rng.Float64()
	kinds := []struct {
		name   string
		chance float64
	}{
		{faultInternal, f.InternalError}, {faultThrottle, f.Throttle}, {faultReset, f.Reset}, {faultHang, f.Hang}, {faultToken, f.ExpiredToken},
		{faultTruncate, f.Truncate}, {faultChecksum, f.BadChecksum}, {faultData, f.BadData},
	}
	if !block {
		kinds = kinds[:5]
	}
	for _, k := range kinds {
		if x >= k.chance {
			x -= k.chance
			continue
		}
		if f.MaxRow > 0 && d.row[path] >= f.MaxRow {
			break
		}
		d.row[path]++
		if k.name == faultReset && d.rng.IntN(2) == 0 {
			return faultResetLate
		}
		return k.name
	}
	delete(d.row, path)
	return ""
}

// chance is true with probability p.
func (d *dice) chance(p float64) bool {
	if p <= 0 {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.Float64() < p
}

func (d *dice) intN(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rng.IntN(n)
}

// counts are requests and faults by kind.
type counts struct {
	mu sync.Mutex
	n  map[string]int64
}

func (c *counts) add(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int64{}
	}
	c.n[kind]++
}

// Counts returns how often what has happened: requests by action
// ("GetSnapshotBlock", "ListSnapshotBlocks", "ListChangedBlocks",
// "DescribeSnapshots", …), blocks sent whole ("Blocks"), errors by type
// ("Error:ValidationException") and injected faults by name ("Fault:Reset").
func (s *Server) Counts() map[string]int64 {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	return maps.Clone(s.counts.n)
}

// ResetCounts sets all counts to zero.
func (s *Server) ResetCounts() {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	s.counts.n = nil
}

// pacer makes bytes pass at a rate: it books time slots, so that waiting never
// adds up to more than the bytes are worth.
type pacer struct {
	mu   sync.Mutex
	free time.Time
}

// book returns how long to wait before n more bytes may pass at rate bytes/s.
func (p *pacer) book(n int, rate int64) time.Duration {
	if rate <= 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	// What wasn't used is lost but for a few milliseconds, which timers need.
	if p.free.Before(now.Add(-5 * time.Millisecond)) {
		p.free = now.Add(-5 * time.Millisecond)
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return p.free.Sub(now)
}

// bucket is a token bucket.
type bucket struct {
	tokens float64
	last   time.Time
}

func (b *bucket) take(rate float64, now time.Time) bool {
	burst := max(rate/4, 1)
	if b.last.IsZero() {
		b.tokens = burst
	} else {
		b.tokens = min(burst, b.tokens+now.Sub(b.last).Seconds()*rate)
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// limits are the buckets of the request rates, and the bandwidth of all.
type limits struct {
	all pacer

	mu       sync.Mutex
	account  map[string]*bucket
	lists    map[string]*bucket
	snapshot map[string]*bucket
}

func (l *limits) take(which *map[string]*bucket, key string, rate float64) bool {
	if rate <= 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if *which == nil {
		*which = map[string]*bucket{}
	}
	b := (*which)[key]
	if b == nil {
		b = &bucket{}
		(*which)[key] = b
	}
	return b.take(rate, time.Now())
}
