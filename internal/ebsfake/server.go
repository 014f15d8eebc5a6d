// Package ebsfake is a server that speaks the EBS direct APIs and the few EC2
// actions that lead to snapshots, backed by raw images: SigV4 is checked, tokens
// expire, pages are short, errors carry AWS's types and reasons. What goes wrong
// in the field (latency, throttling, torn bodies, wrong checksums, …) can be
// switched on while it runs, at random by a seed.
//
// What is known of the wire comes from AWS's service models (ebs-2019-11-02,
// ec2-2016-11-15) and the EBS user guide. Where neither says what the service
// answers, the comment says so.
package ebsfake

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// BlockSize is the size in bytes of every block of the EBS direct APIs.
const BlockSize = 512 << 10

// Credentials are a key pair that the server accepts, and whose it is.
type Credentials struct {
	AccessKey string
	Secret    string
	// SessionToken must be sent along when not empty.
	SessionToken string
	Account      string // twelve digits
}

// TestCredentials are the key pair of AWS's documentation, with an account of
// the range that it uses for examples.
var TestCredentials = Credentials{
	AccessKey: "AKIAIOSFODNN7EXAMPLE",
	Secret:    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
	Account:   "111122223333",
}

// Options make a Server.
type Options struct {
	Region      string        // "us-east-1" when empty
	Credentials []Credentials // TestCredentials when empty
	Settings    Settings      // the first ones; SetSettings changes them
	// Admin serves /_fake/settings and /_fake/counts to anyone who can connect.
	Admin  bool
	Logger *slog.Logger // nil: silent
}

// Server is the fake: an http.Handler. All methods are safe for parallel use.
type Server struct {
	region string
	creds  map[string]Credentials
	admin  bool
	log    *slog.Logger
	tokens *tokenBox

	settings atomic.Pointer[Settings]
	counts   counts
	dice     dice
	limits   limits
	closed   chan struct{} // closed by Close: ends hanging requests

	mu        sync.RWMutex // guards what follows
	snapshots map[string]*Snapshot
	instances map[string]*Instance
	numbers   map[uint32]*Snapshot // by the number that tokens carry
	diffs     map[[2]uint32]*diff

	http http.Server
	once sync.Once
}

// New returns a server without snapshots; Add gives it some.
func New(opt Options) *Server {
	s := &Server{
		region: opt.Region, admin: opt.Admin, log: opt.Logger,
		creds:     map[string]Credentials{},
		tokens:    newTokenBox(),
		closed:    make(chan struct{}),
		snapshots: map[string]*Snapshot{},
		instances: map[string]*Instance{},
		numbers:   map[uint32]*Snapshot{},
		diffs:     map[[2]uint32]*diff{},
	}
	if s.region == "" {
		s.region = "us-east-1"
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if len(opt.Credentials) == 0 {
		opt.Credentials = []Credentials{TestCredentials}
	}
	for _, c := range opt.Credentials {
		s.creds[c.AccessKey] = c
	}
	s.SetSettings(opt.Settings)
	s.http.Handler = s
	s.http.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, &pacer{})
	}
	s.http.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	return s
}

// connKey is the context key of the pacer of a request's connection.
type connKey struct{}

// Serve answers on l until Close.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Start listens on addr ("127.0.0.1:0") and serves in the background until
// Close. It returns the endpoint's URL.
func (s *Server) Start(addr string) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	go func() {
		if err := s.Serve(l); err != nil {
			s.log.Error("serve", "err", err)
		}
	}()
	return "http://" + l.Addr().String(), nil
}

// Close ends the server and every request under way.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.http.Close()
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.admin && strings.HasPrefix(r.URL.Path, "/_fake/") {
		s.serveAdmin(w, r)
		return
	}
	set := s.settings.Load()
	if set.Gone {
		s.counts.add("Gone")
		panic(http.ErrAbortHandler) // net/http's way to drop a connection without an answer
	}
	body, err := readBody(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	who, fail := s.authenticate(r, body)
	ec2 := r.URL.Path == "/" || r.URL.Path == ""
	c := &call{s: s, w: w, r: r, set: set, who: who.Account}
	if ec2 {
		c.serveEC2(body, fail)
		return
	}
	c.serveEBS(fail)
}

// call is one request.
type call struct {
	s   *Server
	w   http.ResponseWriter
	r   *http.Request
	set *Settings
	who string // account
	bad string // fault to inject into the body of the answer; by its name in Faults
}

// sleep waits for d, or until the client or the server has gone.
func (c *call) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.r.Context().Done():
	case <-c.s.closed:
	}
}

// hang waits until the client or the server gives up.
func (c *call) hang() {
	select {
	case <-c.r.Context().Done():
	case <-c.s.closed:
	}
}

// drop ends the connection without (the rest of) an answer.
func (c *call) drop() {
	if hj, ok := c.w.(http.Hijacker); ok {
		if conn, _, err := hj.Hijack(); err == nil {
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // a reset instead of an orderly end
			}
			_ = conn.Close()
			return
		}
	}
	panic(http.ErrAbortHandler)
}
