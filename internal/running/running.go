// Package running keeps track of the yester processes that serve something (a
// mount, an iSCSI target), so that `yester status` and `yester umount` find them.
// Each service has a file that says what it is, and a socket beside it that
// answers with its figures; both lie in a folder that only their user can enter.
package running

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Service says what a process serves.
type Service struct {
	Kind    string    `json:"kind"` // "mount", "iscsi"
	PID     int       `json:"pid"`
	Source  string    `json:"source"`
	Where   string    `json:"where"` // the mount point; the portal, ADDRESS:PORT
	Started time.Time `json:"started"`
	Log     string    `json:"log,omitempty"`
}

// Status is a service with what it answered.
type Status struct {
	Service
	// Alive is false for what a crashed process left behind.
	Alive bool `json:"alive"`
	// Stats is the service's own answer; nil when it isn't alive.
	Stats json.RawMessage `json:"stats,omitempty"`

	file string
}

const (
	entrySuffix  = ".json"
	socketSuffix = ".sock"
	// askTimeout is how long a service may take to answer.
	askTimeout = 2 * time.Second
	// maxAnswer bounds what is read of an answer, in bytes.
	maxAnswer = 1 << 20
)

// dir returns the folder of the user's services, made if it isn't there.
func dir() (string, error) {
	base := os.Getenv("XDG_RUNTIME_DIR")
	d := filepath.Join(base, "yester")
	switch {
	case os.Geteuid() == 0:
		d = "/run/yester"
	case base == "":
		d = filepath.Join(os.TempDir(), fmt.Sprintf("yester-%d", os.Geteuid()))
	}
	if err := os.MkdirAll(d, 0o700); err != nil {
		return "", err
	}
	fi, err := os.Lstat(d)
	if err != nil {
		return "", err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || !ok || int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s: must be a folder that belongs to you alone (mode 0700)", d)
	}
	return d, nil
}

// Registration is a service's entry; Close removes it.
type Registration struct {
	file string
	l    net.Listener
}

// Register makes s known, and answers those who ask with what stats returns.
func Register(s Service, stats func() any) (*Registration, error) {
	d, err := dir()
	if err != nil {
		return nil, err
	}
	base := filepath.Join(d, fmt.Sprintf("%s-%d", s.Kind, s.PID))
	os.Remove(base + socketSuffix) // of a process that had the same number
	l, err := net.Listen("unix", base+socketSuffix)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(base+entrySuffix, data, 0o600)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(askTimeout))
			json.NewEncoder(c).Encode(stats())
			c.Close()
		}
	}()
	return &Registration{file: base + entrySuffix, l: l}, nil
}

// Close removes the entry.
func (r *Registration) Close() error {
	return errors.Join(r.l.Close(), os.Remove(r.file))
}

// List returns the user's services, oldest first, with their answers.
func List(ctx context.Context) ([]Status, error) {
	d, err := dir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d)
	if err != nil {
		return nil, err
	}
	var list []Status
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), entrySuffix) {
			continue
		}
		s := Status{file: filepath.Join(d, e.Name())}
		data, err := os.ReadFile(s.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone since
		}
		if err == nil {
			err = json.Unmarshal(data, &s.Service)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.file, err)
		}
		s.ask(ctx)
		list = append(list, s)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Started.Before(list[j].Started) })
	return list, nil
}

// ask fetches the service's figures.
func (s *Status) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", strings.TrimSuffix(s.file, entrySuffix)+socketSuffix)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return // nobody listens there any more
	}
	s.Alive = true
	if err != nil {
		return // it is there, but too busy to answer
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(askTimeout))
	if data, err := io.ReadAll(io.LimitReader(c, maxAnswer)); err == nil && json.Valid(data) {
		s.Stats = data
	}
}

// Forget removes what a process left behind that is no longer alive.
func (s *Status) Forget() error {
	if s.Alive {
		return fmt.Errorf("%s of %s: process %d is alive", s.Kind, s.Source, s.PID)
	}
	os.Remove(strings.TrimSuffix(s.file, entrySuffix) + socketSuffix)
	return os.Remove(s.file)
}

// WaitGone waits until the service's entry is gone: its process has cleaned up.
func (s *Status) WaitGone(ctx context.Context) error {
	for {
		if _, err := os.Stat(s.file); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
