package iscsi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"yester/iscsi/scsi"
)

// Errors of a Server's methods.
var (
	ErrClosed   = errors.New("iscsi: server closed")
	ErrExists   = errors.New("iscsi: target exists")
	ErrNoTarget = errors.New("iscsi: no such target")
)

// Server is an iSCSI target node. Its methods are safe for parallel use.
type Server struct {
	opts    Options
	limits  Limits
	log     *slog.Logger
	limiter *limiter
	started time.Time

	buffers bufferPool
	pdus    sync.Pool // *outPDU
	pipes   pipePool

	spliceLocal bool // splice to loopback too; set by tests

	mu        sync.Mutex // guards what follows
	targets   map[string]*target
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	sessions  map[sessionKey]*conn
	handles   map[uint16]*conn // TSIH
	closing   bool
	wg        sync.WaitGroup // connections
}

// sessionKey identifies a session: a login with the same one reinstates it.
// RFC 7143 section 6.3.5. All portals are one portal group.
type sessionKey struct {
	initiator string
	isid      [6]byte
	target    string
}

type target struct {
	name     string
	device   *scsi.Device
	luns     []uint16
	overlays []*overlays
	removed  bool // guarded by Server.mu
}

// New makes a Server. Options that contradict themselves are reported by Serve
// and by Options.Validate.
func New(o Options) *Server {
	s := &Server{
		opts: o, limits: o.Limits.withDefaults(), log: o.Logger, started: time.Now(),
		targets: map[string]*target{}, listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{},
		sessions: map[sessionKey]*conn{}, handles: map[uint16]*conn{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.limiter = newLimiter(s.limits)
	return s
}

// Validate reports what is wrong with users and secrets.
func (o Options) Validate() error { return o.Auth.validate() }

// clock returns nanoseconds since the server was made, at least 1.
func (s *Server) clock() int64 { return int64(time.Since(s.started)) + 1 }

// AddTarget makes a target of luns known under the iSCSI name iqn.
func (s *Server) AddTarget(iqn string, luns ...LUN) error {
	if !ValidName(iqn) {
		return fmt.Errorf("iscsi: target name %q: not an iSCSI name", iqn)
	}
	if len(luns) == 0 {
		return fmt.Errorf("iscsi: target %s: no logical units", iqn)
	}
	t := &target{name: iqn}
	units := map[uint16]*scsi.Unit{}
	for _, l := range luns {
		if units[l.ID] != nil {
			return fmt.Errorf("iscsi: target %s: logical unit %d appears twice", iqn, l.ID)
		}
		if l.Reader == nil {
			return fmt.Errorf("iscsi: target %s: logical unit %d has no reader", iqn, l.ID)
		}
		m := newLocated(l.Reader)
		c := scsi.Config{
			Medium: m, Size: l.Size, BlockSize: l.BlockSize, PhysicalSize: l.PhysicalBlockSize,
			Serial: l.Serial, NAA: l.NAA, Revision: "1",
		}
		if c.Size == 0 {
			c.Size = l.Reader.Size()
		}
		if c.BlockSize == 0 {
			c.BlockSize = 512
		}
		if c.Serial == "" {
			c.Serial = fmt.Sprintf("%016X", NAA(iqn, l.ID))
		}
		if c.NAA == [8]byte{} {
			c.NAA = NAA(iqn, l.ID)
		}
		if l.Overlay != nil {
			o := &overlays{medium: m, conf: *l.Overlay, grace: s.limits.OverlayGrace, layers: map[string]*layer{}}
			t.overlays = append(t.overlays, o)
			c.Overlay = o.open
		}
		u, err := scsi.NewUnit(c)
		if err != nil {
			return fmt.Errorf("iscsi: target %s: logical unit %d: %w", iqn, l.ID, err)
		}
		units[l.ID] = u
		t.luns = append(t.luns, l.ID)
	}
	d, err := scsi.NewDevice(units)
	if err != nil {
		return fmt.Errorf("iscsi: target %s: %w", iqn, err)
	}
	t.device = d
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrClosed
	}
	if s.targets[iqn] != nil {
		return fmt.Errorf("%w: %s", ErrExists, iqn)
	}
	s.targets[iqn] = t
	return nil
}

// logoutGrace is how long initiators have to log out when their target goes.
const logoutGrace = 5 * time.Second

// RemoveTarget takes a target away: no one can log in to it any more, its
// initiators are asked to log out, and those that haven't within a few seconds,
// or when ctx is done, lose their connection. After it returned nil, the target's
// Readers aren't used any more; an error means that some read still runs.
func (s *Server) RemoveTarget(ctx context.Context, iqn string) error {
	s.mu.Lock()
	t := s.targets[iqn]
	if t == nil {
		s.mu.Unlock()
		return fmt.Errorf("%w: %s", ErrNoTarget, iqn)
	}
	delete(s.targets, iqn)
	t.removed = true
	conns := s.connsOf(t)
	s.mu.Unlock()
	err := s.retire(ctx, conns)
	for _, o := range t.overlays {
		o.close()
	}
	return err
}

func (s *Server) connsOf(t *target) (out []*conn) {
	for c := range s.conns {
		if t == nil || c.target.Load() == t {
			out = append(out, c)
		}
	}
	return out
}

// retire asks the sessions to log out, then drops them, then waits for their reads.
func (s *Server) retire(ctx context.Context, conns []*conn) error {
	soon, cancel := context.WithTimeout(ctx, logoutGrace)
	defer cancel()
	for _, c := range conns {
		go c.askLogout(uint16(logoutGrace / time.Second))
	}
	wait := func(ctx context.Context) error {
		for _, c := range conns {
			select {
			case <-c.done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	if wait(soon) == nil {
		return nil
	}
	for _, c := range conns {
		c.fail(errTargetGone)
	}
	// The reads have been told to stop; give them a moment even if ctx is done.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), logoutGrace)
	defer cancel()
	return wait(last)
}

// Serve accepts connections of l until Shutdown, which makes it return ErrClosed,
// or until l fails. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if err := s.opts.Validate(); err != nil {
		return err
	}
	if err := CheckListen(l.Addr(), s.opts); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			closing := s.closing
			s.mu.Unlock()
			if closing {
				return ErrClosed
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || isExhausted(err) {
				// Out of descriptors, say: the sessions that are there go on.
				pause = min(max(2*pause, 5*time.Millisecond), time.Second)
				s.log.Warn("iscsi: accept failed", "error", err, "retry", pause)
				time.Sleep(pause)
				continue
			}
			return fmt.Errorf("iscsi: accept: %w", err)
		}
		pause = 0
		s.start(nc)
	}
}

// start admits a connection or closes it without a word.
func (s *Server) start(nc net.Conn) {
	from := remoteAddr(nc)
	if !s.opts.ACL.admitsAddr(from) {
		s.log.Warn("iscsi: connection refused", "from", from, "reason", "address not allowed")
		nc.Close()
		return
	}
	if reason := s.limiter.connect(from, time.Now()); reason != "" {
		s.log.Warn("iscsi: connection refused", "from", from, "reason", reason)
		nc.Close()
		return
	}
	c := newConn(s, nc, from)
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		s.limiter.disconnect(from, true, time.Now())
		nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go c.run()
}

func remoteAddr(nc net.Conn) netip.Addr {
	if t, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.IPv6Loopback() // not a network: someone on this host
}

// Shutdown closes the listeners, asks all initiators to log out, and drops those
// that haven't within a few seconds or when ctx is done. It returns an error when
// reads are still running.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	conns := s.connsOf(nil)
	var all []*target
	for _, t := range s.targets {
		all = append(all, t)
	}
	s.mu.Unlock()
	err := s.retire(ctx, conns)
	for _, t := range all {
		for _, o := range t.overlays {
			o.close()
		}
	}
	if err == nil {
		s.wg.Wait()
		s.pipes.close()
	}
	return err
}

// newHandle picks a TSIH that no session has; s.mu is held. 0 stands for none left.
func (s *Server) newHandle() uint16 {
	if len(s.handles) >= 1<<16-2 {
		return 0
	}
	for {
		if h := uint16(rand.Uint32()); h != 0 && h != 0xffff && s.handles[h] == nil {
			return h
		}
	}
}

// forget takes a connection out of all registers.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.sessions[c.key] == c {
		delete(s.sessions, c.key)
	}
	if s.handles[c.tsih] == c {
		delete(s.handles, c.tsih)
	}
}
