package cache

import (
	"sync"
	"time"

	"yester/cache/store"
)

const (
	// keepTick times keepTicks is for how long a place that Extent has answered
	// isn't evicted: whoever splices from it asks again when the pipe is filled,
	// and from then on only the pipe has to be emptied. Ticks are counted instead
	// of time, so that a process that was stopped has them still before it.
	keepTick  = 500 * time.Millisecond
	keepTicks = 4
	// keepShare is the part of the budget that may be kept so. Beyond it no place
	// is answered, and readers copy.
	keepShare = 4
)

// keeper pins the blocks whose places were answered. The pages that a pipe holds
// are those of the file: a hole punched there zeroes them in the pipe, too.
type keeper struct {
	mu    sync.Mutex // guards what follows
	most  int64      // bytes
	bytes int64
	ticks [keepTicks]map[keptBlock]store.Block // by when they were asked for
	now   int                                  // index in ticks
	timer *time.Timer                          // runs while anything is kept
}

type keptBlock struct {
	o *object
	n int64
}

// keep takes over the pin of a block. It is false, and the pin is given back, when
// too much is kept already.
func (k *keeper) keep(o *object, n int64, b store.Block) bool {
	key := keptBlock{o, n}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.ticks[k.now][key]; ok {
		b.Release()
		return true
	}
	if k.bytes+b.Len > k.most {
		b.Release()
		return false
	}
	if k.ticks[k.now] == nil {
		k.ticks[k.now] = make(map[keptBlock]store.Block)
	}
	k.ticks[k.now][key] = b
	if k.bytes == 0 {
		if k.timer == nil {
			k.timer = time.AfterFunc(keepTick, k.tick)
		} else {
			k.timer.Reset(keepTick)
		}
	}
	k.bytes += b.Len
	return true
}

// tick gives the oldest back.
func (k *keeper) tick() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.now = (k.now + 1) % keepTicks
	for key, b := range k.ticks[k.now] {
		b.Release()
		k.bytes -= b.Len
		delete(k.ticks[k.now], key)
	}
	if k.bytes > 0 {
		k.timer.Reset(keepTick)
	}
}

// drop gives back what is kept of an object that is about to be closed.
func (k *keeper) drop(o *object) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.ticks {
		for key, b := range m {
			if key.o == o {
				b.Release()
				k.bytes -= b.Len
				delete(m, key)
			}
		}
	}
}
