package restorepoint

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"yester/guestfs"
	"yester/imageformats"
	"yester/imageformats/dated"
	"yester/restorepoint/layout"
)

// treeRoot is a folder of the source whose points are directory trees.
type treeRoot struct {
	dir    string // relative to the source; "." for the source itself
	format imageformats.RepositoryFormat
	repo   imageformats.Repository // nil until it was opened
	seen   bool                    // found again by the listing that is going on
	err    error                   // of probing it
	// Of a folder of storage snapshots: the folder whose past they are, and those
	// that are trees, by name.
	base string
	only map[string]bool
}

// treePoint is a point of a treeRoot.
type treePoint struct {
	repo  imageformats.Repository
	point imageformats.RepositoryPoint
	// recorded: see Point.Recorded.
	recorded bool
}

// enter returns what a walk of the source asks of each directory: those whose
// points are trees are noted and not descended into. It tells whether the source
// itself is one by its answer to ".".
func (s *Source) enter(ctx context.Context) func(dir string) bool {
	return func(dir string) bool {
		for _, f := range repositories {
			is, err := f.Probe(ctx, s.dir, dir)
			if is || err != nil {
				s.noteTree(dir, f, err)
				return false
			}
		}
		return true
	}
}

// forgetTrees begins a listing, which is to find the trees again.
func (s *Source) forgetTrees() {
	for i := range s.trees {
		s.trees[i].seen = false
	}
}

// noteSnapshotTrees notes those of a holder's snapshots that hold plain files.
func (s *Source) noteSnapshotTrees(h holder, names []string) {
	if len(names) == 0 {
		return
	}
	s.noteTree(h.dir, dated.Snapshots, nil)
	for i := range s.trees {
		if t := &s.trees[i]; t.dir == h.dir && t.format.Name == dated.Snapshots.Name {
			t.base, t.only = h.base, make(map[string]bool, len(names))
			for _, n := range names {
				t.only[n] = true
			}
		}
	}
}

func (s *Source) noteTree(dir string, f imageformats.RepositoryFormat, err error) {
	for i := range s.trees {
		if t := &s.trees[i]; t.dir == dir && t.format.Name == f.Name {
			t.seen, t.err = true, err
			return
		}
	}
	s.trees = append(s.trees, treeRoot{dir: dir, format: f, seen: true, err: err})
}

// treePoints lists the points of the folders that the walk has found to hold
// trees.
func (s *Source) treePoints(ctx context.Context) (points []Point, damaged []Ignored, warnings []Warning) {
	names := s.treeNames()
	for i := range s.trees {
		t := &s.trees[i]
		if !t.seen {
			continue
		}
		list, err := t.list(ctx, s)
		if err != nil {
			damaged = append(damaged, Ignored{Name: t.dir, Reason: err.Error(), Damaged: true, Err: err})
			continue
		}
		for _, w := range list.Warnings {
			warnings = append(warnings, Warning{Name: t.dir, Text: w})
		}
		for _, rp := range list.Points {
			if t.only != nil && !t.only[rp.Name] {
				continue
			}
			var notes []string
			if rp.Degraded != "" {
				notes = []string{rp.Degraded}
			}
			points = append(points, Point{
				Machine: names[i], Time: rp.Time, TimeFrom: FromCatalogue, Kind: KindTree,
				Layout: t.format.Name, Name: rp.Name, Problem: rp.Problem, Notes: notes, Provenance: s.treeProvenance(t, rp.Name),
				tree: treePoint{repo: t.repo, point: rp, recorded: t.format.Recorded && rp.Degraded == ""}, key: t.dir + " " + rp.Key + " " + rp.Problem + rp.Degraded,
			})
		}
	}
	return points, damaged, warnings
}

func (t *treeRoot) list(ctx context.Context, s *Source) (imageformats.RepositoryListing, error) {
	if t.err != nil {
		return imageformats.RepositoryListing{}, t.err
	}
	if t.repo == nil {
		repo, err := t.format.Open(ctx, s.dir, t.dir, imageformats.RepositoryOptions{
			Spool: s.opt.Spool, NumericIDs: s.opt.NumericIDs, Location: s.opt.Location, Logger: s.opt.Logger.With("repository", t.dir),
		})
		if err != nil {
			return imageformats.RepositoryListing{}, err
		}
		t.repo = repo
	}
	return t.repo.Points(ctx)
}

// treeNames names what the trees of each root are of: the folder, with those above
// it where two would have the same name.
func (s *Source) treeNames() []string {
	names := make([]string, len(s.trees))
	count := make(map[string]int)
	for i, t := range s.trees {
		dir := t.dir
		if t.only != nil {
			dir = t.base
		}
		names[i] = path.Base(dir)
		if dir == "." {
			names[i] = s.rootName()
		}
		count[names[i]]++
	}
	for i, t := range s.trees {
		if dir := t.dir; count[names[i]] > 1 && dir != "." {
			names[i] = strings.ReplaceAll(dir, "/", "-")
		}
	}
	return names
}

// rootName names the source by its folder, or by the one whose snapshots it holds.
func (s *Source) rootName() string {
	root := filepath.ToSlash(s.dir.Path())
	for _, holder := range layout.SnapshotHolders {
		root = strings.TrimSuffix(root, "/"+holder)
	}
	return path.Base(root)
}

// treeProvenance says where a storage snapshot that is a tree comes from.
func (s *Source) treeProvenance(t *treeRoot, name string) string {
	if t.only == nil {
		return ""
	}
	at := t.dir
	if at == "." {
		at = filepath.ToSlash(s.dir.Path())
	}
	snap := layout.ParseStorageSnapshot(at, name, s.opt.Location)
	return snap.String(name)
}

// closeTrees closes the repositories.
func (s *Source) closeTrees() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, t := range s.trees {
		if t.repo != nil {
			errs = append(errs, t.repo.Close())
		}
	}
	s.trees = nil
	return errors.Join(errs...)
}

// RootSize returns how many entries the root directory of a point of KindTree has at
// most, and how many bytes there are in their names. An error matching ErrNotFound
// means that the repository can't tell without being read.
func (s *Source) RootSize(ctx context.Context, p Point) (entries, names int, err error) {
	if r, ok := p.tree.repo.(imageformats.RootSizer); ok {
		return r.RootSize(ctx)
	}
	return 0, 0, notFoundf("restore point %s of %s: the size of its root directory", p.ID, p.Machine)
}

// Root returns the root directory of a point of KindTree. It costs much less than
// opening the point.
func (s *Source) Root(ctx context.Context, p Point) (imageformats.Root, error) {
	if p.Kind != KindTree {
		return imageformats.Root{}, notFoundf("restore point %s of %s: a directory tree", p.ID, p.Machine)
	}
	if p.Problem != "" {
		return imageformats.Root{}, &pointError{point: &p, err: errors.New(p.Problem)}
	}
	return p.tree.repo.Root(ctx, p.tree.point)
}

// open opens the point's tree.
func (t *treePoint) open(ctx context.Context, p *Point) (guestfs.Tree, error) {
	if p.Problem != "" {
		return nil, errors.New(p.Problem)
	}
	tree, err := t.repo.OpenPoint(ctx, t.point)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Layout, err)
	}
	return tree, nil
}
