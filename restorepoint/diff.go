package restorepoint

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"yester/guestfs"
	"yester/imageformats"
)

// Difference is a path that differs between two points, or can't be compared.
type Difference struct {
	Path     string // relative to the root, raw bytes; "" is the root
	Changed  imageformats.Change
	Old, New guestfs.Attr // zero where it wasn't there
	// Err says why the path, or what is below it, can't be compared to the end.
	Err error
}

// Diff calls emit for each path at or below name that differs between two points of
// one machine, a directory before what is in it, by name, until it returns false.
// A name that is at neither point is an error that matches guestfs.ErrNotExist.
func (s *Source) Diff(ctx context.Context, from, to Point, name string, scope Scope, emit func(Difference) bool) error {
	repo, same := repositoryOf([]Point{from, to})
	if d, ok := repo.(imageformats.Differ); same && ok {
		return s.diffByRepository(ctx, d, from, to, name, scope, emit)
	}
	oa, a, _, err := s.lookAt(ctx, from, name, scope)
	if err != nil {
		return err
	}
	defer oa.Close()
	ob, b, _, err := s.lookAt(ctx, to, name, scope)
	if err != nil {
		return err
	}
	defer ob.Close()
	if a == nil && b == nil {
		return atNeither(name)
	}
	if from.key == to.key {
		return nil
	}
	c := newComparison(emit)
	c.how = scope.closeness(&to)
	return c.walk(ctx, cleanPath(name), a, b, 0)
}

func atNeither(name string) error {
	return fmt.Errorf("%q: at neither restore point: %w", name, guestfs.ErrNotExist)
}

func (s *Source) diffByRepository(ctx context.Context, d imageformats.Differ, from, to Point, name string, scope Scope, emit func(Difference) bool) error {
	for _, p := range []Point{from, to} {
		if p.Problem != "" {
			return &pointError{point: &p, err: errors.New(p.Problem)}
		}
	}
	clean := cleanPath(name)
	if clean != "" {
		real, err := s.realPath(ctx, []Point{from, to}, clean, scope)
		if err != nil {
			return err
		}
		there := false
		for _, p := range []Point{from, to} {
			o, f, _, err := s.lookAt(ctx, p, real, scope)
			if err != nil {
				return err
			}
			o.Close()
			there = there || f != nil
		}
		if !there {
			return atNeither(name)
		}
		clean = real
	}
	return d.Diff(ctx, from.tree.point, to.tree.point, clean, func(d imageformats.PathDiff) bool {
		return emit(Difference{Path: d.Path, Changed: d.Changed, Old: d.Old, New: d.New})
	})
}

// Deletion is a path that was deleted between two points.
type Deletion struct {
	Path                   string // relative to the root, raw bytes
	LastSeen, FirstMissing Point  // consecutive, but for points that can't be read
	Attr                   guestfs.Attr
	// Again: it is there at the newest of the points that were looked at.
	Again bool
	// Err says why the point LastSeen, or the directory Path in it, can't be
	// searched.
	Err error
}

// Deleted calls emit for each path at or below name that was there at one of points
// and not at the next, the latest such points first, until it returns false. points
// are consecutive ones of one machine, oldest first.
func (s *Source) Deleted(ctx context.Context, points []Point, name string, scope Scope, emit func(Deletion) bool) error {
	if len(points) == 0 {
		return nil
	}
	clean := cleanPath(name)
	if repo, same := repositoryOf(points); same {
		if d, ok := repo.(imageformats.Differ); ok {
			return s.deletedByRepository(ctx, d, points, clean, scope, emit)
		}
	}
	return s.deletedByTrees(ctx, points, clean, scope, emit)
}

func (s *Source) deletedByRepository(ctx context.Context, d imageformats.Differ, points []Point, name string, scope Scope, emit func(Deletion) bool) error {
	if name != "" {
		real, err := s.realPath(ctx, points, name, scope)
		if err != nil {
			return err
		}
		name = real
	}
	newest, tree, err := scope.tree(ctx, s, points[len(points)-1])
	if err != nil {
		return err
	}
	defer newest.Close()
	dir := path.Dir(name)
	if dir == "." {
		dir = ""
	}
	var failed error
	err = d.Deleted(ctx, dir, func(d imageformats.DeletedPath) bool {
		if !within(d.Path, name) {
			return true
		}
		last, ok := placeOf(points, d.LastSeen.Time)
		first, ok2 := placeOf(points, d.FirstMissing.Time)
		if !ok || !ok2 {
			return true // not of these points
		}
		var again bool
		if again, failed = exists(ctx, tree, d.Path); failed != nil {
			return false
		}
		return emit(Deletion{Path: d.Path, LastSeen: points[last], FirstMissing: points[first], Attr: d.Attr, Again: again})
	})
	return errors.Join(err, failed)
}

// within reports whether p is at or below dir.
func within(p, dir string) bool {
	return dir == "" || p == dir || strings.HasPrefix(p, dir) && p[len(dir)] == '/'
}

// exists reports whether a path is there, without following links.
func exists(ctx context.Context, tree guestfs.Tree, p string) (bool, error) {
	id := tree.Root()
	for name := range strings.SplitSeq(p, "/") {
		var err error
		if id, err = tree.Lookup(ctx, id, name); isMissing(err) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("%q: %w", p, err)
		}
	}
	return true, nil
}

// deletedByTrees compares each two points.
func (s *Source) deletedByTrees(ctx context.Context, points []Point, name string, scope Scope, emit func(Deletion) bool) error {
	var newest, next *Opened
	var newestTree guestfs.Tree
	var there *file // of name, in next
	defer func() {
		if newest != nil {
			newest.Close()
		}
		if next != nil && next != newest {
			next.Close()
		}
	}()
	for i := len(points) - 1; i >= 0; i-- {
		o, f, _, err := s.lookAt(ctx, points[i], name, scope)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			if !emit(Deletion{LastSeen: points[i], Err: err}) {
				return nil
			}
			continue
		}
		if newest == nil {
			if newestTree, err = scope.of(ctx, o); err != nil {
				o.Close()
				return err
			}
			newest, next, there = o, o, f
			continue
		}
		if points[i].key != next.Point.key && f != nil {
			c := newComparison(func(d Difference) bool {
				del := Deletion{Path: d.Path, LastSeen: points[i], FirstMissing: next.Point, Attr: d.Old, Err: d.Err}
				if d.Err == nil {
					_, err := guestfs.Resolve(ctx, newestTree, d.Path, false)
					if del.Again = err == nil; err != nil && !isMissing(err) {
						del.Err = err
					}
				}
				return emit(del)
			})
			c.names = true
			if err = c.walk(ctx, name, f, there, 0); err != nil || c.done {
				o.Close()
				return err
			}
		}
		if next != newest {
			next.Close()
		}
		next, there = o, f
	}
	return nil
}
