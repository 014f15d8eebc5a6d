package restorepoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"yester/internal/nametime"
	"yester/internal/ondisk"
	"yester/origin"
)

// Source is a place where restore points live. It is safe for parallel use.
type Source struct {
	location string
	// dir is where the files are; nil of a source without any, and of one that lies
	// far away until it is first listed.
	dir  origin.Folder
	only string // when the source is one file: its name in dir
	opt  Options

	// connect makes the connection to a source that lies far away, and sets dir and
	// only, or snapshots; nil once it has.
	connect   func(context.Context) error
	far       bool            // doesn't lie on this host
	snapshots *snapshotSource // in place of dir

	mu     sync.Mutex // serialises listings; guards what follows
	probed map[string]probed
	texts  map[string]parsed // configuration files
	seen   map[string]bool   // those of texts that the listing in progress has met
	listed time.Time         // when last was made
	last   *Catalogue        // the last listing

	images imagePool
	trees  []treeRoot // guarded by mu
}

// Open opens the source at location: a disk image, or a folder in which restore
// points lie, on this host or far away (sftp://, ebs://). Nothing is read yet, and
// no connection made.
func Open(location string, opt Options) (*Source, error) {
	if opt.Location == nil {
		opt.Location = time.Local
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Source{location: Redact(location), opt: opt, texts: make(map[string]parsed)}
	s.images.open = s.openImage
	if scheme, _, ok := strings.Cut(location, "://"); ok {
		s.far = true
		return s, s.openFar(location, scheme)
	}
	abs, err := filepath.Abs(location)
	if err != nil {
		return nil, err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, err
	}
	fi, err := os.Stat(abs)
	if err != nil {
		return nil, err
	}
	folder := abs
	if !fi.IsDir() {
		if !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: neither a regular file nor a folder", location)
		}
		folder, s.only = filepath.Split(abs)
	}
	s.dir, err = origin.OpenDir(folder)
	return s, err
}

// Location returns the source as the user named it.
func (s *Source) Location() string { return s.location }

// HostPath returns the absolute path of the folder or file on this host; empty
// when the source lies far away.
func (s *Source) HostPath() string {
	if s.far {
		return ""
	}
	return filepath.Join(s.dir.Path(), s.only)
}

// Place names the source for people: its path on this host, or its location.
func (s *Source) Place() string {
	if s.far {
		return s.location
	}
	return s.HostPath()
}

// Close closes the source. Points opened from it must be closed first.
func (s *Source) Close() error {
	err := s.closeTrees()
	if s.dir != nil {
		err = errors.Join(err, s.dir.Close())
	}
	if s.snapshots != nil {
		err = errors.Join(err, s.snapshots.close())
	}
	return err
}

// Catalogue is one listing of a source.
type Catalogue struct {
	// Points of all machines, by machine, then oldest first.
	Points []Point
	// Ignored lists the files that became no point.
	Ignored []Ignored
	// Warnings tell what is wrong with a repository whose other points are right:
	// an interrupted session, lost metadata.
	Warnings []Warning
}

// Warning is about a folder of the source.
type Warning struct {
	Name string `json:"name"` // relative to the source
	Text string `json:"text"`
}

// Machines returns the names of the machines, sorted.
func (c *Catalogue) Machines() []string {
	var names []string
	for _, p := range c.Points {
		if len(names) == 0 || names[len(names)-1] != p.Machine {
			names = append(names, p.Machine)
		}
	}
	return names
}

// Of returns the points of one machine, oldest first.
func (c *Catalogue) Of(machine string) []Point {
	lo := sort.Search(len(c.Points), func(i int) bool { return c.Points[i].Machine >= machine })
	hi := sort.Search(len(c.Points), func(i int) bool { return c.Points[i].Machine > machine })
	return c.Points[lo:hi]
}

// List lists the source anew. Files that have not changed since the last listing
// are not read again. A source that lies far away isn't asked more often than a
// person would look.
func (s *Source) List(ctx context.Context) (*Catalogue, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.connect != nil {
		if err := s.connect(ctx); err != nil {
			return nil, err
		}
		s.connect = nil
	}
	if s.far && s.last != nil && time.Since(s.listed) < farListing {
		return s.last, nil
	}
	cat, err := s.listAll(ctx)
	if err == nil {
		s.last, s.listed = cat, time.Now()
	}
	return cat, err
}

// listAll is List without looking back.
func (s *Source) listAll(ctx context.Context) (*Catalogue, error) {
	if s.snapshots != nil {
		return s.snapshots.list(ctx)
	}
	found, err := s.scan(ctx)
	if err != nil {
		return nil, err
	}
	s.seen = make(map[string]bool)
	var states []diskState
	var rest []*imageFile // those of no known layout
	for _, c := range found.scopes {
		images := found.link(c, s)
		if strings.EqualFold(path.Ext(s.only), ".vmx") {
			states, found.ignored = s.newSurvey(ctx, c, images).onlyMachine(s.only)
			break
		}
		if s.only != "" {
			if rest, err = s.onlyChain(images, found.ignored); err != nil {
				return nil, err
			}
			found.ignored = nil
			break
		}
		sv := s.newSurvey(ctx, c, images)
		if s.opt.Layout != nil {
			sv.described()
		} else {
			for _, detect := range detectors {
				detect(sv)
			}
			rest = append(rest, sv.unclaimed()...)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		states = append(states, sv.states...)
		found.ignored = append(found.ignored, sv.ignored...)
	}
	s.forgetTexts()
	found.ignored = slices.DeleteFunc(found.ignored, func(i Ignored) bool {
		t, ok := s.texts[i.Name] // what was read isn't left out
		return ok && t.err == nil && errors.Is(i.Err, ondisk.ErrFormat)
	})
	s.suspectAll(found.ignored)
	states = append(states, s.folderStates(rest)...)
	points := s.assemble(twice(states))
	var warnings []Warning
	if s.only == "" && s.opt.Layout == nil {
		var trees []Point
		var damaged []Ignored
		trees, damaged, warnings = s.treePoints(ctx)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		points = append(points, trees...)
		found.ignored = append(found.ignored, damaged...)
	}
	number(points)
	return &Catalogue{Points: points, Ignored: found.ignored, Warnings: warnings}, nil
}

// forgetTexts drops what is known of configuration files that are gone.
func (s *Source) forgetTexts() {
	for name := range s.texts {
		if !s.seen[name] {
			delete(s.texts, name)
		}
	}
}

// onlyChain narrows a listing down to the chain of the file that the source is.
func (s *Source) onlyChain(images []*imageFile, ignored []Ignored) ([]*imageFile, error) {
	for _, f := range images {
		for _, part := range f.hostFiles() {
			if part.Name == s.only {
				return f.chain(), nil
			}
		}
	}
	for _, i := range ignored {
		if i.Name == s.only {
			if p, ok := s.probed[i.Name]; ok {
				err, _ := s.suspect(i.Name, p.err)
				return nil, fmt.Errorf("%s: %w", s.location, err)
			}
			return nil, fmt.Errorf("%s: %s", s.location, i.Reason)
		}
	}
	return nil, fmt.Errorf("%s: %w", s.location, fs.ErrNotExist)
}

// number puts points in order and gives them their ids.
func number(points []Point) {
	sort.SliceStable(points, func(i, j int) bool {
		a, b := &points[i], &points[j]
		if a.Machine != b.Machine {
			return a.Machine < b.Machine
		}
		if at, bt := a.Time.Truncate(time.Second), b.Time.Truncate(time.Second); !at.Equal(bt) {
			return at.Before(bt)
		}
		return a.order().before(b.order())
	})
	for i := range points {
		p := &points[i]
		p.ID = idTime(p.Time)
		if n := sameSecond(points[:i], p); n > 0 {
			p.ID = fmt.Sprintf("%s-%d", p.ID, n+1)
		}
	}
}

// rank orders points of one second.
type rank struct {
	depth int // of the chain: a parent is older than its child
	name  string
}

func (p *Point) order() rank {
	if p.Kind == KindTree {
		return rank{name: p.tree.point.Name}
	}
	return rank{len(p.Disks[0].Files), p.Disks[0].Files[0]}
}

func (a rank) before(b rank) bool {
	if a.depth != b.depth {
		return a.depth < b.depth
	}
	return a.name < b.name
}

// sameSecond counts the points at the end of before that have p's machine and
// second.
func sameSecond(before []Point, p *Point) (n int) {
	for i := len(before) - 1; i >= 0; i-- {
		if before[i].Machine != p.Machine || idTime(before[i].Time) != p.ID {
			break
		}
		n++
	}
	return n
}

type pointTime struct {
	t    time.Time
	from TimeFrom
}

// imageTimes returns the times of the points that images are. A file's
// modification time is lost when it is copied; a parent that has nothing better is
// no younger than its child.
func (s *Source) imageTimes(images []*imageFile) map[*imageFile]pointTime {
	times := make(map[*imageFile]pointTime, len(images))
	depth := make(map[*imageFile]int, len(images))
	for _, f := range images {
		t, from := s.imageTime(f)
		times[f] = pointTime{t, from}
		depth[f] = len(f.chain())
	}
	deepest := slices.Clone(images)
	slices.SortStableFunc(deepest, func(a, b *imageFile) int { return depth[b] - depth[a] })
	for _, f := range deepest {
		if p, ok := times[f.parent]; ok && p.from == FromMtime && p.t.After(times[f].t) {
			times[f.parent] = pointTime{times[f].t, FromMtime}
		}
	}
	return times
}

// imageTime returns the time of the point that f is.
func (s *Source) imageTime(f *imageFile) (time.Time, TimeFrom) {
	if t, _, _, ok := splitName(f.scope.rel(f.name), "", s.opt.Location); ok {
		return t, FromName
	}
	return s.ownTime(f)
}

// ownTime is the time of an image that no name dates.
func (s *Source) ownTime(f *imageFile) (time.Time, TimeFrom) {
	if !f.info.Created.IsZero() {
		return f.info.Created.UTC(), FromHeader
	}
	return f.parts[0].ModTime.UTC(), FromMtime
}

// machineNames names the machine of every image. The images of a chain are one
// machine's; so are images in one folder whose names differ in their date only,
// and images of one name in folders that are dates. The name is what their file
// names have in common without the date, or else the folder's, or, where that
// would be the name of several chains, that of the chain's base; where two machines
// would still have the same name, the folder tells them apart.
func (s *Source) machineNames(images []*imageFile) map[*imageFile]string {
	type place struct{ stem, folder, dir string }
	places := make(map[*imageFile]place, len(images))
	members := make(map[*imageFile][]*imageFile) // by the chain's base
	for _, f := range images {
		name := f.scope.rel(f.name)
		_, stem, folder, _ := splitName(name, filepath.Base(s.dir.Path()), s.opt.Location)
		places[f] = place{stem: stem, folder: folder, dir: undatedDir(name, s.opt.Location)}
		base := f
		for base.parent != nil {
			base = base.parent
		}
		members[base] = append(members[base], f)
	}
	names := make(map[*imageFile]string, len(images))
	dirs := make(map[string]map[string]bool) // name -> folders it was found in
	// Chains that have the folder's name, and those that are called like it: where
	// several in one folder are, the base's own name tells them apart, in every scope.
	type title struct{ dir, name string }
	type held struct {
		title
		scope *scope
	}
	named := make(map[*imageFile]string, len(members)) // by the chain's base
	byFolder := make(map[*imageFile]bool)
	stems := make(map[held]map[string]bool)
	shared := make(map[title]bool)
	for base, chain := range members {
		pl := places[base]
		name := pl.stem
		for _, f := range chain {
			if places[f].stem != pl.stem {
				name = ""
			}
		}
		if name == "" {
			name, byFolder[base] = pl.folder, true
		}
		named[base] = name
		k := held{title{pl.dir, name}, base.scope}
		if stems[k] == nil {
			stems[k] = make(map[string]bool)
		}
		stems[k][pl.stem] = true
		shared[k.title] = shared[k.title] || len(stems[k]) > 1
	}
	for base, chain := range members {
		pl, name := places[base], named[base]
		if byFolder[base] && pl.stem != "" && shared[title{pl.dir, name}] {
			name = pl.stem
		}
		for _, f := range chain {
			names[f] = name
		}
		if dirs[name] == nil {
			dirs[name] = make(map[string]bool)
		}
		dirs[name][pl.dir] = true
	}
	for base, chain := range members {
		if name, dir := names[base], places[base].dir; len(dirs[name]) > 1 && dir != "." {
			for _, f := range chain {
				names[f] = strings.ReplaceAll(dir, "/", "-") + "-" + name
			}
		}
	}
	return names
}

// undatedDir returns the folder of name without the parts that are dates.
func undatedDir(name string, loc *time.Location) string {
	var parts []string
	for _, part := range strings.Split(path.Dir(name), "/") {
		if _, rest, _ := nametime.Find(part, loc); nametime.Trim(rest) != "" {
			parts = append(parts, nametime.Trim(rest))
		}
	}
	if len(parts) == 0 {
		return "."
	}
	return strings.Join(parts, "/")
}
