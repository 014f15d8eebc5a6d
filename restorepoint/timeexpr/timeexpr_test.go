package timeexpr

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // zones for hosts that have none
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

var now = time.Date(2026, 11, 21, 12, 30, 15, 500, time.UTC)

func TestParse(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	tests := []struct {
		in   string
		want string // latest, nB, or the time; with a "d" after it when it is a day
	}{
		{"latest", "latest"},
		{" latest ", "latest"},
		{"now", "2026-11-21T13:30:15.0000005+01:00"},
		{"0B", "0B"}, {"3B", "3B"},
		{"1154046605", "2006-07-28T02:30:05+02:00"},
		{"0", "1970-01-01T01:00:00+01:00"},
		{"2006", "1970-01-01T01:33:26+01:00"},
		{"1s", "2026-11-21T13:30:14.0000005+01:00"},
		{"90m", "2026-11-21T12:00:15.0000005+01:00"},
		{"3h5m", "2026-11-21T10:25:15.0000005+01:00"},
		{"1D", "2026-11-20T13:30:15.0000005+01:00"},
		{"30D", "2026-10-22T14:30:15.0000005+02:00"}, // 24 hours each, over the change of clocks
		{"1M", "2026-10-22T14:30:15.0000005+02:00"},
		{"1W", "2026-11-14T13:30:15.0000005+01:00"},
		{"1Y", "2025-11-21T13:30:15.0000005+01:00"},
		{"5s1D", "2026-11-20T13:30:10.0000005+01:00"},
		{"0s", "2026-11-21T13:30:15.0000005+01:00"},
		{"today", "2026-11-21T00:00:00+01:00d"},
		{"yesterday", "2026-11-20T00:00:00+01:00d"},
		{"2006-07-28", "2006-07-28T00:00:00+02:00d"},
		{"2006-01-02", "2006-01-02T00:00:00+01:00d"}, // winter
		{"2006/7/28", "2006-07-28T00:00:00+02:00d"},
		{"7/28/2006", "2006-07-28T00:00:00+02:00d"},
		{"07-28-2006", "2006-07-28T00:00:00+02:00d"},
		{"2006/7-28", "2006-07-28T00:00:00+02:00d"},
		{"2024-02-29", "2024-02-29T00:00:00+01:00d"},
		{"2006-07-28T02:30", "2006-07-28T02:30:00+02:00"},
		{"2006-07-28 02:30:05", "2006-07-28T02:30:05+02:00"},
		{"2006-07-28T02:30:05.25", "2006-07-28T02:30:05.25+02:00"},
		{"2006-07-28t02:30:05z", "2006-07-28T02:30:05Z"},
		{"2006-07-28T02:30Z", "2006-07-28T02:30:00Z"},
		{"2006-07-28T02-30-05Z", "2006-07-28T02:30:05Z"},
		{"2006-07-28T02:30:05-07:00", "2006-07-28T02:30:05-07:00"},
		{"2006-07-28T02-30-05-07-00", "2006-07-28T02:30:05-07:00"},
		{"2006-07-28 02:30:05 +0530", "2006-07-28T02:30:05+05:30"},
		{"2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"},
		{"Fri Jul 28 02:30:05 2006", "2006-07-28T02:30:05+02:00"},
		{"Sat Jul  1 02:30:05 2006", "2006-07-01T02:30:05+02:00"},
	}
	for _, test := range tests {
		e, err := Parse(test.in, now, berlin)
		got := e.Time.Format(time.RFC3339Nano)
		switch {
		case err != nil:
			got = err.Error()
		case e.Kind == Latest:
			got = "latest"
		case e.Kind == Back:
			got = strconv.Itoa(e.N) + "B"
		case e.Day:
			got += "d"
		}
		if got != test.want || e.Text != test.in || e.Note != "" {
			t.Errorf("%q: %s %+v, want %s", test.in, got, e, test.want)
		}
	}
	for _, in := range []string{"", " ", "Latest", "tomorrow", "B", "-1", "-1B", "3b", "3d", "3H", "1D ", "1D 2h", "D", "1.5D", "1DX",
		"2006-02-30", "2006-13-01", "2006-00-01", "2006-01-00", "0000-01-01", "28/7/2006", "2006-07", "06-07-28", "2006-07-28T", "2006-07-28T2:30",
		"2006-07-28T24:00", "2006-07-28T02:60", "2006-07-28T02:30:61", "2006-07-28T02:30+24:00", "2006-07-28T02:30+02", "2006-07-28+02:00",
		"99999999999999999999", "253402300800", "9999999999B", "8036Y", "99999999999999999999s", "1Y253402300799s", "²B", "2006-07-28\x00"} {
		if e, err := Parse(in, now, berlin); !errors.Is(err, ErrSyntax) && in != "1D " {
			t.Errorf("%q: %+v, %v", in, e, err)
		}
	}
	if e, err := Parse("2006-07-28", now, nil); err != nil || e.Time.Location() != time.Local {
		t.Errorf("no location: %+v, %v", e, err)
	}
}

// TestClockChanges: skipped and repeated local times, and days without a midnight.
func TestClockChanges(t *testing.T) {
	tests := []struct{ zone, in, want, note string }{
		{"Europe/Berlin", "2026-03-29T01:59:59", "2026-03-29T01:59:59+01:00", ""},
		{"Europe/Berlin", "2026-03-29T02:00", "2026-03-29T03:00:00+02:00", "was skipped"},
		{"Europe/Berlin", "2026-03-29T02:30", "2026-03-29T03:30:00+02:00", "was skipped"},
		{"Europe/Berlin", "2026-03-29T03:00", "2026-03-29T03:00:00+02:00", ""},
		{"Europe/Berlin", "2026-10-25T01:59:59", "2026-10-25T01:59:59+02:00", ""},
		{"Europe/Berlin", "2026-10-25T02:00", "2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+02:00 is meant, not 2026-10-25T02:00:00+01:00"},
		{"Europe/Berlin", "2026-10-25T02:59:59", "2026-10-25T02:59:59+02:00", "occurs twice"},
		{"Europe/Berlin", "2026-10-25T03:00", "2026-10-25T03:00:00+01:00", ""},
		{"Europe/Berlin", "2026-10-25T02:30+01:00", "2026-10-25T02:30:00+01:00", ""},
		{"America/New_York", "2026-11-01 01:30", "2026-11-01T01:30:00-04:00", "occurs twice"},
		{"America/New_York", "2026-03-08 02:30", "2026-03-08T03:30:00-04:00", "was skipped"},
		{"America/Sao_Paulo", "2018-11-04", "2018-11-04T01:00:00-02:00", ""}, // clocks went forward at midnight
		{"America/Sao_Paulo", "2018-02-18", "2018-02-18T00:00:00-03:00", ""}, // and back to the day before
		{"America/Havana", "2026-11-01", "2026-11-01T00:00:00-04:00", ""},    // two midnights
		{"Australia/Lord_Howe", "2026-10-04T02:15", "2026-10-04T02:45:00+11:00", "was skipped"},
		{"Pacific/Apia", "2011-12-30", "2011-12-31T00:00:00+14:00", ""}, // no such day there
		{"Asia/Kathmandu", "2026-07-28T02:30", "2026-07-28T02:30:00+05:45", ""},
	}
	for _, test := range tests {
		e, err := Parse(test.in, now, zone(t, test.zone))
		if got := e.Time.Format(time.RFC3339); err != nil || got != test.want {
			t.Errorf("%s in %s: %s, %v; want %s", test.in, test.zone, got, err, test.want)
		}
		if test.note == "" && e.Note != "" || !strings.Contains(e.Note, test.note) {
			t.Errorf("%s in %s: note %q, want %q", test.in, test.zone, e.Note, test.note)
		}
	}
}

// TestZoneinfo compares with Python's zoneinfo, whose fold=0 is the same rule
// (PEP 495), around every change of clocks of some years.
func TestZoneinfo(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var in bytes.Buffer
	var got []string
	for _, name := range []string{"Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Tehran", "America/Havana", "Europe/London", "UTC"} {
		loc := zone(t, name)
		at := time.Date(1995, 1, 1, 0, 0, 0, 0, loc)
		for range 60 {
			_, end := at.ZoneBounds()
			if end.IsZero() || end.Year() > 2030 {
				break
			}
			at = end
			for range 20 {
				c := at.UTC().Add(time.Duration(rng.IntN(48*3600)-24*3600) * time.Second)
				text := c.Format("2006-01-02T15:04:05")
				e, err := Parse(text, now, loc)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintln(&in, name, text)
				got = append(got, strconv.FormatInt(e.Time.Unix(), 10))
			}
		}
	}
	cmd := exec.Command(python, "-c", `
import sys, zoneinfo, datetime
for line in sys.stdin:
    zone, text = line.split()
    print(int(datetime.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone)).timestamp()))
`)
	cmd.Stdin = bytes.NewReader(in.Bytes())
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(out))
	if len(want) != len(got) || len(got) < 1000 {
		t.Fatalf("%d times, Python has %d", len(got), len(want))
	}
	asked := strings.Split(in.String(), "\n")
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: %s, Python: %s", asked[i], got[i], want[i])
		}
	}
}

func TestSelect(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	day := func(d, h int) time.Time { return time.Date(2026, 11, d, h, 0, 0, 0, time.UTC) }
	points := []time.Time{day(17, 2), day(15, 2), day(16, 2), day(18, 2), day(17, 14), day(30, 0)} // no order; the last lies ahead
	same := func(t time.Time) time.Time { return t }
	tests := []struct {
		in   string
		want int
		err  string
	}{
		{"latest", 5, ""},
		{"0B", 5, ""},
		{"2B", 4, ""},
		{"5B", 1, ""},
		{"6B", -1, "no restore point 6 before the newest: there are 6, the oldest 2026-11-15T"},
		{"now", 3, ""},
		{"2026-11-17", 2, ""}, // the day's start
		{"2026-11-17T23:59", 4, ""},
		{"2026-11-17T02:00Z", 0, ""}, // at the very time
		{"2026-11-17T01:59:59Z", 2, ""},
		{"3D", 3, ""},
		{"100000D", -1, "no restore point at or before 1753-02-"},
		{"2026-11-14", -1, "no restore point at or before 2026-11-14T00:00:00+01:00 (2026-11-14): there are 6, the oldest 2026-11-15T03:00:00+01:00, 2026-11-16T03:00:00+01:00, 2026-11-17T03:00:00+01:00"},
		{"2026-11-15", -1, "; a date alone means its first moment, and the first point of that day is 2026-11-15T03:00:00+01:00"},
	}
	for _, test := range tests {
		e, err := Parse(test.in, now, berlin)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Select(points, same, e)
		if got != test.want || (err != nil) != (test.want < 0) {
			t.Errorf("%s: %d, %v; want %d", test.in, got, err, test.want)
		}
		var none *NotFoundError
		if err != nil && (!errors.As(err, &none) || !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), test.err) || len(none.Nearest) != 3 || none.Nearest[0] != 1) {
			t.Errorf("%s: %v, want %q", test.in, err, test.err)
		}
	}

	e, err := Parse("2026-11-17", now, berlin)
	if err != nil {
		t.Fatal(err)
	}
	if i, ok := FirstOfDay(points, same, e); !ok || i != 0 {
		t.Errorf("first of the day: %d, %v", i, ok)
	}
	e.Day = false
	if i, ok := FirstOfDay(points, same, e); ok {
		t.Errorf("first of no day: %d", i)
	}
	if _, err := Select(points[1:2], same, Expr{Kind: Back, N: 1}); err == nil || !strings.Contains(err.Error(), "the only one is 2026-11-15T") {
		t.Error(err)
	}
	for _, kind := range []Kind{Latest, Back, Instant} {
		if i, err := Select(nil, same, Expr{Kind: kind, Time: now}); i != -1 || !errors.Is(err, ErrNotFound) || !strings.HasSuffix(err.Error(), "there are none") {
			t.Errorf("no points: %d, %v", i, err)
		}
	}
	if i, err := Select([]time.Time{now, now, day(1, 0)}, same, Expr{}); i != 1 || err != nil {
		t.Errorf("two of one time: %d, %v", i, err)
	}
}

// FuzzParse checks that what is accepted is a time within the calendar, that a
// local time is shown by the clocks of its zone unless a note says otherwise, and
// that RFC 3339 reads back the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"latest", "now", "3B", "3h5m", "1Y2M", "2006-07-28", "7/28/2006", "today", "yesterday", "2026-10-25 02:30:05.5", "2026-03-29T02:30",
		"2006-07-28T02-30-05-07-00", "Fri Jul 28 02:30:05 2006", "1154046605", "2016-12-31T23:59:60Z"} {
		f.Add(s, uint8(len(s)))
	}
	var zones []*time.Location
	for _, name := range []string{"UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu", "Africa/Casablanca"} {
		zones = append(zones, zone(f, name))
	}
	f.Fuzz(func(t *testing.T, s string, z uint8) {
		loc := zones[int(z)%len(zones)]
		e, err := Parse(s, now, loc)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Errorf("%v", err)
			}
			return
		}
		if e.Kind != Instant {
			return
		}
		if y := e.Time.UTC().Year(); y < -6100 || y > 10000 {
			t.Errorf("%q: year %d", s, y)
		}
		if m := dateTime.FindStringSubmatch(s); m != nil && e.Note == "" && m[6] != "60" {
			if got := e.Time.Format("2006-01-02 15:04"); got != strings.Join(m[1:4], "-")+" "+m[4]+":"+m[5] {
				t.Errorf("%q in %v: %v", s, loc, e.Time)
			}
		}
		if y := e.Time.Year(); y < 1 || y > 9999 {
			return
		}
		// Zones of old had offsets with seconds, which RFC 3339 can't write.
		again, err := Parse(e.Time.UTC().Format(time.RFC3339Nano), now, loc)
		if err != nil || !again.Time.Equal(e.Time) {
			if y := e.Time.UTC().Year(); y >= 1 && y <= 9999 {
				t.Errorf("%q: %v reads back as %v, %v", s, e.Time, again.Time, err)
			}
		}
	})
}
