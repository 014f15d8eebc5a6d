package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// lsFlags are the flags of `yester ls`.
type lsFlags struct {
	long, recursive, directory, numeric bool
	deleted, all                        bool
}

func newLsCommand(g *globalFlags) *cobra.Command {
	var f lsFlags
	cmd := &cobra.Command{
		Use:   "ls SOURCE [PATH...]",
		Short: "List files",
		Long: `List the files of a restore point, sorted by name, one a line. Everything is
listed, names with a leading dot too. PATH may be a pattern with *, ?, [] and **;
without one, the root directory is listed.

With -l: type and permissions, links, owner, group, size in bytes, time of last
modification, name. Owners are shown by the names that the guest's own
/etc/passwd and /etc/group give them. A PATH that is a symbolic link is followed
without -l only.

With --deleted: the files that are not there, but were at an earlier point, of any
depth below PATH, the latest deletions first. Each is shown once, with the last
point at which it was seen (` + "`yester cp --at`" + ` takes it from there) and the first at
which it was missing; -d leaves out what was in a deleted directory, -a adds those
that are there again. --at asks what was gone by then.

On a terminal, names with characters that would act on it are quoted.`,
		Example: `  yester ls /backups/web01 /etc -l
  yester ls /backups/web01 /home/ada --deleted
  yester ls /backups/web01 '/home/*/**/*.jpg' --at 10D
  yester ls /backups/web01 / -R --json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.deleted {
				paths := args[1:]
				if len(paths) == 0 {
					paths = []string{"/"}
				}
				return g.deleted(cmd.Context(), f, args[0], paths)
			}
			s, err := g.openTree(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			l := &lister{g: g, f: f, tree: s.tree, quote: terminal(g.stdout)}
			l.out = bufio.NewWriterSize(g.stdout, 64<<10)
			paths := args[1:]
			if len(paths) == 0 {
				paths = []string{"/"}
			}
			err = l.run(cmd.Context(), paths)
			if ferr := l.out.Flush(); err == nil {
				err = ferr
			}
			return err
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.long, "long", "l", false, "show type, permissions, links, owner, group, size and time")
	fl.BoolVarP(&f.recursive, "recursive", "R", false, "list directories with all that is below them")
	fl.BoolVarP(&f.directory, "directory", "d", false, "list directories themselves, not what is in them")
	fl.BoolVarP(&f.numeric, "numeric", "n", false, "show owners by number")
	fl.BoolVar(&f.deleted, "deleted", false, "list what was deleted, with the points at which it was last there and first missing")
	fl.BoolVarP(&f.all, "all", "a", false, "with --deleted, also what is there again; else nothing: names with a leading dot are always listed")
	fl.SortFlags = false
	return cmd
}

const (
	// maxSorted is how many entries of a directory are sorted; of a larger one,
	// each part of so many is by itself.
	maxSorted = 1 << 20
	// maxListDepth bounds how deep -R descends, as in package copyout.
	maxListDepth = 1000
)

// lister lists files.
type lister struct {
	g     *globalFlags
	f     lsFlags
	tree  guestfs.Tree
	quote bool
	out   *bufio.Writer
	names *userNames
	tally tally
	seen  map[guestfs.ID]bool // directories listed by -R
	heads int                 // directories listed under a heading
}

// item is a file to list.
type item struct {
	name   string // as shown
	path   string
	id     guestfs.ID
	attr   guestfs.Attr
	target string
}

func (l *lister) run(ctx context.Context, args []string) error {
	if l.names = (&userNames{}); !l.f.numeric && (l.f.long || l.g.json) {
		l.names = readUserNames(ctx, l.tree)
	}
	var files, dirs []item
	for _, arg := range args {
		matches, err := find(ctx, l.tree, arg, !l.f.long && !l.f.directory)
		if err != nil {
			l.g.problem(&l.tally, err)
			continue
		}
		for _, m := range matches {
			it, err := l.item(ctx, m.path, m.path, m.id, 0)
			switch {
			case err != nil:
				l.g.problem(&l.tally, err)
			case it.attr.IsDir() && !l.f.directory:
				dirs = append(dirs, it)
			default:
				files = append(files, it)
			}
		}
	}
	if err := l.print(files); err != nil {
		return err
	}
	headings := l.f.recursive || len(files)+len(dirs) > 1 || len(l.tally.codes) > 0
	l.heads += len(files)
	for _, d := range dirs {
		l.seen = make(map[guestfs.ID]bool)
		if err := l.directory(ctx, d.path, d.id, headings, 0); err != nil {
			return err
		}
	}
	l.tally.ok += len(files)
	return l.tally.result()
}

// directory lists what is in a directory, and with -R what is below. The error is
// one that ends the command.
func (l *lister) directory(ctx context.Context, dir string, id guestfs.ID, heading bool, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.seen[id] = true
	if heading && !l.g.json {
		if l.heads++; l.heads > 1 {
			l.out.WriteString("\n")
		}
		l.out.WriteString(shownName(dir, l.quote) + ":\n")
	}
	var below []item
	for from, more := uint64(0), true; more; {
		var entries []guestfs.Dirent
		more = false
		err := l.tree.ReadDir(ctx, id, from, func(e guestfs.Dirent) bool {
			entries = append(entries, e)
			from = e.Next
			more = len(entries) == maxSorted
			return !more
		})
		slices.SortFunc(entries, func(a, b guestfs.Dirent) int { return strings.Compare(a.Name, b.Name) })
		items, perr := l.items(ctx, dir, entries)
		if perr != nil {
			return perr
		}
		if perr = l.print(items); perr != nil {
			return perr
		}
		for _, it := range items {
			if l.f.recursive && it.attr.IsDir() {
				below = append(below, it)
			}
		}
		if err != nil {
			l.problem(fmt.Errorf("%s: %w", dir, err))
		} else {
			l.tally.ok++
		}
	}
	for _, it := range below {
		var err error
		switch {
		case l.seen[it.id]:
			err = fmt.Errorf("%s: directory has another name already: %w", it.path, ondisk.ErrCorrupt)
		case depth >= maxListDepth:
			err = fmt.Errorf("%s: nested deeper than %d directories: %w", it.path, maxListDepth, ondisk.ErrUnsupported)
		}
		if err != nil {
			l.problem(err)
			continue
		}
		if err := l.directory(ctx, it.path, it.id, heading, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// problem reports an error in its place among what is listed.
func (l *lister) problem(err error) {
	l.out.Flush()
	l.g.problem(&l.tally, err)
}

// items looks up what has to be shown of entries.
func (l *lister) items(ctx context.Context, dir string, entries []guestfs.Dirent) ([]item, error) {
	items := make([]item, 0, len(entries))
	for _, e := range entries {
		it, err := l.item(ctx, e.Name, path.Join(dir, e.Name), e.ID, e.Type)
		if err == nil {
			items = append(items, it)
			continue
		}
		if ctx.Err() != nil {
			return nil, err
		}
		l.problem(err)
		if !l.f.long && !l.g.json { // the name, at least, is known
			items = append(items, item{name: e.Name, path: path.Join(dir, e.Name), id: e.ID})
		}
	}
	return items, nil
}

// item looks up what has to be shown of a file. kind is its type where that is
// known already: for a plain list it is all that matters.
func (l *lister) item(ctx context.Context, name, p string, id guestfs.ID, kind uint32) (item, error) {
	it := item{name: name, path: p, id: id}
	it.attr.Mode = kind
	full := l.f.long || l.g.json
	if kind != 0 && !full {
		return it, nil
	}
	var err error
	if it.attr, err = l.tree.Attr(ctx, id); err == nil && full && it.attr.IsSymlink() {
		it.target, err = l.tree.ReadLink(ctx, id)
	}
	if err != nil {
		return it, fmt.Errorf("%s: %w", p, err)
	}
	return it, nil
}

// print prints one directory's files.
func (l *lister) print(items []item) error {
	switch {
	case l.g.json:
		for i := range items {
			it := &items[i]
			if err := printJSON(l.out, l.g.newJSONFile(it.path, it.id, &it.attr, it.target, l.names)); err != nil {
				return err
			}
		}
		return nil
	case !l.f.long:
		for i := range items {
			l.out.WriteString(shownName(items[i].name, l.quote))
			if err := l.out.WriteByte('\n'); err != nil {
				return err
			}
		}
		return nil
	}
	return printLong(l.out, l.g, items, l.names, l.quote)
}

// printLong prints lines as ls -l does, in columns as wide as these items need.
func printLong(out io.Writer, g *globalFlags, items []item, names *userNames, quote bool) error {
	const columns = 4 // links, owner, group, size
	rows := make([][columns]string, len(items))
	var width [columns]int
	for i := range items {
		a := &items[i].attr
		rows[i] = [columns]string{strconv.Itoa(int(a.Nlink)), names.user(a.UID), names.group(a.GID), sizeText(a)}
		for c, s := range rows[i] {
			width[c] = max(width[c], utf8.RuneCountInString(s))
		}
	}
	for i := range items {
		it, r := &items[i], &rows[i]
		name := shownName(it.name, quote)
		if it.attr.IsSymlink() {
			name += " -> " + shownName(it.target, quote)
		}
		_, err := fmt.Fprintf(out, "%s %*s %-*s %-*s %*s %s %s\n", modeString(it.attr.Mode),
			width[0], r[0], width[1], r[1], width[2], r[2], width[3], r[3], g.showFileTime(it.attr.Mtime), name)
		if err != nil {
			return err
		}
	}
	return nil
}

// showFileTime formats a file's time, to the second.
func (g *globalFlags) showFileTime(t guestfs.Time) string {
	return g.showTime(t.Time())
}
