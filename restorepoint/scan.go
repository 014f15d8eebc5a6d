package restorepoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"golang.org/x/sync/errgroup"

	"yester/imageformats"
	"yester/imageformats/ewf"
	"yester/imageformats/raw"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/origin"
)

// imageFile is a container found in the source: one file, or the parts of one.
type imageFile struct {
	separate bool   // the format puts the parts together itself (EWF)
	name     string // of its first part, relative to the source
	parts    []origin.Entry
	format   imageformats.Format
	info     imageformats.Info
	err      error // why it is no image by its content

	// extents are the further files that info.Files names, in its order; some are
	// missing where there is a problem.
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

// probed is what probing found in one version of a file.
type probed struct {
	version origin.Version // of the first part
	format  imageformats.Format
	info    imageformats.Info
	err     error
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

// scan finds the containers of the source, and the other files, which have err
// set and are in ignored as well. What was probed before and hasn't changed is
// not read again.
func (s *Source) scan(ctx context.Context) (images, others []*imageFile, ignored []Ignored, err error) {
	files, byName, ignored, err := s.list(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	results := make([]probed, len(files))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(probeParallel)
	for i, f := range files {
		if p, ok := s.probed[f.name]; ok && p.version == f.parts[0].Version && len(f.parts) == 1 {
			results[i] = p
			continue
		}
		g.Go(func() error {
			p := probed{version: f.parts[0].Version}
			p.format, p.info, p.err = s.probe(gctx, f)
			results[i] = p
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, nil, err
	}
	s.probed = make(map[string]probed, len(files))
	for i, f := range files {
		p := results[i]
		s.probed[f.name] = p
		if p.err != nil {
			ignored = append(ignored, Ignored{Name: f.name, Reason: p.err.Error(), Damaged: !errors.Is(p.err, ondisk.ErrFormat), Err: p.err})
			f.err = p.err
			others = append(others, f)
			continue
		}
		f.format, f.info = p.format, p.info
		images = append(images, f)
	}
	images, ignored = gather(images, ignored, byName)
	return images, others, ignored, nil
}

// list returns the files that may be containers, parts put together, and all files
// by name.
func (s *Source) list(ctx context.Context) (files []*imageFile, byName map[string]origin.Entry, ignored []Ignored, err error) {
	byName = make(map[string]origin.Entry)
	var names []string
	var enter func(dir string) bool
	if s.only == "" {
		if enter = s.enter(ctx); !enter(".") {
			return nil, nil, nil, nil
		}
	}
	err = s.dir.Walk(ctx, enter, func(e origin.Entry) {
		byName[e.Name] = e
		names = append(names, e.Name)
	}, func(name string, err error) {
		ignored = append(ignored, Ignored{Name: name, Reason: err.Error(), Damaged: true, Err: err})
	})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("listing %s: %w", s.location, err)
	}
	inParts := make(map[string]bool)
	group := func(first string, pick func(first string, names []string) ([]string, error), separate bool) {
		group, err := pick(first, names)
		if err != nil {
			ignored = append(ignored, Ignored{Name: first, Reason: err.Error(), Damaged: true})
			inParts[first] = true
			return
		}
		f := &imageFile{name: first, separate: separate}
		for _, n := range group {
			inParts[n] = true
			f.parts = append(f.parts, byName[n])
		}
		files = append(files, f)
	}
	for _, first := range names {
		if _, number, ok := raw.SplitName(first); ok && number <= 1 && !inParts[first] {
			group(first, raw.Parts, false)
		} else if _, number, ok := ewf.SplitName(first); ok && number == 1 {
			group(first, ewf.Segments, true)
		}
	}
	for _, n := range names {
		if !inParts[n] {
			files = append(files, &imageFile{name: n, parts: []origin.Entry{byName[n]}})
		}
	}
	return files, byName, ignored, nil
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

// hostFile is an opened imageFile: its parts, joined where there are several, or
// the first and the others.
type hostFile struct {
	bytes  block.Reader
	others []block.Reader // what goes to the format as OpenOptions.Files
	parts  []origin.File  // all that are open
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
	if err == nil && (len(readers) == 1 || f.separate) {
		h.bytes, h.others = readers[0], readers[1:]
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
