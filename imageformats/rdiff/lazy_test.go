package rdiff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/ondisk"
	"yester/origin"
)

// lazyRepo writes a repository of metadata alone: a whole file of the later point,
// a difference of the earlier one.
func lazyRepo(t *testing.T) (dir string, r *Repository) {
	t.Helper()
	dir = t.TempDir()
	data := filepath.Join(dir, dataDir)
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	var whole, diff strings.Builder
	record := func(b *strings.Builder, path, kind, rest string) {
		fmt.Fprintf(b, "File %s\n  Type %s\n", path, kind)
		if kind != "None" {
			fmt.Fprintf(b, "  ModTime 1\n%s  Uid 0\n  Uname root\n  Gid 0\n  Gname root\n  Permissions 493\n", rest)
		}
	}
	record(&whole, ".", "dir", "")
	for d := range 20 {
		if d%5 != 3 {
			record(&whole, fmt.Sprintf("d%02d", d), "dir", "")
		}
		record(&diff, fmt.Sprintf("d%02d/b-earlier", d), "reg", "  Size 3\n")
		for f := range 30 {
			path := fmt.Sprintf("d%02d/f%02d", d, f)
			rest := "  Size 0\n"
			if f == 7 {
				rest += fmt.Sprintf("  NumHardLinks 20\n  Inode %d\n  DeviceLoc 1\n", d%3)
			}
			record(&whole, path, "reg", rest)
			if f%10 == 4 {
				record(&diff, path, "None", "")
			}
		}
		record(&whole, fmt.Sprintf("d%02d/link", d), "sym", "  SymData target\n")
	}
	record(&diff, "zz", "reg", "  Size 4\n")
	for name, text := range map[string]string{
		"mirror_metadata.2024-01-01T00:00:00Z.diff.gz": diff.String(), "mirror_metadata.2024-01-02T00:00:00Z.snapshot.gz": whole.String(),
		"current_mirror.2024-01-02T00:00:00Z.data": "PID 1\n",
	} {
		b := []byte(text)
		if strings.HasSuffix(name, ".gz") {
			var z bytes.Buffer
			w := gzip.NewWriter(&z)
			w.Write(b)
			w.Close()
			b = z.Bytes()
		}
		if err := os.WriteFile(filepath.Join(data, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	folder, err := origin.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { folder.Close() })
	r = Open(folder, ".", imageformats.RepositoryOptions{})
	r.lazyFrom = 0
	return dir, r
}

// lookUp finds a path by its names.
func lookUp(ctx context.Context, tree *Tree, path string) (guestfs.ID, error) {
	id, err := tree.Root(), error(nil)
	for name := range strings.SplitSeq(path, "/") {
		if id, err = tree.Lookup(ctx, id, name); err != nil {
			break
		}
	}
	return id, err
}

// TestLazily looks paths up in random order, by several at once, in a tree that is
// read on as needed: ids and attributes are those of the whole tree.
func TestLazily(t *testing.T) {
	_, r := lazyRepo(t)
	list, err := r.Points(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range list.Points {
		var paths []string
		for d := range 21 {
			for f := range 31 {
				paths = append(paths, fmt.Sprintf("d%02d/f%02d", d, f))
			}
			paths = append(paths, fmt.Sprintf("d%02d", d), fmt.Sprintf("d%02d/link", d), fmt.Sprintf("d%02d/b-earlier", d), fmt.Sprintf("d%02d/zz", d))
		}
		paths = append(paths, "a", "zz", "zzz", "d00/f00/x")
		for seed := range uint64(12) {
			r.tables = tableCache{}
			whole, err := r.openPoint(t.Context(), point, false)
			if err != nil {
				t.Fatal(err)
			}
			r.tables = tableCache{}
			tree, err := r.openPoint(t.Context(), point, true)
			if err != nil {
				t.Fatal(err)
			}
			if tree.part == nil || tree.part.done.Load() {
				t.Fatal("the tree wasn't opened lazily")
			}
			rnd := rand.New(rand.NewPCG(seed, 1))
			var wg sync.WaitGroup
			for range 3 {
				order := rnd.Perm(len(paths))[:1+int(seed)*3]
				wg.Go(func() {
					for _, i := range order {
						compareLookup(t, tree, whole, paths[i])
					}
				})
			}
			wg.Wait()
			if seed == 0 && tree.part.done.Load() {
				t.Error("three look-ups have read all of the tree")
			}
			if got, want := fmt.Sprint(tree.Info()), fmt.Sprint(whole.Info()); got != want {
				t.Errorf("info %s, want %s", got, want)
			}
			for _, p := range paths {
				compareLookup(t, tree, whole, p)
			}
			if len(tree.known().nodes) != len(whole.x.nodes) || tree.known().implied != whole.x.implied {
				t.Errorf("%d nodes, want %d", len(tree.known().nodes), len(whole.x.nodes))
			}
			tree.Close()
		}
	}
}

func compareLookup(t *testing.T, tree, whole *Tree, path string) {
	ctx := t.Context()
	got, err := lookUp(ctx, tree, path)
	want, wantErr := lookUp(ctx, whole, path)
	if got != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
		t.Errorf("%s: %v, %v; want %v, %v", path, got, err, want, wantErr)
	}
	if err != nil {
		return
	}
	a, err := tree.Attr(ctx, got)
	b, wantErr := whole.Attr(ctx, want)
	if a != b || err != nil || wantErr != nil {
		t.Errorf("%s: %+v, %v; want %+v, %v", path, a, err, b, wantErr)
	}
}

// TestLazilyReplaced replaces the metadata while part of it was read: what is read
// later is from the new files, and the same.
func TestLazilyReplaced(t *testing.T) {
	dir, r := lazyRepo(t)
	list, err := r.Points(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tree, err := r.openPoint(t.Context(), list.Points[0], true)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	whole, err := r.openPoint(t.Context(), list.Points[0], false)
	if err != nil {
		t.Fatal(err)
	}
	compareLookup(t, tree, whole, "d00/f00")
	name := filepath.Join(dir, dataDir, "mirror_metadata.2024-01-02T00:00:00Z.snapshot.gz")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+".tmp", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		t.Fatal(err)
	}
	compareLookup(t, tree, whole, "d15/f20")
	compareLookup(t, tree, whole, "zz")
}

// TestLazilyDamaged cuts the metadata off: what lies behind is an error, and not
// missing.
func TestLazilyDamaged(t *testing.T) {
	dir, r := lazyRepo(t)
	name := filepath.Join(dir, dataDir, "mirror_metadata.2024-01-02T00:00:00Z.snapshot.gz")
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, info.Size()-4); err != nil {
		t.Fatal(err)
	}
	list, err := r.Points(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tree, err := r.openPoint(t.Context(), list.Points[0], true)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if _, err := lookUp(t.Context(), tree, "d00/f00"); err != nil {
		t.Errorf("before the damage: %v", err)
	}
	for range 3 {
		if _, err := lookUp(t.Context(), tree, "zzz"); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("behind the damage: %v, want %v", err, ondisk.ErrCorrupt)
		}
	}
	err = tree.ReadDir(t.Context(), tree.Root(), 0, func(guestfs.Dirent) bool { return true })
	if !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("directory: %v, want %v", err, ondisk.ErrCorrupt)
	}
}
