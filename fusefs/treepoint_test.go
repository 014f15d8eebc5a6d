package fusefs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"yester/fusefs"
	"yester/internal/treetest"
)

// datedFolders returns a source of two folders that are called by dates.
func datedFolders(t *testing.T) string {
	t.Helper()
	needRoot(t)
	source := filepath.Join(t.TempDir(), "home")
	run(t, t.TempDir(), `
		mkdir -p `+source+`/2026-11-19/d `+source+`/2026-11-20
		cd `+source+`/2026-11-19
		head -c 5000000 /dev/urandom > big; head -c 131072 /dev/urandom > just; head -c 131071 /dev/urandom > under
		echo small > d/small; ln d/small hard; ln -s d/small soft; mknod null c 1 3; mkfifo fifo; : > empty
		for i in $(seq 200); do echo $i > d/entry-$i; done
		chown 1000:1001 d; chmod 2750 d; setfattr -n user.note -v there d/small; setfacl -m u:1234:r-- big
		setfattr -n user.root -v top .; chmod 0751 .; touch -d 2001-02-03T04:05:06.123456789Z d .
		cp -al . ../2026-11-20/
		echo later > ../2026-11-20/later; rm ../2026-11-20/d/entry-7`)
	return source
}

// TestTreePoints compares dated folders, seen through the mount, with themselves.
func TestTreePoints(t *testing.T) {
	source := datedFolders(t)
	dir, m := mount(t, source, fusefs.Options{Logger: quiet(t)})
	ids := []string{"2026-11-19T00-00-00Z", "2026-11-20T00-00-00Z"}
	if got, want := names(t, dir), append(slices.Clone(ids), "latest"); !slices.Equal(got, want) {
		t.Fatalf("the mount shows %q, want %q", got, want)
	}
	for i, id := range append(ids, "latest") {
		want, err := treetest.Host(filepath.Join(source, []string{"2026-11-19", "2026-11-20", "2026-11-20"}[i]), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := treetest.Host(filepath.Join(dir, id), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d files, want %d", id, len(got), len(want))
		}
		byIno := map[uint64]string{}
		for path, w := range want {
			g := got[path]
			if g == nil {
				t.Errorf("%s: %q is missing", id, path)
				continue
			}
			a, b := g.Attr, w.Attr
			a.Atime, b.Btime = b.Atime, a.Btime // reading the host's file may set it; no birth is shown
			if a != b || g.Target != w.Target || g.SHA256 != w.SHA256 || len(g.Xattrs) != len(w.Xattrs) {
				t.Errorf("%s: %q:\n got %+v\nwant %+v", id, path, g, w)
			}
			for name, v := range w.Xattrs {
				if g.Xattrs[name] != v {
					t.Errorf("%s: %q: %s is %q, want %q", id, path, name, g.Xattrs[name], v)
				}
			}
			if other := byIno[g.Ino]; other != "" && want[other].Ino != w.Ino {
				t.Errorf("%s: %q and %q have the same inode number", id, path, other)
			}
			byIno[g.Ino] = path
		}
		if got["/hard"].Ino != got["/d/small"].Ino {
			t.Errorf("%s: a hard link is no hard link", id)
		}
	}
	if st := m.Stats(); st.Passed == 0 || st.Errors != 0 {
		t.Errorf("%+v: want files handed to the kernel, and no errors", st)
	}
}

// TestPassthroughShared opens one file many times at once, and replaces it while
// it is open, as backup programs do: who has it open keeps the old content.
func TestPassthroughShared(t *testing.T) {
	source := datedFolders(t)
	dir, m := mountChanging(t, source, fusefs.Options{Logger: discard()})
	path := filepath.Join(dir, "2026-11-19T00-00-00Z", "big")
	want, err := os.ReadFile(filepath.Join(source, "2026-11-19", "big"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
	open, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	run(t, source, `head -c 5000000 /dev/zero > new && mv new 2026-11-19/big`)
	got := make([]byte, len(want))
	if _, err := open.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("opened before it was replaced: %v", err)
	}
	open.Close()
	// The kernel tells some time later that the last one has closed it. From then on
	// the name is another file, or an error.
	isNew := false
	for range 100 {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			isNew = true
			if err == nil && !bytes.Equal(got, make([]byte, len(want))) {
				t.Error("a file that was replaced in the backup is neither the old nor the new one")
			}
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if !isNew {
		t.Error("a file that was replaced in the backup still is the old one")
	}
	if st := m.Stats(); st.Passed < 160 {
		t.Errorf("%+v: want 160 files handed to the kernel", st)
	}
}

// TestTreePointsListFast lists the points of a source without opening their trees.
func TestTreePointsListFast(t *testing.T) {
	source := datedFolders(t)
	dir, m := mount(t, source, fusefs.Options{Logger: quiet(t)})
	fi, err := os.Stat(filepath.Join(dir, "2026-11-19T00-00-00Z"))
	if err != nil || fi.Mode().Perm() != 0o751 || !fi.ModTime().Equal(time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)) {
		t.Errorf("%v %v", fi, err)
	}
	// Not run in the mount: between fork and exec this process can't serve itself.
	run(t, t.TempDir(), `cd `+dir+`; ls -l > /dev/null; test "$(getfattr -h --only-values -n user.root 2026-11-19T00-00-00Z)" = top`)
	if st := m.Stats(); st.Open != 0 {
		t.Errorf("%d points were opened", st.Open)
	}
}
