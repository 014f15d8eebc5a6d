package cache

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"yester/cache/store"
)

// HydrateOptions tune Hydrate.
type HydrateOptions struct {
	// Bandwidth bounds it, in bytes a second; 0: no limit.
	Bandwidth int64
	// Permanent tells from an error of the origin that trying again is of no use:
	// hydration then ends with it. nil: none is.
	Permanent func(error) bool
	// Progress, if not nil, is told how far it is, about once a second and at the
	// end; by one goroutine at a time.
	Progress func(Progress)
}

// Progress says how far hydration is.
type Progress struct {
	// Blocks have been looked at, of which Fetched, with Bytes bytes, had to be
	// fetched; the others were present, or known to be zeros.
	Blocks, Fetched, Bytes int64
	// Total is how many blocks there are, zeros included.
	Total  int64
	Paused bool
}

// ErrBudget means that hydration has stopped because the cache is too small for
// all of the object.
var ErrBudget = errors.New("the cache is too small for all of it")

// pause holds hydration.
type pause struct {
	mu sync.Mutex
	c  chan struct{} // closed when it ends; nil: none
}

// PauseHydration holds the Reader's hydration, or lets it go on.
func (r *Reader) PauseHydration(on bool) {
	p := &r.paused
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case on && p.c == nil:
		p.c = make(chan struct{})
	case !on && p.c != nil:
		close(p.c)
		p.c = nil
	}
}

func (p *pause) channel() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.c
}

// Hydrate fetches every block that isn't known to be zeros and isn't present:
// what was hot in the last looks first, then the rest in order. It returns when
// all is present, ctx has ended, or the cache is full (ErrBudget). What the origin
// otherwise fails to give is tried again for as long as ctx lasts. Called again, also after a
// restart, it goes on where it was.
func (r *Reader) Hydrate(ctx context.Context, opt HydrateOptions) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return ErrClosed
	}
	r.work.Add(1)
	r.mu.Unlock()
	defer r.work.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()

	_, budget, err := r.c.store.Usage()
	if err != nil {
		return fmt.Errorf("hydrate %s: %w", r.o.Key, err)
	}
	if r.c.store.InMemory() {
		budget = store.DefaultMemory
	}
	h := &hydrator{r: r, opt: opt, bytes: bytesBucket{perSecond: opt.Bandwidth}, budget: budget}
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		err := h.pass(ctx)
		switch {
		case ctx.Err() != nil:
			h.report(true)
			if r.ctx.Err() != nil {
				return ErrClosed
			}
			return ctx.Err()
		case err == nil:
			h.report(true)
			return nil
		case errors.Is(err, ErrBudget), opt.Permanent != nil && opt.Permanent(err):
			h.report(true)
			return err
		}
		// The origin is gone, or was for a moment.
		r.c.log.Info("hydration goes on later", "object", r.o.Key, "err", err, "pause", pause)
		sleep(ctx, pause)
	}
}

// hydrator is a hydration under way.
type hydrator struct {
	r      *Reader
	opt    HydrateOptions
	bytes  bytesBucket
	budget int64

	mu       sync.Mutex // guards what follows
	progress Progress
	asked    int64 // bytes of flights begun, less those of failed ones
	told     time.Time
}

// pass goes over all blocks once, up to the first that can't be had.
func (h *hydrator) pass(ctx context.Context) error {
	h.mu.Lock()
	h.progress = Progress{Total: h.r.o.blocks(), Fetched: h.progress.Fetched, Bytes: h.progress.Bytes}
	h.mu.Unlock()
	p := h.r.pump(ctx, hydration)
	p.landed = h.landed
	defer p.wait()
	one := func(n int64) error {
		if err := h.mayGo(ctx); err != nil {
			return err
		}
		if p.failure() != nil {
			return nil // let what is in flight land; the rest comes with the next pass
		}
		begun, ok := p.fetch(n)
		if !ok {
			return ctx.Err()
		}
		if begun {
			h.mu.Lock()
			h.bytes.take(time.Now(), h.r.o.length(n))
			h.asked += h.r.o.length(n)
			h.mu.Unlock()
		}
		return nil
	}
	if k := h.r.look; k != nil && k.seen != nil {
		for _, b := range k.l.base {
			if b.weight >= leastHot && int64(b.n) < h.r.o.blocks() {
				if err := one(int64(b.n)); err != nil {
					return err
				}
			}
		}
	}
	for n, err := range h.r.allocated(ctx) {
		if err == nil {
			err = one(n)
		}
		if err != nil {
			return err
		}
		if p.failure() != nil {
			break
		}
		h.mu.Lock()
		h.progress.Blocks = n
		h.mu.Unlock()
		h.report(false)
	}
	p.wait()
	if p.failure() == nil {
		h.mu.Lock()
		h.progress.Blocks = h.progress.Total
		h.mu.Unlock()
	}
	return p.failure()
}

// mayGo waits while hydration is paused or ahead of its bandwidth.
func (h *hydrator) mayGo(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c := h.r.paused.channel(); c != nil {
			h.mu.Lock()
			h.progress.Paused = true
			h.mu.Unlock()
			h.report(true)
			select {
			case <-c:
			case <-ctx.Done():
			}
			h.mu.Lock()
			h.progress.Paused = false
			h.mu.Unlock()
			continue
		}
		h.mu.Lock()
		got := h.asked
		wait := h.bytes.wait(time.Now())
		h.mu.Unlock()
		if got+h.r.o.BlockSize > h.budget {
			return fmt.Errorf("%s: %d bytes asked for: %w", h.r.o.Key, got, ErrBudget)
		}
		if wait <= 0 {
			return nil
		}
		sleep(ctx, wait)
	}
}

func (h *hydrator) landed(n int64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.asked -= h.r.o.length(n)
		return
	}
	h.progress.Fetched++
	h.progress.Bytes += h.r.o.length(n)
}

func (h *hydrator) report(now bool) {
	if h.opt.Progress == nil {
		return
	}
	h.mu.Lock()
	p := h.progress
	due := now || time.Since(h.told) >= time.Second
	if due {
		h.told = time.Now()
	}
	h.mu.Unlock()
	if due {
		h.opt.Progress(p)
	}
}

// allocated yields the blocks that aren't known to be zeros, in order.
func (r *Reader) allocated(ctx context.Context) iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		for n, end := int64(0), r.o.blocks(); n < end; n++ {
			if err := ctx.Err(); err != nil {
				yield(n, err)
				return
			}
			if r.o.Next != nil {
				next, ok, err := r.o.Next(ctx, n)
				if err != nil {
					yield(n, err)
					return
				}
				if !ok || next >= end {
					return
				}
				n = max(n, next)
			}
			zero, err := r.zero(ctx, n)
			if err == nil && zero {
				continue
			}
			if !yield(n, err) || err != nil {
				return
			}
		}
	}
}

// pump fetches many blocks with a bounded number of them under way.
type pump struct {
	r      *Reader
	ctx    context.Context
	class  priority
	slots  chan struct{}
	landed func(n int64, err error) // may be nil
	going  sync.WaitGroup

	mu  sync.Mutex
	err error
}

// pump returns a pump that keeps the scheduler's queue filled, also while blocks
// that have come wait to be kept, and no more.
func (r *Reader) pump(ctx context.Context, class priority) *pump {
	slots := int64(r.sched.limits.Bulk)*5/4 + maxLanded/r.o.BlockSize
	return &pump{r: r, ctx: ctx, class: class, slots: make(chan struct{}, min(slots, 1024))}
}

// fetch begins the flight of a block if it is needed; it waits while too many are
// under way. ok is false when the context has ended.
func (p *pump) fetch(n int64) (begun, ok bool) {
	select {
	case p.slots <- struct{}{}:
	case <-p.ctx.Done():
		return false, false
	}
	p.going.Add(1)
	begun = p.r.fetchEarly(n, p.class, func(err error) {
		if err != nil && p.ctx.Err() == nil {
			p.mu.Lock()
			if p.err == nil {
				p.err = err
			}
			p.mu.Unlock()
		}
		if p.landed != nil {
			p.landed(n, err)
		}
		<-p.slots
		p.going.Done()
	})
	if !begun {
		<-p.slots
		p.going.Done()
	}
	return begun, true
}

// failure returns the first error of a flight.
func (p *pump) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// wait waits for the flights that were begun, or for the context.
func (p *pump) wait() {
	landed := make(chan struct{})
	go func() { p.going.Wait(); close(landed) }()
	select {
	case <-landed:
	case <-p.ctx.Done():
	}
}
