package restorepoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"yester/imageformats"
	"yester/imageformats/ewf"
	"yester/imageformats/raw"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/origin"
	"yester/restorepoint/layout"
)

// imageFile is a container found in the source: one file, or the parts of one.
type imageFile struct {
	name   string // of its first part, relative to the source
	parts  []origin.Entry
	format imageformats.Format
	info   imageformats.Info
	err    error // why it is no image by its content
	scope  *scope

	// extents are the further files that the format puts together itself: those
	// that info.Files names, in its order, or an EWF set's further segments. Some
	// are missing where there is a problem.
	extents []origin.Entry

	parent  *imageFile
	problem error // why it can't be opened, when that is known already
	// key names the file together with the version of its whole chain; set by
	// setKey once the chain is known.
	key string
}

// setKey sets the key of f and of its ancestors. Each is made of its parent's, so
// that a long chain costs no more than its files.
func (f *imageFile) setKey() {
	chain := f.chain()
	for i := len(chain) - 1; i >= 0; i-- {
		f := chain[i]
		if f.key != "" {
			continue
		}
		h := sha256.New()
		if f.parent != nil {
			io.WriteString(h, f.parent.key)
		}
		fmt.Fprintf(h, "%s\n", f.format.Name)
		for _, p := range f.hostFiles() {
			fmt.Fprintf(h, "%q %+v\n", p.Name, p.Version)
		}
		f.key = hex.EncodeToString(h.Sum(nil)[:16])
	}
}

// hostFiles returns all files that f is made of, its ancestors' apart.
func (f *imageFile) hostFiles() []origin.Entry { return slices.Concat(f.parts, f.extents) }

// bytes returns how long the file is on the host, with all its parts.
func (f *imageFile) bytes() (n int64) {
	for _, p := range f.hostFiles() {
		n += p.Version.Size
	}
	return n
}

// chain returns f and its ancestors, f first. link has made sure that it ends.
func (f *imageFile) chain() []*imageFile {
	var c []*imageFile
	for ; f != nil; f = f.parent {
		c = append(c, f)
	}
	return c
}

// allocated returns what the file takes of the host's disk, with all its parts; 0
// where that isn't known.
func (f *imageFile) allocated() (n int64) {
	for _, p := range f.hostFiles() {
		n += p.Allocated
	}
	return n
}

// probed is what probing found in one version of a file.
type probed struct {
	versions []origin.Version // of all parts
	format   imageformats.Format
	info     imageformats.Info
	err      error
}

func (f *imageFile) versions() []origin.Version {
	v := make([]origin.Version, len(f.parts))
	for i, p := range f.parts {
		v[i] = p.Version
	}
	return v
}

// Ignored is a file of the source that became no restore point.
type Ignored struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
	// Damaged tells a container that can't be read from a file of another kind.
	Damaged bool `json:"damaged"`
	// Err is the cause; nil where Reason says all.
	Err error `json:"-"`
}

// probeParallel is how many files are probed at once: headers are small, and
// what costs is the latency of network filesystems.
const probeParallel = 16

// finding is what a scan has found.
type finding struct {
	scopes  []*scope
	images  map[*scope][]*imageFile
	others  map[*scope][]*imageFile // files that are no image; err says why
	ignored []Ignored
}

// scan finds the containers of the source, and the other files. What was probed
// before and hasn't changed is not read again.
func (s *Source) scan(ctx context.Context) (*finding, error) {
	files, scopes, ignored, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	results := make([]probed, len(files))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(probeParallel)
	for i, f := range files {
		versions := f.versions()
		if p, ok := s.probed[f.name]; ok && slices.Equal(p.versions, versions) {
			results[i] = p
			continue
		}
		results[i].versions = versions
		if err := notProbed(f.name); err != nil {
			results[i].err = err
			continue
		}
		g.Go(func() error {
			p := &results[i]
			p.format, p.info, p.err = s.probe(gctx, f)
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	s.probed = make(map[string]probed, len(files))
	found := &finding{scopes: scopes, images: make(map[*scope][]*imageFile), others: make(map[*scope][]*imageFile), ignored: ignored}
	for i, f := range files {
		p := results[i]
		s.probed[f.name] = p
		if p.err != nil {
			found.ignored = append(found.ignored, Ignored{Name: f.name, Reason: p.err.Error(), Damaged: !errors.Is(p.err, ondisk.ErrFormat), Err: p.err})
			f.err = p.err
			found.others[f.scope] = append(found.others[f.scope], f)
			continue
		}
		f.format, f.info = p.format, p.info
		found.images[f.scope] = append(found.images[f.scope], f)
	}
	return found, nil
}

// link puts the images of a scope together from their files and their parents.
func (found *finding) link(c *scope, s *Source) []*imageFile {
	images := found.images[c]
	images, found.ignored = gather(images, found.ignored, c.files)
	inside := func(abs string) string {
		rel, ok := strings.CutPrefix(path.Clean(abs), strings.TrimSuffix(s.dir.Path(), "/")+"/")
		if !ok {
			return ""
		}
		return c.inside(rel)
	}
	images = link(images, found.others[c], inside, s.opt.AllowChangedParent)
	known := make(map[string]bool, len(images))
	for _, f := range images {
		f.scope = c
		known[f.name] = true
	}
	found.ignored = slices.DeleteFunc(found.ignored, func(i Ignored) bool { return known[i.Name] })
	return images
}

// notProbed names files that are no disk images by their names, so that none of
// their bytes need to be read; nil for all others. What reads them does so by name.
func notProbed(name string) error {
	if err := vzdump(name); err != nil {
		return err
	}
	switch ext := strings.ToLower(path.Ext(name)); ext {
	case ".vmx", ".vmsd", ".vmxf", ".vmsn", ".vmss", ".vmem", ".vswp", ".nvram", ".vmcx", ".vmrs", ".vmgs", ".xml", ".log":
		return fmt.Errorf("%s file: %w", ext, ondisk.ErrFormat)
	}
	return nil
}

// list returns the files that may be containers, parts put together, and the
// scopes that they are in.
func (s *Source) list(ctx context.Context) (files []*imageFile, scopes []*scope, ignored []Ignored, err error) {
	live := &scope{dir: ".", base: ".", files: make(map[string]origin.Entry)}
	unreadable := func(name string, err error) {
		ignored = append(ignored, Ignored{Name: name, Reason: err.Error(), Damaged: true, Err: err})
	}
	walked, err := s.walkLive(ctx, live, unreadable)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("listing %s: %w", s.location, err)
	}
	scopes = []*scope{live}
	if s.only == "" {
		holders, err := s.holders(ctx, walked)
		if err != nil {
			return nil, nil, nil, err
		}
		for _, h := range holders {
			of, trees, err := s.snapshotScopes(ctx, h)
			if err != nil {
				unreadable(h.dir, err)
				continue
			}
			s.noteSnapshotTrees(h, trees)
			for _, c := range of {
				if err := s.walk(ctx, c.dir, 0, func(e origin.Entry) { c.files[e.Name] = e }, unreadable); err != nil {
					return nil, nil, nil, err
				}
			}
			scopes = append(scopes, of...)
		}
	}
	for _, c := range scopes {
		of, bad := putTogether(c)
		files, ignored = append(files, of...), append(ignored, bad...)
	}
	return files, scopes, ignored, nil
}

// walkLive walks what lies in the source now, and returns the folders that it has
// gone through. A source that is a folder of storage snapshots has nothing else;
// nor need a volume of plain files be searched for images that its upper folders
// show no sign of.
func (s *Source) walkLive(ctx context.Context, live *scope, unreadable func(string, error)) (walked []string, err error) {
	var enter func(dir string) bool
	if s.only == "" {
		s.forgetTrees()
		if _, own := s.ownHolder(); own {
			return nil, nil
		}
		tree := s.enter(ctx)
		if s.opt.Layout == nil && !tree(".") {
			return nil, nil
		}
		walked = []string{"."}
		enter = func(dir string) bool {
			if layout.IsSnapshotHolder(dir) || s.opt.Layout == nil && !tree(dir) {
				return false
			}
			walked = append(walked, dir)
			return true
		}
		if h, err := s.holders(ctx, walked); err != nil || len(h) > 0 {
			if images, _ := s.looksLikeImages(ctx, "."); err != nil || !images {
				return walked, err
			}
		}
	}
	err = s.dir.Walk(ctx, enter, func(e origin.Entry) { live.files[e.Name] = e }, unreadable)
	return walked, err
}

// putTogether makes image files of a scope's files: those that are parts of one
// become one.
func putTogether(c *scope) (files []*imageFile, ignored []Ignored) {
	names := slices.Sorted(maps.Keys(c.files))
	inParts := make(map[string]bool)
	group := func(first string, pick func(first string, names []string) ([]string, error)) *imageFile {
		group, err := pick(first, names)
		if err != nil {
			ignored = append(ignored, Ignored{Name: first, Reason: err.Error(), Damaged: true})
			inParts[first] = true
			return nil
		}
		f := &imageFile{name: first, scope: c}
		for _, n := range group {
			inParts[n] = true
			f.parts = append(f.parts, c.files[n])
		}
		files = append(files, f)
		return f
	}
	for _, first := range names {
		if _, number, ok := raw.SplitName(first); ok && number <= 1 && !inParts[first] {
			group(first, raw.Parts)
		} else if _, number, ok := ewf.SplitName(first); ok && number == 1 {
			if f := group(first, ewf.Segments); f != nil {
				f.parts, f.extents = f.parts[:1:1], f.parts[1:]
			}
		}
	}
	for _, n := range names {
		if !inParts[n] {
			files = append(files, &imageFile{name: n, parts: []origin.Entry{c.files[n]}, scope: c})
		}
	}
	return files, ignored
}

// probe reads the headers of f.
func (s *Source) probe(ctx context.Context, f *imageFile) (imageformats.Format, imageformats.Info, error) {
	file, err := s.openFile(ctx, f)
	if err != nil {
		return imageformats.Format{}, imageformats.Info{}, err
	}
	defer file.close()
	if file.bytes.Size() == 0 {
		return imageformats.Format{}, imageformats.Info{}, fmt.Errorf("empty file: %w", ondisk.ErrFormat)
	}
	return imageformats.Probe(ctx, file.bytes, imageFormats...)
}

// hostFile is an opened imageFile: its parts, joined where there are several.
type hostFile struct {
	bytes block.Reader
	parts []origin.File // all that are open
}

func (h *hostFile) close() {
	for _, p := range h.parts {
		p.Close()
	}
}

// openFile opens all parts of f, in the version that was listed.
func (s *Source) openFile(ctx context.Context, f *imageFile) (*hostFile, error) {
	h := &hostFile{}
	readers, err := h.open(ctx, s.dir, f.parts)
	if err == nil && len(readers) == 1 {
		h.bytes = readers[0]
	} else if err == nil {
		h.bytes, err = raw.Join(readers)
	}
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// open opens files in the version that was listed. They are h's to close, also
// when there is an error.
func (h *hostFile) open(ctx context.Context, dir origin.Folder, entries []origin.Entry) (readers []block.Reader, err error) {
	for _, e := range entries {
		p, err := dir.Open(ctx, e.Name)
		if errors.Is(err, fs.ErrNotExist) {
			// Not to be taken for a file that the guest doesn't have.
			err = fmt.Errorf("%s: has vanished: %w", e.Name, ErrChanged)
		}
		if err != nil {
			return nil, err
		}
		h.parts = append(h.parts, p)
		if p.Version() != e.Version {
			return nil, fmt.Errorf("%s: %w", e.Name, ErrChanged)
		}
		readers = append(readers, p)
	}
	return readers, nil
}
