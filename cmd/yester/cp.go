package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"yester/guestfs"
	"yester/internal/copyout"
	"yester/internal/exitcode"
	"yester/internal/ondisk"
)

// cpFlags are the flags of `yester cp`.
type cpFlags struct {
	overwrite string
	dryRun    bool
	parents   bool
	preserve  bool
}

func newCpCommand(g *globalFlags) *cobra.Command {
	var f cpFlags
	cmd := &cobra.Command{
		Use:   "cp SOURCE PATH... DEST",
		Short: "Copy files and directories to this host",
		Long: `Copy files, and directories with all that is in them, to DEST on this host. If DEST
is a directory, they go into it; else one PATH gets that name. A DEST that doesn't
exist is made when there are several, or when it ends with a slash. PATH/. stands
for what is in PATH. PATH may be a pattern with *, ?, [] and **.

Kept are permissions, times to the nanosecond, extended attributes, ACLs, holes,
hard links, symbolic links as links, and, for root, owners and devices. What this
host refuses is reported once for each kind. Set-user-ID bits are dropped where
the owner can't be kept.

A file appears under its name when it is whole, not before. Existing files are
left alone and reported, unless --overwrite says otherwise:
  never       left alone; the exit code is 1 (the default)
  if-newer    replaced if the one to copy was modified later
  if-changed  replaced if type, size, modification time or link target differ
  always      replaced
Existing directories are merged; with "never" they keep their own attributes.`,
		Example: `  yester cp /backups/web01 /etc/nginx /tmp --at 2006-07-28
  yester cp /backups/web01 '/home/*/**/*.jpg' /tmp/photos/ --parents --at 10D
  yester cp /backups/web01 /srv/www/. /srv/www --overwrite if-changed --dry-run`,
		Args: cobra.MinimumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.copy(cmd.Context(), &f, args[0], args[1:len(args)-1], args[len(args)-1])
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.overwrite, "overwrite", "never", "replace existing files by `MODE`: never, if-newer, if-changed or always")
	fl.BoolVarP(&f.dryRun, "dry-run", "n", false, "show what would be done")
	fl.BoolVar(&f.parents, "parents", false, "copy files to their full path below DEST")
	fl.BoolVarP(&f.preserve, "preserve", "p", true, "keep permissions, times, owners and so on; --preserve=false makes new files of yours")
	fl.BoolP("recursive", "r", true, "does nothing: directories are always copied with what is in them")
	fl.BoolP("archive", "a", true, "does nothing: attributes are kept unless --preserve=false")
	fl.MarkHidden("recursive")
	fl.MarkHidden("archive")
	fl.SortFlags = false
	return cmd
}

func (g *globalFlags) copy(ctx context.Context, f *cpFlags, source string, paths []string, dest string) error {
	overwrite, err := copyout.ParseOverwrite(f.overwrite)
	if err != nil {
		return &codedError{msg: "--overwrite " + err.Error(), code: exitcode.Usage}
	}
	s, err := g.openTree(ctx, source)
	if err != nil {
		return err
	}
	defer s.Close()
	var t tally
	items, err := g.items(ctx, s.tree, f, paths, &t)
	if err != nil {
		return err
	}
	if len(items) == 0 {
		return t.result()
	}
	guard, err := newGuard(s)
	if err != nil {
		return err
	}
	into, err := openDest(dest, items, f, len(paths) > 1, guard)
	if err != nil {
		return err
	}
	defer into.close()
	r := &copyReport{g: g, dir: into.dir, dryRun: f.dryRun, tally: &t}
	opt := copyout.Options{
		Overwrite: overwrite, DryRun: f.dryRun, Discard: !f.preserve, OwnDest: into.made,
		Protected: guard.owns, Report: r.event, Progress: &copyout.Progress{},
	}
	start := time.Now()
	stop := g.showCopy(opt.Progress)
	res, err := copyout.Copy(ctx, s.tree, into.root, into.items, opt)
	stop()
	if err != nil && ctx.Err() == nil {
		hint := "make room, or choose another DEST, and run it again with --overwrite if-changed"
		if errors.Is(err, syscall.EROFS) {
			hint = "choose a DEST that can be written to"
		}
		err = &codedError{err: err, code: exitcode.Partial, hint: hint}
	}
	if err != nil {
		return err
	}
	return r.summary(res, time.Since(start))
}

// items finds what to copy. What isn't there is reported and counted.
func (g *globalFlags) items(ctx context.Context, tree guestfs.Tree, f *cpFlags, paths []string, t *tally) ([]copyout.Item, error) {
	var items []copyout.Item
	for _, arg := range paths {
		contents := strings.HasSuffix(arg, "/.") || arg == "."
		matches, err := find(ctx, tree, arg, false)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			g.problem(t, err)
			continue
		}
		inside := "" // the directory that the last match was, with a slash
		for _, m := range matches {
			if m.glob && inside != "" && strings.HasPrefix(m.path, inside) {
				continue // copied with it
			}
			attr, err := tree.Attr(ctx, m.id)
			if err != nil {
				g.problem(t, fmt.Errorf("%s: %w", m.path, err))
				continue
			}
			if attr.IsDir() {
				inside = strings.TrimSuffix(m.path, "/") + "/"
			}
			it := copyout.Item{ID: m.id, Path: m.path, Name: path.Base(m.path)}
			if m.path == "/" || contents {
				it.Name = ""
			}
			if f.parents && m.path != "/" {
				if it.Parents, err = parents(ctx, tree, m.path); err != nil {
					g.problem(t, err)
					continue
				}
				it.Name = path.Base(m.path)
			}
			items = append(items, it)
		}
	}
	return items, nil
}

// parents returns the directories that lead to the file at p, without links.
func parents(ctx context.Context, tree guestfs.Tree, p string) ([]copyout.Parent, error) {
	real, _, err := guestfs.RealPath(ctx, tree, path.Dir(p))
	if err != nil {
		return nil, err
	}
	var list []copyout.Parent
	id := tree.Root()
	for name := range strings.SplitSeq(strings.Trim(real, "/"), "/") {
		if name == "" {
			continue
		}
		if id, err = tree.Lookup(ctx, id, name); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		list = append(list, copyout.Parent{ID: id, Name: name})
	}
	return list, nil
}

// destination is where the items of a copy go.
type destination struct {
	dir   string   // on this host
	root  *os.Root // nil in a dry run where dir doesn't exist
	items []copyout.Item
	made  bool // dir was made for this copy
}

func (d *destination) close() {
	if d.root != nil {
		d.root.Close()
	}
}

// openDest finds out what DEST means, and makes it where that is asked for.
func openDest(dest string, items []copyout.Item, f *cpFlags, several bool, guard *guard) (*destination, error) {
	d := &destination{dir: filepath.Clean(dest), items: items}
	fail := func(err error, hint string) (*destination, error) {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, &codedError{msg: dest, err: err, hint: hint, code: exitcode.Partial}
	}
	// Whether DEST can only be a directory.
	folder := several || len(items) > 1 || strings.HasSuffix(dest, "/") || f.parents || items[0].Name == ""
	fi, err := os.Stat(dest)
	missing := errors.Is(err, os.ErrNotExist)
	switch {
	case err == nil && fi.IsDir():
	case !folder:
		d.items[0].Name = filepath.Base(d.dir)
		d.dir = filepath.Dir(d.dir)
	case err == nil:
		return fail(unix.ENOTDIR, "")
	case !missing:
		return fail(err, "")
	}
	if err := guard.check(d.dir); err != nil {
		return nil, err
	}
	if missing && folder {
		d.made = true
		if f.dryRun {
			return d, nil
		}
		if err := os.MkdirAll(d.dir, 0o755); err != nil {
			return fail(err, "")
		}
	}
	if d.root, err = os.OpenRoot(d.dir); err != nil {
		return fail(err, "its folder must exist; end DEST with a slash to have it made")
	}
	return d, nil
}

// copyReport prints what becomes of each file.
type copyReport struct {
	g      *globalFlags
	dir    string
	dryRun bool
	tally  *tally
	mu     sync.Mutex
	exists bool
}

// copyLine is what --json prints of a file.
type copyLine struct {
	Action    copyout.Action `json:"action"`
	DryRun    bool           `json:"dry_run,omitempty"`
	Source    string         `json:"source"`
	SourceB64 string         `json:"source_b64,omitempty"`
	Dest      string         `json:"dest"`
	DestB64   string         `json:"dest_b64,omitempty"`
	Type      string         `json:"type,omitempty"`
	Size      int64          `json:"size,omitempty"`
	Error     string         `json:"error,omitempty"`
}

func (r *copyReport) event(e copyout.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	dest := filepath.Join(r.dir, e.Dest)
	switch e.Action {
	case copyout.Copied, copyout.Unchanged:
		r.tally.ok++
	case copyout.Exists:
		r.exists = true
		r.tally.codes = append(r.tally.codes, exitcode.Partial)
	case copyout.Failed:
		c := exitcode.Partial
		if isAny(e.Err, ondisk.ErrCorrupt, ondisk.ErrUnsupported, ondisk.ErrFormat, guestfs.ErrEncrypted) {
			c = exitcode.Damaged
		}
		r.tally.codes = append(r.tally.codes, c)
	}
	if r.g.json {
		l := copyLine{Action: e.Action, DryRun: r.dryRun, Type: typeNames[e.Mode&guestfs.ModeType], Size: e.Size}
		l.Source, l.SourceB64 = jsonBytes(e.Source)
		l.Dest, l.DestB64 = jsonBytes(dest)
		if e.Err != nil {
			l.Error = e.Err.Error()
		}
		printJSON(r.g.stdout, l)
		return
	}
	switch {
	case e.Action == copyout.Failed:
		r.g.talk.say(talkLine{Error: fmt.Sprintf("%s: %v", e.Source, e.Err)})
	case e.Action == copyout.Exists:
		r.g.talk.say(talkLine{Error: dest + " exists and is left alone"})
	case r.dryRun || r.g.verbose:
		quote := terminal(r.g.stdout)
		r.g.talk.progress("")
		fmt.Fprintf(r.g.stdout, "%s %s -> %s\n", e.Action, shownName(e.Source, quote), shownName(dest, quote))
	}
}

// copySummary is the last line that --json prints.
type copySummary struct {
	Action  string  `json:"action"` // "summary"
	DryRun  bool    `json:"dry_run,omitempty"`
	Seconds float64 `json:"seconds"`
	copyout.Result
}

// summary prints what the copy came to, and returns its error.
func (r *copyReport) summary(res copyout.Result, took time.Duration) error {
	g := r.g
	for _, l := range res.Losses {
		files := "1 file"
		if l.Count > 1 {
			files = fmt.Sprintf("%d files", l.Count)
		}
		g.warn("%s not preserved: %s, such as %s (%v)", l.Kind, files, l.Path, l.Err)
		if l.Damaged {
			r.tally.codes = append(r.tally.codes, exitcode.Damaged)
		}
	}
	if r.exists {
		g.talk.say(talkLine{Hint: "--overwrite if-newer, if-changed or always replaces existing files; --parents keeps files of one name apart"})
	}
	if g.json {
		if err := printJSON(g.stdout, copySummary{"summary", r.dryRun, took.Seconds(), res}); err != nil {
			return err
		}
		return r.tally.result()
	}
	if g.verbose || r.dryRun || terminal(g.stderr) {
		verb := "copied"
		if r.dryRun {
			verb = "would copy"
		}
		text := fmt.Sprintf("yester: %s %s, %s and %d links and others, %s", verb, count(res.Files, "file", "files"),
			count(res.Dirs, "directory", "directories"), res.Others, formatBytes(res.Bytes))
		if res.Unchanged > 0 {
			text += fmt.Sprintf("; %d unchanged", res.Unchanged)
		}
		if n := res.Exists + res.Failed; n > 0 {
			text += fmt.Sprintf("; %d not copied", n)
		}
		if s := took.Seconds(); !r.dryRun && s >= 0.01 {
			text += fmt.Sprintf(" in %.1f s (%s/s)", s, formatBytes(int64(float64(res.Bytes)/s)))
		}
		fmt.Fprintln(g.stderr, text)
	}
	return r.tally.result()
}

func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
