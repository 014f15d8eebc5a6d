package rdiff

import (
	"strings"
	"time"
)

// increment is what the name of an increment says, read from its right:
// BASE.TIME.TYPE or BASE.TIME.TYPE.gz.
type increment struct {
	base  string
	stamp string // TIME as written
	time  int64  // seconds since 1970
	kind  kind
	gzip  bool
}

// parseIncrement splits the name of an increment, which must not be quoted.
func parseIncrement(name string) (increment, bool) {
	var inc increment
	rest, ok := strings.CutSuffix(name, ".gz")
	inc.gzip = ok
	i := strings.LastIndexByte(rest, '.')
	if i < 0 {
		return inc, false
	}
	if inc.kind = kindNames[rest[i+1:]]; inc.kind == kindNone {
		return inc, false
	}
	rest = rest[:i]
	if i = strings.LastIndexByte(rest, '.'); i < 0 {
		return inc, false
	}
	inc.base, inc.stamp = rest[:i], rest[i+1:]
	inc.time, ok = parseStamp(inc.stamp)
	return inc, ok
}

// stampLen is the length of a time without its zone: 2023-11-14T22:13:20.
const stampLen = 19

// parseStamp reads a time of rdiff-backup: 2023-11-14T22:13:20+01:00, or Z for the
// zone, with dashes in place of the colons where those are quoted.
//
// rdiff-backup computes the zone's offset as 60·HH + MM minutes, with the sign on
// HH alone, both when it writes and when it reads: St John's, which is three and a
// half hours behind, is written "-04:30". A zone behind by less than an hour can't
// be told from one ahead.
func parseStamp(s string) (int64, bool) {
	if len(s) < stampLen+1 {
		return 0, false
	}
	date, zone := s[:stampLen], s[stampLen:]
	layout := "2006-01-02T15:04:05"
	if date[13] == '-' {
		layout = "2006-01-02T15-04-05"
	}
	t, err := time.Parse(layout, date)
	if err != nil {
		return 0, false
	}
	if zone == "Z" {
		return t.Unix(), true
	}
	if len(zone) != 6 || zone[0] != '+' && zone[0] != '-' || zone[3] != ':' && zone[3] != '-' {
		return 0, false
	}
	hours, ok1 := twoDigits(zone[1:3])
	minutes, ok2 := twoDigits(zone[4:6])
	if !ok1 || !ok2 {
		return 0, false
	}
	if zone[0] == '-' {
		hours = -hours
	}
	return t.Unix() - 60*(60*hours+minutes), true
}

func twoDigits(s string) (int64, bool) {
	if len(s) != 2 || s[0] < '0' || s[0] > '9' || s[1] < '0' || s[1] > '9' {
		return 0, false
	}
	return int64(s[0]-'0')*10 + int64(s[1]-'0'), true
}
