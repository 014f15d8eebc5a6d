package iscsi

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// counters is what a session has done.
type counters struct {
	commands      atomic.Uint64
	read, written atomic.Int64
}

// Status is a snapshot of a Server.
type Status struct {
	Targets  []TargetStatus  `json:"targets"`
	Sessions []SessionStatus `json:"sessions"`
}

// TargetStatus describes one target.
type TargetStatus struct {
	Name string   `json:"name"`
	LUNs []uint16 `json:"luns"`
}

// SessionStatus describes one session.
type SessionStatus struct {
	Initiator    string     `json:"initiator"`
	From         netip.Addr `json:"from"`
	Target       string     `json:"target,omitempty"` // empty for discovery
	User         string     `json:"user,omitempty"`   // CHAP user
	TSIH         uint16     `json:"tsih"`
	Since        time.Time  `json:"since"`
	LastActivity time.Time  `json:"last_activity"` // last PDU received, to within a few seconds
	Commands     uint64     `json:"commands"`
	Outstanding  int        `json:"outstanding"`   // commands under way
	BytesRead    int64      `json:"bytes_read"`    // sent to the initiator
	BytesWritten int64      `json:"bytes_written"` // taken from it, into its scratch layer
	OverlayBytes int64      `json:"overlay_bytes"` // that its scratch layers hold
	HeaderDigest bool       `json:"header_digest"`
	DataDigest   bool       `json:"data_digest"`
}

// Status returns a snapshot of targets and sessions, each sorted by name.
func (s *Server) Status() Status {
	var st Status
	s.mu.Lock()
	for _, t := range s.targets {
		st.Targets = append(st.Targets, TargetStatus{Name: t.name, LUNs: slices.Sorted(slices.Values(t.luns))})
	}
	conns := s.connsOf(nil)
	s.mu.Unlock()
	slices.SortFunc(st.Targets, func(a, b TargetStatus) int { return cmp.Compare(a.Name, b.Name) })
	for _, c := range conns {
		if !c.full.Load() {
			continue
		}
		v := SessionStatus{
			Initiator: c.initiator, From: c.from, Target: c.key.target, User: c.user, TSIH: c.tsih, Since: c.since,
			LastActivity: s.started.Add(time.Duration(c.lastSeen.Load())),
			Commands:     c.stats.commands.Load(), Outstanding: int(c.outstanding.Load()),
			BytesRead: c.stats.read.Load(), BytesWritten: c.stats.written.Load(),
			HeaderDigest: c.headerDigest, DataDigest: c.dataDigest,
		}
		if c.nexus != nil {
			for _, o := range c.nexus.Overlays() {
				v.OverlayBytes += o.Used()
			}
		}
		st.Sessions = append(st.Sessions, v)
	}
	slices.SortFunc(st.Sessions, func(a, b SessionStatus) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Initiator, b.Initiator), cmp.Compare(a.TSIH, b.TSIH))
	})
	return st
}

// Sessions returns the sessions of Status.
func (s *Server) Sessions() []SessionStatus { return s.Status().Sessions }
