package rdiff

import (
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"yester/guestfs"
	"yester/imageformats"
)

// truthChange is what Diff must find between two truths of one path; of times of
// links and devices, which aren't recorded, nothing.
func truthChange(a, b *truthEntry) imageformats.Change {
	var c imageformats.Change
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return imageformats.ChangeAdded
	case b == nil:
		return imageformats.ChangeRemoved
	case (a.Mode^b.Mode)&guestfs.ModeType != 0:
		return imageformats.ChangeType
	}
	add := func(is bool, what imageformats.Change) {
		if is {
			c |= what
		}
	}
	kind := a.Mode & guestfs.ModeType
	add(a.Mode != b.Mode, imageformats.ChangeMode)
	add(a.UID != b.UID || a.GID != b.GID, imageformats.ChangeOwner)
	add(a.Mtime != b.Mtime && kind != guestfs.ModeSymlink && kind != guestfs.ModeChar && kind != guestfs.ModeBlock, imageformats.ChangeMtime)
	add(a.SHA256 != b.SHA256 || a.Target != b.Target || a.Major != b.Major || a.Minor != b.Minor, imageformats.ChangeContent)
	add(a.Nlink != b.Nlink && kind == guestfs.ModeRegular, imageformats.ChangeLinks)
	add(!maps.Equal(a.Xattrs, b.Xattrs), imageformats.ChangeXattrs)
	return c
}

func entryOf(p *truthPoint, path string) *truthEntry {
	if e, ok := p.Tree[path]; ok {
		return &e
	}
	return nil
}

// allPaths returns every path that a truth has at any time, as it is written there.
func allPaths(tr *truth) []string {
	all := make(map[string]bool)
	for _, p := range tr.Points {
		for path := range p.Tree {
			all[path] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// TestHistory compares the versions of every path that ever was with the truth.
func TestHistory(t *testing.T) {
	for _, name := range []string{"everything", "api200", "upper", "long"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := readTruth(t, name)
			r := openRepo(t, filepath.Join(fixtures(t), name, "repo"), imageformats.RepositoryOptions{})
			for i, path := range allPaths(tr) {
				if name == "everything" && i%5 != 0 {
					continue // it has the most sessions, and takes the most time
				}
				var got []imageformats.PathVersion
				err := r.History(t.Context(), raw(path)[1:], func(v imageformats.PathVersion) bool {
					got = append(got, v)
					return true
				})
				if err != nil {
					t.Fatalf("%q: %v", path, err)
				}
				compareHistory(t, tr, path, got)
			}
			err := r.History(t.Context(), "no such path", func(v imageformats.PathVersion) bool {
				t.Errorf("of no such path: %+v", v)
				return true
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func compareHistory(t *testing.T, tr *truth, path string, got []imageformats.PathVersion) {
	t.Helper()
	type want struct {
		first, n int
		changed  imageformats.Change
	}
	var wants []want
	var before *truthEntry
	for i := range tr.Points {
		now := entryOf(&tr.Points[i], path)
		change := truthChange(before, now)
		// Only the first of a file's names has its SHA-1: whether the content changed
		// is taken from the time of modification then.
		switch {
		case len(wants) == 0 && now == nil:
		case len(wants) == 0:
			wants = append(wants, want{i, 1, 0})
			if i > 0 {
				wants[0].changed = imageformats.ChangeAdded
			}
		case change == 0:
			wants[len(wants)-1].n++
		default:
			wants = append(wants, want{i, 1, change})
		}
		before = now
	}
	if len(got) != len(wants) {
		t.Errorf("%q: %d versions, want %d", path, len(got), len(wants))
		return
	}
	for i, w := range wants {
		g := got[i]
		e := entryOf(&tr.Points[w.first], path)
		mask := ^imageformats.Change(0)
		if e != nil && e.Nlink > 1 && e.Mode&guestfs.ModeType == guestfs.ModeRegular {
			mask &^= imageformats.ChangeContent
		}
		if g.First.Time.Unix() != tr.Points[w.first].Time || g.Points != w.n || g.Changed&mask != w.changed&mask || g.Missing != (e == nil) ||
			g.Last.Time.Unix() != tr.Points[w.first+w.n-1].Time {
			t.Errorf("%q: version %d: %+v, want %+v", path, i, g, w)
		}
		if e != nil && (g.Attr.Mode != e.Mode || g.Attr.UID != e.UID || g.Target != raw(e.Target) || e.Mode&guestfs.ModeType == guestfs.ModeRegular && g.Attr.Size != e.Size) {
			t.Errorf("%q: version %d: %+v, want %+v", path, i, g, e)
		}
	}
}

// TestDiff compares pairs of points.
func TestDiff(t *testing.T) {
	tr := readTruth(t, "everything")
	r := openRepo(t, filepath.Join(fixtures(t), "everything", "repo"), imageformats.RepositoryOptions{})
	list := points(t, r)
	for _, pair := range [][2]int{{0, 1}, {1, 2}, {2, 3}, {3, 2}, {0, len(list) - 1}, {5, 5}, {3, 4}, {8, 9}} {
		a, b := &tr.Points[pair[0]], &tr.Points[pair[1]]
		want := make(map[string]imageformats.Change)
		for _, path := range allPaths(tr) {
			if c := truthChange(entryOf(a, path), entryOf(b, path)); c != 0 {
				want[raw(path)[1:]] = c
			}
		}
		got := make(map[string]imageformats.Change)
		last, within := "", 0
		err := r.Diff(t.Context(), list[pair[0]], list[pair[1]], "", func(d imageformats.PathDiff) bool {
			got[d.Path] = d.Changed
			if len(got) > 1 && comparePaths(last, d.Path) >= 0 {
				t.Errorf("%q after %q", d.Path, last)
			}
			last = d.Path
			if d.Path == "names" || below([]byte(d.Path), []byte("names")) {
				within++
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			for path := range want {
				if got[path] != want[path] {
					t.Errorf("%v: %q: %b, want %b", pair, path, got[path], want[path])
				}
			}
			for path := range got {
				if want[path] == 0 {
					t.Errorf("%v: %q: %b, want nothing", pair, path, got[path])
				}
			}
		}
		err = r.Diff(t.Context(), list[pair[0]], list[pair[1]], "names", func(d imageformats.PathDiff) bool {
			within--
			return true
		})
		if err != nil || within != 0 {
			t.Errorf("%v: %d differences more in names than there are (error: %v)", pair, -within, err)
		}
	}
}

// TestDeleted compares all deletions there ever were.
func TestDeleted(t *testing.T) {
	tr := readTruth(t, "everything")
	r := openRepo(t, filepath.Join(fixtures(t), "everything", "repo"), imageformats.RepositoryOptions{})
	type gone struct {
		path string
		last int64
	}
	want := make(map[gone]bool)
	for i := range tr.Points[1:] {
		for path := range tr.Points[i].Tree {
			if entryOf(&tr.Points[i+1], path) == nil {
				want[gone{raw(path)[1:], tr.Points[i].Time}] = true
			}
		}
	}
	got := make(map[gone]bool)
	inDir := 0
	err := r.Deleted(t.Context(), "", func(d imageformats.DeletedPath) bool {
		got[gone{d.Path, d.LastSeen.Time.Unix()}] = true
		if below([]byte(d.Path), []byte("d")) {
			inDir++
		}
		return true
	})
	if err != nil || !reflect.DeepEqual(got, want) || len(want) < 10 {
		t.Errorf("%v, want %v (error: %v)", got, want, err)
	}
	err = r.Deleted(t.Context(), "d", func(imageformats.DeletedPath) bool {
		inDir--
		return true
	})
	if err != nil || inDir != 0 {
		t.Errorf("%d deletions more in d than there are (error: %v)", -inDir, err)
	}
}
