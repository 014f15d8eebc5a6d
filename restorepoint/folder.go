package restorepoint

import (
	"path"

	"yester/imageformats"
	"yester/restorepoint/layout"
)

// folderStates makes states of the images that no detector knows, of all scopes:
// one of each, and of each snapshot inside one.
func (s *Source) folderStates(images []*imageFile) (states []diskState) {
	names := s.machineNames(images)
	times := s.imageTimes(images)
	disks := splitDisks(images, names)
	parents := make(map[*imageFile]bool)
	for _, f := range images {
		parents[f.parent] = true
	}
	for _, f := range images {
		st := diskState{
			machine: names[f], disk: names[f], layout: LayoutFolder, scope: f.scope, image: f,
		}
		st.time, st.from = times[f].t, times[f].from
		if d, ok := disks[names[f]]; ok {
			st.machine, st.disk, st.rank = d.machine, d.disk, d.rank
		}
		if f.scope.name != "" {
			// A dated backup has its own date in whatever storage snapshot it is, and so
			// has an image that another one was laid over.
			st.frozen = st.from == FromName || parents[f]
			st.layout, st.provenance = LayoutStorage, f.scope.provenance()
			if !st.frozen {
				st.time, st.from = f.scope.time, f.scope.from
				st.name, st.consistency = f.scope.name, CrashConsistent
			}
		}
		for i := range f.info.Snapshots {
			states = append(states, st.ofSnapshot(&f.info.Snapshots[i]))
		}
		states = append(states, st)
	}
	return states
}

// ofSnapshot returns the state that is a snapshot inside st's image.
func (st diskState) ofSnapshot(snap *imageformats.Snapshot) diskState {
	if !snap.Time.IsZero() {
		st.time, st.from = snap.Time.UTC(), FromSnapshot
	}
	st.snapshot, st.name, st.consistency = snap, snap.Name, ""
	if snap.Running {
		st.consistency = CrashConsistent
	}
	return st
}

// sameAs is the same for a file that storage snapshots show over and over.
func (f *imageFile) sameAs() string {
	v := f.parts[0].Version
	return f.scope.rel(f.name) + "\x00" + stamp64(v.Size) + stamp64(v.Mtime)
}

func stamp64(n int64) string {
	var b [8]byte
	for i := range b {
		b[i] = byte(n >> (8 * i))
	}
	return string(b[:])
}

// splitDisk is what a name of several disks means.
type splitDisk struct {
	machine, disk string
	rank          int
}

// splitDisks finds the names that are a machine's together with a disk's, as
// downloads from clouds are called: "web01-osdisk", "web01-datadisk-0".
func splitDisks(images []*imageFile, names map[*imageFile]string) map[string]splitDisk {
	type folderName struct{ dir, name string }
	folder := make(map[string]string) // name -> folder it was found in first
	seen := make(map[folderName]bool)
	for _, f := range images {
		dir := path.Dir(f.scope.rel(f.name))
		if _, ok := folder[names[f]]; !ok {
			folder[names[f]] = dir
		}
		seen[folderName{dir, names[f]}] = true
	}
	out := make(map[string]splitDisk)
	unsure := make(map[string][]string) // machine -> names that may be disks of it
	for name := range folder {
		machine, disk, certain, ok := layout.SplitDisk(name)
		if !ok {
			continue
		}
		d := splitDisk{machine: machine, disk: disk, rank: 1}
		if disk[0] == 'o' { // of the system
			d.rank = 0
		}
		if certain || seen[folderName{folder[name], machine}] {
			out[name] = d
			continue
		}
		unsure[machine] = append(unsure[machine], name)
	}
	for _, list := range unsure {
		if len(list) < 2 {
			continue // "web-data" may be the machine's own name
		}
		for _, name := range list {
			machine, disk, _, _ := layout.SplitDisk(name)
			d := splitDisk{machine: machine, disk: disk, rank: 1}
			if disk[0] == 'o' {
				d.rank = 0
			}
			out[name] = d
		}
	}
	return out
}
