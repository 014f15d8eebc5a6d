// Package timeexpr parses the words by which users choose a restore point (--at)
// and finds the point they choose.
//
// The forms, which include every one that rdiff-backup takes:
//
//	latest                         the newest point
//	now                            the newest point that isn't in the future
//	3B                             three points before the newest; 0B is the newest
//	10D  3h  1W  3h5m  2M  1Y      so long ago: s seconds, m minutes, h hours,
//	                               D days of 24 hours, W weeks, M 30 days, Y 365 days
//	2006-07-28  2006/7/28          the start of that day; the month comes before
//	7/28/2006   7-28-2006          the day in either order
//	today  yesterday               the start of that day
//	2006-07-28T02:30               a time of day, with or without seconds and
//	2006-07-28 02:30:05            their fraction, in local time
//	2006-07-28T02:30:05+02:00      the same with a zone: RFC 3339
//	2006-07-28T02-30-05Z           the same without colons, as in names of points
//	Fri Jul 28 02:30:05 2006       as date(1) and rdiff-backup print it
//	1154046605                     seconds since 1970
//
// A time means the newest point at or before it. A day means its first moment, as
// it does for rdiff-backup, so it chooses a point of the day before; FirstOfDay
// tells whether the day itself has points, to say so.
//
// # Local time
//
// A time without a zone is local, with the offset that the zone has on that date,
// not the one it has today. When clocks are set forward, local times are skipped;
// when they are set back, others occur twice. Both are taken by the offset in
// force before the change: a skipped 02:30 is what 03:30 became, and of a repeated
// 02:30 the first is meant. Expr.Note says so; a zone in the expression chooses.
package timeexpr

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"yester/internal/nametime"
)

// ErrSyntax means that the text has none of the forms.
var ErrSyntax = errors.New("not a time, an age, or a number of points back")

// Kind says what an Expr chooses by.
type Kind int

// The kinds of Expr.
const (
	Latest  Kind = iota // the newest point
	Back                // the point N before the newest
	Instant             // the newest point at or before Time
)

// Expr is a parsed expression.
type Expr struct {
	Kind Kind
	N    int       // for Back
	Time time.Time // for Instant, in the location given to Parse or the zone in the text
	Day  bool      // Time is the start of a day, given without a time of day
	Note string    // what a user should know: the local time is skipped or repeated
	Text string    // as given
}

// maxSeconds bounds epoch seconds and ages: the year 9999, the last that any of
// the other forms can hold.
const maxSeconds = 253402300799

var (
	digits   = regexp.MustCompile(`^[0-9]+$`)
	back     = regexp.MustCompile(`^([0-9]+)B$`)
	interval = regexp.MustCompile(`^(?:[0-9]+[smhDWMY])+$`)
	term     = regexp.MustCompile(`([0-9]+)([smhDWMY])`)
	yearDate = regexp.MustCompile(`^([0-9]{4})[-/]([0-9]{1,2})[-/]([0-9]{1,2})$`)
	dateYear = regexp.MustCompile(`^([0-9]{1,2})[-/]([0-9]{1,2})[-/]([0-9]{4})$`)
	dateTime = regexp.MustCompile(`^([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2})[:-]([0-9]{2})(?:[:-]([0-9]{2})(?:[.,]([0-9]{1,9}))?)?` +
		` ?(?:([Zz])|([+-])([0-9]{2})[:-]?([0-9]{2}))?$`)
)

// units are rdiff-backup's, in seconds; case matters.
var units = map[string]int64{"s": 1, "m": 60, "h": 3600, "D": 86400, "W": 7 * 86400, "M": 30 * 86400, "Y": 365 * 86400}

// Parse parses s. Ages and days by name count from now; times without a zone are
// in loc (nil: time.Local). A text of no known form is an error that matches
// ErrSyntax; the ids of points are no business of this package.
func Parse(s string, now time.Time, loc *time.Location) (Expr, error) {
	if loc == nil {
		loc = time.Local
	}
	text := strings.TrimSpace(s)
	e := Expr{Kind: Instant, Text: s}
	fail := func(format string, args ...any) (Expr, error) {
		return Expr{}, fmt.Errorf("%q: %s: %w", s, fmt.Sprintf(format, args...), ErrSyntax)
	}
	year, month, day := now.In(loc).Date()
	switch text {
	case "latest":
		e.Kind = Latest
		return e, nil
	case "now":
		e.Time = now.In(loc)
		return e, nil
	case "yesterday":
		day--
		fallthrough
	case "today":
		c := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
		e.Time, _ = nametime.Local(c, loc)
		e.Day = true
		return e, nil
	}
	if m := back.FindStringSubmatch(text); m != nil {
		n, err := strconv.ParseInt(m[1], 10, 32)
		if err != nil {
			return fail("too many points back")
		}
		e.Kind, e.N = Back, int(n)
		return e, nil
	}
	if digits.MatchString(text) {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n > maxSeconds {
			return fail("too many seconds since 1970")
		}
		e.Time = time.Unix(n, 0).In(loc)
		return e, nil
	}
	if interval.MatchString(text) {
		n, ok := age(text)
		if !ok {
			return fail("too long ago")
		}
		e.Time = time.Unix(now.Unix()-n, int64(now.Nanosecond())).In(loc)
		return e, nil
	}
	if m := yearDate.FindStringSubmatch(text); m != nil {
		return e.date(m[1], m[2], m[3], loc)
	}
	if m := dateYear.FindStringSubmatch(text); m != nil {
		return e.date(m[3], m[1], m[2], loc)
	}
	if m := dateTime.FindStringSubmatch(text); m != nil {
		return e.dateTime(m, loc)
	}
	if t, err := time.Parse("Mon Jan _2 15:04:05 2006", strings.Join(strings.Fields(text), " ")); err == nil {
		e.Time, e.Note = nametime.Local(t, loc)
		return e, nil
	}
	return Expr{}, fmt.Errorf("%q: %w", s, ErrSyntax)
}

// age adds up an interval; false when it is longer than the calendar.
func age(s string) (int64, bool) {
	var total int64
	for _, m := range term.FindAllStringSubmatch(s, -1) {
		n, err := strconv.ParseInt(m[1], 10, 64)
		if unit := units[m[2]]; err != nil || n > (maxSeconds-total)/unit {
			return 0, false
		} else {
			total += n * unit
		}
	}
	return total, true
}

// date completes e with a day, given by its digits.
func (e Expr) date(year, month, day string, loc *time.Location) (Expr, error) {
	c, ok := civil(number(year), number(month), number(day), 0, 0, 0, 0)
	if !ok {
		return Expr{}, fmt.Errorf("%q: there is no such day: %w", e.Text, ErrSyntax)
	}
	e.Time, _ = nametime.Local(c, loc) // the first moment of the day, even if that isn't 00:00
	e.Day = true
	return e, nil
}

// dateTime completes e with what dateTime matched.
func (e Expr) dateTime(m []string, loc *time.Location) (Expr, error) {
	nano := number((m[7] + "000000000")[:9])
	c, ok := civil(number(m[1]), number(m[2]), number(m[3]), number(m[4]), number(m[5]), number(m[6]), nano)
	if !ok {
		return Expr{}, fmt.Errorf("%q: there is no such day or time: %w", e.Text, ErrSyntax)
	}
	switch {
	case m[8] != "":
		e.Time = c
	case m[9] != "":
		hours, minutes := number(m[10]), number(m[11])
		if hours > 23 || minutes > 59 {
			return Expr{}, fmt.Errorf("%q: there is no such zone: %w", e.Text, ErrSyntax)
		}
		offset := 3600*hours + 60*minutes
		if m[9] == "-" {
			offset = -offset
		}
		e.Time = c.Add(-time.Duration(offset) * time.Second).In(time.FixedZone("", offset))
	default:
		e.Time, e.Note = nametime.Local(c, loc)
	}
	return e, nil
}

// number converts up to nine digits; "" is 0.
func number(s string) int {
	n := 0
	for i := range len(s) {
		n = n*10 + int(s[i]-'0')
	}
	return n
}

// civil returns the date and time of day in UTC; false when there is none such. A
// leap second is the first moment of the next minute.
func civil(year, month, day, hour, minute, second, nano int) (time.Time, bool) {
	c := time.Date(year, time.Month(month), day, hour, minute, min(second, 59), nano, time.UTC)
	ok := year > 0 && month >= 1 && month <= 12 && c.Day() == day && hour < 24 && minute < 60 && second <= 60
	if second == 60 {
		c = c.Truncate(time.Second).Add(time.Second)
	}
	return c, ok
}

// stamp formats a time for messages.
func stamp(t time.Time) string { return t.Format(time.RFC3339) }
