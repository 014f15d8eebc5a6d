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
	"sort"
	"strings"
	"sync"
	"time"

	"yester/internal/nametime"
	"yester/origin"
)

// Source is a place where restore points live. It is safe for parallel use.
type Source struct {
	location string
	dir      origin.Folder
	only     string // when the source is one file: its name in dir
	opt      Options

	mu     sync.Mutex // serialises listings; guards probed
	probed map[string]probed

	images imagePool
	trees  []treeRoot // guarded by mu
}

// Open opens the source at location: a disk image, or a folder in which images
// lie. Nothing is read yet.
func Open(location string, opt Options) (*Source, error) {
	if opt.Location == nil {
		opt.Location = time.Local
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if scheme, _, ok := strings.Cut(location, "://"); ok {
		return nil, fmt.Errorf("%s: sources of type %q are not supported", location, scheme)
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
	s := &Source{location: location, opt: opt}
	folder := abs
	if !fi.IsDir() {
		if !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: neither a regular file nor a folder", location)
		}
		folder, s.only = filepath.Split(abs)
	}
	s.images.open = s.openImage
	s.dir, err = origin.OpenDir(folder)
	return s, err
}

// Location returns the source as the user named it.
func (s *Source) Location() string { return s.location }

// HostPath returns the absolute path of the folder or file on the host.
func (s *Source) HostPath() string { return filepath.Join(s.dir.Path(), s.only) }

// Close closes the source. Points opened from it must be closed first.
func (s *Source) Close() error { return errors.Join(s.closeTrees(), s.dir.Close()) }

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
// are not read again.
func (s *Source) List(ctx context.Context) (*Catalogue, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	images, ignored, err := s.scan(ctx)
	if err != nil {
		return nil, err
	}
	link(images, s.opt.AllowChangedParent)
	if s.only != "" {
		if images, err = s.onlyChain(images, ignored); err != nil {
			return nil, err
		}
		ignored = nil
	}
	points := s.points(images)
	var warnings []Warning
	if s.only == "" {
		var trees []Point
		var damaged []Ignored
		trees, damaged, warnings = s.treePoints(ctx)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		points = append(points, trees...)
		ignored = append(ignored, damaged...)
	}
	number(points)
	return &Catalogue{Points: points, Ignored: ignored, Warnings: warnings}, nil
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
				return nil, fmt.Errorf("%s: %w", s.location, p.err)
			}
			return nil, fmt.Errorf("%s: %s", s.location, i.Reason)
		}
	}
	return nil, fmt.Errorf("%s: %w", s.location, fs.ErrNotExist)
}

// points makes a point of every image.
func (s *Source) points(images []*imageFile) []Point {
	names := s.machineNames(images)
	var points []Point
	for _, f := range images {
		p := Point{Machine: names[f], Kind: KindDisks, Layout: LayoutFolder}
		p.Time, p.TimeFrom = s.imageTime(f)
		d := Disk{Name: p.Machine, Info: f.info, Bytes: f.bytes(), image: f}
		for _, a := range f.chain() {
			d.Files = append(d.Files, a.name)
		}
		p.Disks = []Disk{d}
		f.setKey()
		p.key = f.key
		if f.problem != nil {
			p.Problem = f.problem.Error()
			p.key += " " + p.Problem
		}
		points = append(points, p)
	}
	return points
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

// imageTime returns the time of the point that f is.
func (s *Source) imageTime(f *imageFile) (time.Time, TimeFrom) {
	if t, _, _, ok := splitName(f.name, "", s.opt.Location); ok {
		return t, FromName
	}
	if !f.info.Created.IsZero() {
		return f.info.Created.UTC(), FromHeader
	}
	return f.parts[0].ModTime.UTC(), FromMtime
}

// machineNames names the machine of every image. The images of a chain are one
// machine's; so are images in one folder whose names differ in their date only,
// and images of one name in folders that are dates. The name is what their file
// names have in common without the date, or else the folder's; where two
// machines would have the same name, the folder tells them apart.
func (s *Source) machineNames(images []*imageFile) map[*imageFile]string {
	type place struct{ stem, folder, dir string }
	places := make(map[*imageFile]place, len(images))
	members := make(map[*imageFile][]*imageFile) // by the chain's base
	for _, f := range images {
		_, stem, folder, _ := splitName(f.name, filepath.Base(s.dir.Path()), s.opt.Location)
		places[f] = place{stem: stem, folder: folder, dir: undatedDir(f.name, s.opt.Location)}
		base := f
		for base.parent != nil {
			base = base.parent
		}
		members[base] = append(members[base], f)
	}
	names := make(map[*imageFile]string, len(images))
	dirs := make(map[string]map[string]bool) // name -> folders it was found in
	for base, chain := range members {
		pl := places[base]
		name := pl.stem
		for _, f := range chain {
			if places[f].stem != pl.stem {
				name = ""
			}
		}
		if name == "" {
			name = pl.folder
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
