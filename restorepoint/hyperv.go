package restorepoint

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"yester/restorepoint/layout"
)

// errOtherXML is an XML file of no kind that is looked for.
var errOtherXML = errors.New("no such configuration")

func isOtherXML(err error) bool { return errors.Is(err, errOtherXML) }

// hyperVConfig is a configuration of a machine or of a checkpoint.
type hyperVConfig struct {
	name       string // the file's
	checkpoint bool
	modified   time.Time
	layout.HyperV
	images []*imageFile // of Disks; nil for those that are missing
}

// hyperV finds the machines of Hyper-V by their configurations: "Virtual
// Machines/<id>.vmcx" is the machine as it is, "Snapshots/<id>.vmcx" a checkpoint.
// A checkpoint's configuration names the disks that were frozen for it.
func (sv *survey) hyperV() {
	machines := make(map[string][]*hyperVConfig) // by the folder of the machine
	for _, ext := range []string{".vmcx", ".xml"} {
		for _, name := range sv.scope.named(ext) {
			if sv.ctx.Err() != nil {
				return
			}
			if c := sv.hyperVConfig(name); c != nil {
				dir := path.Dir(path.Dir(name))
				machines[dir] = append(machines[dir], c)
			}
		}
	}
	for _, dir := range sortedNames(machines) {
		sv.hyperVMachines(dir, machines[dir])
	}
}

// hyperVConfig reads a configuration; nil when it is none, or can't be read.
func (sv *survey) hyperVConfig(name string) *hyperVConfig {
	folder := strings.ToLower(path.Base(path.Dir(name)))
	checkpoint := folder == "snapshots"
	if !checkpoint && folder != "virtual machines" {
		return nil
	}
	h, err := parseFile(sv, name, func(data []byte) (layout.HyperV, error) {
		h, ok, err := layout.ParseHyperV(data)
		if !ok {
			return h, errOtherXML
		}
		return h, err
	})
	if err != nil {
		if !isOtherXML(err) {
			sv.ignore(name, "", err)
		}
		return nil
	}
	c := &hyperVConfig{name: name, checkpoint: checkpoint, modified: sv.scope.files[name].ModTime, HyperV: h}
	for _, d := range h.Disks {
		c.images = append(c.images, sv.hyperVDisk(path.Dir(path.Dir(name)), d.File))
	}
	return c
}

// hyperVDisk finds a disk beside the machine's folders: exports have it in "Virtual
// Hard Disks".
func (sv *survey) hyperVDisk(dir, file string) *imageFile {
	if f := sv.find(path.Join(dir, "Virtual Hard Disks"), file); f != nil {
		return f
	}
	return sv.find(dir, file)
}

// hyperVMachines adds the states of the machines whose configurations lie in dir.
// A checkpoint belongs to the machine whose disks are based on the checkpoint's.
func (sv *survey) hyperVMachines(dir string, configs []*hyperVConfig) {
	owner := make(map[*imageFile]*hyperVConfig)
	for _, c := range configs {
		if c.checkpoint {
			continue
		}
		for _, f := range c.images {
			if f == nil {
				continue
			}
			for _, a := range f.chain() {
				owner[a] = c
			}
		}
	}
	for _, c := range configs {
		of := c
		if c.checkpoint {
			of = nil
			for _, f := range c.images {
				if f != nil && owner[f] != nil {
					of = owner[f]
				}
			}
		}
		sv.hyperVState(dir, c, of)
	}
	// Images in between have no configuration of their own.
	for f, c := range owner {
		if !sv.claimed[f] && c != nil {
			sv.claimed[f] = true
			sv.ignore(f.name, "part of a chain, and the disk of no checkpoint", nil)
		}
	}
}

// hyperVState adds the state of c, a configuration of the machine that of is.
func (sv *survey) hyperVState(dir string, c, of *hyperVConfig) {
	st := diskState{place: undatedDir(path.Join(sv.scope.rel(dir), "x"), sv.src.opt.Location), layout: LayoutHyperV, group: c.name, provenance: "Hyper-V machine"}
	if of != nil {
		st.machine, st.config = layout.SafeName(of.Name), of.name
	}
	if st.machine == "" {
		st.machine = layout.SafeName(c.Name)
	}
	if st.machine == "" {
		st.machine = path.Base(sv.scope.rel(dir))
	}
	switch {
	case c.checkpoint:
		st.name, st.from, st.time = c.Name, FromSnapshot, c.Created
		if st.time.IsZero() {
			// It is written once, when the checkpoint is made.
			st.time = c.modified.UTC()
		}
		st.consistency = CrashConsistent
		st.provenance = fmt.Sprintf("Hyper-V checkpoint %q", c.Name)
	default:
		st.time, st.from = sv.stateTime(c.name, c.images...)
		if st.time.IsZero() {
			st.time = c.modified.UTC()
		}
		if sv.scope.name != "" {
			st.name, st.consistency = sv.scope.name, CrashConsistent
		} else {
			st.consistency = Running
		}
	}
	if p := sv.scope.provenance(); p != "" {
		st.provenance += ", " + p
	}
	for i, d := range c.Disks {
		one := st
		one.rank, one.image = i, c.images[i]
		one.disk = d.Node
		if f := one.image; f != nil {
			chain := f.chain()
			one.disk = stripExt(path.Base(chain[len(chain)-1].name))
		} else {
			one.file = path.Join(dir, path.Base(strings.ReplaceAll(d.File, `\`, "/")))
			one.problem = missing(c.name, d)
		}
		one.disk = diskName(one.disk)
		sv.add(one)
	}
}
