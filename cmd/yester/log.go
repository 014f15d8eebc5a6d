package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"yester/guestfs"
	"yester/internal/exitcode"
	"yester/restorepoint"
)

func newLogCommand(g *globalFlags) *cobra.Command {
	var numeric bool
	cmd := &cobra.Command{
		Use:   "log SOURCE PATH",
		Short: "List the versions of one file",
		Long: `List the versions that one file had over all restore points, or over those up to
--at: the points at which a version was first and last seen, how many they are, its
permissions, owner, group, size and time of modification, and in what it differs
from the version before. The oldest is first, as in ` + "`yester points`" + `, and the newest
stands last, next to the prompt.

CHANGED is one or more of added, removed, type, content, mode, owner, mtime, xattrs
and links (the number of hard links); "-" for the first. Renames are not followed:
a file that was moved was removed at one path and added at the other.

An rdiff-backup repository records all of this. For disks and dated folders the
points are compared one after another; contents are read only where size and times
leave a doubt.`,
		Example: `  yester log /backups/web01 /etc/nginx/nginx.conf
  yester log /backups/web01 /home/ada/report.txt --json`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.log(cmd.Context(), args[0], args[1], numeric)
		},
	}
	cmd.Flags().BoolVarP(&numeric, "numeric", "n", false, "show owners by number")
	return cmd
}

// jsonVersion is a version as `yester log --json` prints it.
type jsonVersion struct {
	Path      string    `json:"path"`
	PathB64   string    `json:"path_b64,omitempty"`
	First     string    `json:"first"` // points' ids
	Last      string    `json:"last"`
	FirstTime time.Time `json:"first_time"`
	LastTime  time.Time `json:"last_time"`
	Points    int       `json:"points"`
	Changed   []string  `json:"changed"`
	Missing   bool      `json:"missing,omitempty"`
	Error     string    `json:"error,omitempty"`
	*jsonAttr
	SHA1 string `json:"sha1,omitempty"`
}

func (g *globalFlags) log(ctx context.Context, source, path string, numeric bool) error {
	src, err := g.open(source, g.logger())
	if err != nil {
		return err
	}
	defer src.Close()
	points, err := g.pointsUpTo(ctx, src)
	if err != nil {
		return err
	}
	names := &userNames{}
	if !numeric {
		names = g.namesAt(ctx, src, points)
	}
	var t tally
	var failed error
	w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
	rows := 0
	err = src.History(ctx, points, path, g.scope(), func(v restorepoint.Version) bool {
		if v.Err != nil {
			g.problem(&t, pointFailure(&v.First, v.Err))
		} else {
			t.ok++
		}
		if g.json {
			failed = printJSON(g.stdout, g.newJSONVersion(path, &v, names))
			return failed == nil
		}
		if v.Err != nil {
			return true
		}
		if rows++; rows == 1 {
			fmt.Fprintln(w, "FIRST SEEN\tLAST SEEN\tPOINTS\tMODE\tOWNER\tGROUP\tSIZE\tMODIFIED\tCHANGED")
		}
		fmt.Fprintln(w, g.versionRow(&v, names))
		return true
	})
	if ferr := w.Flush(); failed == nil && ferr != nil {
		failed = newWriteError(ferr)
	}
	switch {
	case failed != nil:
		return failed
	case errors.Is(err, guestfs.ErrNotExist):
		return errNever(err)
	case err != nil:
		return err
	}
	return t.result()
}

// errNever is err, about a path that is at none of the points.
func errNever(err error) error {
	return &codedError{err: err, code: exitcode.NotFound,
		hint: "`yester ls SOURCE` shows where paths begin; `yester ls SOURCE / --deleted` lists what was there once"}
}

// namesAt returns the users' names at the newest of points that can be opened:
// none where there is no such point, since they are a nicety.
func (g *globalFlags) namesAt(ctx context.Context, src *restorepoint.Source, points []restorepoint.Point) *userNames {
	for i := len(points) - 1; i >= 0; i-- {
		if points[i].Problem != "" {
			continue
		}
		o, err := src.OpenPoint(ctx, points[i])
		if err != nil {
			break
		}
		defer o.Close()
		if tree, err := g.treeOf(ctx, o); err == nil {
			return readUserNames(ctx, tree)
		}
		break
	}
	return &userNames{}
}

func (g *globalFlags) newJSONVersion(path string, v *restorepoint.Version, names *userNames) jsonVersion {
	j := jsonVersion{
		First: v.First.ID, Last: v.Last.ID, FirstTime: g.pointTime(&v.First), LastTime: g.pointTime(&v.Last),
		Points: v.Points, Changed: changeList(v.Changed), Missing: v.Missing, SHA1: v.SHA1,
	}
	j.Path, j.PathB64 = jsonBytes(path)
	switch {
	case v.Err != nil:
		j.Error = v.Err.Error()
	case !v.Missing:
		j.jsonAttr = g.newJSONAttr(&v.Attr, names)
		j.Target, j.TargetB64 = jsonBytes(v.Target)
	}
	return j
}

func (g *globalFlags) versionRow(v *restorepoint.Version, names *userNames) string {
	row := []string{g.pointText(&v.First), g.pointText(&v.Last), fmt.Sprint(v.Points)}
	if v.Missing {
		row = append(row, "-", "-", "-", "-", "-")
	} else {
		a := &v.Attr
		row = append(row, modeString(a.Mode), names.user(a.UID), names.group(a.GID), sizeText(a), g.showFileTime(a.Mtime))
	}
	changed := strings.Join(changeList(v.Changed), ",")
	if changed == "" {
		changed = "-"
	}
	if v.Target != "" {
		changed += " -> " + shownName(v.Target, terminal(g.stdout))
	}
	return strings.Join(append(row, changed), "\t")
}

// pointText is a point's id, which is its time, or its local time.
func (g *globalFlags) pointText(p *restorepoint.Point) string {
	if g.local {
		return g.showTime(p.Time)
	}
	return p.ID
}
