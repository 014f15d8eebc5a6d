package restorepoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/memtree"
	"yester/internal/ondisk"
)

// row is a folder of dated trees in the making.
type row struct {
	source
	day int
}

// next makes the folder of the next day, with hard links to all that is in the one
// before, as rsync --link-dest and cp -al leave it.
func (r *row) next() string {
	r.t.Helper()
	before := filepath.Join(r.dir, fmt.Sprintf("2026-11-%02d", r.day))
	r.day++
	now := filepath.Join(r.dir, fmt.Sprintf("2026-11-%02d", r.day))
	must := func(err error) {
		if err != nil {
			r.t.Fatal(err)
		}
	}
	must(os.MkdirAll(now, 0o755))
	if r.day == 1 {
		return now
	}
	must(filepath.WalkDir(before, func(p string, d os.DirEntry, err error) error {
		to := filepath.Join(now, strings.TrimPrefix(p, before))
		if err != nil || p == before {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(to, 0o755)
		}
		return os.Link(p, to)
	}))
	return now
}

// put replaces a file by one with another inode.
func (r *row) put(name, text string, mtime int64) {
	r.t.Helper()
	p := r.path(filepath.Join(fmt.Sprintf("2026-11-%02d", r.day), name))
	os.Remove(p)
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Chtimes(p, time.Unix(mtime, 0), time.Unix(mtime, 0)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *row) remove(name string) {
	r.t.Helper()
	if err := os.RemoveAll(r.path(filepath.Join(fmt.Sprintf("2026-11-%02d", r.day), name))); err != nil {
		r.t.Fatal(err)
	}
}

func (r *row) open() (*Source, []Point) {
	r.t.Helper()
	s, err := Open(r.dir, Options{Location: time.UTC})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { s.Close() })
	cat, err := s.List(r.t.Context())
	if err != nil || len(cat.Points) != r.day {
		r.t.Fatal(err, cat)
	}
	return s, cat.Points
}

func newRow(t *testing.T) *row {
	r := &row{source: newSource(t)}
	r.next()
	r.put("same", "never changes", 100)
	r.put("file", "one", 100)
	r.put("touched", "text", 100)
	r.put("copied", "copy", 100)
	r.put("hidden", "old!", 100)
	r.put("d/deleted", "d", 100)
	r.put("d/back", "d", 100)
	os.Symlink("same", r.path("2026-11-01/link"))
	r.next()
	r.put("file", "two", 200)     // another content of the same size
	r.put("touched", "text", 200) // the same content
	r.put("copied", "copy", 100)  // another inode, the same time
	r.put("hidden", "new!", 100)  // another content of the same size and time
	r.remove("d/back")
	r.put("d/new", "n", 100)
	r.next()
	r.put("d/back", "again", 300)
	r.remove("d/deleted")
	r.remove("file")
	r.remove("link")
	os.Symlink("file", r.path("2026-11-03/link"))
	return r
}

func day(n int) string { return fmt.Sprintf("2026-11-%02dT00-00-00Z", n) }

// TestHistoryOfTrees compares the points of a row, which nobody has recorded the
// versions of.
func TestHistoryOfTrees(t *testing.T) {
	s, points := newRow(t).open()
	for _, test := range []struct {
		path    string
		content bool
		want    string
	}{
		{"same", false, "1-3"},
		{"/file", false, "1-1 2-2:content+mtime 3-3:removed"},
		{"touched", false, "1-1 2-3:mtime"},
		{"copied", false, "1-3"},
		{"copied", true, "1-3"},
		{"hidden", false, "1-3"}, // as rsync takes it
		{"hidden", true, "1-1 2-3:content"},
		{"d/back", false, "1-1 2-2:removed 3-3:added"},
		{"d/new", false, "2-3:added"},
		{"link", false, "1-2 3-3:content+mtime"},
	} {
		var got []string
		err := s.History(t.Context(), points, test.path, Scope{Content: test.content}, func(v Version) bool {
			if v.Err != nil {
				t.Error(v.Err)
			}
			text := fmt.Sprintf("%d-%d", v.First.Time.Day(), v.Last.Time.Day())
			if v.Changed != 0 {
				text += ":" + changeNames(v.Changed)
			}
			if v.Points != v.Last.Time.Day()-v.First.Time.Day()+1 || v.Missing != (v.Changed == imageformats.ChangeRemoved) {
				t.Errorf("%s: %+v", test.path, v)
			}
			got = append(got, text)
			return true
		})
		if s := strings.Join(got, " "); s != test.want || err != nil {
			t.Errorf("%s: %s, want %s (error: %v)", test.path, s, test.want, err)
		}
	}
	for _, never := range []string{"never", "same/below", "d/never"} {
		if err := s.History(t.Context(), points, never, Scope{}, func(Version) bool { return true }); !errors.Is(err, guestfs.ErrNotExist) {
			t.Errorf("%s: %v", never, err)
		}
	}
}

func changeNames(c imageformats.Change) string {
	var list []string
	for i, name := range []string{"added", "removed", "type", "content", "mode", "owner", "mtime", "xattrs", "links"} {
		if c&(1<<i) != 0 {
			list = append(list, name)
		}
	}
	return strings.Join(list, "+")
}

// TestHistoryUnreadable passes over a point that can't be opened, and says so.
func TestHistoryUnreadable(t *testing.T) {
	s, points := newRow(t).open()
	points[1].Problem = "lost"
	var got []string
	err := s.History(t.Context(), points, "touched", Scope{}, func(v Version) bool {
		got = append(got, fmt.Sprintf("%d-%d %s %t", v.First.Time.Day(), v.Last.Time.Day(), changeNames(v.Changed), v.Err != nil))
		return true
	})
	if want := []string{"1-1  false", "2-2  true", "3-3 mtime false"}; !reflect.DeepEqual(got, want) || err != nil {
		t.Errorf("%q, want %q (error: %v)", got, want, err)
	}
	var deleted []string
	err = s.Deleted(t.Context(), points, "/", Scope{}, func(d Deletion) bool {
		deleted = append(deleted, fmt.Sprintf("%s %d %t", d.Path, d.LastSeen.Time.Day(), d.Err != nil))
		return true
	})
	if want := []string{" 2 true", "d/deleted 1 false", "file 1 false"}; !reflect.DeepEqual(deleted, want) || err != nil {
		t.Errorf("%q, want %q (error: %v)", deleted, want, err)
	}
}

// TestDiffOfTrees compares two points of a row.
func TestDiffOfTrees(t *testing.T) {
	s, points := newRow(t).open()
	for _, test := range []struct {
		from, to int
		path     string
		content  bool
		want     string
	}{
		{0, 1, "/", false, "d/back:removed d/new:added file:content+mtime touched:mtime"},
		{0, 1, "/", true, "d/back:removed d/new:added file:content+mtime hidden:content touched:mtime"},
		{1, 0, "/", false, "d/back:added d/new:removed file:content+mtime touched:mtime"},
		{0, 2, "d", false, "d/back:content+mtime d/deleted:removed d/new:added"},
		{1, 2, "/file", false, "file:removed"},
		{1, 2, "same", false, ""},
		{1, 1, "/", false, ""},
	} {
		var got []string
		err := s.Diff(t.Context(), points[test.from], points[test.to], test.path, Scope{Content: test.content}, func(d Difference) bool {
			if d.Err != nil {
				t.Error(d.Err)
			}
			if d.Path != "" && d.Path != "d" { // their times are the host's
				got = append(got, d.Path+":"+changeNames(d.Changed))
			}
			return true
		})
		if s := strings.Join(got, " "); s != test.want || err != nil {
			t.Errorf("%d-%d %s: %s, want %s (error: %v)", test.from, test.to, test.path, s, test.want, err)
		}
	}
	if err := s.Diff(t.Context(), points[1], points[2], "never", Scope{}, func(Difference) bool { return true }); !errors.Is(err, guestfs.ErrNotExist) {
		t.Error(err)
	}
	n := 0
	if err := s.Diff(t.Context(), points[0], points[1], "/", Scope{}, func(Difference) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d differences after the first (error: %v)", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Diff(ctx, points[0], points[1], "/", Scope{}, func(Difference) bool { return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestDeletedFromTrees finds what was deleted, and whether it is there again.
func TestDeletedFromTrees(t *testing.T) {
	s, points := newRow(t).open()
	for _, test := range []struct {
		points int
		path   string
		want   string
	}{
		{3, "/", "d/deleted:2-3 file:2-3 d/back:1-2+"},
		{3, "/d", "d/deleted:2-3 d/back:1-2+"},
		{3, "/file", "file:2-3"},
		{2, "", "d/back:1-2"},
		{1, "", ""},
		{3, "never", ""},
	} {
		var got []string
		err := s.Deleted(t.Context(), points[:test.points], test.path, Scope{}, func(d Deletion) bool {
			text := fmt.Sprintf("%s:%d-%d", d.Path, d.LastSeen.Time.Day(), d.FirstMissing.Time.Day())
			if d.Again {
				text += "+"
			}
			if d.Err != nil || !d.Attr.IsRegular() || d.Attr.Size == 0 {
				t.Errorf("%+v", d)
			}
			got = append(got, text)
			return true
		})
		if s := strings.Join(got, " "); s != test.want || err != nil {
			t.Errorf("%d points, %s: %s, want %s (error: %v)", test.points, test.path, s, test.want, err)
		}
	}
}

// TestVerifyTrees reads each version of a file once.
func TestVerifyTrees(t *testing.T) {
	s, points := newRow(t).open()
	points[1].Problem = "lost"
	var faults []string
	res, err := s.Verify(t.Context(), points, VerifyOptions{Report: func(f Fault) { faults = append(faults, f.Point.ID+" "+f.Err.Error()) }})
	if err != nil {
		t.Fatal(err)
	}
	// Of the third day same, touched, copied, hidden, d/new and d/back; of the first
	// file, touched, copied, hidden, d/deleted and d/back.
	if res.Read != 12 || res.Compared != 0 || res.Points != 3 || res.Faults != 1 || len(faults) != 1 || !strings.HasPrefix(faults[0], day(2)) {
		t.Errorf("%+v, faults %q", res, faults)
	}
}

// hashed is a disk that stores digests.
type hashed struct {
	disk
	md5, sha1 []byte
}

func (h hashed) Hashes() (md5, sha1 []byte) { return h.md5, h.sha1 }

// TestVerifyDigest compares a disk with the digests of its container.
func TestVerifyDigest(t *testing.T) {
	// By md5sum(1) and sha1sum(1) of 64 KiB of zeros.
	md5 := []byte("\xfc\xd6\xbc\xb5\x6c\x16\x89\xfc\xef\x28\xb5\x7c\x22\x47\x5b\xad")
	sha1 := []byte("\x1a\xdc\x95\xbe\xbe\x9e\xea\x8c\x11\x2d\x40\xcd\x04\xab\x7a\x8d\x75\xc4\xf9\x61")
	for _, test := range []struct {
		image block.Reader
		disks int
		err   error
		skip  int
	}{
		{hashed{state(0), md5, sha1}, 1, nil, 0},
		{hashed{state(0), nil, sha1}, 1, nil, 0},
		{hashed{state(1), md5, nil}, 0, ondisk.ErrCorrupt, 0},
		{hashed{state(0), md5, md5}, 0, ondisk.ErrCorrupt, 0},
		{hashed{state(0), nil, nil}, 0, nil, 1},
		{state(0), 0, nil, 1},
	} {
		v := &verification{opt: VerifyOptions{Progress: &VerifyProgress{}}, skipped: make(map[string]bool)}
		err := v.disk(t.Context(), &OpenedDisk{Disk: Disk{Files: []string{"x"}}, Image: test.image})
		if !errors.Is(err, test.err) || v.res.Disks != test.disks || len(v.res.NotChecked) != test.skip {
			t.Errorf("%T: %v, %+v", test.image, err, v.res)
		}
	}
}

// TestCompareHostile compares trees whose directories lead in circles.
func TestCompareHostile(t *testing.T) {
	tree := circle{memtree.New(guestfs.Info{Type: "mem"})}
	root := &file{tree, tree.Root(), guestfs.Attr{Mode: guestfs.ModeDir}}
	var errs int
	c := newComparison(func(d Difference) bool {
		if errors.Is(d.Err, ondisk.ErrCorrupt) {
			errs++
		}
		return true
	})
	other := *root
	other.attr.Mode |= 0o700
	if err := c.walk(t.Context(), "", root, &other, 0); err != nil || errs != 2 {
		t.Errorf("%d circles told (error: %v)", errs, err)
	}
	v := &verification{}
	w := &walker{verification: v, point: &Point{}, tree: tree, check: func(task) error { return nil }, fault: func(f Fault) {
		if errors.Is(f.Err, ondisk.ErrCorrupt) {
			errs++
		}
	}}
	if err := v.walk(t.Context(), w, "", tree.Root(), 0); err != nil || errs != 3 {
		t.Errorf("%d circles told (error: %v)", errs, err)
	}
}

// circle is a tree whose root is in itself.
type circle struct{ *memtree.Tree }

func (c circle) ReadDir(_ context.Context, _ guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	if from == 0 {
		emit(guestfs.Dirent{Name: "again", ID: c.Root(), Type: guestfs.ModeDir, Next: 1})
	}
	return nil
}
