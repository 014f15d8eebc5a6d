package restorepoint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"yester/imageformats"
)

// DefaultGroupWindow is how far apart the times of one machine's disks may lie for
// them to be one point: services make snapshots of a machine's disks one after the
// other, and a download of each is stamped when it began.
const DefaultGroupWindow = 15 * time.Minute

// assemble makes points of the states of all scopes.
func (s *Source) assemble(states []diskState) []Point {
	s.separateConfigs(states)
	separate(states)
	byMachine := make(map[string][]diskState)
	for _, st := range states {
		byMachine[st.machine] = append(byMachine[st.machine], st)
	}
	var points []Point
	for _, of := range byMachine {
		for _, members := range s.moments(of) {
			points = append(points, newPoint(members))
		}
	}
	return points
}

// separate gives machines of one name that lie in different places at one time
// names of their own.
func separate(states []diskState) {
	type at struct {
		machine string
		scope   *scope
	}
	places := make(map[at]map[string]bool)
	double := make(map[string]bool)
	for _, st := range states {
		k := at{st.machine, st.scope}
		if st.place == "" {
			continue
		}
		if places[k] == nil {
			places[k] = make(map[string]bool)
		}
		places[k][st.place] = true
		double[st.machine] = double[st.machine] || len(places[k]) > 1
	}
	for i := range states {
		if st := &states[i]; double[st.machine] && st.place != "" && st.place != "." {
			st.machine = strings.ReplaceAll(st.place, "/", "-") + "-" + st.machine
		}
	}
}

// moments divides a machine's states up: those of one moment together, and never
// two of one disk.
func (s *Source) moments(states []diskState) [][]diskState {
	slices.SortStableFunc(states, func(a, b diskState) int {
		return cmp.Or(a.time.Truncate(time.Second).Compare(b.time.Truncate(time.Second)), cmp.Compare(a.depth(), b.depth()), a.time.Compare(b.time))
	})
	window := s.opt.GroupWindow
	if window == 0 {
		window = DefaultGroupWindow
	}
	var out [][]diskState
	groups := make(map[string]int)
	open := make(map[string]int) // by layout, place and name: the last moment that is not a group
	for _, st := range states {
		var key string
		var same bool
		var i int
		if st.group != "" {
			i, same = groups[st.group]
		} else {
			key = fmt.Sprintf("%s\x00%s\x00%s\x00%p", st.layout, st.place, st.name, st.scope)
			i, same = open[key]
			same = same && st.time.Sub(out[i][0].time) <= max(window, 0)
		}
		same = same && !slices.ContainsFunc(out[i], func(o diskState) bool { return o.disk == st.disk })
		if same {
			out[i] = append(out[i], st)
			continue
		}
		if st.group != "" {
			groups[st.group] = len(out)
		} else {
			open[key] = len(out)
		}
		out = append(out, []diskState{st})
	}
	gaps(out)
	return out
}

// gaps notes where a disk that there is before and after has no state at a moment.
func gaps(moments [][]diskState) {
	first, last := make(map[string]int), make(map[string]int)
	for i, members := range moments {
		for _, st := range members {
			if st.group != "" {
				continue
			}
			if _, ok := first[st.disk]; !ok {
				first[st.disk] = i
			}
			last[st.disk] = i
		}
	}
	if len(first) < 2 {
		return
	}
	for i, members := range moments {
		if members[0].group != "" {
			continue
		}
		for disk, from := range first {
			has := slices.ContainsFunc(members, func(st diskState) bool { return st.disk == disk })
			if !has && from < i && i < last[disk] {
				members[0].notes = append(slices.Clip(members[0].notes), fmt.Sprintf("there is no image of disk %s of this time", disk))
			}
		}
		slices.Sort(members[0].notes)
	}
}

// newPoint makes a point of the states of one moment, which are in order of time.
func newPoint(members []diskState) Point {
	last := members[len(members)-1]
	p := Point{
		Machine: last.machine, Time: last.time, TimeFrom: last.from, Kind: KindDisks, Layout: last.layout, Name: last.name,
		Provenance: last.provenance, Consistency: last.consistency, Secondary: last.secondary,
	}
	slices.SortStableFunc(members, func(a, b diskState) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.disk, b.disk))
	})
	var keys []string
	for _, st := range members {
		p.Notes = append(p.Notes, st.notes...)
		p.Disks = append(p.Disks, st.asDisk())
		problem := st.problem
		if f := st.image; f != nil {
			f.setKey()
			key := f.key
			if st.snapshot != nil {
				key += fmt.Sprintf(" snapshot %q", st.snapshot.ID)
			}
			keys = append(keys, key)
			if problem == nil {
				problem = f.problem
			}
		}
		switch {
		case problem == nil:
		case p.problem == nil:
			p.problem = problem
		default:
			p.problem = fmt.Errorf("%w; %w", p.problem, problem)
		}
	}
	slices.Sort(p.Notes)
	p.Notes = slices.Compact(p.Notes)
	if p.problem != nil {
		p.Problem = p.problem.Error()
		keys = append(keys, p.Problem)
	}
	p.key = strings.Join(keys, " ")
	return p
}

// depth is how many images st's is made of: a parent is older than its child.
func (st *diskState) depth() (n int) {
	for f := st.image; f != nil; f = f.parent {
		n++
	}
	return n
}

func (st *diskState) asDisk() Disk {
	d := Disk{Name: st.disk}
	f := st.image
	if f == nil {
		d.Files = []string{st.file}
		return d
	}
	d.Info, d.Bytes, d.Allocated, d.image = f.info, f.bytes(), f.allocated(), f
	for _, a := range f.chain() {
		d.Files = append(d.Files, a.name)
	}
	if st.snapshot != nil {
		d.Snapshot = st.snapshot.ID
		d.Info.Size = st.snapshot.Size
		d.Info.Snapshots = []imageformats.Snapshot{*st.snapshot}
	}
	return d
}

// twice drops states that are seen again in storage snapshots taken while they
// existed: snapshots of machines and images, images that are not written to any
// more. Of equal ones the soundest stays, then the one that lies there now, then
// that of the newest storage snapshot.
func twice(states []diskState) []diskState {
	type rated struct {
		scope *scope
		score int
	}
	best := make(map[string]rated)
	broken := make(map[string]bool) // by key and scope
	keys := make([]string, len(states))
	in := func(i int) string { return fmt.Sprintf("%s\x00%p", keys[i], states[i].scope) }
	for i := range states {
		st := &states[i]
		if keys[i] = st.sameEverywhere(); keys[i] != "" && (st.problem != nil || st.image.problem != nil) {
			broken[in(i)] = true
		}
	}
	for i := range states {
		st := &states[i]
		if keys[i] == "" {
			continue
		}
		score := 0
		if !broken[in(i)] {
			score += 4
		}
		if st.consistency == Quiesced {
			score += 2
		}
		if st.scope.name == "" {
			score++
		}
		b, ok := best[keys[i]]
		if !ok || score > b.score || score == b.score && b.scope != st.scope && st.scope.time.After(b.scope.time) {
			best[keys[i]] = rated{st.scope, score}
		}
	}
	out := states[:0]
	for i, st := range states {
		if keys[i] == "" || best[keys[i]].scope == st.scope {
			out = append(out, st)
		}
	}
	return out
}

// sameEverywhere is the same for one state wherever it is seen; empty for a state
// that is another in every scope.
func (st *diskState) sameEverywhere() string {
	switch {
	case st.from == FromSnapshot && st.group != "":
		return fmt.Sprintf("%s\x00%s\x00%s\x00%d", st.machine, st.scope.rel(st.group), st.name, st.time.UnixMicro())
	case st.from == FromSnapshot && st.snapshot != nil:
		return fmt.Sprintf("%s\x00%s\x00%s\x00%s\x00%d", st.machine, st.disk, st.scope.rel(st.image.name), st.snapshot.ID, st.time.UnixMicro())
	case st.scope.name != "" && st.frozen, st.scope.name == "" && st.image != nil && st.group == "":
		return fmt.Sprintf("%s\x00%s\x00%s", st.machine, st.disk, st.image.sameAs())
	}
	return ""
}
