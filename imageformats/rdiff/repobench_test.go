package rdiff

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/treetest"
	"yester/origin"
)

// benchRepo returns a repository that testdata/rdiff/bench.py has made in the
// folder that the environment variable YESTER_RDIFF_BENCH names.
func benchRepo(b *testing.B, name string) string {
	b.Helper()
	dir := os.Getenv("YESTER_RDIFF_BENCH")
	if dir == "" {
		b.Skip("YESTER_RDIFF_BENCH names no folder that testdata/rdiff/bench.py has filled")
	}
	return filepath.Join(dir, name, "repo")
}

// oldest opens the oldest point of a repository that nothing is known of yet.
func oldest(b *testing.B, dir string) *Tree {
	b.Helper()
	folder, err := origin.OpenDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { folder.Close() })
	r := Open(folder, ".", imageformats.RepositoryOptions{})
	list, err := r.Points(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	tree, err := r.OpenPoint(context.Background(), list.Points[0])
	if err != nil {
		b.Fatal(err)
	}
	return tree.(*Tree)
}

// readAll reads the files of a tree, in pieces of a mebibyte.
func readAll(b *testing.B, tree *Tree, limit int) (files int, n int64) {
	b.Helper()
	buf := make([]byte, 1<<20)
	err := treetest.Walk(context.Background(), tree, func(e treetest.Node) error {
		if e.Type != guestfs.ModeRegular || files == limit {
			return nil
		}
		files++
		r, err := tree.Open(context.Background(), e.ID)
		if err != nil {
			return err
		}
		for off := int64(0); off < r.Size(); off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), r.Size()-off)]
			if err := block.ReadFull(context.Background(), r, p, off); err != nil {
				return err
			}
			n += int64(len(p))
		}
		return nil
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
	return files, n
}

// BenchmarkOneFile reads one small file of the oldest point of a repository that
// was just opened.
func BenchmarkOneFile(b *testing.B) {
	dir := benchRepo(b, "many")
	for b.Loop() {
		readAll(b, oldest(b, dir), 1)
	}
}

// BenchmarkList walks the oldest point, with attributes.
func BenchmarkList(b *testing.B) {
	dir := benchRepo(b, "many")
	for b.Loop() {
		walkAll(b, oldest(b, dir))
	}
}

func walkAll(b *testing.B, tree *Tree) {
	b.Helper()
	err := treetest.Walk(context.Background(), tree, func(e treetest.Node) error {
		_, err := tree.Attr(context.Background(), e.ID)
		return err
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkListAll walks all points, one after the other.
func BenchmarkListAll(b *testing.B) {
	dir := benchRepo(b, "many")
	for b.Loop() {
		r := openRepo(b, dir, imageformats.RepositoryOptions{})
		for _, p := range points(b, r) {
			tree, err := r.OpenPoint(context.Background(), p)
			if err != nil {
				b.Fatal(err)
			}
			walkAll(b, tree.(*Tree))
		}
	}
}

// BenchmarkTree reads every file of the oldest point.
func BenchmarkTree(b *testing.B) {
	dir := benchRepo(b, "many")
	for b.Loop() {
		files, n := readAll(b, oldest(b, dir), -1)
		b.SetBytes(n)
		b.ReportMetric(float64(files), "files")
	}
}

// BenchmarkHistory asks for the versions of one path.
func BenchmarkHistory(b *testing.B) {
	dir := benchRepo(b, "many")
	for b.Loop() {
		r := openRepo(b, dir, imageformats.RepositoryOptions{})
		err := r.History(context.Background(), "department-3/project-0200/file-010000.txt", func(imageformats.PathVersion) bool { return true })
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDiff compares the oldest with the newest point.
func BenchmarkDiff(b *testing.B) {
	dir := benchRepo(b, "many")
	for b.Loop() {
		r := openRepo(b, dir, imageformats.RepositoryOptions{})
		list := points(b, r)
		n := 0
		err := r.Diff(context.Background(), list[0], list[len(list)-1], "", func(imageformats.PathDiff) bool {
			n++
			return true
		})
		if err != nil || n == 0 {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkDeleted looks for all that was ever deleted.
func BenchmarkDeleted(b *testing.B) {
	dir := benchRepo(b, "many")
	for b.Loop() {
		r := openRepo(b, dir, imageformats.RepositoryOptions{})
		if err := r.Deleted(context.Background(), "", func(imageformats.DeletedPath) bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLargeOpen opens the large file at the oldest point, of a repository that
// was just opened.
func BenchmarkLargeOpen(b *testing.B) {
	dir := benchRepo(b, "large")
	for b.Loop() {
		tree := oldest(b, dir)
		if _, err := tree.Open(context.Background(), lookup(b, tree, "database.img")); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLargeRead reads all of it, and with it compares its SHA-1.
func BenchmarkLargeRead(b *testing.B) {
	dir := benchRepo(b, "large")
	for b.Loop() {
		_, n := readAll(b, oldest(b, dir), 1)
		b.SetBytes(n)
	}
}

// BenchmarkLargeRandom reads 4 KiB of it at random.
func BenchmarkLargeRandom(b *testing.B) {
	tree := oldest(b, benchRepo(b, "large"))
	r, err := tree.Open(context.Background(), lookup(b, tree, "database.img"))
	if err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 4096)
	for b.Loop() {
		if err := block.ReadFull(context.Background(), r, p, rng.Int64N(r.Size()-4096)); err != nil {
			b.Fatal(err)
		}
	}
}
