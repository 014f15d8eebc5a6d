package restorepoint

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"yester/internal/ondisk"
)

// TestDegraded: a point that has lost its metadata is a fault, though all that is
// left can be read.
func TestDegraded(t *testing.T) {
	s := newSource(t)
	root := "File .\n  Type dir\n  ModTime 1700000000\n  Uid 0\n  Uname root\n  Gid 0\n  Gname root\n  Permissions 493\n"
	for name, text := range map[string]string{
		"current_mirror.%s.data":           "PID 1\n",
		"mirror_metadata.%s.snapshot":      root,
		"increments.2026-11-18T00:00:00Z.": "",
	} {
		if name[0] == 'i' {
			name += "dir"
		} else {
			name = fmt.Sprintf(name, "2026-11-19T00:00:00Z")
		}
		s.write("repo/rdiff-backup-data/"+name, func(f *os.File) error {
			_, err := f.WriteString(text)
			return err
		})
	}
	src := s.open("")
	list, err := src.List(t.Context())
	if err != nil || len(list.Points) != 2 {
		t.Fatalf("%d points (error: %v)", len(list.Points), err)
	}
	if len(list.Points[0].Notes) != 1 || len(list.Points[1].Notes) != 0 {
		t.Errorf("notes %q, %q", list.Points[0].Notes, list.Points[1].Notes)
	}
	for name, from := range map[string]int{"all": 0, "the newest": 1} {
		var faults []Fault
		res, err := src.Verify(t.Context(), list.Points[from:], VerifyOptions{Report: func(f Fault) { faults = append(faults, f) }})
		if want := 1 - from; err != nil || int(res.Faults) != want || len(faults) != want {
			t.Fatalf("%s: %d faults (error: %v)", name, res.Faults, err)
		}
		for _, f := range faults {
			if f.Point.ID != list.Points[0].ID || !errors.Is(f.Err, ondisk.ErrCorrupt) {
				t.Errorf("%s: %s: %v", name, f.Point.ID, f.Err)
			}
		}
	}
}
