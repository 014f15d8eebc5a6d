package timeexpr

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"yester/internal/nametime"
)

// ErrNotFound means that no point fits the expression.
var ErrNotFound = errors.New("no such restore point")

// maxNearest is how many points a NotFoundError names.
const maxNearest = 3

// NotFoundError says which points there are instead. It matches ErrNotFound.
type NotFoundError struct {
	Expr Expr
	// Nearest are indices into the points given to Select: the oldest ones, oldest
	// first, since no point is as old as what was asked for. Times are theirs.
	Nearest []int
	Times   []time.Time
	Points  int // how many there are in all
	// FirstOfDay is the time of the first point of the day that was asked for, when
	// that was a day and has any; else the zero Time.
	FirstOfDay time.Time
}

// Error names what was asked for and the nearest points, with the zone in which
// the question was understood.
func (e *NotFoundError) Error() string {
	var b strings.Builder
	loc := time.Local
	switch e.Expr.Kind {
	case Instant:
		loc = e.Expr.Time.Location()
		fmt.Fprintf(&b, "no restore point at or before %s", stamp(e.Expr.Time))
		if e.Expr.Text != "" {
			fmt.Fprintf(&b, " (%s)", e.Expr.Text)
		}
	case Back:
		fmt.Fprintf(&b, "no restore point %d before the newest", e.Expr.N)
	default:
		b.WriteString("no restore point")
	}
	if e.Points == 0 {
		b.WriteString(": there are none")
		return b.String()
	}
	if e.Points == 1 {
		fmt.Fprintf(&b, ": the only one is %s", stamp(e.Times[0].In(loc)))
	} else {
		fmt.Fprintf(&b, ": there are %d, the oldest", e.Points)
		for i, t := range e.Times {
			if i > 0 {
				b.WriteString(",")
			}
			b.WriteString(" " + stamp(t.In(loc)))
		}
	}
	if !e.FirstOfDay.IsZero() {
		fmt.Fprintf(&b, "; a date alone means its first moment, and the first point of that day is %s", stamp(e.FirstOfDay.In(loc)))
	}
	return b.String()
}

// Is makes errors.Is(err, ErrNotFound) true.
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// Select returns the index of the point that e chooses. The points may be in any
// order; of two of the same time the later in the slice is the newer. When none
// fits, the error is a *NotFoundError.
func Select[T any](points []T, at func(T) time.Time, e Expr) (int, error) {
	order := make([]int, len(points)) // oldest first
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return at(points[a]).Compare(at(points[b])) })

	last := len(order) - 1
	switch e.Kind {
	case Back:
		last -= e.N
	case Instant:
		// The number of points that aren't after the time.
		n, _ := slices.BinarySearchFunc(order, e.Time, func(i int, t time.Time) int {
			return cmp.Or(at(points[i]).Compare(t), -1)
		})
		last = n - 1
	}
	if last >= 0 {
		return order[last], nil
	}
	err := &NotFoundError{Expr: e, Points: len(points), Nearest: order[:min(len(order), maxNearest)]}
	for _, i := range err.Nearest {
		err.Times = append(err.Times, at(points[i]))
	}
	if i, ok := FirstOfDay(points, at, e); ok {
		err.FirstOfDay = at(points[i])
	}
	return -1, err
}

// FirstOfDay returns the index of the oldest point within the day that e names, by
// the zone of e.Time; false when e names no day or the day has no points. Since a
// day chooses by its first moment, a user who means one of its points needs a
// hint.
func FirstOfDay[T any](points []T, at func(T) time.Time, e Expr) (int, bool) {
	if e.Kind != Instant || !e.Day {
		return -1, false
	}
	y, m, d := e.Time.Date()
	end, _ := nametime.Local(time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC), e.Time.Location())
	found := -1
	for i, p := range points {
		t := at(p)
		if !t.Before(e.Time) && t.Before(end) && (found < 0 || t.Before(at(points[found]))) {
			found = i
		}
	}
	return found, found >= 0
}
