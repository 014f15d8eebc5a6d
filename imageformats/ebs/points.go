package ebs

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Point is a state of several disks at about one time.
type Point struct {
	// Time is when the latest of the snapshots began: nothing in the point is newer.
	Time      time.Time
	Snapshots []Snapshot // at most one of each lineage; by device, then volume
	// Missing are the lineages that the other points have and this one hasn't.
	Missing []string
}

// Points groups snapshots into points, oldest first. window is how far apart the
// snapshots of one backup run may begin: CreateSnapshots takes those of an instance
// at one moment, schedules that go volume by volume need minutes. A point holds one snapshot of
// a lineage, begun within window of its first one, and all of one make: what DLM
// took at ten isn't mixed with what AWS Backup took at five past.
func Points(snapshots []Snapshot, window time.Duration) []Point {
	byMake := map[string][]Snapshot{}
	for _, s := range snapshots {
		mark := s.Mark.By
		if s.Mark.By == MadeByDLM {
			mark += "/" + s.Mark.Policy // Backup's second half names the volume itself
		}
		byMake[mark] = append(byMake[mark], s)
	}
	var points []Point
	for _, group := range byMake {
		slices.SortFunc(group, func(a, b Snapshot) int {
			return cmp.Or(a.Start.Compare(b.Start), strings.Compare(a.ID, b.ID))
		})
		all := map[string]bool{}
		for i := range group {
			all[group[i].Lineage()] = true
		}
		points = append(points, pointsOf(group, all, window)...)
	}
	slices.SortFunc(points, func(a, b Point) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Snapshots[0].ID, b.Snapshots[0].ID))
	})
	return points
}

// pointsOf cuts the sorted snapshots of one make into points: a new one begins
// when the window has passed, or at a lineage that the point already has.
func pointsOf(group []Snapshot, all map[string]bool, window time.Duration) []Point {
	var points []Point
	var have map[string]bool
	var first time.Time
	for _, s := range group {
		l := s.Lineage()
		if have == nil || have[l] || s.Start.Sub(first) > window {
			points = append(points, Point{})
			have, first = map[string]bool{}, s.Start
		}
		p := &points[len(points)-1]
		have[l] = true
		p.Time = s.Start
		p.Snapshots = append(p.Snapshots, s)
	}
	for i := range points {
		p := &points[i]
		slices.SortFunc(p.Snapshots, func(a, b Snapshot) int {
			return cmp.Or(strings.Compare(a.Device, b.Device), strings.Compare(a.Lineage(), b.Lineage()))
		})
		for l := range all {
			if !slices.ContainsFunc(p.Snapshots, func(s Snapshot) bool { return s.Lineage() == l }) {
				p.Missing = append(p.Missing, l)
			}
		}
		slices.Sort(p.Missing)
	}
	return points
}
