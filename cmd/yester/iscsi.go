package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"yester/internal/exitcode"
	"yester/internal/running"
	"yester/iscsi"
	"yester/restorepoint"
)

// iscsiFlags are the flags of `yester iscsi`.
type iscsiFlags struct {
	disks        []string
	allPoints    bool
	listen       string
	chapUser     string
	chapFile     string
	mutualUser   string
	mutualFile   string
	initiators   []string
	nets         []string
	overlay      string
	expire, idle time.Duration
	insecure     bool
}

func newIscsiCommand(g *globalFlags) *cobra.Command {
	var f iscsiFlags
	cmd := &cobra.Command{
		Use:   "iscsi SOURCE",
		Short: "Serve the disks of restore points over iSCSI",
		Long: `Serve the disks of a restore point as an iSCSI target, so that Windows, Linux, QEMU
and hypervisors attach them as disks and read them with their own drivers. The
disks are read-only. The command prints how to attach them and serves until it is
interrupted, or --expire or --idle-timeout end it.

The target is called iqn.2026-11.yester:MACHINE:POINT: the machine's name and the
point's id in lower case, with "-" for what such names can't hold, and then a few
digits that tell the name from others. Its disks are the logical units 0, 1, ...
With --all-points, every point of the machine is a target, opened when somebody
logs in; points appear and go as the source changes.

Without --chap-user only this host may connect: --listen takes loopback addresses
alone, unless --insecure says otherwise. CHAP proves who connects; it doesn't
encrypt what is read. Secrets have 12 to 255 characters (12 to 16 for Windows) and
come from files that nobody else may read.

With --overlay, initiators may write, each into a scratch file of its own of at
most SIZE, thrown away when it logs out: Windows assigns letters, kernels replay
journals. The scratch files lie in $TMPDIR. The restore point never changes.`,
		Example: `  yester iscsi /backups/web01 --at 2006-07-28
  yester iscsi /backups/web01 --all-points --listen 192.0.2.7 --chap-user ada \
    --chap-secret-file /etc/yester/ada.secret --expire 12h
  yester iscsi /backups/web01 --overlay 10G`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.serveISCSI(cmd.Context(), &f, args[0])
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.disks, "disk", nil, "serve only the disk called `NAME`; may be given several times")
	fl.BoolVar(&f.allPoints, "all-points", false, "serve all points of the machine, each as a target")
	fl.StringVar(&f.listen, "listen", "127.0.0.1:3260", "listen at `ADDRESS`: a host and a port (default 3260; 0: any that is free)")
	fl.StringVar(&f.chapUser, "chap-user", "", "initiators prove by CHAP that they are `USER`")
	fl.StringVar(&f.chapFile, "chap-secret-file", "", "the secret of --chap-user is in `FILE`")
	fl.StringVar(&f.mutualUser, "mutual-user", "", "the target proves, to initiators that ask, that it is `USER`")
	fl.StringVar(&f.mutualFile, "mutual-secret-file", "", "the secret of --mutual-user is in `FILE`")
	fl.StringArrayVar(&f.initiators, "allow-initiator", nil, "let in only the initiator called `IQN`; may be given several times")
	fl.StringArrayVar(&f.nets, "allow-net", nil, "let in only addresses in `CIDR`; may be given several times")
	fl.StringVar(&f.overlay, "overlay", "", "take writes of up to `SIZE` (such as 10G) for each initiator and disk, and throw them away")
	fl.DurationVar(&f.expire, "expire", 0, "end after this long, such as 12h (0: never)")
	fl.DurationVar(&f.idle, "idle-timeout", 0, "end when nothing was asked for so long, such as 2h (0: never)")
	fl.BoolVar(&f.insecure, "insecure", false, "listen beyond this host without CHAP: all who reach it read all")
	fl.SortFlags = false
	return cmd
}

// shutdownTime is how long initiators have to log out, and reads to end, when the
// process ends.
const shutdownTime = 15 * time.Second

// serveISCSI serves until ctx is done or the flags end it.
func (g *globalFlags) serveISCSI(ctx context.Context, f *iscsiFlags, location string) (err error) {
	conf, err := f.config()
	if err != nil {
		return err
	}
	switch {
	case g.volume != "":
		return usageError("iscsi serves whole disks, not volumes", "--disk chooses one")
	case g.at != "" && f.allPoints:
		return usageError("--all-points serves all times, --at one", "leave one of them away")
	}
	src, err := g.open(location, g.logger())
	if err != nil {
		return err
	}
	log := g.serviceLogger()
	t := newTargetSet(src, f, conf.overlay, log, g.logger())
	conf.server.Logger, conf.server.Metrics, conf.server.ACL.Allow = log, t.counts, t.allow
	srv := iscsi.New(conf.server)
	t.srv = srv
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		if failed := srv.Shutdown(end); failed != nil {
			log.Warn("reads were still running at the end", "error", failed)
			return // their images stay open
		}
		t.close()
		src.Close()
	}()
	if err := checkScratch(src, conf.overlay); err != nil {
		return err
	}
	if err := g.firstTargets(ctx, t); err != nil {
		return err
	}
	l, err := net.Listen("tcp", conf.listen)
	if err != nil {
		return &codedError{err: err, code: exitcode.Partial, hint: "--listen takes an address of this host and a port that nobody uses"}
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()

	s := newService(l.Addr(), src, t, f, conf)
	reg, err := running.Register(running.Service{
		Kind: "iscsi", PID: os.Getpid(), Source: src.Place(), Where: s.Portal, Started: time.Now().UTC(),
	}, func() any {
		st := t.stats(s.Expires)
		st.Cache = g.cache.stats()
		return st
	})
	if err != nil {
		log.Warn("yester status will not show this target", "error", err)
	} else {
		defer reg.Close()
	}
	if g.json {
		err = printJSON(g.stdout, s)
	} else {
		err = s.print(g.stdout)
	}
	if err != nil {
		return err
	}
	if f.insecure && len(conf.server.Auth.Users) == 0 && iscsi.CheckListen(l.Addr(), iscsi.Options{}) != nil {
		g.warn("--insecure: whoever reaches %s may read every disk", s.Portal)
	}
	notifySystemd("READY=1")
	defer notifySystemd("STOPPING=1")
	return t.run(ctx, served, f, log)
}

// firstTargets makes the targets that there are at the start. A single point that
// can't be opened is an error now, not at the first login.
func (g *globalFlags) firstTargets(ctx context.Context, t *targetSet) error {
	cat, err := g.list(ctx, t.src)
	if err != nil {
		return err
	}
	points, err := g.machinePoints(t.src, cat)
	if err != nil {
		return err
	}
	t.machine = points[0].Machine
	if !t.all {
		p, err := g.choose(points)
		if err != nil {
			return err
		}
		if p.Kind == restorepoint.KindTree {
			return errNoDisks(&p)
		}
		t.only, points = p.ID, []restorepoint.Point{p}
		if err := checkDisks(p, t.disks); err != nil {
			return err
		}
		opened, err := t.src.OpenPoint(ctx, p)
		switch {
		case err != nil && p.Problem != "":
			return &codedError{err: err, code: exitcode.Damaged,
				hint: "`yester points` lists the points with their problems; choose another by --at"}
		case err != nil:
			return &sourceError{location: t.src.Location(), err: err}
		}
		t.hold = opened
	}
	t.update(points)
	if len(t.targets) == 0 {
		return &codedError{msg: fmt.Sprintf("%s: none of the %d points of %s can be served", t.src.Location(), len(points), t.machine),
			hint: "the warnings above say why; `yester points` lists them", code: exitcode.Damaged}
	}
	return nil
}

// checkDisks reports a disk that the point doesn't have.
func checkDisks(p restorepoint.Point, names []string) error {
	var have []string
	for _, d := range p.Disks {
		have = append(have, d.Name)
	}
	for _, n := range names {
		found := false
		for _, h := range have {
			found = found || h == n
		}
		if !found {
			return &codedError{msg: fmt.Sprintf("restore point %s of %s: no disk %q", p.ID, p.Machine, n),
				hint: "there is " + join(have), code: exitcode.NotFound}
		}
	}
	return nil
}

// checkScratch refuses scratch files in the source.
func checkScratch(src *restorepoint.Source, o *iscsi.Overlay) error {
	if o == nil {
		return nil
	}
	dir := realPath(o.Dir)
	fi, err := os.Stat(src.HostPath()) // of a source that lies far away there is none
	if err == nil && fi.IsDir() && inside(dir, src.HostPath()) {
		return usageError("the scratch files of --overlay would lie in the source, and nothing is ever written to a source",
			"set TMPDIR to another place than "+dir)
	}
	if fi, err = os.Stat(dir); err != nil || !fi.IsDir() {
		return usageError(fmt.Sprintf("--overlay: %s is no folder for scratch files", dir), "set TMPDIR to one")
	}
	return nil
}

// run serves until there is a reason to end.
func (t *targetSet) run(ctx context.Context, served <-chan error, f *iscsiFlags, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() { defer close(followed); t.follow(ctx) }()
	defer func() { cancel(); <-followed }()
	var expired, idle <-chan time.Time
	if f.expire > 0 {
		expired = time.After(f.expire)
	}
	if f.idle > 0 {
		t.counts.touch()
		tick := time.NewTicker(min(max(f.idle/20, 10*time.Millisecond), time.Minute))
		defer tick.Stop()
		idle = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			log.Info("ends: interrupted")
			return nil
		case <-expired:
			log.Info("ends: expired", "after", f.expire)
			return nil
		case <-idle:
			if since := time.Since(t.counts.lastUse()); since >= f.idle && !t.busy() {
				log.Info("ends: idle", "for", f.idle)
				return nil
			}
		case err := <-served:
			if errors.Is(err, iscsi.ErrClosed) {
				err = nil
			}
			return err
		}
	}
}

// serviceLogger returns where a service's log goes: stderr, logins included, and
// each message as often as it comes.
func (g *globalFlags) serviceLogger() *slog.Logger {
	t := &talker{w: g.stderr, json: g.json, level: slog.LevelInfo, repeat: true}
	if g.verbose {
		t.level = slog.LevelDebug
	}
	return slog.New(&logHandler{talk: t})
}

// usageError is an error of exit code 2.
func usageError(msg, hint string) error {
	return &codedError{msg: msg, hint: hint, code: exitcode.Usage}
}
