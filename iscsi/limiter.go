package iscsi

import (
	"net/netip"
	"sync"
	"time"
)

// maxAddrs bounds the addresses whose failures are remembered. When they are
// more, new ones aren't counted until old ones expire: the limit on connections
// still holds for them.
const maxAddrs = 8192

// limiter counts connections and failed logins by address. IPv6 addresses count
// by their /64, which one host has for itself.
type limiter struct {
	limits Limits

	mu    sync.Mutex
	total int
	addrs map[netip.Addr]*addrCount
}

type addrCount struct {
	open, pending int
	failures      int
	since         time.Time // of the first failure counted
}

func newLimiter(l Limits) *limiter {
	return &limiter{limits: l, addrs: map[netip.Addr]*addrCount{}}
}

func addrKey(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// connect takes a connection's place; reason says why there is none.
func (l *limiter) connect(a netip.Addr, now time.Time) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.limits.Connections {
		return "too many connections"
	}
	k := addrKey(a)
	c := l.addrs[k]
	if c == nil {
		if len(l.addrs) >= maxAddrs {
			l.expire(now)
		}
		if len(l.addrs) >= maxAddrs {
			return "too many addresses"
		}
		c = &addrCount{}
		l.addrs[k] = c
	}
	switch {
	case c.open >= l.limits.ConnectionsPerAddr:
		return "too many connections from this address"
	case c.pending >= l.limits.Pending:
		return "too many logins under way from this address"
	case c.failures >= l.limits.FailedLogins && now.Sub(c.since) < l.limits.FailureWindow:
		return "too many failed logins from this address"
	}
	c.open++
	c.pending++
	l.total++
	return ""
}

// loggedIn moves a connection out of the pending ones.
func (l *limiter) loggedIn(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.addrs[addrKey(a)]; c != nil {
		c.pending--
	}
}

// failed counts a failed authentication.
func (l *limiter) failed(a netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.addrs[addrKey(a)]
	if c == nil {
		return
	}
	if now.Sub(c.since) >= l.limits.FailureWindow {
		c.failures, c.since = 0, now
	}
	c.failures++
}

// disconnect gives a place back.
func (l *limiter) disconnect(a netip.Addr, pending bool, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	k := addrKey(a)
	c := l.addrs[k]
	if c == nil {
		return
	}
	c.open--
	if pending {
		c.pending--
	}
	if c.open == 0 && (c.failures == 0 || now.Sub(c.since) >= l.limits.FailureWindow) {
		delete(l.addrs, k)
	}
}

func (l *limiter) expire(now time.Time) {
	for k, c := range l.addrs {
		if c.open == 0 && now.Sub(c.since) >= l.limits.FailureWindow {
			delete(l.addrs, k)
		}
	}
}
