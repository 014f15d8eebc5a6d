package nametime

import (
	"fmt"
	"time"
)

// Local returns the instant at which clocks in loc show what c shows, whatever its
// zone, and a note when there is none such or there are two. Then the offset in
// force before the change of clocks is taken: a skipped 02:30 is what 03:30 became,
// and of a repeated 02:30 the first is meant.
func Local(c time.Time, loc *time.Location) (time.Time, string) {
	c = time.Date(c.Year(), c.Month(), c.Day(), c.Hour(), c.Minute(), c.Second(), c.Nanosecond(), time.UTC)
	// Some instant of that local time, or near it.
	near := time.Date(c.Year(), c.Month(), c.Day(), c.Hour(), c.Minute(), c.Second(), c.Nanosecond(), loc)
	at := func(offset int) time.Time { return c.Add(-time.Duration(offset) * time.Second).In(loc) }
	start, end := near.ZoneBounds()
	// The changes that may be near: into this period, and out of it. The offset
	// before a change is right for both troubles that a change makes.
	for _, change := range []time.Time{start, end} {
		if change.IsZero() {
			continue
		}
		_, before := change.Add(-1).Zone()
		_, after := change.Zone()
		first, second := at(before), at(after)
		switch {
		case after > before && !first.Before(change) && second.Before(change):
			return first, fmt.Sprintf("the local time %s was skipped when clocks were set forward at %s; %s is meant",
				c.Format("2006-01-02 15:04:05"), stamp(change), stamp(first))
		case after < before && first.Before(change) && !second.Before(change):
			return first, fmt.Sprintf("the local time %s occurs twice, since clocks were set back at %s; %s is meant, not %s",
				c.Format("2006-01-02 15:04:05"), stamp(change), stamp(first), stamp(second))
		}
	}
	return near, ""
}

// stamp formats a time for messages.
func stamp(t time.Time) string { return t.Format(time.RFC3339) }
