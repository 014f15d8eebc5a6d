package restorepoint

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/ondisk"
)

// Version is what a path was over a run of consecutive points.
type Version struct {
	First, Last Point // the points at which it was so; the same when there is one
	Points      int   // how many they are
	Missing     bool  // it wasn't there; Attr, Target and SHA1 are zero
	Attr        guestfs.Attr
	Target      string // of a symbolic link
	SHA1        string // of a regular file's content, hex; empty when the backup doesn't record it
	// Changed says in what it differs from the version before; zero for one that
	// was there at the oldest point already, and for one after an Err that is as it
	// was before that.
	Changed imageformats.Change
	// Err says why the path can't be looked at in these points; all but the points
	// is zero then.
	Err error
}

// History calls emit for each version that path had over points, which are
// consecutive ones of one machine, oldest first; it stops when emit returns false.
// path is taken from the root of a point's tree. A symbolic link at its end is a
// version like any other; those on the way to it are followed: where the
// repository itself knows the versions, those of the newest point, else those of
// each point. A path that was never there is an error that matches
// guestfs.ErrNotExist.
func (s *Source) History(ctx context.Context, points []Point, name string, scope Scope, emit func(Version) bool) error {
	var err error
	found := false
	tell := func(v Version) bool {
		found = true
		return emit(v)
	}
	repo, same := repositoryOf(points)
	if h, ok := repo.(imageformats.Historian); same && ok {
		clean := cleanPath(name)
		err = historyByRepository(ctx, h, points, clean, tell)
		if err == nil && !found {
			var real string
			if real, err = s.realPath(ctx, points, clean, scope); err == nil && real != clean {
				err = historyByRepository(ctx, h, points, real, tell)
			}
		}
	} else {
		err = s.historyByTrees(ctx, points, name, scope, tell)
	}
	if err == nil && !found {
		err = fmt.Errorf("%q: at none of the restore points: %w", name, guestfs.ErrNotExist)
	}
	return err
}

// repositoryOf returns the repository that all of points are of.
func repositoryOf(points []Point) (imageformats.Repository, bool) {
	if len(points) == 0 || points[0].Kind != KindTree {
		return nil, false
	}
	repo := points[0].tree.repo
	return repo, !slices.ContainsFunc(points, func(p Point) bool { return p.Kind != KindTree || p.tree.repo != repo })
}

// cleanPath returns a path of a user's in the form that repositories have: relative
// to the root, which is "".
func cleanPath(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// realPath returns where name is in the newest of points in which the directory is
// there that it is in, with the links to that followed; name itself where there is
// none.
func (s *Source) realPath(ctx context.Context, points []Point, name string, scope Scope) (string, error) {
	dir := path.Dir(name)
	if dir == "." {
		return name, nil
	}
	for i := len(points) - 1; i >= 0; i-- {
		if points[i].Problem != "" {
			continue
		}
		o, tree, err := scope.tree(ctx, s, points[i])
		if err != nil {
			return "", err
		}
		real, _, err := guestfs.RealPath(ctx, tree, dir)
		o.Close()
		switch {
		case err == nil:
			return cleanPath(real + "/" + path.Base(name)), nil
		case !isMissing(err):
			return "", err
		}
	}
	return name, nil
}

// isMissing reports whether err says that a path isn't there.
func isMissing(err error) bool {
	return errors.Is(err, guestfs.ErrNotExist) || errors.Is(err, guestfs.ErrNotDir)
}

// historyByRepository asks the repository, which knows all points, and passes on
// what is about points.
func historyByRepository(ctx context.Context, h imageformats.Historian, points []Point, name string, emit func(Version) bool) error {
	var unknown error
	err := h.History(ctx, name, func(v imageformats.PathVersion) bool {
		first, ok := placeOf(points, v.First.Time)
		if !ok && first == len(points) {
			return false // after the last of points
		}
		last, lastOK := placeOf(points, v.Last.Time)
		if !lastOK {
			last = min(last, len(points)) - 1
		}
		if last < first { // before the first of points
			return true
		}
		if points[first].tree.point.Key != v.First.Key && ok {
			unknown = fmt.Errorf("restore point %s: %w: %w", points[first].ID, ErrChanged, ondisk.ErrCorrupt)
			return false
		}
		return emit(Version{
			First: points[first], Last: points[last], Points: last - first + 1, Missing: v.Missing,
			Attr: v.Attr, Target: v.Target, SHA1: v.SHA1, Changed: v.Changed, Err: v.Err,
		})
	})
	return errors.Join(err, unknown)
}

// placeOf returns the index of the point of that time, or where it would be.
func placeOf(points []Point, t time.Time) (int, bool) {
	return slices.BinarySearchFunc(points, t, func(p Point, t time.Time) int { return p.tree.point.Time.Compare(t) })
}

// historyByTrees looks at each point.
func (s *Source) historyByTrees(ctx context.Context, points []Point, name string, scope Scope, emit func(Version) bool) error {
	var run Version // the one that goes on; Points 0: none yet
	var before *file
	var opened *Opened // of before
	release := func() {
		if opened != nil {
			opened.Close()
			opened = nil
		}
	}
	defer release()
	seen := false
	for i, p := range points {
		if err := ctx.Err(); err != nil {
			return err
		}
		o, now, target, err := s.lookAt(ctx, p, name, scope)
		var change imageformats.Change
		if err == nil {
			switch {
			case now == nil && before == nil:
			case now == nil:
				change = imageformats.ChangeRemoved
			case before == nil:
				if seen || i > 0 {
					change = imageformats.ChangeAdded
				}
			default:
				change, err = compareFiles(ctx, before, now, scope.closeness(&p))
			}
		}
		switch {
		case err != nil:
			if o != nil {
				o.Close()
			}
			if ctx.Err() != nil {
				return err
			}
			if run.Points > 0 && !emit(run) || !emit(Version{First: p, Last: p, Points: 1, Err: err}) {
				return nil
			}
			run = Version{}
			continue
		case now == nil && !seen: // not there yet
			o.Close()
			continue
		case run.Points > 0 && change == 0:
			run.Last = p
			run.Points++
		default:
			if run.Points > 0 && !emit(run) {
				o.Close()
				return nil
			}
			run = Version{First: p, Last: p, Points: 1, Missing: now == nil, Changed: change, Target: target}
			if now != nil {
				run.Attr = now.attr
			}
		}
		seen = true
		release()
		before, opened = now, o
	}
	if run.Points > 0 {
		emit(run)
	}
	return nil
}

// lookAt finds name in p; nil when it isn't there.
func (s *Source) lookAt(ctx context.Context, p Point, name string, scope Scope) (o *Opened, f *file, target string, err error) {
	o, tree, err := scope.tree(ctx, s, p)
	if err != nil {
		return nil, nil, "", err
	}
	id, err := guestfs.Resolve(ctx, tree, name, false)
	if err == nil {
		if f, err = newFile(ctx, tree, id); err == nil && f.attr.IsSymlink() {
			target, err = tree.ReadLink(ctx, id)
		}
	} else if isMissing(err) {
		err = nil
	}
	if err != nil {
		o.Close()
		return nil, nil, "", err
	}
	return o, f, target, nil
}
