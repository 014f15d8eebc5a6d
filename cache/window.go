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
	// prev is the size that the one being tried is compared with, and rate what it
	// brought, bytes a second; 0: nothing is being tried.
	prev, rate float64
	// poor is what a larger size brought when it was measured first, which is done
	// twice before it is given up: its new connections are slow at the beginning.
	poor float64
	hold int // epochs left before another size is tried
	down bool
	fast bool // has met its limit once
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
	if w.rate == 0 {
		if w.hold > 0 {
			w.hold--
			return
		}
		w.prev, w.rate = w.size, rate
		switch {
		case !w.fast:
			w.size *= 2
		case w.down:
			w.size *= 0.85
		default:
			w.size *= 1.2
		}
		w.size = min(max(w.size, leastWindow), w.most)
		if w.size == w.prev {
			w.settle()
		}
		return
	}
	step := (w.size - w.prev) / w.prev
	gain := (max(rate, w.poor) - w.rate) / w.rate
	if step > 0 && gain < step/2 && w.poor == 0 {
		w.poor = rate
		return
	}
	w.poor = 0
	switch {
	case step > 0 && gain >= step/2, step < 0 && gain >= step/4:
		w.rate = 0 // it pays, or it costs nothing: stay, and try further
	case step > 0:
		// Where the throughput would have stopped to grow, had it grown evenly.
		w.size = min(w.prev*(1+max(gain, 0))*1.05, w.size)
		w.settle()
	default:
		w.size = w.prev
		w.settle()
	}
}

// settle stays where it is for a while, and then tries the other direction.
func (w *window) settle() {
	w.rate, w.hold, w.fast, w.down = 0, settled, true, !w.down
}
