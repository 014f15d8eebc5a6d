package restorepoint

import (
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// nameDate matches a date, with or without a time of day, inside a file's or
// folder's name: 2026-11-20, 20261120, 2026-11-20T02-30-00Z, 2026-11-20_0230,
// 20261120-023000, "2026-11-20 02.30". Digits on either side make it a longer
// number, not a date, which nameTime checks.
var nameDate = regexp.MustCompile(
	`((?:19|20)\d\d)([-._]?)(0[1-9]|1[0-2])[-._]?(0[1-9]|[12]\d|3[01])` +
		`(?:[-._ Tt]?([01]\d|2[0-3])[-._:hH]?([0-5]\d)(?:[-._:mM]?([0-5]\d|60))?([Zz]|[+-]\d\d[-:]?\d\d)?)?`)

// nameTime finds a date in name. It returns its time, read in loc where the name
// gives no zone, and the name without it.
func nameTime(name string, loc *time.Location) (t time.Time, rest string, ok bool) {
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
		zone := loc
		if m[16] >= 0 {
			zone = parseZone(name[m[16]:m[17]])
		}
		t = time.Date(field(1), time.Month(field(3)), field(4), field(5), field(6), field(7), 0, zone)
		if t.Day() != field(4) && field(7) != 60 { // 31 February
			continue
		}
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

// splitName takes the path of an image apart: the date in its base name or else
// in the nearest folder above it that has one, the base name without date and
// extension, and the nearest folder's name that is more than a date.
func splitName(name, rootName string, loc *time.Location) (t time.Time, stem, folder string, ok bool) {
	base := path.Base(name)
	if t, stem, ok = nameTime(stripExt(base), loc); !ok {
		stem = stripExt(base)
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		ft, rest, found := nameTime(path.Base(dir), loc)
		if found && !ok {
			t, ok = ft, true
		}
		if rest = trimSeparators(rest); folder == "" && rest != "" {
			folder = rest
		}
	}
	if folder == "" {
		folder = rootName
	}
	return t, trimSeparators(stem), folder, ok
}

// stripExt removes the extensions that say how an image is stored.
func stripExt(base string) string {
	for {
		ext := strings.ToLower(path.Ext(base))
		switch {
		case ext == "" || ext == base:
			return base
		case len(ext) == 4 && strings.Trim(ext[1:], "0123456789") == "": // a part: .001
		default:
			switch ext {
			case ".vhd", ".avhd", ".vhdx", ".avhdx", ".vmdk", ".qcow2", ".raw", ".img", ".dd", ".bin", ".iso", ".e01":
			default:
				return base
			}
		}
		base = base[:len(base)-len(ext)]
	}
}

// trimSeparators removes what a date leaves behind at the ends of a name, and
// makes of a doubled separator inside it one.
func trimSeparators(s string) string {
	s = strings.Trim(s, "-_. ")
	for _, sep := range []string{"--", "__", "..", "  "} {
		for strings.Contains(s, sep) {
			s = strings.ReplaceAll(s, sep, sep[:1])
		}
	}
	return s
}

// idTime formats t as a point's ID.
func idTime(t time.Time) string { return t.UTC().Format("2006-01-02T15-04-05Z") }
