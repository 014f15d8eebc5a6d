package cache

import (
	"cmp"
	"slices"
	"sync/atomic"
)

// counter is the index of a figure in counters.
type counter int

// counters are figures of an object, which add up to those of the process.
type counters struct {
	parent *counters
	values [counterCount]atomic.Int64
}

const (
	cHits counter = iota
	cMisses
	cFetched
	cFetchedBytes
	cFailed
	cEarly
	cEarlyUsed
	cInFlight
	counterCount
)

func (c *counters) add(i counter, n int64) {
	c.values[i].Add(n)
	if c.parent != nil {
		c.parent.values[i].Add(n)
	}
}

// Figures count what has happened since the cache, or the object, was opened.
type Figures struct {
	// Hits are blocks that a read found present, Misses those it had to wait for.
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"`
	// Fetched blocks came from the origin, with FetchedBytes bytes; Failed didn't.
	Fetched      int64 `json:"fetched"`
	FetchedBytes int64 `json:"fetched_bytes"`
	Failed       int64 `json:"failed"`
	// Prefetched blocks were fetched before they were asked for, Used of them have
	// been asked for since.
	Prefetched     int64 `json:"prefetched"`
	PrefetchedUsed int64 `json:"prefetched_used"`
	// InFlight blocks are on their way or wait for their turn.
	InFlight int64 `json:"in_flight"`
}

func (c *counters) figures() Figures {
	v := func(i counter) int64 { return c.values[i].Load() }
	return Figures{
		Hits: v(cHits), Misses: v(cMisses), Fetched: v(cFetched), FetchedBytes: v(cFetchedBytes), Failed: v(cFailed),
		Prefetched: v(cEarly), PrefetchedUsed: v(cEarlyUsed), InFlight: v(cInFlight),
	}
}

// Stats are the figures of a Cache.
type Stats struct {
	Dir      string `json:"dir"`
	InMemory bool   `json:"in_memory"` // nothing is kept on disk
	Figures
	Objects []ObjectStats `json:"objects,omitempty"` // those open, by key
}

// ObjectStats are the figures of an object that is open.
type ObjectStats struct {
	Key       string `json:"key"`
	Size      int64  `json:"size"` // bytes
	BlockSize int64  `json:"block_size"`
	Figures
}

// Stats returns the figures of this process.
func (c *Cache) Stats() Stats {
	s := Stats{Dir: c.dir, InMemory: c.store.InMemory(), Figures: c.total.figures()}
	c.mu.Lock()
	for id, o := range c.objects {
		s.Objects = append(s.Objects, ObjectStats{Key: id.key, Size: id.size, BlockSize: id.blockSize, Figures: o.figures()})
	}
	c.mu.Unlock()
	slices.SortFunc(s.Objects, func(a, b ObjectStats) int { return cmp.Compare(a.Key, b.Key) })
	return s
}
