package restorepoint

import (
	"fmt"
	"path"
	"strings"
	"time"

	"yester/restorepoint/layout"
)

// vmware finds machines by their .vmx files, and their snapshots by the .vmsd beside
// it.
func (sv *survey) vmware() {
	swaps := make(map[string][]string)
	for _, name := range sv.scope.named(".vswp") {
		swaps[path.Dir(name)] = append(swaps[path.Dir(name)], path.Base(name))
	}
	machines := make(map[string]vmwareMachine) // by folder, the first in it
	for _, name := range sv.scope.named(".vmx") {
		if sv.ctx.Err() != nil {
			return
		}
		vmx, err := parseFile(sv, name, layout.ParseVMX)
		if err != nil {
			sv.ignore(name, "", err)
			continue
		}
		if len(vmx.Disks) == 0 {
			sv.ignore(name, "a VMware machine without disks", nil)
			continue
		}
		m := vmwareMachine{survey: sv, config: name, dir: path.Dir(name), vmx: vmx, swaps: swaps}
		m.name = layout.SafeName(vmx.Name)
		if m.name == "" {
			m.name = strings.TrimSuffix(path.Base(name), path.Ext(name))
		}
		m.place = undatedDir(sv.scope.rel(name), sv.src.opt.Location)
		m.find()
		if _, ok := machines[m.dir]; !ok {
			machines[m.dir] = m
		}
	}
	// What is left of earlier snapshots is no state that a machine was in.
	for _, f := range sv.images {
		if m, ok := machines[path.Dir(f.name)]; ok && !sv.claimed[f] && f.format.Name == "vmdk" {
			sv.claimed[f] = true
			sv.ignore(f.name, fmt.Sprintf("not a disk of machine %s by %s, nor of a snapshot of it", m.name, m.config), nil)
		}
	}
}

// vmwareMachine is a machine of VMware's in one scope.
type vmwareMachine struct {
	*survey
	config, dir string // the .vmx, and its folder
	vmx         layout.VMX
	name, place string
	first       int                 // of its states
	swaps       map[string][]string // the names of swap files, by folder
}

// snapshotList is the .vmsd beside the .vmx; none is no error.
func (m *vmwareMachine) snapshotList() (layout.VMSD, error) {
	name := strings.TrimSuffix(m.config, path.Ext(m.config)) + ".vmsd"
	if e, ok := m.scope.files[name]; !ok || e.Version.Size == 0 {
		return layout.VMSD{}, nil // a machine that never had a snapshot has an empty one
	}
	return parseFile(m.survey, name, layout.ParseVMSD)
}

func (m *vmwareMachine) find() {
	list, err := m.snapshotList()
	if err != nil {
		m.ignore(strings.TrimSuffix(m.config, path.Ext(m.config))+".vmsd", "", err)
	}
	vsc := m.takenByVSC(&list)
	m.first = len(m.states)
	for i := range list.Snapshots {
		m.snapshot(&list.Snapshots[i], vsc)
	}
	m.running(&list, vsc)
	for i := m.first; i < len(m.states); i++ {
		if f := m.states[i].image; f != nil {
			for _, a := range f.chain() {
				m.claimed[a] = m.claimed[a] || path.Dir(a.name) == m.dir
			}
		}
	}
}

// vscSlack is how long before a storage snapshot the VMware snapshot may lie that
// was taken for it: quiescing a large machine, and those before it in the job,
// takes minutes.
const vscSlack = time.Hour

// takenByVSC returns the VMware snapshot that VSC took before it took the storage
// snapshot that the scope is; nil when there is none. It is the one that the
// machine runs on, and is called like the job or was made just before.
func (m *vmwareMachine) takenByVSC(list *layout.VMSD) *layout.VMSnapshot {
	if !m.scope.snapshot.VSC {
		return nil
	}
	for i := range list.Snapshots {
		s := &list.Snapshots[i]
		if s.UID != list.Current && (list.Current != "" || !m.runsOn(s)) {
			continue
		}
		before := m.scope.time.Sub(s.Time)
		if strings.HasPrefix(strings.ToLower(s.Name), "smvi") || before > -vscSlack && before < vscSlack {
			return s
		}
	}
	return nil
}

// runsOn reports whether one of the machine's own disks is based on the disk that
// the snapshot keeps.
func (m *vmwareMachine) runsOn(s *layout.VMSnapshot) bool {
	frozen := make(map[*imageFile]bool)
	for _, d := range s.Disks {
		if f := m.survey.find(m.dir, d.File); f != nil {
			frozen[f] = true
		}
	}
	for _, d := range m.vmx.Disks {
		if f := m.survey.find(m.dir, d.File); f != nil && frozen[f.parent] {
			return true
		}
	}
	return false
}

// base is what all states of the machine have in common.
func (m *vmwareMachine) base(d layout.Disk, config string) diskState {
	st := diskState{
		machine: m.name, place: m.place, config: m.config, disk: diskName(d.Node), layout: LayoutVMware,
		image: m.survey.find(m.dir, d.File), file: path.Join(m.dir, path.Base(strings.ReplaceAll(d.File, `\`, "/"))),
	}
	for i, own := range m.vmx.Disks {
		if own.Node == d.Node {
			st.rank = i
		}
	}
	if st.image == nil {
		st.problem = missing(config, d)
	}
	return st
}

// diskName makes a name of the place where a disk is attached: it stays the same
// when snapshots change the disk's file.
func diskName(node string) string {
	return strings.ReplaceAll(layout.SafeName(node), ":", "-")
}

// snapshot adds the state that a VMware snapshot keeps.
func (m *vmwareMachine) snapshot(s *layout.VMSnapshot, vsc *layout.VMSnapshot) {
	config := strings.TrimSuffix(m.config, path.Ext(m.config)) + ".vmsd"
	name := s.Name
	if name == "" {
		name = s.UID
	}
	for i, d := range s.Disks {
		if d.Node == "" {
			d.Node = fmt.Sprintf("disk%d", i)
			if i < len(m.vmx.Disks) {
				d.Node = m.vmx.Disks[i].Node
			}
		}
		st := m.base(d, config)
		st.name, st.group = name, fmt.Sprintf("%s snapshot %s", m.config, s.UID)
		st.time, st.from = s.Time, FromSnapshot
		if s.Time.IsZero() {
			st.time, st.from = m.configTime(st.image)
		}
		st.consistency = CrashConsistent
		st.provenance = fmt.Sprintf("VMware snapshot %q", name)
		if vsc == s {
			st.consistency = Quiesced
			st.notes = []string{"the disks under the running delta, as the VMware snapshot froze them for this storage snapshot"}
		} else if m.quiescedByTools(s) {
			st.consistency = Quiesced
		}
		if p := m.scope.provenance(); p != "" {
			st.provenance = p + ", " + st.provenance
		}
		m.add(st)
	}
}

// quiescedByTools reports whether VMware Tools have quiesced the guest for the
// snapshot: they leave a manifest of the VSS writers beside it.
func (m *vmwareMachine) quiescedByTools(s *layout.VMSnapshot) bool {
	_, ok := m.beside(m.dir, fmt.Sprintf("%s-vss_manifests%s.zip", strings.TrimSuffix(path.Base(m.config), path.Ext(m.config)), s.UID))
	return ok
}

// running adds the state that the machine's own disks are in.
func (m *vmwareMachine) running(list *layout.VMSD, vsc *layout.VMSnapshot) {
	var images []*imageFile
	var states []diskState
	for _, d := range m.vmx.Disks {
		st := m.base(d, m.config)
		images = append(images, st.image)
		states = append(states, st)
	}
	t, from := m.configTime(images...)
	for _, st := range states {
		st.time, st.from, st.group = t, from, m.config
		st.provenance = "VMware machine"
		if m.scope.name != "" {
			st.name, st.provenance, st.consistency = m.scope.name, m.scope.provenance(), CrashConsistent
		}
		switch {
		case vsc != nil:
			st.consistency, st.secondary = Running, true
			st.provenance += ", running delta"
			st.notes = []string{fmt.Sprintf("the running delta on VMware snapshot %q, which is the quiesced state", vsc.Name)}
		case m.scope.name == "" && (list.Current != "" || m.poweredOn()):
			st.consistency = Running
		}
		m.add(st)
	}
}

// configTime dates a state of the machine that isn't dated by itself: where its
// disks are missing, by when its configuration was written.
func (m *vmwareMachine) configTime(images ...*imageFile) (time.Time, TimeFrom) {
	t, from := m.stateTime(m.config, images...)
	if t.IsZero() {
		t = m.scope.files[m.config].ModTime.UTC()
	}
	return t, from
}

// poweredOn reports whether the machine's swap file is there, which it has while it
// runs: <name>.vswp or <name>-<id>.vswp.
func (m *vmwareMachine) poweredOn() bool {
	stem := strings.TrimSuffix(path.Base(m.config), path.Ext(m.config))
	for _, name := range m.swaps[m.dir] {
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(name, ".vswp"), stem); ok && (rest == "" || rest[0] == '-') {
			return true
		}
	}
	return false
}

// onlyMachine returns the states of the machine with that configuration, and what
// is wrong with it.
func (sv *survey) onlyMachine(config string) (states []diskState, ignored []Ignored) {
	sv.vmware()
	for _, st := range sv.states {
		if st.group == config || strings.HasPrefix(st.group, config+" ") {
			states = append(states, st)
		}
	}
	stem := strings.TrimSuffix(config, path.Ext(config))
	for _, i := range sv.ignored {
		if strings.TrimSuffix(i.Name, path.Ext(i.Name)) == stem {
			ignored = append(ignored, i)
		}
	}
	return states, ignored
}
