package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"yester/restorepoint"
)

// FSType is what /proc/mounts shows as the type of a mount.
const FSType = "fuse.yester"

// Options of a mount.
type Options struct {
	// Machine is the one machine to show, with its points at the mount's root; ""
	// shows the only machine so, and several as one directory each.
	Machine string
	// Point is the ID of the one point of Machine to show; "" shows all.
	Point string
	// AllowOther lets other users than the one who mounts in; the guest's modes
	// and ACLs then decide what each may read.
	AllowOther bool
	// FollowSymlinks leaves out nosymfollow: links in the guest then lead where
	// they say, on the live host.
	FollowSymlinks bool
	// NoEROFS serves every request from this process, even where the kernel could
	// list the points by itself, so that Stats tells whether the mount is used.
	NoEROFS bool
	Logger  *slog.Logger
}

const (
	// maxRead is the largest read the kernel asks for, in bytes.
	maxRead = 512 << 10
	// readAheadKB is how far the kernel reads ahead, in KiB, where yester may say
	// so (as root). The kernel's default of 128 makes eight requests of one.
	readAheadKB = 1024
	// maxBackground is how many read-ahead requests may be under way.
	maxBackground = 64

	// closeAfter is how long a point stays open after its last use, and maxOpen
	// how many stay open at most while they aren't in use.
	closeAfter = 10 * time.Minute
	maxOpen    = 64
)

// Mount is a mounted source.
type Mount struct {
	fs     *rawFS
	server *fuse.Server
	images *images // nil unless what is mounted is an image
	dir    string
	stop   chan struct{}
	once   sync.Once
}

// Start mounts src on the directory dir and serves it. It returns when the mount
// answers.
func Start(ctx context.Context, src *restorepoint.Source, dir string, opt Options) (*Mount, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := checkMountpoint(src.HostPath(), dir); err != nil {
		return nil, err
	}
	cat, err := src.List(ctx)
	if err != nil {
		return nil, err
	}
	only := opt.Machine
	if names := cat.Machines(); only == "" && len(names) == 1 {
		only = names[0]
	} else if only != "" && len(cat.Of(only)) == 0 {
		return nil, fmt.Errorf("machine %q (there are %q): %w", only, names, restorepoint.ErrNotFound)
	}
	f := newFS(src, only, opt.Point, opt.Logger)
	f.cat.take(cat)
	f.pass.open = slices.ContainsFunc(cat.Points, func(p restorepoint.Point) bool { return p.Kind == restorepoint.KindTree })
	m := &Mount{fs: f, dir: dir, stop: make(chan struct{})}
	if asImage(src, cat, opt) {
		im, err := mountImage(f, dir, opt)
		if err == nil {
			m.images, m.server = im, im.server
			m.run(func() { im.follow(m.stop) })
			return m, nil
		}
		opt.Logger.Info("the kernel doesn't list the points by itself; they are served one request at a time", "reason", err)
	}
	m.server, err = fuse.NewServer(patient{f}, dir, f.mountOptions(opt))
	if err != nil {
		return nil, mountError(dir, opt.AllowOther, err)
	}
	f.pass.server = m.server
	go m.server.Serve()
	if err := m.server.WaitMount(); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if os.Geteuid() == 0 && unix.Stat(dir, &st) == nil {
		setReadAhead(st.Dev, readAheadKB)
	}
	m.run()
	return m, nil
}

// run begins what goes on for as long as the mount is there.
func (m *Mount) run(also ...func()) {
	for _, f := range append(also, m.janitor, func() { m.fs.cache.run(m.server, m.stop) }) {
		go f()
	}
}

func (f *rawFS) mountOptions(opt Options) *fuse.MountOptions {
	o := &fuse.MountOptions{
		FsName:               strings.ReplaceAll(f.cat.src.Place(), ",", "_"),
		Name:                 "yester",
		MaxWrite:             maxRead,
		MaxBackground:        maxBackground,
		AllowOther:           opt.AllowOther,
		EnableAcl:            opt.AllowOther,
		EnableSymlinkCaching: true,
		Logger:               f.warnings(),
	}
	if opt.AllowOther {
		o.Options = append(o.Options, "default_permissions")
	}
	if os.Geteuid() == 0 {
		o.DirectMountStrict = true
		o.DirectMountFlags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV
		if !opt.FollowSymlinks {
			o.DirectMountFlags |= unix.MS_NOSYMFOLLOW
		}
	} else {
		// fusermount3 knows no nosymfollow.
		o.Options = append(o.Options, "ro", "nosuid", "nodev")
	}
	return o
}

// mountError says what to do about the usual reasons why mounting fails.
func mountError(dir string, allowOther bool, err error) error {
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT) && noFuse():
		return fmt.Errorf("mounting on %s: this system has no FUSE (/dev/fuse is missing: modprobe fuse): %w", dir, err)
	case strings.Contains(err.Error(), "executable file not found"):
		return fmt.Errorf("mounting on %s: fusermount3 is missing (apt install fuse3), which users other than root need: %w", dir, err)
	case os.Geteuid() != 0:
		// What fusermount3 said is on stderr; here the error is its exit status alone.
		return fmt.Errorf("mounting on %s: %s: %w", dir, fusermountTrouble(dir, allowOther), errFusermount)
	}
	return fmt.Errorf("mounting on %s: %w", dir, err)
}

var errFusermount = errors.New("fusermount3 has refused")

// fusermountTrouble guesses at why fusermount3 has refused to mount on dir.
func fusermountTrouble(dir string, allowOther bool) string {
	switch {
	case unix.Access("/dev/fuse", unix.R_OK|unix.W_OK) != nil:
		return "/dev/fuse can't be opened by this user (its mode is 0666 on most systems)"
	case unix.Access(dir, unix.W_OK) != nil:
		return "the directory must be one that this user may write to"
	case allowOther:
		return "--allow-other may need the line user_allow_other in /etc/fuse.conf"
	}
	return "the log may say why"
}

func noFuse() bool {
	_, err := os.Stat("/dev/fuse")
	return err != nil
}

// ErrMountpoint means that a directory can't be mounted on.
var ErrMountpoint = errors.New("can't be mounted on")

// ErrDeadMount means that a process that died left its mount behind. It matches
// ErrMountpoint too.
var ErrDeadMount = fmt.Errorf("left behind by a process that has died: %w", ErrMountpoint)

// checkMountpoint refuses what would hide the source or mount inside it, and a
// directory on which yester is mounted already.
func checkMountpoint(source, dir string) error {
	switch mounted, dead, err := Mounted(dir); {
	case err != nil:
		return err
	case dead:
		return fmt.Errorf("%s: there is a mount %w", dir, ErrDeadMount)
	case mounted:
		return fmt.Errorf("%s: yester is mounted there already: %w", dir, ErrMountpoint)
	}
	fi, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: no such directory: %w", dir, ErrMountpoint)
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s: not a directory: %w", dir, ErrMountpoint)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if source == "" { // far away
		return nil
	}
	if real == source || strings.HasPrefix(source, strings.TrimSuffix(real, "/")+"/") {
		return fmt.Errorf("%s: a mount there would hide the source %s: %w", dir, source, ErrMountpoint)
	}
	if strings.HasPrefix(real, strings.TrimSuffix(source, "/")+"/") {
		return fmt.Errorf("%s: lies inside the source %s: %w", dir, source, ErrMountpoint)
	}
	return nil
}

// setReadAhead sets how far the kernel reads ahead on a filesystem, in KiB. Only
// root may; without it, reading is correct and somewhat slower.
func setReadAhead(dev uint64, kb int) {
	knob := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(dev), unix.Minor(dev))
	_ = os.WriteFile(knob, fmt.Appendf(nil, "%d\n", kb), 0o644)
}

// Dir returns the absolute path of the directory that is mounted on.
func (m *Mount) Dir() string { return m.dir }

// Unmount unmounts; it fails with ErrBusy while somebody uses the mount, unless
// it is lazy.
func (m *Mount) Unmount(lazy bool) error { return Unmount(m.dir, lazy) }

// Wait returns once the mount is gone, however that came about.
func (m *Mount) Wait() {
	if m.images != nil {
		m.images.wait()
	}
	m.server.Wait()
	m.once.Do(func() {
		close(m.stop)
		for _, s := range m.fs.cat.all() {
			s.retire(time.Now(), true)
		}
		if m.fs.zeros != nil {
			m.fs.zeros.Close()
		}
	})
}

// Stats is a snapshot of what a mount has done.
type Stats struct {
	Points  int       `json:"points"`       // that can be seen, over all machines
	Open    int       `json:"open"`         // of them, opened right now
	Reads   int64     `json:"reads"`        // READ requests served
	Bytes   int64     `json:"bytes"`        // bytes they asked for
	Spliced int64     `json:"spliced"`      // of them, those that never went through the process
	Pushed  int64     `json:"pushed"`       // small files given to the kernel before it asked
	Passed  int64     `json:"passed"`       // files handed to the kernel whole
	Errors  int64     `json:"errors"`       // requests that failed because of the source
	Busy    int64     `json:"busy"`         // requests being served
	Last    time.Time `json:"last_request"` // end of the last request
}

// Stats returns a snapshot.
func (m *Mount) Stats() Stats {
	s := &m.fs.stats
	st := Stats{
		Reads: s.reads.Load(), Bytes: s.bytes.Load(), Spliced: s.spliced.Load(), Pushed: s.pushed.Load(), Passed: s.passed.Load(), Errors: s.errors.Load(),
		Busy: s.busy.Load(), Last: time.Unix(0, s.last.Load()).UTC(),
	}
	m.fs.cat.mu.Lock()
	for _, mc := range m.fs.cat.machines {
		st.Points += len(mc.order)
	}
	m.fs.cat.mu.Unlock()
	for _, sl := range m.fs.cat.all() {
		if _, open := sl.lastUse(); open {
			st.Open++
		}
	}
	return st
}

// janitor closes points that nobody has looked at for a while.
func (m *Mount) janitor() {
	tick := time.NewTicker(closeAfter / 10)
	defer tick.Stop()
	for {
		select {
		case <-m.stop:
			return
		case now := <-tick.C:
			m.closeIdle(now)
		}
	}
}

func (m *Mount) closeIdle(now time.Time) {
	for _, s := range m.fs.cat.all() {
		s.retire(now.Add(-closeAfter), false)
	}
}
