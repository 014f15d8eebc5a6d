package layout

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// VMSD is the list of a VMware machine's snapshots.
type VMSD struct {
	// Current is the UID of the snapshot that the machine's running state was
	// made on; empty when there is none.
	Current   string
	Snapshots []VMSnapshot
}

// VMSnapshot is a snapshot of a VMSD.
type VMSnapshot struct {
	UID, Parent string
	Name        string    // displayName
	State       string    // file name of its .vmsn
	Time        time.Time // zero when it isn't noted
	Disks       []Disk    // as they were when it was taken
}

// maxSnapshots bounds the snapshots of a machine: VMware allows chains of 32
// (KB 1025279), and trees of some hundred have been seen.
const maxSnapshots = 4096

// ParseVMSD reads a .vmsd file. One without snapshots is not an error.
func ParseVMSD(data []byte) (VMSD, error) {
	d, err := parseDict("vmsd", data)
	if err != nil {
		return VMSD{}, err
	}
	v := VMSD{Current: d.get("snapshot.current")}
	if v.Current == "0" {
		v.Current = ""
	}
	// The numbers have gaps once snapshots were removed by hand, so that they are
	// looked for rather than counted.
	var numbers []int
	for key := range d {
		rest, ok := strings.CutPrefix(key, "snapshot")
		number, isUID := strings.CutSuffix(rest, ".uid")
		if n, err := strconv.ParseUint(number, 10, 31); ok && isUID && err == nil {
			numbers = append(numbers, int(n))
		}
	}
	if len(numbers) > maxSnapshots {
		return VMSD{}, corrupt("vmsd", "uid", "%d snapshots, more than %d", len(numbers), maxSnapshots)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		prefix := fmt.Sprintf("snapshot%d.", n)
		uid := d.get(prefix + "uid")
		if uid == "" {
			continue
		}
		s := VMSnapshot{UID: uid, Parent: d.get(prefix + "parent"), Name: d.get(prefix + "displayname"), State: d.get(prefix + "filename")}
		if s.Time, err = vmsdTime(d, prefix); err != nil {
			return VMSD{}, err
		}
		for i := range maxDisks {
			disk := fmt.Sprintf("%sdisk%d.", prefix, i)
			file, ok := d[disk+"filename"]
			if !ok {
				break
			}
			s.Disks = append(s.Disks, Disk{Node: d.get(disk + "node"), File: file, Field: disk + "fileName"})
		}
		slices.SortStableFunc(s.Disks, func(a, b Disk) int { return compareNodes(a.Node, b.Node) })
		v.Snapshots = append(v.Snapshots, s)
	}
	return v, v.check()
}

// check refuses trees that go in circles.
func (v *VMSD) check() error {
	parent := make(map[string]string, len(v.Snapshots))
	for _, s := range v.Snapshots {
		if _, twice := parent[s.UID]; twice {
			return corrupt("vmsd", "uid", "two snapshots have %.20q", s.UID)
		}
		parent[s.UID] = s.Parent
	}
	for _, s := range v.Snapshots {
		at := s.UID
		for range len(v.Snapshots) + 1 {
			if at = parent[at]; at == "" {
				break
			}
		}
		if at != "" {
			return corrupt("vmsd", "parent", "the parents of snapshot %.20q go in a circle", s.UID)
		}
	}
	return nil
}

// vmsdTime puts a time together from its halves: microseconds since 1970, each half
// written as a signed number of 32 bits.
func vmsdTime(d dict, prefix string) (time.Time, error) {
	h, okh := d[prefix+"createtimehigh"]
	l, okl := d[prefix+"createtimelow"]
	if !okh || !okl || h == "0" && l == "0" {
		return time.Time{}, nil
	}
	high, err := strconv.ParseInt(h, 10, 32)
	if err != nil {
		return time.Time{}, corrupt("vmsd", prefix+"createTimeHigh", "%.20q is no number of 32 bits", h)
	}
	low, err := strconv.ParseInt(l, 10, 64) // written unsigned by some
	if err != nil || low < -1<<31 || low >= 1<<32 {
		return time.Time{}, corrupt("vmsd", prefix+"createTimeLow", "%.20q is no number of 32 bits", l)
	}
	if high < 0 {
		return time.Time{}, corrupt("vmsd", prefix+"createTimeHigh", "%s lies before 1970", h)
	}
	return time.UnixMicro(high<<32 | low&(1<<32-1)).UTC(), nil
}
