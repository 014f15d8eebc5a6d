package ebs

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"yester/internal/ondisk"
)

// Delays between attempts.
const (
	maxDelay       = 5 * time.Second
	throttleFactor = 2.5 // throttling passes more slowly than a lost connection
	// attemptCap ends an attempt that trickles: 512 KiB in two minutes are 4 KiB/s.
	attemptCap = 2 * time.Minute
	// listPatience: a list of a MiB comes as a whole, and nothing tells how it gets on.
	listPatience = 3
)

// request is one request of the EBS direct APIs with its retries.
type request struct {
	snapshot string
	op       string // IAM action
	block    bool   // GetSnapshotBlock, not a list
	meters   []*meter
	// do makes one attempt. It calls alive whenever there is progress, and answered
	// once AWS has sent a success that it charges.
	do func(ctx context.Context, alive, answered func()) error
	// renew, when not nil, is called for an error of the kind badToken; when it
	// returns nil, the next attempt follows at once.
	renew func(ctx context.Context) error
}

// errBadPage: a list's page token has expired, or never was one.
var errBadPage = errors.New("ebs: INVALID_PAGE_TOKEN")

// send makes attempts until one succeeds, none can, or there were enough.
func (c *Client) send(ctx context.Context, r request) error {
	price := c.budget.list
	if r.block {
		price = c.budget.block
	}
	began := time.Now()
	renewed := false
	var err error
	var last verdict
	for attempt := 0; ; attempt++ {
		if !c.budget.take(price) {
			return c.maxCostError(r.snapshot)
		}
		var charged bool
		charged, err = c.attempt(ctx, r)
		if !charged {
			c.budget.giveBack(price)
		}
		if err == nil {
			r.count(func(m *meter) {
				if r.block {
					m.blocks.Add(1)
				} else {
					m.lists.Add(1)
				}
			})
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		last = judge(err)
		r.count(func(m *meter) {
			if r.block {
				m.retriedBlocks.Add(1)
				if charged {
					m.discarded.Add(1)
				}
			} else {
				m.retriedLists.Add(1)
			}
		})
		if last == throttled && c.cfg.Throttled != nil {
			c.cfg.Throttled(r.snapshot)
		}
		if last == badPage {
			return errBadPage
		}
		if last == fatal || last == badToken && r.renew == nil {
			break
		}
		if attempt+1 >= c.cfg.Attempts || time.Since(began) > c.cfg.GiveUp {
			break
		}
		if last == badToken {
			if e := r.renew(ctx); e != nil {
				return e
			}
			if !renewed { // tokens do expire: no reason to wait, nor to talk about it
				renewed = true
				continue
			}
		}
		c.log.Debug("ebs: attempt failed", "snapshot", r.snapshot, "op", r.op, "attempt", attempt+1, "err", cause(err))
		if e := sleep(ctx, c.delay(attempt, last)); e != nil {
			return e
		}
	}
	return c.explain(ctx, r.snapshot, r.op, last, err)
}

func (r *request) count(f func(*meter)) {
	for _, m := range r.meters {
		f(m)
	}
}

// attempt makes one attempt, which ends when it stalls.
func (c *Client) attempt(ctx context.Context, r request) (charged bool, err error) {
	actx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := c.cfg.Stall
	if !r.block {
		patience *= listPatience
	}
	stall := time.AfterFunc(patience, func() { cancel(errStalled) })
	defer stall.Stop()
	end := time.AfterFunc(attemptCap, func() { cancel(errStalled) })
	defer end.Stop()
	err = r.do(actx, func() { stall.Reset(patience) }, func() { charged = true })
	if err != nil && errors.Is(context.Cause(actx), errStalled) {
		err = errStalled
	}
	return charged, err
}

// delay returns how long to wait after attempt (from 0) failed.
func (c *Client) delay(attempt int, v verdict) time.Duration {
	d := float64(c.cfg.BaseDelay)
	if v == throttled {
		d *= throttleFactor
	}
	d *= float64(int64(1) << min(attempt, 20))
	d = min(d, float64(maxDelay))
	return time.Duration(d/2 + rand.Float64()*d/2)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pace lets one pass per interval.
type pace struct {
	every time.Duration
	mu    sync.Mutex
	next  time.Time
}

func (p *pace) wait(ctx context.Context) error {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	d := p.next.Sub(now)
	p.next = p.next.Add(p.every)
	p.mu.Unlock()
	return sleep(ctx, d)
}

// causes remembers for a while why a snapshot can't be read, so that a thousand
// blocks of it that fail together ask EC2 once.
type causes struct {
	mu    sync.Mutex
	known map[string]*why
}

type why struct {
	once sync.Once
	at   time.Time
	err  error // an *Error of a kind that the error of a block alone doesn't tell; may be nil
}

const causeAge = 30 * time.Second

func (w *causes) get(snapshot string) *why {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known == nil {
		w.known = map[string]*why{}
	}
	y := w.known[snapshot]
	if y == nil || time.Since(y.at) > causeAge {
		y = &why{at: time.Now()}
		w.known[snapshot] = y
	}
	return y
}

// explain makes the error that a person gets of the one that ended a request.
func (c *Client) explain(ctx context.Context, snapshot, op string, v verdict, err error) error {
	if v == fatal && (errors.Is(err, errUnrelated) || errors.Is(err, ondisk.ErrCorrupt) || errors.Is(err, ondisk.ErrUnsupported)) {
		return err
	}
	e := &Error{Snapshot: snapshot, Op: op, Err: cause(err)}
	switch v {
	case throttled:
		e.Kind, e.hint = ErrThrottled, "others in this account read snapshots as well, or the quota is lower than 1,000 requests/s: try again later"
		return e
	case again, badToken, badPage:
		e.Kind, e.hint = ErrUnreachable, "check the network, the endpoint and AWS's health page; what has been fetched stays readable"
		var answer *answerError
		if errors.As(err, &answer) {
			e.Kind, e.hint = ondisk.ErrCorrupt, "AWS answered each time with something else than the block and its checksum; a proxy may change answers"
		}
		return e
	}
	var cred *credentialsError
	if errors.As(err, &cred) {
		return configError(err)
	}
	code, reason := codeOf(err), reasonOf(err)
	switch {
	case reason == "DEPENDENCY_ACCESS_DENIED", reason == "DEPENDENCY_RESOURCE_NOT_FOUND":
		return c.kmsError(ctx, snapshot, op, e.Err)
	case credentialCodes[code]:
		e.Kind, e.hint = ErrCredentials, "the key pair is unknown to AWS, expired or wrong, or this machine's clock is: run `aws sts get-caller-identity`"
		return e
	case reason == "UNAUTHORIZED_ACCOUNT":
		e.Kind, e.hint = ErrNotOwner, "have its owner share the snapshot with this account, or use the owner's credentials"
	case deniedCodes[code]:
		e.Kind, e.hint = ErrDenied, "allow "+op+" to the role or user; docs/ebs.md has the whole table"
	case reason == "SNAPSHOT_NOT_FOUND", reason == "INVALID_SNAPSHOT_ID":
		e.Kind, e.hint = ErrNotFound, "is it another region's? This one is "+c.region
	default:
		e.Kind = ErrDenied
		if code == "" {
			e.Kind = ErrUnreachable
		}
		return e
	}
	// EC2 knows more of the snapshot's state than the error tells.
	y := c.causes.get(snapshot)
	y.once.Do(func() {
		tctx, cancel := context.WithTimeout(ctx, c.cfg.Stall)
		defer cancel()
		y.err = c.state(tctx, snapshot)
	})
	if y.err != nil {
		return y.err
	}
	return e
}

var credentialCodes = map[string]bool{
	"UnrecognizedClientException": true, "InvalidSignatureException": true, "SignatureDoesNotMatch": true, "AuthFailure": true,
	"ExpiredTokenException": true, "ExpiredToken": true, "RequestExpired": true, "InvalidClientTokenId": true,
	"MissingAuthenticationTokenException": true, "MissingAuthenticationToken": true, "IncompleteSignatureException": true, "IncompleteSignature": true,
}

var deniedCodes = map[string]bool{"AccessDeniedException": true, "UnauthorizedOperation": true, "AccessDenied": true, "NotAuthorized": true}
