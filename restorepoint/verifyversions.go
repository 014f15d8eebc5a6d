package restorepoint

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"yester/guestfs"
	"yester/imageformats"
)

// maxVerified is how many points are checked at a time: a session that changed a
// single large file mustn't keep all processors but one waiting, and each point that
// is open holds its metadata in memory.
const maxVerified = 4

// repository checks points of a repository that knows what differs between them:
// all files of the newest point, and of each other one those that the next has not.
func (v *verification) repository(ctx context.Context, d imageformats.Differ, points []Point) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p := v.opt.Progress; p.WantTotal {
		counted := make(chan struct{})
		go func() {
			defer close(counted)
			// Without a total there is no time left to show, and that is all.
			err := v.versions(ctx, d, points, func(t task) error {
				p.Total.Add(t.size)
				t.done()
				return nil
			}, func(Fault) {})
			p.TotalKnown.Store(err == nil)
		}()
		defer func() {
			cancel()
			<-counted
		}()
	}
	return v.parallel(ctx, func(ctx context.Context, check func(task) error) error {
		return v.versions(ctx, d, points, check, v.fault)
	})
}

// versions hands each version of each regular file to check, with a tree that has
// it; check sees to it that done is called, whatever comes of it. No tree is open
// any more when versions returns.
func (v *verification) versions(ctx context.Context, d imageformats.Differ, points []Point, check func(task) error, fault func(Fault)) error {
	open := make(chan struct{}, maxVerified)
	defer func() {
		for range cap(open) {
			open <- struct{}{}
		}
	}()
	var next *Point // newer, and readable
	for i := len(points) - 1; i >= 0; i-- {
		open <- struct{}{}
		p := &points[i]
		o, err := v.src.OpenPoint(ctx, *p)
		if err != nil {
			<-open
		} else {
			var work sync.WaitGroup
			err = v.version(ctx, d, o, next, func(t task) error {
				work.Add(1)
				t.done = work.Done
				return check(t)
			}, fault)
			go func() {
				work.Wait()
				o.Close()
				<-open
			}()
		}
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

// version hands over the files of a point, or those that the newer point next has
// not.
func (v *verification) version(ctx context.Context, d imageformats.Differ, o *Opened, next *Point, check func(task) error, fault func(Fault)) error {
	reportDegraded(&o.Point, fault)
	// Attributes and ACLs are in files of their own.
	if _, err := o.Tree.ListXattr(ctx, o.Tree.Root()); err != nil {
		return err
	}
	if next == nil {
		w := &walker{verification: v, point: &o.Point, tree: o.Tree, fault: fault, check: check}
		return v.walk(ctx, w, "", o.Tree.Root(), 0)
	}
	return v.changed(ctx, d, o, next, check)
}

// changed hands over the files of a point that the newer point next has not.
func (v *verification) changed(ctx context.Context, d imageformats.Differ, o *Opened, next *Point, check func(task) error) error {
	var failed error
	seen := make(map[guestfs.ID]bool)
	err := d.Diff(ctx, o.Point.tree.point, next.tree.point, "", func(c imageformats.PathDiff) bool {
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
			failed = check(task{point: &o.Point, tree: o.Tree, path: c.Path, id: id, size: max(c.Old.Size, 0)})
		}
		return failed == nil
	})
	return errors.Join(err, failed)
}
