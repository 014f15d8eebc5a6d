package restorepoint

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// described finds the images that --layout describes, and nothing else.
func (sv *survey) described() {
	t := sv.src.opt.Layout
	for _, f := range sv.images {
		m, ok := t.Match(sv.scope.rel(f.name), sv.src.opt.Location)
		if !ok {
			sv.ignore(f.name, fmt.Sprintf("it doesn't fit the layout %s", t), nil)
			continue
		}
		st := diskState{
			machine: m.Machine, disk: m.Disk, layout: LayoutDescribed, image: f,
			time: m.Time, from: FromName, provenance: sv.scope.provenance(),
		}
		if st.machine == "" {
			st.machine = filepath.Base(sv.src.dir.Path())
		}
		if st.disk == "" {
			st.disk = st.machine
		}
		switch {
		case m.HasTime:
			st.frozen = sv.scope.name != ""
		case sv.scope.name != "":
			st.time, st.from = sv.scope.time, sv.scope.from
			st.name, st.consistency = sv.scope.name, CrashConsistent
		default:
			st.time, st.from = sv.src.ownTime(f)
		}
		for i := range f.info.Snapshots {
			sv.add(st.ofSnapshot(&f.info.Snapshots[i]))
		}
		sv.add(st)
	}
}

// named returns the scope's files with that extension, in order.
func (c *scope) named(ext string) (names []string) {
	for name := range c.files {
		if strings.EqualFold(path.Ext(name), ext) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
