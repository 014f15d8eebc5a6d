package store

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// claimPoll bounds how often a block that another process fetches is looked for:
// often against a request's 25 ms and more, seldom against the cost of a look.
const claimPoll = 16 * time.Millisecond

// Claim is the right to fetch a block: no other holder of the same cache
// directory has it until Release. It ends with the process.
type Claim struct {
	o      *Object
	n      int64
	done   chan struct{}
	locked bool // in the index file, against other processes
}

// Claim returns when block n is present, with nil, or when the caller has the
// right to fetch it: then it calls Put, if it can, and Release in any case. A
// caller whose ctx ends leaves with its error.
func (o *Object) Claim(ctx context.Context, n int64) (*Claim, error) {
	for {
		c, wait, present := o.claim(n)
		if present {
			return nil, nil
		}
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		for pause := time.Millisecond; ; pause = min(2*pause, claimPoll) {
			present, mine := c.lock()
			switch {
			case present:
				c.Release()
				return nil, nil
			case mine:
				return c, nil
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				c.Release()
				return nil, ctx.Err()
			}
		}
	}
}

// TryClaim is Claim that doesn't wait: nil and false mean that someone else is
// fetching the block.
func (o *Object) TryClaim(n int64) (c *Claim, present bool) {
	c, _, present = o.claim(n)
	if c == nil {
		return nil, present
	}
	present, mine := c.lock()
	if !mine {
		c.Release()
		return nil, present
	}
	return c, false
}

// claim takes the right within this process, or answers what to wait for.
func (o *Object) claim(n int64) (c *Claim, wait chan struct{}, present bool) {
	if b, ok := o.Get(n); ok {
		b.Release()
		return nil, nil, true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if wait := o.claims[n]; wait != nil {
		return nil, wait, false
	}
	c = &Claim{o: o, n: n, done: make(chan struct{})}
	o.claims[n] = c.done
	return c, nil, false
}

// lock takes the right among processes. It looks for the block after that, too:
// who had the right before may have put it.
func (c *Claim) lock() (present, mine bool) {
	if c.o.disk == nil {
		mine = true
	} else {
		ok, err := c.o.disk.index.lock(unix.F_WRLCK, claimBase+c.n, 1)
		c.locked = ok && err == nil
		// Without locks two may fetch the same, which costs money, not truth.
		mine = ok || err != nil
	}
	if b, ok := c.o.Get(c.n); ok {
		b.Release()
		return true, false
	}
	return false, mine
}

// Release ends the claim. It is called once.
func (c *Claim) Release() {
	if c.locked {
		c.o.disk.index.unlock(claimBase+c.n, 1)
	}
	c.o.mu.Lock()
	delete(c.o.claims, c.n)
	c.o.mu.Unlock()
	close(c.done)
}
