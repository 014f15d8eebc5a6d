package restorepoint

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/origin"
	"yester/restorepoint/layout"
)

// diskState is one disk of a machine at one time: what the detectors find, and points
// are put together from.
type diskState struct {
	machine string
	place   string // tells machines of one name apart; empty where nothing does
	config  string // the configuration that describes the machine; empty where none does
	disk    string
	rank    int // of the disk within its machine
	time    time.Time
	from    TimeFrom
	// group is the same for the states of one moment, where the layout says which
	// these are; where it is empty, times decide.
	group string

	layout, name, provenance string
	consistency              Consistency
	secondary                bool
	// frozen: the image has not been written to since its own time, so that storage
	// snapshots show it over and over.
	frozen bool
	notes  []string

	scope    *scope
	image    *imageFile             // nil when it is missing
	snapshot *imageformats.Snapshot // inside image; nil for its active state
	file     string                 // what a missing image is called
	problem  error                  // beside the image's own
}

// survey is one scope as the detectors see it.
type survey struct {
	ctx     context.Context
	src     *Source
	scope   *scope
	images  []*imageFile
	byFile  map[string]*imageFile // by each of the files that an image is made of
	claimed map[*imageFile]bool   // those that a detector has dealt with

	children map[*imageFile]int // how many images are based on one
	states   []diskState
	ignored  []Ignored
}

// detectors recognise the layouts of products, in this order; each takes what the
// ones before it have left. What remains are images in folders in no known order.
var detectors = []func(*survey){
	(*survey).vmware,
	(*survey).windowsBackup,
	(*survey).hyperV,
	(*survey).proxmox,
	(*survey).libvirt,
}

func (s *Source) newSurvey(ctx context.Context, c *scope, images []*imageFile) *survey {
	sv := &survey{ctx: ctx, src: s, scope: c, images: images, byFile: make(map[string]*imageFile, len(images)), claimed: make(map[*imageFile]bool), children: make(map[*imageFile]int)}
	for _, f := range images {
		if f.parent != nil {
			sv.children[f.parent]++
		}
		for _, e := range f.hostFiles() {
			sv.byFile[e.Name] = f
		}
	}
	return sv
}

// unclaimed returns the images that no detector has dealt with.
func (sv *survey) unclaimed() (rest []*imageFile) {
	for _, f := range sv.images {
		if !sv.claimed[f] {
			rest = append(rest, f)
		}
	}
	return rest
}

func (sv *survey) add(st diskState) {
	st.scope = sv.scope
	if st.image != nil {
		sv.claimed[st.image] = true
	}
	sv.states = append(sv.states, st)
}

// ignore tells of a file that is left out. Damage is warned of.
func (sv *survey) ignore(name, reason string, err error) {
	if err != nil {
		reason = err.Error()
	}
	sv.ignored = append(sv.ignored, Ignored{Name: name, Reason: reason, Damaged: err != nil, Err: err})
}

// find returns the image that a configuration in the folder dir means by file: a
// path that may be absolute on another host, with slashes of either kind. It is
// looked for where it leads to from dir, then by the last folder and the name in it
// anywhere beside dir, then by name in dir; never outside the scope.
func (sv *survey) find(dir, file string) *imageFile {
	slashed := strings.ReplaceAll(file, `\`, "/")
	base := path.Base(slashed)
	if base == "." || base == "/" || base == ".." {
		return nil
	}
	last := path.Base(path.Dir(slashed))
	absolute := path.IsAbs(slashed) || len(slashed) > 1 && slashed[1] == ':'
	var tries []string
	if !absolute {
		tries = append(tries, path.Join(dir, file), path.Join(dir, slashed))
	}
	tries = append(tries, path.Join(path.Dir(dir), last, base), path.Join(dir, last, base), path.Join(dir, base))
	for _, t := range tries {
		if f := sv.byFile[t]; f != nil {
			return f
		}
	}
	return nil
}

// beside returns the files in dir.
func (sv *survey) beside(dir, name string) (origin.Entry, bool) {
	e, ok := sv.scope.files[path.Join(dir, name)]
	return e, ok
}

// stateTime dates what lies under name and is not dated by itself: by the storage
// snapshot, a date in the name or in a folder above it, or when the newest of the
// images was written to.
func (sv *survey) stateTime(name string, images ...*imageFile) (time.Time, TimeFrom) {
	if sv.scope.name != "" {
		return sv.scope.time, sv.scope.from
	}
	if t, _, _, ok := splitName(name, "", sv.src.opt.Location); ok {
		return t, FromName
	}
	var newest time.Time
	for _, f := range images {
		if f == nil {
			continue
		}
		for _, e := range f.hostFiles() {
			if e.ModTime.After(newest) {
				newest = e.ModTime
			}
		}
	}
	return newest.UTC(), FromMtime
}

// missing is the problem of a disk that a configuration names and that isn't there.
func missing(config string, d layout.Disk) error {
	return fmt.Errorf("%s: %s: disk %q is not in the source: %w", config, d.Field, d.File, ErrNotFound)
}

// parsed is what a configuration file said in one version.
type parsed struct {
	version origin.Version
	value   any
	err     error
}

// parseFile reads a configuration file, or takes what it said when it has not
// changed since.
func parseFile[T any](sv *survey, name string, parse func([]byte) (T, error)) (T, error) {
	e, ok := sv.scope.files[name]
	if !ok {
		var none T
		return none, notFoundf("%s", name)
	}
	sv.src.seen[name] = true
	if p, ok := sv.src.texts[name]; ok && p.version == e.Version {
		if v, ok := p.value.(T); ok {
			return v, p.err
		}
	}
	v, err := readFile(sv, e, parse)
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	if !errors.Is(err, context.Canceled) {
		sv.src.texts[name] = parsed{e.Version, v, err}
	}
	return v, err
}

func readFile[T any](sv *survey, e origin.Entry, parse func([]byte) (T, error)) (v T, err error) {
	if e.Version.Size > layout.MaxText {
		return v, fmt.Errorf("%d bytes, more than %d: %w", e.Version.Size, layout.MaxText, ondisk.ErrCorrupt)
	}
	h := &hostFile{}
	defer h.close()
	r, err := h.open(sv.ctx, sv.src.dir, []origin.Entry{e})
	if err != nil {
		return v, err
	}
	data := make([]byte, e.Version.Size)
	if err := block.ReadFull(sv.ctx, r[0], data, 0); err != nil {
		return v, err
	}
	return parse(data)
}
