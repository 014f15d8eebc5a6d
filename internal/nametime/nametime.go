// Package nametime finds dates in the names of files and folders, and knows what
// instant a local time means.
package nametime

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// nameDate matches a date, with or without a time of day, inside a file's or
// folder's name: 2026-11-20, 20261120, 2026-11-20T02-30-00Z, 2026-11-20_0230,
// 20261120-023000, "2026-11-20 02.30". Digits on either side make it a longer
// number, not a date, which Find checks.
var nameDate = regexp.MustCompile(
	`((?:19|20)\d\d)([-._]?)(0[1-9]|1[0-2])[-._]?(0[1-9]|[12]\d|3[01])` +
		`(?:[-._ Tt]?([01]\d|2[0-3])[-._:hH]?([0-5]\d)(?:[-._:mM]?([0-5]\d|60))?([Zz]|[+-]\d\d[-:]?\d\d)?)?`)

// Find finds a date in name. It returns its time, read in loc where the name
// gives no zone, and the name without it.
func Find(name string, loc *time.Location) (t time.Time, rest string, ok bool) {
	for _, m := range nameDate.FindAllStringSubmatchIndex(name, -1) {
		if m[0] > 0 && isDigit(name[m[0]-1]) || m[1] < len(name) && isDigit(name[m[1]]) {
			continue // part of a longer number
		}
		field := func(i int) int {
			if m[2*i] < 0 {
				return 0
			}
			n, _ := strconv.Atoi(name[m[2*i]:m[2*i+1]])
			return n
		}
		t = time.Date(field(1), time.Month(field(3)), field(4), field(5), field(6), min(field(7), 59), 0, time.UTC)
		if t.Day() != field(4) { // 31 February
			continue
		}
		if field(7) == 60 { // a leap second
			t = t.Add(time.Second)
		}
		zone := loc
		if m[16] >= 0 {
			zone = parseZone(name[m[16]:m[17]])
		}
		t, _ = Local(t, zone)
		return t.UTC(), name[:m[0]] + name[m[1]:], true
	}
	return time.Time{}, name, false
}

// parseZone reads "Z" or an offset such as "+01:00", "-0330", "+01-00".
func parseZone(s string) *time.Location {
	if s == "Z" || s == "z" {
		return time.UTC
	}
	h, _ := strconv.Atoi(s[1:3])
	m, _ := strconv.Atoi(s[len(s)-2:])
	sec := h*3600 + m*60
	if s[0] == '-' {
		sec = -sec
	}
	return time.FixedZone("", sec)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// Trim removes what a date leaves behind at the ends of a name, and
// makes of a doubled separator inside it one.
func Trim(s string) string {
	s = strings.Trim(s, "-_. ")
	for _, sep := range []string{"--", "__", "..", "  "} {
		for strings.Contains(s, sep) {
			s = strings.ReplaceAll(s, sep, sep[:1])
		}
	}
	return s
}
