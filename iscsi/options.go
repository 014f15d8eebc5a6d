// Package iscsi is a read-only iSCSI target (RFC 7143): it shows block.Readers as
// logical units to initiators on the network, and, if asked to, a scratch layer
// above them that takes writes and is thrown away.
package iscsi

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"yester/internal/block"
)

// Options configure a Server. The zero value serves loopback addresses without
// authentication.
type Options struct {
	// Auth lists who may log in; without users no CHAP is asked for, and Serve
	// takes loopback addresses only.
	Auth Auth
	// ACL narrows who may connect; the zero value admits everyone.
	ACL ACL
	// Limits bound what initiators can use up; zero fields stand for defaults.
	Limits Limits
	// Logger takes logins, refusals, failing reads and lost sessions; nil: silence.
	Logger *slog.Logger
	// Metrics is told of logins and commands; nil: nobody is.
	Metrics Metrics
	// Insecure lets Serve listen beyond loopback without CHAP.
	Insecure bool
	// IdleTimeout closes sessions without a SCSI command for so long; 0: never.
	IdleTimeout time.Duration
}

// Metrics counts what a Server does. Its methods are called in parallel and
// return at once.
type Metrics interface {
	// Login is called at the end of a login with its status (class<<8|detail, 0
	// for success).
	Login(status uint16)
	// Command is called when a command is done: operation code, SCSI status, bytes
	// of data moved either way, and the time since it arrived.
	Command(op, status byte, bytes int64, took time.Duration)
}

// Limits bound what initiators can use up.
type Limits struct {
	Connections        int           // at once, in all; 1024
	ConnectionsPerAddr int           // at once, per address; 256
	Pending            int           // not logged in yet, per address; 64
	LoginTimeout       time.Duration // from connecting to the end of login; 15 s
	LoginBytes         int           // text taken during one login; 64 KiB
	FailedLogins       int           // per address within FailureWindow, then it is turned away; 10
	FailureWindow      time.Duration // 1 min
	Commands           int           // outstanding per session: the CmdSN window; 128
	Workers            int           // reads in parallel per session; 64
	Memory             int64         // bytes of read buffers per session; 6 MiB
	PingInterval       time.Duration // silence after which an initiator is asked whether it lives; 30 s
	PingTimeout        time.Duration // and how long it has to answer; 30 s
	OverlayGrace       time.Duration // how long a scratch layer waits for its initiator to come back after a lost connection; 5 min
}

func (l Limits) withDefaults() Limits {
	set(&l.Connections, 1024)
	set(&l.ConnectionsPerAddr, 256)
	set(&l.Pending, 64)
	set(&l.LoginTimeout, 15*time.Second)
	set(&l.LoginBytes, 64<<10)
	set(&l.FailedLogins, 10)
	set(&l.FailureWindow, time.Minute)
	set(&l.Commands, 128)
	set(&l.Workers, 64)
	set(&l.Memory, 6<<20)
	set(&l.PingInterval, 30*time.Second)
	set(&l.PingTimeout, 30*time.Second)
	set(&l.OverlayGrace, 5*time.Minute)
	// A chunk has to fit, or a read would wait for ever.
	l.Memory = max(l.Memory, 2*maxChunk)
	return l
}

func set[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Auth lists the users of CHAP.
type Auth struct {
	Users []User
	// OpenDiscovery answers discovery sessions without CHAP. What targets exist is
	// then known to all that the ACL admits.
	OpenDiscovery bool
}

// Secrets have 96 to 1024 bits. RFC 7143 section 9.2.1 asks for at least 96;
// initiators take no more than 255 bytes.
const (
	minSecret = 12
	maxSecret = 255
)

// User is one CHAP user.
type User struct {
	Name, Secret string   // what the initiator proves itself with
	Targets      []string // target names the user may log in to; none: all, and discovery
	// MutualName and MutualSecret are what the target proves itself with when the
	// initiator asks it to. MutualSecret differs from every initiator's secret.
	MutualName, MutualSecret string
}

func (a Auth) validate() error {
	names := map[string]bool{}
	for _, u := range a.Users {
		if u.Name == "" || len(u.Name) > 255 || strings.ContainsRune(u.Name, 0) {
			return fmt.Errorf("iscsi: CHAP user %q: a name has 1 to 255 bytes", u.Name)
		}
		if names[u.Name] {
			return fmt.Errorf("iscsi: CHAP user %q appears twice", u.Name)
		}
		names[u.Name] = true
		if n := len(u.Secret); n < minSecret || n > maxSecret {
			return fmt.Errorf("iscsi: CHAP user %q: a secret has %d to %d bytes, not %d", u.Name, minSecret, maxSecret, n)
		}
		if (u.MutualName == "") != (u.MutualSecret == "") {
			return fmt.Errorf("iscsi: CHAP user %q: mutual authentication needs a name and a secret", u.Name)
		}
		if n := len(u.MutualSecret); n > 0 && (n < minSecret || n > maxSecret) {
			return fmt.Errorf("iscsi: CHAP user %q: a mutual secret has %d to %d bytes, not %d", u.Name, minSecret, maxSecret, n)
		}
		for _, v := range a.Users {
			// Else an initiator could have the target compute its own response.
			if u.MutualSecret == v.Secret {
				return fmt.Errorf("iscsi: CHAP user %q: the mutual secret equals the secret of %q", u.Name, v.Name)
			}
		}
	}
	return nil
}

func (u *User) mayUse(target string) bool {
	return len(u.Targets) == 0 || slices.Contains(u.Targets, target)
}

// ACL says who may connect. Empty lists admit everyone.
type ACL struct {
	Initiators []string       // initiator names, as RFC 7143 section 4.2.7 normalises them
	Nets       []netip.Prefix // where connections may come from
	// Allow, if set, is asked last; target is empty for discovery.
	Allow func(target, initiator string, from netip.Addr) bool
}

func (a *ACL) admitsAddr(from netip.Addr) bool {
	return len(a.Nets) == 0 || slices.ContainsFunc(a.Nets, func(p netip.Prefix) bool { return p.Contains(from) })
}

func (a *ACL) admits(target, initiator string, from netip.Addr) bool {
	if len(a.Initiators) > 0 && !slices.ContainsFunc(a.Initiators, func(n string) bool { return strings.EqualFold(n, initiator) }) {
		return false
	}
	return a.Allow == nil || a.Allow(target, initiator, from)
}

// LUN is one logical unit of a target.
type LUN struct {
	ID uint16 // 0 to 16383
	// Reader is what the unit shows. Context reads and extents are used where it
	// has them; block.Prefetcher, for PRE-FETCH commands, too.
	Reader block.Reader
	// Size is what the unit announces, in bytes, a multiple of the block size and
	// at most Reader.Size(); 0 stands for Reader.Size().
	Size int64
	// BlockSize is that of a logical block: 512 (the default) or 4096 bytes.
	BlockSize int
	// PhysicalBlockSize is 4096 for a 512e unit; 0 stands for BlockSize.
	PhysicalBlockSize int
	// Serial is the unit serial number, at most 32 printable characters. NAA is the
	// unit's name in SPC-4's NAA format. Both should be derived from the restore
	// point, so that an initiator knows the disk again; see NAA.
	Serial string
	NAA    [8]byte
	// Overlay, if not nil, gives every session a scratch layer that takes writes.
	Overlay *Overlay
}

// Overlay configures the scratch layers of a LUN.
type Overlay struct {
	Dir  string // where the scratch files lie; "" for the system's temporary directory
	Size int64  // bytes that one layer may take
}

// ErrNotLoopback is the error of listening beyond loopback without CHAP.
var ErrNotLoopback = errors.New("without CHAP the target listens on loopback addresses only")

// CheckListen reports whether a Server with these options may listen at addr.
// Addresses that aren't IP addresses (Unix sockets, pipes) stay on the host.
func CheckListen(addr net.Addr, o Options) error {
	if len(o.Auth.Users) > 0 || o.Insecure {
		return nil
	}
	t, ok := addr.(*net.TCPAddr)
	if !ok || t.IP.IsLoopback() {
		return nil
	}
	return fmt.Errorf("iscsi: listen on %v: %w", addr, ErrNotLoopback)
}

// ValidName reports whether name is an iSCSI name: iqn., eui. or naa. form, at
// most 223 bytes of the characters RFC 7143 section 4.2.7.2 allows.
func ValidName(name string) bool {
	if len(name) > 223 || len(name) < 5 {
		return false
	}
	switch strings.ToLower(name[:4]) {
	case "iqn.", "eui.", "naa.":
	default:
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == ':', c >= 0x80:
		default:
			return false
		}
	}
	return true
}
