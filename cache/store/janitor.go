package store

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tickEvery is the janitor's pace, and the resolution of "last used".
const tickEvery = time.Second

// sweepAge is how old what a dead process left must be before it is removed.
const sweepAge = time.Hour

func (s *Store) tick() { s.now.Store(uint32(s.opt.clock().Unix())) }

// janitor keeps the clock, and gives back the leases of blocks that aren't used.
func (s *Store) janitor() {
	s.sweep()
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			s.tick()
			s.releaseIdle(uint32(s.opt.lease / time.Second))
		}
	}
}

// releaseIdle gives back the leases of blocks not used for that many seconds.
func (s *Store) releaseIdle(age uint32) {
	for _, o := range s.opened() {
		if o.disk != nil {
			o.disk.release(age)
		}
		if l := o.mem.Load(); l != nil {
			l.release(age)
		}
		_ = o.Close()
	}
	s.touchSpools()
}

// opened returns the open objects, each to be closed by the caller.
func (s *Store) opened() []*Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	all := make([]*Object, 0, len(s.objects))
	for _, o := range s.objects {
		o.refs++
		all = append(all, o)
	}
	return all
}

// sweep removes temporary files that nobody writes any more.
func (s *Store) sweep() {
	if s.dir == nil {
		return
	}
	names, err := s.dir.names()
	if err != nil {
		return // no loss: they count, and are seen by the next start
	}
	for _, name := range names {
		if !strings.HasPrefix(name, tempPrefix) {
			continue
		}
		f, err := s.dir.open(name, unix.O_RDWR)
		if err != nil {
			continue
		}
		if st, err := f.Stat(); err == nil && s.opt.clock().Sub(st.ModTime()) > sweepAge {
			if ok, _ := f.lock(unix.F_WRLCK, 0, 1); ok {
				_ = s.dir.remove(name)
			}
		}
		_ = f.Close()
	}
}
