package cache

import (
	"math"
	"time"
)

// rate is a token bucket that learns what an origin allows: it halves when the
// origin throttles, comes back at once to just below what was seen to get
// through, stays there for a while and then asks for more and more.
type rate struct {
	limit float64 // requests a second that are never exceeded; 0: none

	tokens  float64
	last    time.Time // of the last refill
	ceiling float64   // what got through when the origin last throttled; 0: never
	cut     time.Time // when that was

	// How many succeeded, in slots of a tenth of a second: the last second and the
	// slot under way.
	slots [11]int
	slot  int64     // number of the current slot
	since time.Time // of the first success
}

const (
	slotTime = 100 * time.Millisecond
	// throughTime is how long a rate must be seen to mean something.
	throughTime = 300 * time.Millisecond
	// burst is how long tokens gather while nothing is asked.
	burst = 50 * time.Millisecond
	// cutPause is how long a cut takes to show: more throttling meanwhile is about
	// requests that were sent before.
	cutPause = 250 * time.Millisecond
	// recovery is how long the way back from half takes.
	recovery = 300 * time.Millisecond
	// below is how far under the ceiling it then stays, and holdFor how long.
	below   = 0.97
	holdFor = 3 * time.Second
	// probing is how the ceiling is then tried: by this share of it times the
	// square of the seconds.
	probing = 0.004
	// floor is the lowest ceiling, requests a second, and guess what is taken for
	// it before a second has been seen.
	floor = 4
	guess = 200
)

// allowed returns the rate at now, requests a second.
func (b *rate) allowed(now time.Time) float64 {
	top := b.limit
	if top <= 0 {
		top = math.Inf(1)
	}
	if b.ceiling == 0 {
		return top
	}
	t := now.Sub(b.cut)
	r := b.ceiling * below
	switch {
	case t < recovery:
		r = b.ceiling * (0.5 + (below-0.5)*float64(t)/float64(recovery))
	case t > holdFor:
		over := (t - holdFor).Seconds()
		r += b.ceiling * probing * over * over
	}
	return min(r, top)
}

// take takes a token, or says how long until there is one.
func (b *rate) take(now time.Time) time.Duration {
	r := b.allowed(now)
	if math.IsInf(r, 1) {
		return 0
	}
	most := max(1, r*burst.Seconds())
	if b.last.IsZero() {
		b.tokens = most
	} else {
		b.tokens = min(most, b.tokens+r*now.Sub(b.last).Seconds())
	}
	b.last = now
	// A timer's rounding must not make one wait for the billionth part of a token.
	const enough = 1 - 1e-6
	if b.tokens >= enough {
		b.tokens--
		return 0
	}
	return time.Duration((1 - b.tokens) / r * float64(time.Second))
}

// success counts a request that got through.
func (b *rate) success(now time.Time) {
	b.turn(now)
	if b.since.IsZero() {
		b.since = now
	}
	b.slots[b.slot%int64(len(b.slots))]++
}

// turn clears the slots that have passed since the last call.
func (b *rate) turn(now time.Time) {
	slot := now.UnixNano() / int64(slotTime)
	for i := max(b.slot+1, slot-int64(len(b.slots))+1); i <= slot; i++ {
		b.slots[i%int64(len(b.slots))] = 0
	}
	b.slot = max(b.slot, slot)
}

// through returns how many requests a second got through, at the best of the last
// second: for as much of it as nothing was asked, what got through says nothing of
// the origin.
func (b *rate) through(now time.Time) float64 {
	if b.since.IsZero() {
		return 0
	}
	b.turn(now)
	n, best := 0, 0.0
	span := time.Duration(now.UnixNano() % int64(slotTime)) // of the current slot
	for i := range int64(len(b.slots)) {
		n += b.slots[(b.slot-i+int64(len(b.slots)))%int64(len(b.slots))]
		if known := min(span, now.Sub(b.since)); known >= throughTime || i == int64(len(b.slots))-1 {
			best = max(best, float64(n)/max(slotTime, known).Seconds())
		}
		span += slotTime
	}
	return best
}

// throttle takes notice of an answer that says: too much.
func (b *rate) throttle(now time.Time) {
	if b.ceiling > 0 && now.Sub(b.cut) < cutPause {
		return
	}
	got := max(b.through(now), floor)
	if b.since.IsZero() || now.Sub(b.since) < time.Second {
		got = max(got, guess)
	}
	if was := b.allowed(now); got > was {
		got = was // some were sent before the last cut
	}
	b.ceiling, b.cut, b.tokens, b.last = got, now, 0, now
}

// bytesBucket holds a stream of bytes to a rate.
type bytesBucket struct {
	perSecond int64 // 0: no limit
	free      time.Time
}

// wait returns how long until the next bytes may flow.
func (b *bytesBucket) wait(now time.Time) time.Duration {
	if b.perSecond <= 0 {
		return 0
	}
	return b.free.Sub(now)
}

// take lets n bytes flow.
func (b *bytesBucket) take(now time.Time, n int64) {
	if b.perSecond <= 0 {
		return
	}
	if b.free.Before(now) {
		b.free = now
	}
	b.free = b.free.Add(time.Duration(float64(n) / float64(b.perSecond) * float64(time.Second)))
}
