package iscsi

import (
	"sync"
	"time"

	"yester/iscsi/scsi"
)

// overlays keeps the scratch layers of one LUN by initiator port: a session that
// lost its connection finds its layer again within the grace time, one that
// logged out has thrown it away.
type overlays struct {
	medium scsi.Medium
	conf   Overlay
	grace  time.Duration

	mu     sync.Mutex
	layers map[string]*layer
	closed bool
}

type layer struct {
	*scsi.Overlay
	users int
	timer *time.Timer
}

func (s *overlays) open(port string) (*scsi.Overlay, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[port]; l != nil {
		if l.timer != nil {
			l.timer.Stop()
			l.timer = nil
		}
		l.users++
		return l.Overlay, nil
	}
	o, err := scsi.NewOverlay(s.medium, s.conf.Dir, s.conf.Size)
	if err != nil {
		return nil, err
	}
	s.layers[port] = &layer{Overlay: o, users: 1}
	return o, nil
}

// done ends a session's use of its layer.
func (s *overlays) done(port string, discard bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[port]
	if l == nil {
		return
	}
	if l.users--; l.users > 0 {
		return
	}
	if discard || s.closed {
		s.drop(port, l)
		return
	}
	var t *time.Timer
	t = time.AfterFunc(s.grace, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if l.timer == t {
			s.drop(port, l)
		}
	})
	l.timer = t
}

func (s *overlays) drop(port string, l *layer) {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	l.Close()
	delete(s.layers, port)
}

// close throws away the layers that nobody uses, and the others as they end.
func (s *overlays) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for p, l := range s.layers {
		if l.users == 0 {
			s.drop(p, l)
		}
	}
}
