package nametime

import (
	"testing"
	"time"
)

func TestFind(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, want, rest string }{
		{"web01-2026-11-20T02-30-00Z", "2026-11-20T02:30:00Z", "web01-"},
		{"web01-20261120T023000Z", "2026-11-20T02:30:00Z", "web01-"},
		{"web01_20261120023000", "2026-11-20T01:30:00Z", "web01_"},
		{"web01_20260720023000", "2026-07-20T00:30:00Z", "web01_"}, // summer time
		{"2026-11-20", "2026-11-19T23:00:00Z", ""},
		{"20261120", "2026-11-19T23:00:00Z", ""},
		{"2026.11.20 14.05", "2026-11-20T13:05:00Z", ""},
		{"daily.2026-11-20_0010", "2026-11-19T23:10:00Z", "daily."},
		{"Backup 2026-11-20 023000", "2026-11-20T01:30:00Z", "Backup "},
		{"db-2026-11-20T02-30-00+0530", "2026-11-19T21:00:00Z", "db-"},
		{"db-2026-11-20T02:30:00-03:30", "2026-11-20T06:00:00Z", "db-"},
		{"1234567-2026-11-20", "2026-11-19T23:00:00Z", "1234567-"},
		{"web01", "", "web01"},
		{"serial-120261120", "", "serial-120261120"},
		{"serial-202611201", "", "serial-202611201"},
		{"2026-13-01", "", "2026-13-01"},
		{"2026-02-31", "", "2026-02-31"},
		{"kb20230145", "", "kb20230145"},
	} {
		got, rest, ok := Find(c.name, berlin)
		text := ""
		if ok {
			text = got.Format(time.RFC3339)
		}
		if text != c.want || rest != c.rest {
			t.Errorf("Find(%q) = %q, %q; want %q, %q", c.name, text, rest, c.want, c.rest)
		}
	}
}
