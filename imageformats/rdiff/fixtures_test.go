package rdiff

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/treetest"
	"yester/origin"
)

// fixtures makes the repositories of testdata/rdiff once per run and returns where
// they are.
func fixtures(t testing.TB) string {
	t.Helper()
	treetest.Need(t, "rdiff-backup")
	made.once.Do(func() {
		if dir := os.Getenv("YESTER_RDIFF"); dir != "" { // made before, while one works on this
			made.dir = dir
			return
		}
		if made.dir, made.err = os.MkdirTemp("", "yester-rdiff-*"); made.err != nil {
			return
		}
		made.temporary = true
		// The system's Python is the one that rdiff-backup and its modules are for.
		cmd := exec.Command("/usr/bin/python3", "-B", "../../testdata/rdiff/make.py", made.dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			made.err = fmt.Errorf("make.py: %w\n%s", err, out)
		}
	})
	if made.err != nil {
		t.Fatal(made.err)
	}
	return made.dir
}

var made struct {
	once      sync.Once
	dir       string
	temporary bool
	err       error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if made.temporary {
		os.RemoveAll(made.dir)
	}
	os.Exit(code)
}

// truth is what make.py writes beside a repository.
type truth struct {
	Points    []truthPoint
	Hardlinks bool
	Repos     []string
	After     *truthPoint
}

type truthPoint struct {
	Time int64
	Tree map[string]truthEntry
}

type truthEntry struct {
	Mode, UID, GID, Nlink, Major, Minor uint32
	Mtime, Size                         int64
	SHA256                              string
	Target                              string
	Xattrs                              map[string]string
}

func readTruth(t testing.TB, name string) *truth {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fixtures(t), name, "truth.json"))
	if err != nil {
		t.Fatal(err)
	}
	var tr truth
	if err := json.Unmarshal(b, &tr); err != nil {
		t.Fatal(err)
	}
	return &tr
}

// raw returns the bytes that s has as code points.
func raw(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}

// manifest is the truth of one point in the form that a tree is compared with.
func (p *truthPoint) manifest(hardlinks bool) treetest.Manifest {
	m := make(treetest.Manifest)
	for path, e := range p.Tree {
		w := &treetest.Entry{
			Path:   raw(path),
			Attr:   guestfs.Attr{Mode: e.Mode, UID: e.UID, GID: e.GID, Nlink: e.Nlink, Major: e.Major, Minor: e.Minor, Size: e.Size, Mtime: guestfs.Time{Sec: e.Mtime}},
			Target: raw(e.Target), SHA256: e.SHA256, Xattrs: make(map[string]string),
			Fields: treetest.FieldMode | treetest.FieldOwner | treetest.FieldSize | treetest.FieldRdev | treetest.FieldTarget | treetest.FieldXattrs | treetest.FieldContent,
		}
		for k, v := range e.Xattrs {
			w.Xattrs[raw(k)] = raw(v)
		}
		switch e.Mode & guestfs.ModeType {
		case guestfs.ModeSymlink:
			w.Attr.Size = int64(len(w.Target))
		case guestfs.ModeChar, guestfs.ModeBlock:
		default:
			w.Fields |= treetest.FieldMtime
		}
		if hardlinks && e.Mode&guestfs.ModeType == guestfs.ModeRegular {
			w.Fields |= treetest.FieldNlink
		}
		m[w.Path] = w
	}
	return m
}

// openRepo opens the repository dir on this host.
func openRepo(t testing.TB, dir string, opt imageformats.RepositoryOptions) *Repository {
	t.Helper()
	folder, err := origin.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { folder.Close() })
	return Open(folder, ".", opt)
}

func points(t testing.TB, r *Repository) []imageformats.RepositoryPoint {
	t.Helper()
	list, err := r.Points(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return list.Points
}

// openPoint opens the point of that time.
func openPoint(t testing.TB, r *Repository, when int64) *Tree {
	t.Helper()
	for _, p := range points(t, r) {
		if p.Time.Unix() == when {
			tree, err := r.OpenPoint(context.Background(), p)
			if err != nil {
				t.Fatalf("%s: %v", p.Time, err)
			}
			t.Cleanup(func() { tree.Close() })
			return tree.(*Tree)
		}
	}
	t.Fatalf("no point at %s", time.Unix(when, 0).UTC())
	return nil
}

// lookup returns the id of a path below the root.
func lookup(t testing.TB, tree guestfs.Tree, path string) guestfs.ID {
	t.Helper()
	id, err := find(tree, path)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return id
}

func find(tree guestfs.Tree, path string) (guestfs.ID, error) {
	id := tree.Root()
	for path != "" {
		name := path
		for i := range path {
			if path[i] == '/' {
				name = path[:i]
				break
			}
		}
		path = path[len(name):]
		if path != "" {
			path = path[1:]
		}
		var err error
		if id, err = tree.Lookup(context.Background(), id, name); err != nil {
			return id, err
		}
	}
	return id, nil
}

// cloneRepo copies a repository, with all that tells a change of it.
func cloneRepo(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "repo")
	if out, err := exec.Command("cp", "-a", dir, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	return to
}
