package restorepoint

import (
	"testing"
	"time"

	"yester/restorepoint/layout"
	"yester/restorepoint/timeexpr"
)

// TestLocalTimesAgree reads one local time in a file's name, by a described layout
// and as an expression: all mean the same instant, however clocks were changed.
func TestLocalTimesAgree(t *testing.T) {
	tmpl, err := layout.ParseTemplate("{machine}-{time:2006-01-02T1504}.raw")
	if err != nil {
		t.Fatal(err)
	}
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo"} {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		for c := time.Date(2018, 1, 1, 0, 15, 0, 0, time.UTC); c.Year() < 2019; c = c.Add(30 * time.Minute) {
			e, err := timeexpr.Parse(c.Format("2006-01-02T15:04"), stamp, loc)
			if err != nil {
				t.Fatal(err)
			}
			name := "vm-" + c.Format("2006-01-02T1504") + ".raw"
			found, _, _, ok := splitName(name, "", loc)
			m, fits := tmpl.Match(name, loc)
			if !ok || !fits || !found.Equal(e.Time) || !m.Time.Equal(e.Time) {
				t.Errorf("%s in %s: %v, by the layout %v, expected %v", name, zone, found, m.Time, e.Time.UTC())
			}
		}
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	zoned, err := layout.ParseTemplate("vm-{time:2006-01-02T1504-0700}.raw")
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := zoned.Match("vm-2026-10-25T0230+0100.raw", berlin); !ok || m.Time.Format(time.RFC3339) != "2026-10-25T01:30:00Z" {
		t.Errorf("with a zone: %v, %v", m.Time, ok)
	}
}
