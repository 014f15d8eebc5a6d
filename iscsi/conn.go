package iscsi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"yester/iscsi/pdu"
	"yester/iscsi/scsi"
)

// Reasons for which a session ends.
var (
	errLoggedOut  = errors.New("logged out")
	errReinstated = errors.New("session reinstated by a new login")
	errTargetGone = errors.New("target removed")
	errSilent     = errors.New("initiator did not answer a ping")
	errStalled    = errors.New("initiator takes no data")
	errIdle       = errors.New("session idle")
	errColdReset  = errors.New("target cold reset")
)

// conn is one connection and the session on it; a session has no other.
type conn struct {
	srv  *Server
	nc   net.Conn
	from netip.Addr
	r    *pdu.Reader

	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc
	once   sync.Once     // fail
	ended  chan struct{} // the session is out of the registers, its nexus detached
	done   chan struct{} // and none of its commands runs any more

	// Set by login.
	params
	digestsOn bool
	discovery bool
	initiator string
	user      string
	key       sessionKey
	tsih      uint16
	cid       uint16
	target    atomic.Pointer[target]
	nexus     *scsi.Nexus
	loggedOut atomic.Bool
	full      atomic.Bool // in the full feature phase
	since     time.Time

	// Command numbering. Only the reading goroutine changes expCmdSN.
	expCmdSN    atomic.Uint32
	maxCmdSN    atomic.Uint32
	outstanding atomic.Int32 // commands counted against the window
	held        map[uint32]heldPDU
	heldBytes   int
	text        textState

	tasksMu sync.Mutex
	tasks   map[uint32]*task
	nextTTT uint32
	inline  task // reused by the reading goroutine

	workMu  sync.Mutex
	queue   []*task
	workers int
	work    sync.WaitGroup
	memory  *budget

	outMu     sync.Mutex
	outCond   sync.Cond
	out       []*outPDU
	spare     []*outPDU
	outBytes  int
	outErr    error
	writing   bool
	windowSet bool
	statSN    uint32
	iov       [][]byte
	bufs      net.Buffers
	splice    *splicer

	writeSince atomic.Int64 // clock when the write under way began; 0: none
	received   atomic.Uint64
	lastSeen   atomic.Int64 // clock of the last tick that saw a PDU
	stats      counters
	timer      *time.Timer
	watch      watchState
}

func newConn(s *Server, nc net.Conn, from netip.Addr) *conn {
	c := &conn{
		srv: s, nc: nc, from: from, params: defaultParams(),
		ended: make(chan struct{}), done: make(chan struct{}),
		tasks: map[uint32]*task{}, memory: newBudget(s.limits.Memory), since: time.Now(),
	}
	c.outCond.L = &c.outMu
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c
}

// fail ends the connection, once; what was queued is lost.
func (c *conn) fail(err error) {
	c.once.Do(func() {
		c.cancel(err)
		c.nc.Close()
		c.memory.close()
		c.dropQueue(err)
	})
}

// run is the life of a connection.
func (c *conn) run() {
	defer c.srv.wg.Done()
	pending := true
	err := c.guarded(func() error {
		c.nc.SetDeadline(time.Now().Add(c.srv.limits.LoginTimeout))
		c.r = pdu.NewReader(c.nc, loginSegment)
		if err := c.login(); err != nil {
			return err
		}
		c.srv.limiter.loggedIn(c.from)
		pending = false
		c.nc.SetDeadline(time.Time{})
		if c.srv.spliceLocal || !c.local() {
			c.splice = newSplicer(c.nc)
		}
		c.startWatch()
		return c.serve()
	})
	c.fail(err)
	c.srv.limiter.disconnect(c.from, pending, time.Now())
	c.end(context.Cause(c.ctx))
}

// end takes the session apart.
func (c *conn) end(cause error) {
	c.stopWatch()
	c.tasksMu.Lock()
	for _, t := range c.tasks {
		t.cancel()
	}
	c.tasksMu.Unlock()
	if c.nexus != nil {
		c.nexus.Detach()
		level := c.srv.log.Warn
		if errors.Is(cause, errLoggedOut) || errors.Is(cause, errReinstated) || errors.Is(cause, errTargetGone) {
			level = c.srv.log.Info
		}
		level("iscsi: session ended", "initiator", c.initiator, "from", c.from, "target", c.key.target, "tsih", c.tsih, "reason", cause)
	} else if !c.discovery && cause != io.EOF {
		c.srv.log.Debug("iscsi: connection ended", "from", c.from, "reason", cause)
	}
	c.srv.forget(c)
	close(c.ended)
	c.work.Wait()
	if t := c.target.Load(); t != nil && c.nexus != nil {
		for _, o := range t.overlays {
			o.done(c.port(), c.loggedOut.Load())
		}
	}
	close(c.done)
}

// local reports whether the peer is on this host. Its pages then don't go to a
// network card: they are copied out of the page cache by the initiator, page by
// page, which costs more than the copy that splice saves here (measured: 1.8 GB/s
// copied, 0.7 GB/s spliced; docs/decisions/0005-iscsi-target.md).
func (c *conn) local() bool {
	l, ok := c.nc.LocalAddr().(*net.TCPAddr)
	return !ok || c.from.IsLoopback() || l.AddrPort().Addr().Unmap() == c.from
}

// port is the initiator port's SCSI name.
func (c *conn) port() string { return portName(c.initiator, c.key.isid) }

// portName makes an initiator port's SCSI name. RFC 7143 section 4.4.1.
func portName(initiator string, isid [6]byte) string {
	return fmt.Sprintf("%s,i,0x%x", initiator, isid)
}

// guarded calls f and turns a panic into an error: whatever went wrong belongs to
// one session, and ends that one alone. It is the only place that recovers.
func (c *conn) guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			c.srv.log.Error("iscsi: panic in a session", "initiator", c.initiator, "from", c.from, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	return f()
}

// askLogout sends the message that asks for a logout; a connection that hasn't
// logged in yet is closed.
func (c *conn) askLogout(seconds uint16) {
	if !c.full.Load() {
		c.fail(errTargetGone)
		return
	}
	o := c.newPDU(pdu.OpAsync, pdu.FlagFinal)
	h := o.header()
	h.SetITT(pdu.NoTag)
	h.SetAsync(pdu.AsyncLogout, 0, 0, seconds)
	o.status = true
	c.send(nil, o)
}

// watchState is what the timer of a connection remembers; only it uses it.
type watchState struct {
	seen     uint64 // received, last time
	seenAt   int64
	pingedAt int64 // 0: no ping is out
	commands uint64
	idleAt   int64
	asked    bool
}

func (c *conn) startWatch() {
	now := c.srv.clock()
	c.lastSeen.Store(now)
	c.watch = watchState{seenAt: now, idleAt: now}
	l := &c.srv.limits
	every := min(l.PingInterval, l.PingTimeout)
	if d := c.srv.opts.IdleTimeout; d > 0 {
		every = min(every, d)
	}
	every = max(every/4, 10*time.Millisecond)
	c.outMu.Lock() // orders the assignment before stopWatch and the first tick
	defer c.outMu.Unlock()
	c.timer = time.AfterFunc(every, func() {
		if c.ctx.Err() != nil {
			return
		}
		c.tick()
		c.outMu.Lock()
		t := c.timer
		c.outMu.Unlock()
		if t != nil {
			t.Reset(every)
		}
	})
}

func (c *conn) stopWatch() {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// tick looks after silence, stalls and idleness. It never waits: what it sends, it
// sends from another goroutine, or a peer that takes nothing would stop the very
// clock that finds it out.
func (c *conn) tick() {
	w, l, now := &c.watch, &c.srv.limits, c.srv.clock()
	if since := c.writeSince.Load(); since != 0 && now-since > int64(l.PingInterval+l.PingTimeout) {
		c.fail(errStalled)
		return
	}
	if n := c.received.Load(); n != w.seen {
		w.seen, w.seenAt, w.pingedAt = n, now, 0
		c.lastSeen.Store(now)
	}
	switch {
	case w.pingedAt != 0 && now-w.pingedAt > int64(l.PingTimeout):
		c.fail(errSilent)
		return
	case w.pingedAt == 0 && now-w.seenAt > int64(l.PingInterval) && c.writeSince.Load() == 0:
		w.pingedAt = now
		go c.ping()
	}
	d := int64(c.srv.opts.IdleTimeout)
	if d == 0 {
		return
	}
	if n := c.stats.commands.Load(); n != w.commands {
		w.commands, w.idleAt = n, now
	}
	switch idle := now - w.idleAt; {
	case idle > d+int64(logoutGrace):
		c.fail(errIdle)
	case idle > d && !w.asked:
		w.asked = true
		go c.askLogout(uint16(logoutGrace / time.Second))
	}
}

// ping sends a NOP-In that asks for an answer.
func (c *conn) ping() {
	o := c.newPDU(pdu.OpNopIn, pdu.FlagFinal)
	h := o.header()
	h.SetITT(pdu.NoTag)
	h.SetTTT(c.newTTT())
	c.send(nil, o)
}

// newTTT returns a target transfer tag; NoTag is never one.
func (c *conn) newTTT() uint32 {
	c.tasksMu.Lock()
	defer c.tasksMu.Unlock()
	c.nextTTT++
	if c.nextTTT == pdu.NoTag {
		c.nextTTT = 1
	}
	return c.nextTTT
}
