package cache

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Limits bound what is asked of one origin.
type Limits struct {
	// Interactive is how many requests that somebody waits for are in flight at
	// most, Bulk how many others; 0: 16 and 64.
	Interactive, Bulk int
	// PerSecond is how many requests are started a second, at most; 0: no limit
	// until the origin says that it is too much.
	PerSecond float64
	// Bandwidth bounds what is fetched before it is asked for, in bytes a second;
	// 0: no limit.
	Bandwidth int64
}

// priority is the class of a request. A class is served when none above it has
// anything to do.
type priority uint8

const (
	foreground priority = iota // somebody waits
	ahead                      // somebody is about to ask, by what he has read
	hot                        // was asked for by the last looks
	hydration                  // the rest
	classes
)

const (
	// activeFor is how long after a foreground request hydration holds back: the
	// next one follows, when a program walks a tree.
	activeFor = 250 * time.Millisecond
	// trickle is how often hydration may start a request all the same.
	trickle = time.Second
	// patience is how long a request is tried again while the origin throttles.
	patience = 60 * time.Second
	// maxBuffers bounds the bytes of background requests in flight and of all that
	// has come and isn't kept yet: their buffers are memory.
	maxBuffers = 128 << 20
	// maxLanded is from how many bytes on that have come and aren't kept yet nothing
	// more is begun: what an origin of 500 MiB/s sends while a disk syncs.
	maxLanded = 32 << 20
)

// Scheduler decides which of the requests to one origin is sent next, and how
// many are under way. Readers of all objects of that origin share one. The zero
// value is of no use; NewScheduler makes one. It is safe for parallel use.
type Scheduler struct {
	throttled func(error) bool
	limits    Limits

	mu       sync.Mutex // guards what follows
	queues   [classes]queue
	running  [classes]int
	buffers  int64 // bytes of background requests in flight
	landed   int64 // bytes of requests that have run, and whose end goes on
	rate     rate
	window   window
	bytes    bytesBucket
	lastFore time.Time // when a foreground request was last queued or in flight
	lastHyd  time.Time // when hydration last started one
	timer    *time.Timer
	wake     time.Time // when timer fires; zero: not set
}

// NewScheduler returns a Scheduler. throttled tells from a Fetch's error that the
// origin wants to be asked less often; nil: none does. Such a request is tried
// again, later and in its turn, for up to a minute.
func NewScheduler(limits Limits, throttled func(error) bool) *Scheduler {
	if limits.Interactive <= 0 {
		limits.Interactive = 16
	}
	if limits.Bulk <= 0 {
		limits.Bulk = 64
	}
	if throttled == nil {
		throttled = func(error) bool { return false }
	}
	return &Scheduler{
		throttled: throttled, limits: limits,
		rate:   rate{limit: limits.PerSecond},
		window: window{size: float64(min(firstWindow, limits.Bulk)), most: float64(limits.Bulk)},
		bytes:  bytesBucket{perSecond: limits.Bandwidth},
	}
}

// Throttled tells the scheduler that the origin has asked for less, where Fetch
// tries again by itself and so returns no error.
func (s *Scheduler) Throttled() {
	s.mu.Lock()
	s.rate.throttle(time.Now())
	s.mu.Unlock()
}

// request is a fetch that waits for its turn, or is under way.
type request struct {
	class priority
	size  int64 // bytes
	owner any   // who can drop it while it waits
	// run does it; end is told how it ended, unless it is to be tried again, and may
	// take its time: to the origin the request is over before. Neither is called
	// with a lock held. ctx ends the trying.
	ctx context.Context
	run func() error
	end func(error)

	// Guarded by Scheduler.mu.
	queued     bool
	began      time.Time // first start
	as         priority  // the class it was started in, which it may since have left
	prev, next *request
}

// queue is a list of requests in the order of their turns.
type queue struct {
	first, last *request
	n           int
}

func (q *queue) push(r *request) {
	r.prev, r.next, r.queued = q.last, nil, true
	if q.last != nil {
		q.last.next = r
	} else {
		q.first = r
	}
	q.last = r
	q.n++
}

// back puts a request first that was tried already.
func (q *queue) back(r *request) {
	r.prev, r.next, r.queued = nil, q.first, true
	if q.first != nil {
		q.first.prev = r
	} else {
		q.last = r
	}
	q.first = r
	q.n++
}

func (q *queue) remove(r *request) {
	if r.prev != nil {
		r.prev.next = r.next
	} else {
		q.first = r.next
	}
	if r.next != nil {
		r.next.prev = r.prev
	} else {
		q.last = r.prev
	}
	r.prev, r.next, r.queued = nil, nil, false
	q.n--
}

// submit queues r.
func (s *Scheduler) submit(r *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queues[r.class].push(r)
	s.dispatch(time.Now(), false)
}

// promote moves a request that still waits to a higher class.
func (s *Scheduler) promote(r *request, class priority) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if class >= r.class || !r.queued {
		return
	}
	s.queues[r.class].remove(r)
	r.class = class
	s.queues[class].push(r)
	s.dispatch(time.Now(), false)
}

// drop takes out what an owner has waiting, and tells each how it ended.
func (s *Scheduler) drop(owner any, err error) {
	var dropped []*request
	s.mu.Lock()
	for c := range s.queues {
		for r := s.queues[c].first; r != nil; {
			next := r.next
			if r.owner == owner {
				s.queues[c].remove(r)
				dropped = append(dropped, r)
			}
			r = next
		}
	}
	s.mu.Unlock()
	for _, r := range dropped {
		r.end(err)
	}
}

// dispatch starts what may start now. s.mu is held. A caller that goes on with a
// request itself takes the first of them, and starts no goroutine for it.
func (s *Scheduler) dispatch(now time.Time, takes bool) (mine *request) {
	if s.queues[foreground].n+s.running[foreground] > 0 {
		s.lastFore = now
	}
	for {
		r, wait := s.choose(now)
		if r == nil {
			s.wakeIn(now, wait)
			return mine
		}
		if wait := s.rate.take(now); wait > 0 {
			s.window.idle()
			s.wakeIn(now, wait)
			return mine
		}
		s.queues[r.class].remove(r)
		s.running[r.class]++
		if r.class != foreground {
			s.buffers += r.size
			s.bytes.take(now, r.size)
		}
		if r.class == hydration {
			s.lastHyd = now
		}
		if r.began.IsZero() {
			r.began = now
		}
		r.as = r.class
		if takes && mine == nil {
			mine = r
			continue
		}
		go s.perform(r)
	}
}

// choose returns the request whose turn it is; when none may start now but one
// may later without anything else happening, how long that takes.
func (s *Scheduler) choose(now time.Time) (*request, time.Duration) {
	if s.landed > maxLanded {
		return nil, 0 // what has come can't be kept as fast; the end of one comes here again
	}
	if r := s.queues[foreground].first; r != nil && s.running[foreground] < s.limits.Interactive {
		return r, 0
	}
	background := s.running[ahead] + s.running[hot] + s.running[hydration]
	var r *request
	for c := ahead; c < classes && r == nil; c++ {
		r = s.queues[c].first
	}
	if r == nil {
		s.window.idle()
		return nil, 0
	}
	if background >= s.window.now() || s.buffers+s.landed > 0 && s.buffers+s.landed+r.size > maxBuffers {
		return nil, 0 // the end of another request comes here again
	}
	if wait := s.bytes.wait(now); wait > 0 {
		s.window.idle()
		return nil, wait
	}
	if r.class == hydration {
		// Somebody is at work: an eighth of what the origin bears goes on, which he
		// doesn't feel; nothing at all where that is less than a request.
		if quiet := s.lastFore.Add(activeFor).Sub(now); quiet > 0 && s.running[hydration] >= s.window.now()/8 {
			s.window.idle()
			again := s.lastHyd.Add(trickle).Sub(now)
			if s.running[hydration] > 0 || again > 0 {
				return nil, max(time.Millisecond, min(quiet, max(again, 0)+time.Millisecond))
			}
		}
	}
	return r, 0
}

// wakeIn makes dispatch run again after d, unless it does sooner; 0: not.
func (s *Scheduler) wakeIn(now time.Time, d time.Duration) {
	if d <= 0 {
		return
	}
	at := now.Add(d)
	if !s.wake.IsZero() && !at.Before(s.wake) {
		return
	}
	s.wake = at
	if s.timer == nil {
		s.timer = time.AfterFunc(d, s.awake)
		return
	}
	s.timer.Reset(d)
}

func (s *Scheduler) awake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake = time.Time{}
	s.dispatch(time.Now(), false)
}

// perform runs a request that was started, and then others that may start when it
// has run: a goroutine that has run one has the stack for the next.
func (s *Scheduler) perform(r *request) {
	for r != nil {
		err := r.run()
		now := time.Now()
		slow := err != nil && r.ctx.Err() == nil && s.throttled(err)
		s.mu.Lock()
		s.running[r.as]--
		if r.as != foreground {
			s.buffers -= r.size
		}
		switch {
		case slow:
			s.rate.throttle(now)
		case err == nil:
			s.rate.success(now)
			s.window.done(now, r.size)
		}
		again := slow && now.Sub(r.began) < patience
		if again {
			s.queues[r.class].back(r)
		} else {
			s.landed += r.size
		}
		if r.as == foreground {
			s.lastFore = now
		}
		next := s.dispatch(now, true)
		s.mu.Unlock()
		switch {
		case again:
		case next == nil:
			s.finish(r, err)
		default:
			go s.finish(r, err)
		}
		r = next
	}
}

// finish ends a request that has run.
func (s *Scheduler) finish(r *request, err error) {
	size := r.size
	r.end(err)
	s.mu.Lock()
	s.landed -= size
	s.dispatch(time.Now(), false)
	s.mu.Unlock()
}

// errDropped is the end of a request whose reader was closed.
var errDropped = errors.New("the reader was closed")
