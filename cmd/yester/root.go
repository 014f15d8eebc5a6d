package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"yester/guestfs"
	"yester/restorepoint"
	"yester/restorepoint/layout"
)

// globalFlags are the flags of all commands, and what commands share.
type globalFlags struct {
	at, machine, volume string
	json                bool
	replay              string
	local               bool
	allowChangedParent  bool
	numericIDs          bool
	verbose             bool
	layout              string
	groupWindow         time.Duration
	cacheSize           string

	template       *layout.Template // of layout
	stdout, stderr *os.File
	cache          lazyCache
	far            farFlags
	started        bool // flags and arguments are right; the command's own work began
	talk           *talker
}

func newRootCommand(g *globalFlags) *cobra.Command {
	root := &cobra.Command{
		Use:   "yester",
		Short: "Look into dated restore points, and copy files out of them",
		Long: `yester opens the restore points of virtual machines (chains of disk images) and
of directories (rdiff-backup repositories, dated folders) and shows the files that
are in them. It restores single files and trees without restoring the whole, and
never writes to a source.

SOURCE is a disk image, a folder in which disk images lie, or an rdiff-backup
repository. PATH is a path in the machine as it saw itself: its volumes put
together by its own /etc/fstab. --volume names one volume instead. In a repository
PATH begins at the directory that was backed up.

TIME, for --at, is one of
  latest                  the newest point (the default)
  2006-07-28T02-30-00Z    a point's id, as ` + "`yester points`" + ` lists it
  2006-07-28 02:30        the newest point at or before this local time
  2006-07-28T02:30:00Z    the same with a zone (RFC 3339)
  2006-07-28  7/28/2006   the newest point at or before the start of that day
  10D  3h  1W  3h5m       that long ago: s, m, h, D, W, M (30 days), Y (365 days)
  3B                      three points before the newest
  1154046605              seconds since 1970

Exit codes: 0 done; 1 some of it failed; 2 wrong usage; 3 no such point or path;
4 the source is damaged or unsupported; 5 the source can't be reached.`,
		Example: `  yester points /backups/web01
  yester ls /backups/web01 /etc --at 2006-07-28
  yester cp /backups/web01 /etc/nginx /tmp --at 10D`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return g.start() },
	}
	root.SetOut(g.stdout)
	root.SetErr(g.stderr)
	fl := root.PersistentFlags()
	fl.StringVar(&g.at, "at", "", "the restore point at or before `TIME` (default latest)")
	fl.StringVar(&g.machine, "machine", "", "the machine called `NAME`, where a source has several")
	fl.StringVar(&g.volume, "volume", "", "paths are in the volume `NAME` instead of the whole machine")
	fl.BoolVar(&g.json, "json", false, "print JSON, one object a line; errors too")
	fl.StringVar(&g.replay, "replay", "on", "replay a filesystem's journal in memory: `MODE`, on or off")
	fl.BoolVar(&g.local, "local", false, "show local time instead of UTC")
	fl.BoolVar(&g.allowChangedParent, "allow-changed-parent", false, "open images whose parent was changed after they were made")
	fl.StringVar(&g.layout, "layout", "", "images lie by `TEMPLATE`: '{machine}/{time:2006-01-02}/{disk}.vmdk'")
	fl.DurationVar(&g.groupWindow, "group-window", restorepoint.DefaultGroupWindow, "disks whose times lie within `DURATION` are one point")
	fl.StringVar(&g.cache.cfg.Dir, "cache-dir", "", "keep what comes from afar in `DIR` (default $XDG_CACHE_HOME/yester)")
	fl.StringVar(&g.cacheSize, "cache-size", "10G", "keep at most `SIZE` of it, and never more than half of the free disk")
	g.far.register(fl)
	fl.BoolVar(&g.numericIDs, "numeric-ids", false, "take the owners a repository records by number, not by their names on this host")
	fl.BoolVarP(&g.verbose, "verbose", "v", false, "say more about what is done and what is left out")
	fl.SortFlags = false
	root.CompletionOptions.HiddenDefaultCmd = false
	root.AddGroup(
		&cobra.Group{ID: "look", Title: "Look into restore points:"},
		&cobra.Group{ID: "take", Title: "Take something out of them:"},
		&cobra.Group{ID: "mount", Title: "Mount or serve them:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("look", newPointsCommand(g), newInspectCommand(g), newLsCommand(g), newStatCommand(g),
		newLogCommand(g), newDiffCommand(g), newVerifyCommand(g))
	add("take", newCatCommand(g), newCpCommand(g), newExportCommand(g))
	add("mount", newMountCommand(g), newUmountCommand(), newIscsiCommand(g), newStatusCommand(g))
	add("", newCacheCommand(g), newVersionCommand(g), newGenDocsCommand())
	return root
}

// start checks the flags that all commands have.
func (g *globalFlags) start() error {
	if g.replay != "on" && g.replay != "off" {
		return fmt.Errorf("--replay is %q, not on or off", g.replay)
	}
	size, err := parseSize(g.cacheSize)
	if err != nil || size <= 0 {
		return fmt.Errorf("--cache-size is %q, not a size like 500M or 10G", g.cacheSize)
	}
	g.cache.cfg.Budget = size
	if err := g.far.check(); err != nil {
		return err
	}
	if g.cache.cfg.Dir != "" {
		// A process in the background has another working directory.
		if g.cache.cfg.Dir, err = filepath.Abs(g.cache.cfg.Dir); err != nil {
			return err
		}
	}
	if g.layout != "" {
		if g.template, err = layout.ParseTemplate(g.layout); err != nil {
			return fmt.Errorf("--layout %q: %w", g.layout, err)
		}
	}
	if g.groupWindow < 0 {
		return fmt.Errorf("--group-window is %s, less than nothing", g.groupWindow)
	}
	level := slog.LevelWarn
	if g.verbose {
		level = slog.LevelInfo
	}
	g.talk = &talker{w: g.stderr, json: g.json, level: level}
	g.cache.use(g.logger())
	g.started = true
	return nil
}

// args returns the flags as a command line has them, for a process that is
// started in the background.
func (g *globalFlags) args() []string {
	a := append([]string{"--replay=" + g.replay, "--cache-size=" + g.cacheSize}, g.far.args()...)
	for name, v := range map[string]string{
		"at": g.at, "machine": g.machine, "volume": g.volume, "cache-dir": g.cache.cfg.Dir,
		"layout": g.layout, "group-window": g.groupWindow.String(),
	} {
		if v != "" {
			a = append(a, "--"+name+"="+v)
		}
	}
	for name, v := range map[string]bool{"local": g.local, "allow-changed-parent": g.allowChangedParent, "numeric-ids": g.numericIDs, "verbose": g.verbose} {
		if v {
			a = append(a, "--"+name)
		}
	}
	return a
}

// logger returns where warnings go: stderr.
func (g *globalFlags) logger() *slog.Logger { return slog.New(&logHandler{talk: g.talk}) }

// open opens the source at location. Failing to do so means that it can't be
// reached.
func (g *globalFlags) open(location string, logger *slog.Logger) (*restorepoint.Source, error) {
	window := g.groupWindow
	if window == 0 {
		window = -1 // none, which is not what 0 means there
	}
	g.cache.use(logger)
	opt := restorepoint.Options{
		Spool:              &g.cache,
		Cache:              g.cache.get,
		Replay:             guestfs.Replay(g.replay == "on"),
		AllowChangedParent: g.allowChangedParent,
		Layout:             g.template,
		GroupWindow:        window,
		NumericIDs:         g.numericIDs,
		Logger:             logger,
	}
	g.far.options(&opt)
	src, err := restorepoint.Open(location, opt)
	if err != nil {
		return nil, &sourceError{location: location, err: err}
	}
	g.far.opened = append(g.far.opened, src)
	return src, nil
}

// showTime formats a time the way the user wants it.
func (g *globalFlags) showTime(t time.Time) string {
	if g.local {
		return t.Local().Format(time.RFC3339)
	}
	return t.UTC().Format(time.RFC3339)
}

// terminal reports whether w is a terminal.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
