package rdiff

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/ondisk"
	"yester/internal/treetest"
)

// TestCrashes opens repositories whose last session (or its regress) was ended at
// every stage of it: every valid date is as the source was, and every file's SHA-1.
func TestCrashes(t *testing.T) {
	tr := readTruth(t, "crashed")
	interrupted, done := 0, 0
	for _, name := range tr.Repos {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(fixtures(t), "crashed", name)
			r := openRepo(t, dir, imageformats.RepositoryOptions{})
			list, err := r.Points(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := tr.Points
			switch n := len(list.Points); {
			case n == len(want)+1:
				// The session was through but for the old marker.
				want = append(append([]truthPoint(nil), want...), *tr.After)
				done++
			case n != len(want):
				t.Fatalf("%d points, want %d", n, len(want))
			case len(list.Warnings) > 0:
				interrupted++
			}
			if markers, _ := filepath.Glob(dir + "/rdiff-backup-data/current_mirror.*"); (len(markers) > 1) != (len(list.Warnings) > 0) {
				t.Errorf("%d markers, warnings %q", len(markers), list.Warnings)
			}
			for _, p := range want {
				tree := openPoint(t, r, p.Time)
				treetest.Compare(t, tree, p.manifest(true))
				verifyAll(t, tree)
			}
		})
	}
	t.Logf("%d interrupted, %d complete", interrupted, done)
	if interrupted < 15 || done < 1 {
		t.Errorf("the crashes cover too little: %d interrupted sessions, %d complete ones", interrupted, done)
	}
}

// verifyAll compares every file with its SHA-1.
func verifyAll(t *testing.T, tree *Tree) {
	t.Helper()
	err := treetest.Walk(t.Context(), tree, func(n treetest.Node) error {
		if n.Type == guestfs.ModeRegular {
			if known, err := tree.VerifyFile(t.Context(), n.ID); err != nil || !known {
				t.Errorf("%s: SHA-1 known %t, error %v", n.Path, known, err)
			}
		}
		return nil
	}, nil)
	if err != nil {
		t.Error(err)
	}
}

// TestFirstInterrupted opens a repository whose only session was interrupted.
func TestFirstInterrupted(t *testing.T) {
	r := openRepo(t, filepath.Join(fixtures(t), "first", "repo"), imageformats.RepositoryOptions{})
	list, err := r.Points(t.Context())
	if err != nil || len(list.Points) != 0 || len(list.Warnings) != 1 || !strings.Contains(list.Warnings[0], "first session") {
		t.Errorf("points %v, warnings %q (error: %v)", list.Points, list.Warnings, err)
	}
}

// TestRemoved opens a repository whose older increments were removed. That takes a
// directory that is named like an old increment for one, and removes what was in
// it: the files that were there are errors, not wrong.
func TestRemoved(t *testing.T) {
	const gone = "/names/dd.2023-06-01T00:00:00Z.dir/file"
	tr := readTruth(t, "removed")
	r := openRepo(t, filepath.Join(fixtures(t), "removed", "repo"), imageformats.RepositoryOptions{})
	if n := len(points(t, r)); n != len(tr.Points) {
		t.Fatalf("%d points, want %d", n, len(tr.Points))
	}
	refused := 0
	for _, p := range tr.Points {
		tree := openPoint(t, r, p.Time)
		m := p.manifest(true)
		m[gone].Fields &^= treetest.FieldContent
		treetest.Compare(t, tree, m)
		_, err := tree.Open(t.Context(), lookup(t, tree, gone[1:]))
		if err == nil {
			m[gone].Fields |= treetest.FieldContent
			treetest.Compare(t, tree, m)
		} else if refused++; !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%v", err)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}

// TestLost opens repositories that have lost their metadata: names, types,
// permissions and contents are right, and of what isn't recorded elsewhere nothing
// is claimed.
func TestLost(t *testing.T) {
	for _, name := range []string{"lost", "lost-one"} {
		t.Run(name, func(t *testing.T) {
			tr := readTruth(t, name)
			r := openRepo(t, filepath.Join(fixtures(t), name, "repo"), imageformats.RepositoryOptions{})
			list, err := r.Points(t.Context())
			if err != nil || len(list.Points) != len(tr.Points) || len(list.Warnings) == 0 {
				t.Fatalf("%d points, want %d, warnings %q (error: %v)", len(list.Points), len(tr.Points), list.Warnings, err)
			}
			lost := 0
			for _, p := range tr.Points {
				tree := openPoint(t, r, p.Time)
				m := p.manifest(false)
				if tree.lost {
					lost++
					for _, e := range m {
						// A change of these alone leaves no increment.
						e.Fields &^= treetest.FieldXattrs | treetest.FieldMtime | treetest.FieldMode | treetest.FieldOwner
					}
				}
				treetest.Compare(t, tree, m)
				treetest.Check(t, tree, treetest.Options{})
			}
			if lost == 0 {
				t.Error("no metadata was lost")
			}
			t.Logf("%d points of %d", lost, len(tr.Points))
		})
	}
}
