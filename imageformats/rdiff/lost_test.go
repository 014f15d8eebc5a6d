package rdiff

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// loseThird returns a copy of the repository of long names without the metadata of
// its third session, on which the first and the second depend.
func loseThird(t *testing.T) (*Repository, *truth) {
	t.Helper()
	tr := readTruth(t, "long")
	dir := cloneRepo(t, filepath.Join(fixtures(t), "long", "repo"))
	if err := os.Remove(filepath.Join(dir, dataDir, "mirror_metadata.2023-11-17T22-13-20Z.diff.gz")); err != nil {
		t.Fatal(err)
	}
	return openRepo(t, dir, imageformats.RepositoryOptions{}), tr
}

// TestLostLongNames: of files whose place only lost metadata tell, nothing wrong is
// shown, and they aren't said to be missing.
func TestLostLongNames(t *testing.T) {
	r, tr := loseThird(t)
	list, err := r.Points(t.Context())
	if err != nil || len(list.Warnings) != 1 || !strings.Contains(list.Warnings[0], "metadata of 3 of 6") {
		t.Errorf("warnings %q (error: %v)", list.Warnings, err)
	}
	for i, p := range tr.Points {
		lost := i < 3
		if (list.Points[i].Degraded != "") != lost {
			t.Errorf("point %d: degraded %q", i, list.Points[i].Degraded)
		}
		tree := openPoint(t, r, p.Time)
		entries, err := guestfs.ReadDir(t.Context(), tree, tree.Root(), 1000)
		if errors.Is(err, ondisk.ErrCorrupt) != lost || len(entries) == 0 {
			t.Errorf("point %d: %d entries in the root (error: %v)", i, len(entries), err)
		}
		unknown := 0
		for path, e := range p.Tree {
			id, err := find(tree, strings.TrimPrefix(path, "/"))
			if lost && errors.Is(err, ondisk.ErrCorrupt) {
				unknown++
				continue
			}
			if err != nil {
				t.Errorf("point %d: %.20q: %v", i, path, err)
				continue
			}
			if e.Mode&guestfs.ModeType != guestfs.ModeRegular {
				continue
			}
			f, err := tree.Open(t.Context(), id)
			if err != nil {
				t.Errorf("point %d: %.20q: %v", i, path, err)
				continue
			}
			b := make([]byte, f.Size())
			if err := block.ReadFull(t.Context(), f, b, 0); err != nil || fmt.Sprintf("%x", sha256.Sum256(b)) != e.SHA256 {
				t.Errorf("point %d: %.230q: wrong content (error: %v)", i, path, err)
			}
		}
		if (unknown > 0) != lost {
			t.Errorf("point %d: %d unknown paths", i, unknown)
		}
		for _, name := range entries {
			if _, ok := p.Tree["/"+name.Name]; !ok {
				t.Errorf("point %d: %.20q wasn't there", i, name.Name)
			}
		}
		if _, err := find(tree, "short"); !errors.Is(err, guestfs.ErrNotExist) {
			t.Errorf("point %d: a name that is short: %v", i, err)
		}
	}
}

// TestLostHistory: what isn't known is neither missing, nor added later, nor
// deleted.
func TestLostHistory(t *testing.T) {
	r, tr := loseThird(t)
	const added, removed = imageformats.ChangeAdded, imageformats.ChangeRemoved
	grown := imageformats.ChangeContent | imageformats.ChangeMtime
	for _, c := range []struct {
		path string
		want []string
	}{
		// Removed by the fourth session, and there again from the fifth on.
		{strings.Repeat("n", 255), []string{"3 unknown", "1 there " + changes(added), "1 there " + changes(grown)}},
		// There before the fourth session, removed by the fifth.
		{"w" + strings.Repeat(";", 100), []string{"3 unknown", "1 there " + changes(0), "1 missing " + changes(removed), "1 there " + changes(added)}},
	} {
		var got []string
		err := r.History(t.Context(), c.path, func(v imageformats.PathVersion) bool {
			switch {
			case v.Err != nil:
				got = append(got, fmt.Sprintf("%d unknown", v.Points))
			case v.Missing:
				got = append(got, fmt.Sprintf("%d missing %s", v.Points, changes(v.Changed)))
			default:
				got = append(got, fmt.Sprintf("%d there %s", v.Points, changes(v.Changed)))
			}
			return true
		})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%.20q: %q, want %q (error: %v)", c.path, got, c.want, err)
		}
	}
	err := r.Deleted(t.Context(), "", func(d imageformats.DeletedPath) bool {
		for _, p := range tr.Points {
			if _, there := p.Tree["/"+d.Path]; there && p.Time == d.FirstMissing.Time.Unix() {
				t.Errorf("%.20q was there at %s", d.Path, d.FirstMissing.Time)
			}
		}
		return true
	})
	if err != nil {
		t.Error(err)
	}
	list := points(t, r)
	err = r.Diff(t.Context(), list[2], list[5], "", func(d imageformats.PathDiff) bool {
		_, before := tr.Points[2].Tree["/"+d.Path]
		_, after := tr.Points[5].Tree["/"+d.Path]
		if d.Changed&imageformats.ChangeAdded != 0 && before || d.Changed&imageformats.ChangeRemoved != 0 && after {
			t.Errorf("%.20q: %d", d.Path, d.Changed)
		}
		return true
	})
	if !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("difference to a point with lost names: %v", err)
	}
}

func changes(c imageformats.Change) string { return fmt.Sprintf("%#x", uint(c)) }
