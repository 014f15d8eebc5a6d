package ext4

import "sync"

// cache is a bounded map from a number to a value that is never changed once it
// is in. It evicts by the clock algorithm: an entry that was used since the hand
// last passed stays.
type cache[V any] struct {
	shards [cacheShards]cacheShard[V]
}

// cacheShards is a power of two, several times the number of readers expected
// to be at work at once.
const cacheShards = 16

type cacheShard[V any] struct {
	mu   sync.Mutex        // protects what follows
	at   map[uint64]uint32 // key to index in ents
	ents []cacheEntry[V]
	hand uint32
	max  int
}

type cacheEntry[V any] struct {
	key  uint64
	used bool
	val  V
}

// newCache returns a cache of at most max entries (at least one a shard).
func newCache[V any](max int) *cache[V] {
	c := new(cache[V])
	for i := range c.shards {
		s := &c.shards[i]
		s.max = (max + cacheShards - 1) / cacheShards
		s.at = make(map[uint64]uint32)
	}
	return c
}

func (c *cache[V]) shard(key uint64) *cacheShard[V] {
	return &c.shards[key*0x9E3779B97F4A7C15>>60] // the top 4 bits: 16 shards
}

func (c *cache[V]) get(key uint64) (v V, ok bool) {
	s := c.shard(key)
	s.mu.Lock()
	if i, hit := s.at[key]; hit {
		e := &s.ents[i]
		e.used = true
		v, ok = e.val, true
	}
	s.mu.Unlock()
	return v, ok
}

// put stores v and returns what the cache holds for key afterwards: when another
// reader was faster, that reader's value.
func (c *cache[V]) put(key uint64, v V) V {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, hit := s.at[key]; hit {
		return s.ents[i].val
	}
	if len(s.ents) < s.max {
		s.at[key] = uint32(len(s.ents))
		s.ents = append(s.ents, cacheEntry[V]{key: key, val: v})
		return v
	}
	for s.ents[s.hand].used {
		s.ents[s.hand].used = false
		s.hand = (s.hand + 1) % uint32(len(s.ents))
	}
	delete(s.at, s.ents[s.hand].key)
	s.ents[s.hand] = cacheEntry[V]{key: key, val: v}
	s.at[key] = s.hand
	s.hand = (s.hand + 1) % uint32(len(s.ents))
	return v
}
