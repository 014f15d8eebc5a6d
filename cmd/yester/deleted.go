package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"yester/guestfs"
	"yester/internal/exitcode"
	"yester/restorepoint"
)

// jsonDeleted is a deleted file as `yester ls --deleted --json` prints it.
type jsonDeleted struct {
	Path             string    `json:"path"`
	PathB64          string    `json:"path_b64,omitempty"`
	LastSeen         string    `json:"last_seen"` // points' ids
	FirstMissing     string    `json:"first_missing"`
	LastSeenTime     time.Time `json:"last_seen_time"`
	FirstMissingTime time.Time `json:"first_missing_time"`
	Again            bool      `json:"again,omitempty"` // it is there once more
	*jsonAttr
}

// deletedLister lists what was deleted.
type deletedLister struct {
	g      *globalFlags
	f      lsFlags
	source string
	names  *userNames
	out    *bufio.Writer
	quote  bool
	tally  tally

	want  []deletedArg
	seen  map[string]bool // paths that were listed
	dirs  map[string]string
	first *restorepoint.Deletion
	err   error
}

// deletedArg is a PATH argument.
type deletedArg struct {
	path    string   // relative to the root
	pattern []string // its names, where it is a pattern
	found   bool
}

// deleted lists the files below paths that are not there at the point of --at, but
// were at an earlier one.
func (g *globalFlags) deleted(ctx context.Context, f lsFlags, source string, paths []string) error {
	src, err := g.open(source, g.logger())
	if err != nil {
		return err
	}
	defer src.Close()
	points, err := g.pointsUpTo(ctx, src)
	if err != nil {
		return err
	}
	l := &deletedLister{
		g: g, f: f, source: source, names: &userNames{}, out: bufio.NewWriterSize(g.stdout, 64<<10), quote: terminal(g.stdout),
		seen: make(map[string]bool), dirs: make(map[string]string),
	}
	if !f.numeric && (f.long || g.json) {
		l.names = g.namesAt(ctx, src, points)
	}
	below := ""
	for _, p := range paths {
		arg := deletedArg{path: strings.Trim(path.Clean("/"+p), "/")}
		if hasMeta(arg.path) {
			arg.pattern = strings.Split(arg.path, "/")
			for _, name := range arg.pattern {
				if _, err := path.Match(name, ""); err != nil {
					return &codedError{msg: fmt.Sprintf("%q: bad pattern", p), code: exitcode.Usage, err: err}
				}
			}
		}
		l.want = append(l.want, arg)
	}
	if len(l.want) == 1 && l.want[0].pattern == nil {
		below = l.want[0].path
		l.want[0].path = "" // links on the way to it are followed, so names may begin in another way
	}
	err = src.Deleted(ctx, points, "/"+below, g.scope(), l.deletion)
	if err == nil {
		err = l.err
	}
	if ferr := l.out.Flush(); err == nil && ferr != nil {
		err = newWriteError(ferr)
	}
	if err != nil {
		return err
	}
	if below != "" {
		l.want[0].path = below
	}
	for _, a := range l.want {
		if err := l.checkThere(ctx, src, points, a); err != nil {
			l.g.problem(&l.tally, err)
		}
	}
	if d := l.first; d != nil && !g.json {
		g.talk.say(talkLine{Hint: fmt.Sprintf("copy one back: yester cp %s %s DEST --at %s", shellWord(source), shellWord("/"+d.Path), d.LastSeen.ID)})
	}
	return l.tally.result()
}

// checkThere fails if a PATH was never there.
func (l *deletedLister) checkThere(ctx context.Context, src *restorepoint.Source, points []restorepoint.Point, a deletedArg) error {
	switch {
	case a.found || a.path == "":
		return nil
	case a.pattern != nil:
		return &codedError{msg: fmt.Sprintf("%q: no deleted file matches", "/"+a.path), code: exitcode.NotFound,
			hint: "-a looks among those that are there again as well"}
	}
	err := src.History(ctx, points, "/"+a.path, l.g.scope(), func(restorepoint.Version) bool { return false })
	if errors.Is(err, guestfs.ErrNotExist) {
		return errNever(err)
	}
	return nil // what else is wrong has been told
}

// deletion prints one deletion, where it was asked for.
func (l *deletedLister) deletion(d restorepoint.Deletion) bool {
	if d.Err != nil {
		err := pointFailure(&d.LastSeen, d.Err)
		if d.Path != "" || d.FirstMissing.ID != "" {
			err = fmt.Errorf("restore point %s: /%s: %w", d.LastSeen.ID, d.Path, err)
		}
		l.out.Flush()
		l.g.problem(&l.tally, err)
		return true
	}
	if !l.wanted(d.Path) || !l.f.all && (d.Again || l.seen[d.Path]) {
		return true
	}
	l.seen[d.Path] = true
	if l.f.directory {
		// The tree's order has a directory before what was in it.
		if l.dirs[path.Dir(d.Path)] == d.FirstMissing.ID {
			if d.Attr.IsDir() {
				l.dirs[d.Path] = d.FirstMissing.ID
			}
			return true
		}
		if d.Attr.IsDir() {
			l.dirs[d.Path] = d.FirstMissing.ID
		}
	}
	if l.first == nil {
		first := d
		l.first = &first
		if !l.g.json {
			l.heading()
		}
	}
	l.tally.ok++
	l.err = l.print(&d)
	return l.err == nil
}

// wanted reports whether one of the PATH arguments means the path p.
func (l *deletedLister) wanted(p string) bool {
	ok := false
	for i := range l.want {
		a := &l.want[i]
		var is bool
		if a.pattern == nil {
			is = a.path == "" || p == a.path || strings.HasPrefix(p, a.path+"/")
		} else {
			is = p == a.path || matchNames(a.pattern, strings.Split(p, "/"))
		}
		a.found = a.found || is
		ok = ok || is
	}
	return ok
}

// matchNames reports whether names match a pattern, name by name; ** is any number
// of directories.
func matchNames(pattern, names []string) bool {
	// reach[i]: the pattern so far matches names[:i].
	reach := make([]bool, len(names)+1)
	reach[0] = true
	for k, p := range pattern {
		next := make([]bool, len(names)+1)
		if p == "**" {
			at := slices.Index(reach, true)
			for i := at; at >= 0 && i < len(next); i++ {
				// At the end it stands for files too.
				next[i] = i > at || k < len(pattern)-1
			}
		} else {
			for i, name := range names {
				if ok, _ := path.Match(p, name); ok && reach[i] {
					next[i+1] = true
				}
			}
		}
		reach = next
	}
	return reach[len(names)]
}

// deletedFormat has the columns of both forms.
const deletedFormat = "%-20s  %-20s  %s\n"

func (l *deletedLister) heading() {
	what := "PATH"
	if l.f.long {
		what = "MODE       OWNER GROUP SIZE MODIFIED PATH"
	}
	fmt.Fprintf(l.out, deletedFormat, "LAST SEEN", "FIRST MISSING", what)
}

func (l *deletedLister) print(d *restorepoint.Deletion) error {
	g := l.g
	if g.json {
		j := jsonDeleted{
			LastSeen: d.LastSeen.ID, FirstMissing: d.FirstMissing.ID, Again: d.Again,
			LastSeenTime: g.pointTime(&d.LastSeen), FirstMissingTime: g.pointTime(&d.FirstMissing),
			jsonAttr: g.newJSONAttr(&d.Attr, l.names),
		}
		j.Path, j.PathB64 = jsonBytes("/" + d.Path)
		return printJSON(l.out, j)
	}
	name := shownName("/"+d.Path, l.quote)
	if d.Attr.IsDir() {
		name += "/"
	}
	if l.f.long {
		a := &d.Attr
		name = fmt.Sprintf("%s %s %s %s %s %s", modeString(a.Mode), l.names.user(a.UID), l.names.group(a.GID), sizeText(a), g.showFileTime(a.Mtime), name)
	}
	if d.Again {
		name += "  (there again)"
	}
	_, err := fmt.Fprintf(l.out, deletedFormat, g.pointText(&d.LastSeen), g.pointText(&d.FirstMissing), name)
	if err != nil {
		return newWriteError(err)
	}
	return nil
}
