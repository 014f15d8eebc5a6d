package restorepoint

import (
	"testing"
	"time"
)

func TestSplitName(t *testing.T) {
	for _, c := range []struct{ name, time, stem, folder string }{
		{"web01.vhd", "", "web01", "backups"},
		{"web01-2026-11-20.vhd", "2026-11-20", "web01", "backups"},
		{"web01/2026-11-20.vhd", "2026-11-20", "", "web01"},
		{"web01/2026-11-20/os.vhd", "2026-11-20", "os", "web01"},
		{"2026-11-20/web01.raw.001", "2026-11-20", "web01", "backups"},
		{"2026-11-20/web01-2026-11-19.avhd", "2026-11-19", "web01", "backups"},
		{"web01--2026-11-20--full.vhd", "2026-11-20", "web01-full", "backups"},
		{"notes.txt", "", "notes.txt", "backups"},
	} {
		got, stem, folder, ok := splitName(c.name, "backups", time.UTC)
		text := ""
		if ok {
			text = got.Format(time.DateOnly)
		}
		if text != c.time || stem != c.stem || folder != c.folder {
			t.Errorf("splitName(%q) = %q, %q, %q; want %q, %q, %q", c.name, text, stem, folder, c.time, c.stem, c.folder)
		}
	}
}
