package nametime

import (
	"testing"
	"time"
)

// TestChangesOfClocks takes local times that occur twice or never by the offset
// before the change.
func TestChangesOfClocks(t *testing.T) {
	for _, c := range []struct{ zone, name, want string }{
		{"Europe/Berlin", "vm-2026-10-25T0230", "2026-10-25T00:30:00Z"}, // twice
		{"Europe/Berlin", "vm-2026-10-25T0300", "2026-10-25T02:00:00Z"},
		{"Europe/Berlin", "vm-2026-03-29T0230", "2026-03-29T01:30:00Z"}, // never
		{"Europe/Berlin", "vm-2026-10-25T0230+0100", "2026-10-25T01:30:00Z"},
		{"America/New_York", "vm-2026-11-01_0130", "2026-11-01T05:30:00Z"},
		{"America/New_York", "vm-2026-03-08_0230", "2026-03-08T07:30:00Z"},
		{"America/Sao_Paulo", "vm-2018-11-04", "2018-11-04T03:00:00Z"}, // no midnight
		{"UTC", "vm-2016-12-31T23-59-60", "2017-01-01T00:00:00Z"},
		{"UTC", "vm-2016-02-31T23-59-60", ""},
	} {
		loc, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if at, _, ok := Find(c.name, loc); ok {
			got = at.Format(time.RFC3339)
		}
		if got != c.want {
			t.Errorf("%s in %s: %s, want %s", c.name, c.zone, got, c.want)
		}
	}
}
