package cache

import "time"

const (
	// firstWindow is how many background requests are in flight before anything
	// is known of the origin.
	firstWindow = 16
	// leastWindow keeps a slow origin's pipe from running dry between two requests.
	leastWindow = 2
	// epochLeast is how many requests are measured at one size of the window.
	epochLeast = 16
	// settled is how many epochs pass between two tries of another size.
	settled = 16
	// looks is how many epochs a size is given to show what it brings, the best of
	// which counts: a disk that is synced, a busy processor and new connections make
	// some of them slow, at any size.
	looks = 4
	// reserve is how much larger the window is than what brings the throughput when
	// nothing falls behind: a pipe that is just full runs dry with every delay.
	reserve = 1.3
	// smaller is the size that is tried for whether a smaller one brings no less, and
	// shrunk the one that is then taken, which has the reserve left.
	smaller = 0.7
	shrunk  = 0.85
)

// window finds how many background requests in flight an origin takes before more
// of them only wait for each other. More would not be faster, and whoever comes
// with a request that matters would wait behind them.
//
// It compares throughput: as long as a larger window brings more bytes a second,
// at least half as much more as it is larger, it grows; and it is shrunk where a
// smaller one brings no less. Times alone wouldn't do: those of real origins vary
// by an order of magnitude with nothing in the way.
type window struct {
	size float64
	most float64

	began time.Time // of the epoch; zero: not begun
	warm  bool      // what was in flight at the last change has ended
	bytes int64
	n     int
	// best is what the present size has brought at its best, bytes a second, in so
	// many epochs.
	best float64
	seen int
	// prev is the size that the one being tried is compared with, and rate what it
	// brought, bytes a second; 0: nothing is being tried.
	prev, rate float64
	hold       int // epochs left before another size is tried
	down       bool
	fast       bool // has met its limit once
}

// now returns how many requests may be in flight.
func (w *window) now() int { return max(int(w.size+0.5), leastWindow) }

// idle says that the origin isn't asked for all that it could give, so that what
// is being measured says nothing about it.
func (w *window) idle() { w.began, w.warm = time.Time{}, false }

// done counts a request that has ended well.
func (w *window) done(now time.Time, size int64) {
	if w.began.IsZero() {
		w.began, w.bytes, w.n = now, 0, 0
		return
	}
	w.bytes += size
	w.n++
	if !w.warm {
		// What was in flight when the size changed went at another pace.
		if w.n >= w.now() {
			w.warm, w.began, w.bytes, w.n = true, now, 0, 0
		}
		return
	}
	if w.n < max(epochLeast, 2*w.now()) {
		return
	}
	rate := float64(w.bytes) / max(now.Sub(w.began), time.Microsecond).Seconds()
	was := w.now()
	w.judge(rate)
	w.warm, w.began, w.bytes, w.n = w.now() == was, now, 0, 0
}

// judge takes the throughput at the current size and chooses the next.
func (w *window) judge(rate float64) {
	w.best, w.seen = max(w.best, rate), w.seen+1
	if w.rate == 0 {
		switch {
		case w.hold > 0:
			w.hold--
			w.best, w.seen = 0, 0
			return
		case w.fast && w.seen < looks:
			return
		}
		w.prev, w.rate = w.size, w.best
		switch {
		case !w.fast:
			w.try(2)
		case w.down:
			w.try(smaller)
		default:
			w.try(1.2)
		}
		if w.size == w.prev {
			w.settle()
		}
		return
	}
	step := (w.size - w.prev) / w.prev
	gain := (w.best - w.rate) / w.rate
	switch {
	case step > 0 && gain >= step/2: // it pays: stay, and try further
		w.rate, w.best, w.seen = 0, 0, 0
	case step < 0 && gain >= step/4: // it costs nothing
		w.size = max(w.prev*shrunk, leastWindow)
		w.rate, w.best, w.seen = 0, 0, 0
	case w.seen < looks:
	case step > 0:
		// Where the throughput would have stopped to grow, had it grown evenly.
		end := w.prev * (1 + max(gain, 0))
		if !w.fast {
			end *= reserve
		}
		w.size = min(end, w.size)
		w.settle()
	default:
		w.size = w.prev
		w.settle()
	}
}

// try goes to another size.
func (w *window) try(factor float64) {
	w.size = min(max(w.size*factor, leastWindow), w.most)
	w.best, w.seen = 0, 0
}

// settle stays where it is for a while, and then tries the other direction.
func (w *window) settle() {
	w.rate, w.best, w.seen, w.hold, w.fast, w.down = 0, 0, 0, settled, true, !w.down
}
