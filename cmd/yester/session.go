package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"yester/guestfs"
	"yester/guestfs/guestview"
	"yester/internal/exitcode"
	"yester/internal/ondisk"
	"yester/restorepoint"
	"yester/restorepoint/timeexpr"
)

// list lists the source, and warns of files that should have become points.
func (g *globalFlags) list(ctx context.Context, src *restorepoint.Source) (*restorepoint.Catalogue, error) {
	cat, err := src.List(ctx)
	if err != nil {
		return nil, &sourceError{location: src.Location(), err: err}
	}
	damaged, forbidden := 0, 0
	for _, i := range cat.Ignored {
		if i.Damaged {
			damaged++
			if errors.Is(i.Err, fs.ErrPermission) {
				forbidden++
			}
			g.warn("%s is left out: %s", i.Name, i.Reason)
		} else {
			g.info("%s is left out: %s", i.Name, i.Reason)
		}
	}
	for _, w := range cat.Warnings {
		g.warn("%s", warningText(src, w))
	}
	if len(cat.Points) == 0 {
		e := &codedError{msg: src.Location() + ": no restore points", code: exitcode.NotFound,
			hint: "a source is a disk image, a folder with disk images or machines in it, a repository of rdiff-backup, or a location like sftp://host/folder; -v says why files are left out"}
		switch {
		case damaged == 0 && len(cat.Warnings) > 0:
			e.hint = "a repository gets its first restore point when its first backup has come to its end"
		case damaged > 0 && damaged == forbidden:
			e.code, e.hint = exitcode.Unreachable, "run it as root, or as a user who may read the source"
		case damaged > 0:
			e.code, e.hint = exitcode.Damaged, "the warnings above say what is wrong with its files"
		}
		return nil, e
	}
	return cat, nil
}

// warningText is a warning about a repository in the source.
func warningText(src *restorepoint.Source, w restorepoint.Warning) string {
	if w.Name == "." {
		return src.Location() + ": " + w.Text
	}
	return w.Name + ": " + w.Text
}

// selectPoint returns the point that --machine and --at choose.
func (g *globalFlags) selectPoint(ctx context.Context, src *restorepoint.Source) (restorepoint.Point, error) {
	cat, err := g.list(ctx, src)
	if err != nil {
		return restorepoint.Point{}, err
	}
	points, err := g.machinePoints(src, cat)
	if err != nil {
		return restorepoint.Point{}, err
	}
	return g.choose(points)
}

// machinePoints returns the points of the machine that --machine names, or of
// the only one.
func (g *globalFlags) machinePoints(src *restorepoint.Source, cat *restorepoint.Catalogue) ([]restorepoint.Point, error) {
	machines := cat.Machines()
	switch {
	case g.machine != "":
		points := cat.Of(g.machine)
		if len(points) == 0 {
			return nil, &codedError{msg: fmt.Sprintf("%s: no machine %q", src.Location(), g.machine),
				hint: "there is " + join(machines), code: exitcode.NotFound}
		}
		return points, nil
	case len(machines) > 1:
		return nil, &codedError{msg: fmt.Sprintf("%s has restore points of %d machines", src.Location(), len(machines)),
			hint: "choose one by --machine: " + join(machines), code: exitcode.Usage}
	}
	return cat.Points, nil
}

// choose returns the one of points that --at means.
func (g *globalFlags) choose(points []restorepoint.Point) (restorepoint.Point, error) {
	i, err := g.chooseBy("--at", g.at, points)
	if err != nil {
		return restorepoint.Point{}, err
	}
	return points[i], nil
}

// chooseBy returns the index of the point that the value of a flag means.
func (g *globalFlags) chooseBy(flag, at string, points []restorepoint.Point) (int, error) {
	if at == "" {
		at = "latest"
	}
	for i, p := range points {
		if p.ID == at {
			return i, nil
		}
	}
	points = slices.DeleteFunc(slices.Clone(points), func(p restorepoint.Point) bool { return p.Secondary })
	e, err := timeexpr.Parse(at, time.Now(), nil)
	if err != nil {
		return 0, fmt.Errorf("%s %w", flag, err)
	}
	if e.Note != "" {
		g.warn("%s %s: %s", flag, at, e.Note)
	}
	when := func(p restorepoint.Point) time.Time { return p.Time }
	i, err := timeexpr.Select(points, when, e)
	if err != nil {
		return 0, err
	}
	if first, ok := timeexpr.FirstOfDay(points, when, e); ok && first != i {
		g.warn("%s %s means the start of that day, so the point is %s; the first one of the day itself is %s",
			flag, at, points[i].ID, points[first].ID)
	}
	return i, nil
}

// pointsUpTo returns the points of the machine up to the one that --at means,
// oldest first.
func (g *globalFlags) pointsUpTo(ctx context.Context, src *restorepoint.Source) ([]restorepoint.Point, error) {
	cat, err := g.list(ctx, src)
	if err != nil {
		return nil, err
	}
	points, err := g.machinePoints(src, cat)
	if err != nil {
		return nil, err
	}
	i, err := g.chooseBy("--at", g.at, points)
	if err != nil {
		return nil, err
	}
	points = points[:i+1]
	if p := points[i]; g.volume != "" && p.Kind == restorepoint.KindTree {
		return nil, errNoDisks(&p)
	}
	return points, nil
}

// scope says that paths are where those of the other commands are.
func (g *globalFlags) scope() restorepoint.Scope { return restorepoint.Scope{Tree: g.treeOf} }

// join lists names for a message, not all of very many.
func join(names []string) string {
	const most = 20
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	return strings.Join(names, ", ") + more
}

// session is an opened restore point.
type session struct {
	src   *restorepoint.Source
	point *restorepoint.Opened
	tree  guestfs.Tree // nil unless a tree was asked for
}

func (s *session) Close() {
	if s.point != nil {
		s.point.Close()
	}
	s.src.Close()
}

// openPoint opens the point of the source that the flags choose.
func (g *globalFlags) openPoint(ctx context.Context, location string) (*session, error) {
	src, err := g.open(location, g.logger())
	if err != nil {
		return nil, err
	}
	s := &session{src: src}
	p, err := g.selectPoint(ctx, src)
	if err == nil {
		g.info("restore point %s of %s", p.ID, p.Machine)
		s.point, err = src.OpenPoint(ctx, p)
		switch {
		case err != nil && p.Problem != "":
			err = pointFailure(&p, err)
		case err != nil:
			err = &sourceError{location: location, err: err}
		}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// pointFailure is err, which is about the point p. What a listing knew of it already
// is damage, whatever it is called there: a missing parent, …
func pointFailure(p *restorepoint.Point, err error) error {
	if p.Problem == "" {
		return err
	}
	return &codedError{err: err, code: exitcode.Damaged,
		hint: "`yester points` lists the points with their problems; choose another by --at"}
}

// openTree opens the tree in which PATH arguments are: the volume that --volume
// names, or the guest view, or the only filesystem there is.
func (g *globalFlags) openTree(ctx context.Context, location string) (*session, error) {
	s, err := g.openPoint(ctx, location)
	if err != nil {
		return nil, err
	}
	if s.tree, err = g.treeOf(ctx, s.point); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// treeOf returns the tree of an opened point in which PATH arguments are.
func (g *globalFlags) treeOf(ctx context.Context, p *restorepoint.Opened) (guestfs.Tree, error) {
	switch {
	case g.volume != "" && p.Tree != nil:
		return nil, errNoDisks(&p.Point)
	case g.volume != "":
		return volumeTree(ctx, p, g.volume)
	case p.Tree != nil:
		return p.Tree, nil
	}
	view, err := p.GuestView(ctx)
	if err == nil {
		return view, nil
	}
	if errors.Is(err, guestview.ErrNoRoot) {
		// Where one of the volumes is damaged, that is the likelier cause.
		damaged := isAny(err, ondisk.ErrCorrupt, ondisk.ErrUnsupported)
		if tree, only := onlyTree(ctx, p); only == nil || !damaged {
			return tree, only
		}
	}
	return nil, err
}

// errNoDisks is what a command for disks says of a point that is a directory tree.
func errNoDisks(p *restorepoint.Point) error {
	return &codedError{msg: fmt.Sprintf("restore point %s of %s is a directory tree (%s), without disks or volumes", p.ID, p.Machine, p.Layout),
		hint: "ls, stat, cat, cp and mount show its files", code: exitcode.Usage}
}

func volumeTree(ctx context.Context, p *restorepoint.Opened, name string) (guestfs.Tree, error) {
	v, err := p.Volume(ctx, name)
	if err != nil {
		return nil, err
	}
	return v.Tree(ctx)
}

// onlyTree returns the only filesystem of a point without a root filesystem.
func onlyTree(ctx context.Context, p *restorepoint.Opened) (guestfs.Tree, error) {
	vols, err := p.Volumes(ctx)
	if len(vols) == 0 && err != nil {
		return nil, err
	}
	var trees []guestfs.Tree
	var names, all []string
	for _, v := range vols {
		all = append(all, v.Name)
		tree, err := v.Tree(ctx)
		switch {
		case err == nil:
			trees = append(trees, tree)
			names = append(names, fmt.Sprintf("%s (%s, %s)", v.Name, tree.Info().Type, formatBytes(v.Size())))
		case ctx.Err() != nil:
			return nil, err
		case !errors.Is(err, ondisk.ErrFormat):
			names = append(names, v.Name+" (damaged)")
		}
	}
	switch {
	case len(names) == 0:
		return nil, &codedError{msg: "no filesystem that yester can read", err: ondisk.ErrUnsupported, code: exitcode.Damaged,
			hint: "the volumes are " + join(all) + "; `yester inspect` says more"}
	case len(trees) == 1 && len(names) == 1:
		return trees[0], nil
	}
	return nil, &codedError{msg: "no root filesystem, so paths need a volume", code: exitcode.NotFound,
		hint: "choose one by --volume: " + join(names)}
}
