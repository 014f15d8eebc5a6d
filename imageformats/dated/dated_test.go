package dated

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/treetest"
	"yester/origin"
)

// openRow opens the row of folders at path.
func openRow(t *testing.T, f imageformats.RepositoryFormat, path string) imageformats.Repository {
	t.Helper()
	dir, err := origin.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	if is, err := f.Probe(t.Context(), dir, "."); !is || err != nil {
		t.Fatalf("not recognised: %v", err)
	}
	r, err := f.Open(t.Context(), dir, ".", imageformats.RepositoryOptions{
		Location: time.UTC, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func points(t *testing.T, r imageformats.Repository) []imageformats.RepositoryPoint {
	t.Helper()
	list, err := r.Points(t.Context())
	if err != nil || len(list.Warnings) > 0 {
		t.Fatal(err, list.Warnings)
	}
	return list.Points
}

func openPoint(t *testing.T, r imageformats.Repository, p imageformats.RepositoryPoint) guestfs.Tree {
	t.Helper()
	tree, err := r.OpenPoint(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// host is what the kernel shows of dir, as far as a Tree shows it.
func host(t *testing.T, dir string) treetest.Manifest {
	t.Helper()
	m, err := treetest.Host(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range m {
		e.Fields &^= treetest.FieldAtime | treetest.FieldBtime
		if e.Attr.IsDir() {
			e.Fields &^= treetest.FieldIno
		}
	}
	return m
}

// TestLinkDest opens a row of folders as scripts around rsync make it, and
// compares each with what the kernel shows.
func TestLinkDest(t *testing.T) {
	treetest.Need(t, "rsync")
	row, live := t.TempDir(), t.TempDir()
	treetest.Populate(t, live)
	for day := 10; day <= 12; day++ {
		if err := os.WriteFile(filepath.Join(live, "changing"), fmt.Appendf(nil, "day %d", day), 0o640); err != nil {
			t.Fatal(err)
		}
		// A file of the same inode at another path.
		if err := os.Rename(filepath.Join(live, fmt.Sprint("moving", day-1)), filepath.Join(live, fmt.Sprint("moving", day))); err != nil && day > 10 {
			t.Fatal(err)
		} else if day == 10 {
			os.WriteFile(filepath.Join(live, "moving10"), []byte("x"), 0o600)
		}
		args := []string{"-aHAX", "--numeric-ids", live + "/", fmt.Sprintf("%s/2026-11-%d/", row, day)}
		if day > 10 {
			args = append(args, fmt.Sprintf("--link-dest=../2026-11-%d", day-1))
		}
		treetest.Run(t, "rsync", args...)
	}
	if err := os.Link(filepath.Join(row, "2026-11-10/moving10"), filepath.Join(row, "2026-11-11/elsewhere")); err != nil {
		t.Fatal(err)
	}
	r := openRow(t, Folders, row)
	list := points(t, r)
	if len(list) != 3 {
		t.Fatalf("%d points, want 3", len(list))
	}
	for i, p := range list {
		if want := fmt.Sprintf("2026-11-%d", 10+i); p.Name != want || p.Time.Format(time.DateOnly) != want {
			t.Errorf("point %d is %s of %v", i, p.Name, p.Time)
		}
		tree := openPoint(t, r, p)
		treetest.Compare(t, tree, host(t, filepath.Join(row, p.Name)))
		if i == 1 {
			treetest.Check(t, tree, treetest.Options{Bytes: 4 << 20, Resume: 20})
		}
		root, err := r.Root(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := tree.Attr(t.Context(), tree.Root()); err != nil || a.Ctime != root.Attr.Ctime || a.Mode != root.Attr.Mode {
			t.Errorf("%s: root %+v, want %+v (%v)", p.Name, root.Attr, a, err)
		}
	}
}

// TestRotation lets rsnapshot rotate its snapshots while they are open: what was
// opened stays what it was, at its new name.
func TestRotation(t *testing.T) {
	treetest.Need(t, "rsnapshot", "rsync")
	base, live := t.TempDir(), t.TempDir()
	row := filepath.Join(base, "snapshots")
	conf := filepath.Join(base, "rsnapshot.conf")
	lines := [][]string{
		{"config_version", "1.2"}, {"snapshot_root", row + "/"}, {"cmd_cp", "/bin/cp"}, {"cmd_rm", "/bin/rm"},
		{"cmd_rsync", "/usr/bin/rsync"}, {"retain", "hourly", "6"}, {"lockfile", base + "/pid"}, {"backup", live + "/", "host/"},
	}
	var text strings.Builder
	for _, l := range lines {
		text.WriteString(strings.Join(l, "\t") + "\n")
	}
	if err := os.WriteFile(conf, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	snapshot := func(n int) {
		for name, data := range map[string]string{"same": "same", "changing": fmt.Sprint("state ", n)} {
			path := filepath.Join(live, name)
			if name == "same" && n > 0 {
				continue
			}
			if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, time.Unix(int64(n), 0), time.Unix(int64(n), 0)); err != nil {
				t.Fatal(err) // rsync goes by size and time
			}
		}
		treetest.Run(t, "rsnapshot", "-c", conf, "hourly")
		at := time.Date(2026, 11, 10, n, 0, 0, 0, time.UTC)
		if err := os.Chtimes(filepath.Join(row, "hourly.0"), at, at); err != nil {
			t.Fatal(err)
		}
	}
	snapshot(0)
	snapshot(1)
	r := openRow(t, Rsnapshot, row)
	before := points(t, r)
	if len(before) != 2 || before[0].Name != "hourly.1" || before[1].Name != "hourly.0" {
		t.Fatalf("points %+v", before)
	}
	read := func(tree guestfs.Tree, path string) string {
		t.Helper()
		id, err := guestfs.Resolve(t.Context(), tree, path, false)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return ""
		}
		data, err := guestfs.ReadFile(t.Context(), tree, id, 100)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return string(data)
	}
	var trees []guestfs.Tree
	var opened []block.Reader
	for i, p := range before {
		tree := openPoint(t, r, p)
		trees = append(trees, tree)
		path := "/host" + live + "/changing"
		if got, want := read(tree, path), fmt.Sprint("state ", i); got != want {
			t.Errorf("before: %q, want %q", got, want)
		}
		id, err := guestfs.Resolve(t.Context(), tree, path, false)
		if err != nil {
			t.Fatal(err)
		}
		f, err := tree.Open(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, f)
	}
	snapshot(2)
	snapshot(3)
	for i, tree := range trees {
		buf := make([]byte, 7)
		if err := block.ReadFull(t.Context(), opened[i], buf, 0); err != nil || string(buf) != fmt.Sprint("state ", i) {
			t.Errorf("opened before the rotation: %q, %v", buf, err)
		}
		if got, want := read(tree, "/host"+live+"/changing"), fmt.Sprint("state ", i); got != want {
			t.Errorf("after the rotation: %q, want %q", got, want)
		}
	}
	after := points(t, r)
	if len(after) != 4 || after[0].Key != before[0].Key || after[1].Key != before[1].Key || after[3].Name != "hourly.0" {
		t.Errorf("points %+v, were %+v", after, before)
	}
	if err := os.RemoveAll(filepath.Join(row, "hourly.3")); err != nil {
		t.Fatal(err)
	}
	if _, err := trees[0].Attr(t.Context(), trees[0].Root()); !errors.Is(err, origin.ErrChanged) {
		t.Errorf("of a snapshot that was removed: %v, want %v", err, origin.ErrChanged)
	}
}

// TestProbe tells rows of trees from what looks alike.
func TestProbe(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []string
		want  string
	}{
		{"dates", []string{"2026-11-10/etc/passwd", "2026-11-11/etc/passwd", "latest.log"}, "dated-folders"},
		{"one date", []string{"2026-11-10/etc/passwd"}, "dated-folders"},
		{"dates with a name", []string{"home-2026-11-10/a", "home-2026-11-11/a"}, "dated-folders"},
		{"two names", []string{"home-2026-11-10/a", "etc-2026-11-11/a"}, ""},
		{"one folder with a date", []string{"release-2026-11-10/README"}, ""},
		{"disks by date", []string{"2026-11-10/web01.vhd", "2026-11-11/web01.vhd"}, ""},
		{"disks deeper", []string{"2026-11-10/web01/disks/os.vhdx"}, ""},
		{"disks beside", []string{"2026-11-10/etc/passwd", "web01.vmdk"}, ""},
		{"empty dates", []string{"2026-11-10/"}, ""},
		{"rsnapshot", []string{"daily.0/host/etc/passwd", "daily.1/host/etc/passwd"}, "rsnapshot"},
		{"numbered", []string{"lib.7/a", "lib.8/a"}, ""},
		{"system", []string{"etc/passwd", "var/log/syslog"}, ""},
	} {
		path := t.TempDir()
		for _, f := range c.files {
			full := filepath.Join(path, f)
			if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(f, "/") {
				if err := os.WriteFile(full, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		dir, err := origin.OpenDir(path)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, f := range []imageformats.RepositoryFormat{Rsnapshot, Folders} {
			if is, err := f.Probe(context.Background(), dir, "."); err != nil {
				t.Error(err)
			} else if is {
				got = f.Name
			}
		}
		dir.Close()
		if got != c.want {
			t.Errorf("%s: recognised as %q, want %q", c.name, got, c.want)
		}
	}
}
