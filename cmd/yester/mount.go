package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"yester/fusefs"
	"yester/internal/exitcode"
	"yester/internal/running"
	"yester/restorepoint"
)

// mountFlags are the flags of `yester mount`.
type mountFlags struct {
	foreground     bool
	allowOther     bool
	followSymlinks bool
	noEROFS        bool
	idleTimeout    time.Duration
	hydrate        bool
	bandwidth      string
	pidFile        string
	logFile        string
}

func newMountCommand(g *globalFlags) *cobra.Command {
	var f mountFlags
	cmd := &cobra.Command{
		Use:   "mount SOURCE DIR",
		Short: "Show the restore points as a directory tree",
		Long: `Mount the restore points of SOURCE on the directory DIR, read-only: one directory
for each date, and "latest". In each:

  files/             the machine's files, volumes put together as its own fstab does
  volumes/NAME/      every filesystem by itself
  disks/NAME.raw     the whole virtual disk as one file

A disk without a root filesystem has no files/. A point that is a directory tree
(rdiff-backup, rsnapshot) has none of these: its files lie in the dated directory.

A source with several machines shows one directory for each, unless --machine
picks one. With --at, only the point of that time is shown.

The command returns when the mount answers; a process in the background serves it
until it is unmounted by ` + "`yester umount DIR`" + ` or a SIGTERM. New points that appear in
the source appear in the mount.`,
		Example: `  yester mount /backups/web01 /mnt/web01
  cp -a /mnt/web01/2026-11-17T02-30-00Z/files/etc/nginx /tmp/
  yester umount /mnt/web01`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := parseBandwidth(f.bandwidth); err != nil {
				return err
			}
			for flag, path := range map[string]string{"--log-file": f.logFile, "--pid-file": f.pidFile} {
				if err := checkOutside(args[0], flag, path); err != nil {
					return err
				}
			}
			if f.foreground {
				return serveMount(cmd.Context(), g, f, args[0], args[1])
			}
			return startMount(cmd.Context(), g, f, args[0], args[1])
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.foreground, "foreground", false, "serve from this process instead of one in the background")
	fl.BoolVar(&f.allowOther, "allow-other", false, "let other users in; the guest's modes and ACLs decide what they may read")
	fl.BoolVar(&f.followSymlinks, "follow-symlinks", false, "follow the guest's symbolic links, which lead into this host (off: ELOOP)")
	fl.BoolVar(&f.noEROFS, "no-erofs", false, "list rdiff-backup points request by request even where the kernel could by itself; shows all that can be read of a damaged point")
	fl.BoolVar(&f.hydrate, "hydrate", false, "fetch the newest point, or the one of --at, in the background: all of it, for a source far away")
	fl.StringVar(&f.bandwidth, "bandwidth", "", "hydrate by at most this many bytes a second, such as `20M` (default no limit)")
	fl.DurationVar(&f.idleTimeout, "idle-timeout", 0, "unmount after this long without a request, such as 12h (0: never); implies --no-erofs")
	fl.StringVar(&f.pidFile, "pid-file", "", "write the serving process's number to `FILE`")
	fl.StringVar(&f.logFile, "log-file", "", "write the log to `FILE` (default: a file under /var/log/yester, or ~/.local/state/yester)")
	return cmd
}

// readyEnv names the descriptor on which a process in the background reports to
// the one that started it.
const readyEnv = "YESTER_READY_FD"

// readyMessage is that report.
type readyMessage struct {
	Points int    `json:"points,omitempty"`
	Error  string `json:"error,omitempty"`
	Hint   string `json:"hint,omitempty"`
	Code   int    `json:"code,omitempty"`
}

// startMount starts a process that serves the mount and waits until it answers.
func startMount(ctx context.Context, g *globalFlags, f mountFlags, source, dir string) error {
	logFile, err := logPath(f.logFile, dir)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("log file: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := append(g.args(), "mount", "--foreground", "--log-file", logFile)
	args = append(args, f.args()...)
	child := exec.Command(self, append(args, "--", source, dir)...)
	child.Stdout, child.Stderr = log, log
	child.ExtraFiles = []*os.File{w}
	child.Env = append(os.Environ(), readyEnv+"=3")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the process in the background: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { child.Process.Signal(syscall.SIGTERM) })
	defer stop()
	var msg readyMessage
	if err := json.NewDecoder(r).Decode(&msg); err != nil {
		werr := child.Wait()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("the process in the background ended before the mount answered; its log is %s: %w", logFile, errors.Join(werr, err))
	}
	if msg.Error != "" {
		child.Wait()
		return &codedError{msg: msg.Error, hint: msg.Hint, code: msg.Code}
	}
	fmt.Fprintf(os.Stderr, "yester: mounted %s on %s (%d points; log: %s)\n", source, dir, msg.Points, logFile)
	return child.Process.Release()
}

// args returns the flags as a command line has them, for the process in the
// background.
func (f *mountFlags) args() []string {
	var a []string
	if f.allowOther {
		a = append(a, "--allow-other")
	}
	if f.followSymlinks {
		a = append(a, "--follow-symlinks")
	}
	if f.noEROFS {
		a = append(a, "--no-erofs")
	}
	if f.hydrate {
		a = append(a, "--hydrate", "--bandwidth", f.bandwidth)
	}
	if f.pidFile != "" {
		a = append(a, "--pid-file", f.pidFile)
	}
	return append(a, "--idle-timeout", f.idleTimeout.String())
}

// logPath returns where the log of a mount on dir goes, its folder made.
func logPath(flag, dir string) (string, error) {
	if flag != "" {
		return filepath.Abs(flag)
	}
	base := "/var/log/yester"
	if os.Geteuid() != 0 {
		base = os.Getenv("XDG_STATE_HOME")
		if base == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("no place for the log (use --log-file): %w", err)
			}
			base = filepath.Join(home, ".local", "state")
		}
		base = filepath.Join(base, "yester")
	}
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", &codedError{msg: "no place for the log", err: err, code: exitcode.Usage, hint: "name a file that you may write by --log-file"}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	name := strings.ReplaceAll(strings.Trim(abs, "/"), "/", "-")
	return filepath.Join(base, "mount-"+name+".log"), nil
}

// serveMount mounts and serves until the mount is gone.
func serveMount(ctx context.Context, g *globalFlags, f mountFlags, source, dir string) error {
	// Threads that wait in a read of /dev/fuse give their processor away and have to
	// get one back: with some to spare they find one free, which saves a third of
	// the CPU time of small requests.
	runtime.GOMAXPROCS(4 * runtime.GOMAXPROCS(0))
	ready := readyPipe()
	logger := g.logger()
	if f.pidFile != "" {
		abs, err := filepath.Abs(f.pidFile)
		if err != nil {
			return err
		}
		f.pidFile = abs
	}
	if f.logFile != "" {
		log, err := os.OpenFile(f.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("log file: %w", err)
		}
		defer log.Close()
		logger = slog.New(slog.NewTextHandler(log, nil))
	}
	// Before anybody can know that there is something to end.
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(sig)
	m, src, err := openMount(ctx, g, f, source, dir, logger)
	if err != nil {
		report(ready, readyMessage{Error: err.Error(), Hint: hint(err), Code: code(err)})
		return err
	}
	defer src.Close()
	var h hydration
	hydrated := func() {}
	if f.hydrate {
		limit, _ := parseBandwidth(f.bandwidth) // which has been checked
		hctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { h.run(hctx, g, src, limit, logger) })
		hydrated = func() { cancel(); wg.Wait() }
	}
	reg, err := running.Register(running.Service{
		Kind: "mount", PID: os.Getpid(), Source: src.Place(), Where: m.Dir(), Started: time.Now().UTC(), Log: f.logFile,
	}, func() any { return mountStats{m.Stats(), g.cache.stats(), src.Cost(), h.status()} })
	if err != nil {
		logger.Warn("yester status will not show this mount", "error", err)
	} else {
		defer reg.Close()
	}
	if f.pidFile != "" {
		if err := os.WriteFile(f.pidFile, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
			logger.Error("pid file", "error", err)
		} else {
			defer os.Remove(f.pidFile)
		}
	}
	if ready != nil { // in the background: keep no filesystem busy but the source's
		if err := os.Chdir("/"); err != nil {
			logger.Warn("changing the working directory", "error", err)
		}
	}
	logger.Info("mounted", "source", source, "dir", m.Dir(), "points", m.Stats().Points)
	report(ready, readyMessage{Points: m.Stats().Points})
	notifySystemd("READY=1")

	done := make(chan struct{})
	go func() { m.Wait(); close(done) }()
	go unmountOnSignal(m, sig, logger, done)
	if f.idleTimeout > 0 {
		go unmountWhenIdle(m, f.idleTimeout, logger, done)
	}
	<-done
	hydrated()
	st := m.Stats()
	logger.Info("unmounted", "reads", st.Reads, "bytes", st.Bytes, "errors", st.Errors)
	if c := src.Cost(); c != nil {
		logger.Info("fetched " + c.Text)
	}
	return nil
}

func openMount(ctx context.Context, g *globalFlags, f mountFlags, source, dir string, logger *slog.Logger) (*fusefs.Mount, *restorepoint.Source, error) {
	src, err := g.open(source, logger)
	if err != nil {
		return nil, nil, err
	}
	opt := fusefs.Options{
		Machine: g.machine, AllowOther: f.allowOther, FollowSymlinks: f.followSymlinks, NoEROFS: f.noEROFS || f.idleTimeout > 0, Logger: logger,
	}
	if g.at != "" {
		p, err := g.selectPoint(ctx, src)
		if err != nil {
			src.Close()
			return nil, nil, err
		}
		opt.Machine, opt.Point = p.Machine, p.ID
	} else if cat, err := src.List(ctx); err == nil { // else the mount fails with the same
		for _, w := range cat.Warnings {
			logger.Warn(w.Text, "folder", w.Name)
		}
	}
	m, err := fusefs.Start(ctx, src, dir, opt)
	if err != nil {
		src.Close()
		return nil, nil, err
	}
	return m, src, nil
}

// readyPipe returns where a process in the background reports to; nil in one
// that a person started.
func readyPipe() *os.File {
	fd, err := strconv.Atoi(os.Getenv(readyEnv))
	if err != nil {
		return nil
	}
	os.Unsetenv(readyEnv)
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "ready")
}

func report(ready *os.File, msg readyMessage) {
	if ready != nil {
		json.NewEncoder(ready).Encode(msg)
		ready.Close()
	}
}

// notifySystemd tells systemd about the service, where it is one (sd_notify(3)).
func notifySystemd(state string) {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	if addr[0] == '@' {
		addr = "\x00" + addr[1:]
	}
	c, err := net.Dial("unixgram", addr)
	if err != nil {
		return
	}
	defer c.Close()
	io.WriteString(c, state)
}

// unmountOnSignal unmounts on a signal. A mount that is in use then
// loses its name at once and is served until its last user leaves, or until
// another signal comes.
func unmountOnSignal(m *fusefs.Mount, sig <-chan os.Signal, logger *slog.Logger, done <-chan struct{}) {
	for asked := false; ; asked = true {
		select {
		case <-done:
			return
		case s := <-sig:
			if asked {
				logger.Warn("second signal: leaving while the mount is in use", "signal", s)
				os.Exit(1)
			}
			notifySystemd("STOPPING=1")
			err := m.Unmount(false)
			if errors.Is(err, fusefs.ErrBusy) {
				logger.Warn("in use: will end when the last user leaves", "signal", s)
				err = m.Unmount(true)
			}
			if err != nil {
				logger.Error("unmounting", "error", err)
			}
		}
	}
}

// unmountWhenIdle unmounts once there has been no request for so long. A mount
// that is in use (a shell in it, an open file) is left alone.
func unmountWhenIdle(m *fusefs.Mount, after time.Duration, logger *slog.Logger, done <-chan struct{}) {
	for {
		st := m.Stats()
		left := time.Until(st.Last.Add(after))
		if st.Busy > 0 {
			left = after
		}
		if left <= 0 {
			err := m.Unmount(false)
			if err == nil {
				logger.Info("unmounted: idle", "for", after)
				return
			}
			logger.Info("idle, but in use", "error", err)
			left = max(after/10, time.Second)
		}
		select {
		case <-done:
			return
		case <-time.After(left):
		}
	}
}
