package restorepoint

import (
	"context"
	"errors"
	"fmt"

	"yester/guestfs"
	"yester/imageformats"
)

// repository checks points of a repository that knows what differs between them:
// all files of the newest point, and of each other one those that the next has not.
func (v *verification) repository(ctx context.Context, d imageformats.Differ, points []Point) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p := v.opt.Progress; p.WantTotal {
		counted := make(chan struct{})
		go func() {
			defer close(counted)
			count := func(t task) error {
				p.Total.Add(t.size)
				return nil
			}
			// Without a total there is no time left to show, and that is all.
			err := v.versions(ctx, d, points, func(ctx context.Context, list tasks) error { return list(ctx, count) }, func(Fault) {})
			p.TotalKnown.Store(err == nil)
		}()
		defer func() {
			cancel()
			<-counted
		}()
	}
	return v.versions(ctx, d, points, v.parallel, v.fault)
}

// versions lists, point by point, each version of each regular file, with a tree
// that has it, for run to work through.
func (v *verification) versions(ctx context.Context, d imageformats.Differ, points []Point, run func(context.Context, tasks) error, fault func(Fault)) error {
	var next *Point // newer, and readable
	for i := len(points) - 1; i >= 0; i-- {
		p := &points[i]
		err := v.version(ctx, d, p, next, run, fault)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			fault(Fault{Point: *p, Err: err})
			continue
		}
		next = p
	}
	return nil
}

// version lists the files of p, or those that the newer point next has not.
func (v *verification) version(ctx context.Context, d imageformats.Differ, p, next *Point, run func(context.Context, tasks) error, fault func(Fault)) error {
	o, err := v.src.OpenPoint(ctx, *p)
	if err != nil {
		return err
	}
	defer o.Close()
	// Attributes and ACLs are in files of their own.
	if _, err := o.Tree.ListXattr(ctx, o.Tree.Root()); err != nil {
		return err
	}
	return run(ctx, func(ctx context.Context, check func(task) error) error {
		if next == nil {
			return v.walk(ctx, &walker{verification: v, point: p, tree: o.Tree, fault: fault, check: check}, "", o.Tree.Root(), 0)
		}
		return v.changed(ctx, d, o, p, next, check)
	})
}

// changed checks the files of p that the newer point next has not.
func (v *verification) changed(ctx context.Context, d imageformats.Differ, o *Opened, p, next *Point, check func(task) error) error {
	var failed error
	seen := make(map[guestfs.ID]bool)
	err := d.Diff(ctx, p.tree.point, next.tree.point, "", func(c imageformats.PathDiff) bool {
		if !c.Old.IsRegular() {
			return true
		}
		id := o.Tree.Root()
		for _, name := range splitPath(c.Path) {
			if id, failed = o.Tree.Lookup(ctx, id, name); failed != nil {
				failed = fmt.Errorf("%q: %w", c.Path, failed)
				return false
			}
		}
		if !seen[id] {
			seen[id] = true
			failed = check(task{point: p, tree: o.Tree, path: c.Path, id: id, size: max(c.Old.Size, 0)})
		}
		return failed == nil
	})
	return errors.Join(err, failed)
}
