package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/exitcode"
	"yester/restorepoint"
)

// diffFlags are the flags of `yester diff`.
type diffFlags struct {
	from, to          string
	content, exitCode bool
	numeric           bool
}

func newDiffCommand(g *globalFlags) *cobra.Command {
	var f diffFlags
	cmd := &cobra.Command{
		Use:   "diff SOURCE [PATH]",
		Short: "Compare two restore points",
		Long: `List what differs between two restore points, at PATH and below it:
  A  added      D  deleted      M  changed, and in parentheses what of it:
                                type, content, mode, owner, mtime, xattrs, links
A directory comes before what is in it, and ends with a slash. Without --from, the
point before --to is compared with it; without --to, that is the one of --at, or
the newest.

An rdiff-backup repository records checksums, which are compared. Of disks and
dated folders, files are the same that are the same inode with the same times, or
that have the same size and time of modification; where these leave a doubt, and
with --content in any case, contents are compared.

--content shows what has changed in text files, as diff -u does. Differences are no
failure: the exit code is 0, unless --exit-code asks for 1 if there are any.`,
		Example: `  yester diff /backups/web01
  yester diff /backups/web01 /etc --from 2006-11-18 --to 2006-11-20T02-30-00Z --content
  yester diff /backups/web01 /srv --from 10D --json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/"
			if len(args) > 1 {
				path = args[1]
			}
			return g.diff(cmd.Context(), f, args[0], path)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.from, "from", "", "the older point: the one at or before `TIME` (default: the one before --to)")
	fl.StringVar(&f.to, "to", "", "the newer point: the one at or before `TIME` (default: --at, or latest)")
	fl.BoolVar(&f.content, "content", false, "compare all contents, and show what has changed in text files")
	fl.BoolVar(&f.exitCode, "exit-code", false, "exit with 1 if there are differences")
	fl.BoolVarP(&f.numeric, "numeric", "n", false, "no names of owners, with --json")
	fl.SortFlags = false
	return cmd
}

const (
	// maxDiffText is how large a file may be whose changes --content shows, in bytes:
	// far more than people read.
	maxDiffText = 4 << 20
	// binaryLook is how much of a file is searched for a NUL, which no text has; the
	// same as git does.
	binaryLook = 8000
)

// jsonDifference is a difference as --json prints it.
type jsonDifference struct {
	Path    string    `json:"path"`
	PathB64 string    `json:"path_b64,omitempty"`
	From    string    `json:"from"` // points' ids
	To      string    `json:"to"`
	Changed []string  `json:"changed"`
	Old     *jsonAttr `json:"old,omitempty"`
	New     *jsonAttr `json:"new,omitempty"`
	// Diff is what has changed in a text file; Binary and TooLarge say why it can't
	// be shown.
	Diff     string `json:"diff,omitempty"`
	DiffB64  string `json:"diff_b64,omitempty"`
	Binary   bool   `json:"binary,omitempty"`
	TooLarge bool   `json:"too_large,omitempty"`
	Error    string `json:"error,omitempty"`
}

// differ prints differences.
type differ struct {
	g        *globalFlags
	f        diffFlags
	src      *restorepoint.Source
	from, to restorepoint.Point
	old, new guestfs.Tree // with --content
	names    *userNames
	out      *bufio.Writer
	quote    bool
	tally    tally
	found    bool
	err      error
}

func (g *globalFlags) diff(ctx context.Context, f diffFlags, source, path string) error {
	src, err := g.open(source, g.logger())
	if err != nil {
		return err
	}
	defer src.Close()
	d := &differ{g: g, f: f, src: src, names: &userNames{}, out: bufio.NewWriterSize(g.stdout, 64<<10), quote: terminal(g.stdout)}
	if err := d.choose(ctx); err != nil {
		return err
	}
	if g.json && !f.numeric {
		d.names = g.namesAt(ctx, src, []restorepoint.Point{d.to})
	}
	if f.content {
		for _, side := range []struct {
			p    restorepoint.Point
			tree *guestfs.Tree
		}{{d.from, &d.old}, {d.to, &d.new}} {
			o, err := src.OpenPoint(ctx, side.p)
			if err != nil {
				return pointFailure(&side.p, err)
			}
			defer o.Close()
			if *side.tree, err = g.treeOf(ctx, o); err != nil {
				return err
			}
		}
	}
	if terminal(g.stderr) && !g.json {
		fmt.Fprintf(g.stderr, "yester: from %s to %s\n", d.from.ID, d.to.ID)
	}
	scope := g.scope()
	scope.Content = f.content
	err = src.Diff(ctx, d.from, d.to, path, scope, func(x restorepoint.Difference) bool { return d.difference(ctx, &x) })
	if ferr := d.out.Flush(); d.err == nil && ferr != nil {
		d.err = newWriteError(ferr)
	}
	switch {
	case d.err != nil:
		return d.err
	case errors.Is(err, guestfs.ErrNotExist):
		return &codedError{err: err, code: exitcode.NotFound, hint: "`yester log SOURCE PATH` tells when a path was there"}
	case err != nil && d.to.Problem != "":
		return pointFailure(&d.to, err)
	case err != nil:
		return pointFailure(&d.from, err)
	}
	if err := d.tally.result(); err != nil {
		return err
	}
	if d.found && f.exitCode {
		return &silentError{code: exitcode.Partial}
	}
	return nil
}

// choose finds the two points.
func (d *differ) choose(ctx context.Context) error {
	g := d.g
	cat, err := g.list(ctx, d.src)
	if err != nil {
		return err
	}
	points, err := g.machinePoints(d.src, cat)
	if err != nil {
		return err
	}
	flag, at := "--to", d.f.to
	if at == "" {
		flag, at = "--at", g.at
	} else if g.at != "" {
		return &codedError{msg: "--to and --at are the same point", hint: "leave --at out", code: exitcode.Usage}
	}
	to, err := g.chooseBy(flag, at, points)
	if err != nil {
		return err
	}
	from := to - 1
	if d.f.from != "" {
		if from, err = g.chooseBy("--from", d.f.from, points); err != nil {
			return err
		}
	}
	if from < 0 {
		return &codedError{msg: fmt.Sprintf("there is no restore point before %s", points[to].ID), code: exitcode.NotFound,
			hint: "`yester points SOURCE` lists the restore points"}
	}
	d.from, d.to = points[from], points[to]
	if g.volume != "" && d.to.Kind == restorepoint.KindTree {
		return errNoDisks(&d.to)
	}
	return nil
}

// difference prints one difference.
func (d *differ) difference(ctx context.Context, x *restorepoint.Difference) bool {
	if x.Err != nil {
		d.out.Flush()
		d.g.problem(&d.tally, fmt.Errorf("/%s: %w", x.Path, x.Err))
	} else {
		d.tally.ok++
	}
	d.found = d.found || x.Changed != 0
	j := jsonDifference{From: d.from.ID, To: d.to.ID, Changed: changeList(x.Changed)}
	if d.f.content && x.Err == nil {
		if err := d.content(ctx, x, &j); err != nil {
			d.out.Flush()
			d.g.problem(&d.tally, fmt.Errorf("/%s: %w", x.Path, err))
			j.Error = err.Error()
		}
	}
	if d.g.json {
		j.Path, j.PathB64 = jsonBytes("/" + x.Path)
		if x.Changed&imageformats.ChangeAdded == 0 && x.Old.Mode != 0 {
			j.Old = d.g.newJSONAttr(&x.Old, d.names)
		}
		if x.Changed&imageformats.ChangeRemoved == 0 && x.New.Mode != 0 {
			j.New = d.g.newJSONAttr(&x.New, d.names)
		}
		if x.Err != nil {
			j.Error = x.Err.Error()
		}
		j.Diff, j.DiffB64 = jsonBytes(j.Diff)
		d.err = printJSON(d.out, j)
		return d.err == nil && ctx.Err() == nil
	}
	if x.Changed != 0 {
		d.line(x)
	}
	switch {
	case j.Binary:
		_, d.err = d.out.WriteString("Binary files differ\n")
	case j.TooLarge:
		_, d.err = fmt.Fprintf(d.out, "Files of more than %s differ\n", formatBytes(maxDiffText))
	case j.Diff != "":
		d.text(j.Diff)
	}
	return d.err == nil && ctx.Err() == nil
}

// line prints what has changed of a path.
func (d *differ) line(x *restorepoint.Difference) {
	name := shownName("/"+x.Path, d.quote)
	attr := &x.New
	letter, what := "M", ""
	switch {
	case x.Changed&imageformats.ChangeAdded != 0:
		letter = "A"
	case x.Changed&imageformats.ChangeRemoved != 0:
		letter, attr = "D", &x.Old
	default:
		what = "  (" + strings.Join(changeList(x.Changed), ", ")
		if o, n := sizeText(&x.Old), sizeText(&x.New); x.Old.IsRegular() && x.New.IsRegular() && min(x.Old.Size, x.New.Size) >= 0 && o != n {
			what += fmt.Sprintf("; %s -> %s bytes", o, n)
		}
		what += ")"
	}
	if attr.IsDir() && x.Path != "" {
		name += "/"
	}
	_, d.err = fmt.Fprintf(d.out, "%s  %s%s\n", letter, name, what)
}

// text prints a unified diff, harmless where it goes to a terminal.
func (d *differ) text(s string) {
	for line := range strings.Lines(s) {
		if d.quote {
			line = printable(strings.TrimSuffix(line, "\n")) + "\n"
		}
		if _, d.err = d.out.WriteString(line); d.err != nil {
			return
		}
	}
}

// content finds what has changed in a regular file.
func (d *differ) content(ctx context.Context, x *restorepoint.Difference, j *jsonDifference) error {
	const changes = imageformats.ChangeAdded | imageformats.ChangeRemoved | imageformats.ChangeType | imageformats.ChangeContent
	if x.Changed&changes == 0 || !x.Old.IsRegular() && !x.New.IsRegular() {
		return nil
	}
	var texts [2][]byte
	names := [2]string{"/dev/null", "/dev/null"}
	for i, side := range []struct {
		tree   guestfs.Tree
		attr   *guestfs.Attr
		prefix string
	}{{d.old, &x.Old, "a/"}, {d.new, &x.New, "b/"}} {
		if !side.attr.IsRegular() {
			continue
		}
		names[i] = shownName(side.prefix+x.Path, true)
		id, err := guestfs.Resolve(ctx, side.tree, "/"+x.Path, false)
		if err != nil {
			return err
		}
		attr, err := side.tree.Attr(ctx, id) // the size may not have been known before
		if err != nil {
			return err
		}
		if attr.Size > maxDiffText {
			j.TooLarge = true
			return nil
		}
		if texts[i], err = guestfs.ReadFile(ctx, side.tree, id, maxDiffText); err != nil {
			return err
		}
		if bytes.IndexByte(texts[i][:min(len(texts[i]), binaryLook)], 0) >= 0 {
			j.Binary = true
			return nil
		}
	}
	text := diff.Diff(names[0], texts[0], names[1], texts[1])
	if _, after, ok := bytes.Cut(text, []byte("\n")); ok { // "diff a b", which the lines after it repeat
		j.Diff = string(after)
	}
	return nil
}
