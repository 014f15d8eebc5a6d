package rdiff

import (
	"path/filepath"
	"reflect"
	"testing"

	"yester/imageformats"
	"yester/internal/treetest"
)

// TestTruth compares every date of every kind of repository with what the source
// held then.
func TestTruth(t *testing.T) {
	for _, name := range []string{"everything", "api200", "plain", "plain200", "nolinks", "zones", "colon", "upper", "lower",
		"negated", "special", "long"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := readTruth(t, name)
			dir := filepath.Join(fixtures(t), name, "repo")
			before := stampTree(t, dir)
			r := openRepo(t, dir, imageformats.RepositoryOptions{})
			list, err := r.Points(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Points) != len(tr.Points) {
				t.Fatalf("%d points, want %d", len(list.Points), len(tr.Points))
			}
			for _, w := range list.Warnings {
				t.Errorf("warning: %s", w)
			}
			for i, p := range tr.Points {
				tree := openPoint(t, r, p.Time)
				checkRoot(t, r, list.Points[i], tree)
				treetest.Compare(t, tree, p.manifest(tr.Hardlinks))
				if i == 0 || i == len(tr.Points)-1 {
					treetest.Check(t, tree, treetest.Options{})
				}
			}
			if after := stampTree(t, dir); after != before {
				t.Error("the repository was changed by reading it")
			}
		})
	}
}

// checkRoot compares what is told of a root without opening the tree.
func checkRoot(t *testing.T, r *Repository, p imageformats.RepositoryPoint, tree *Tree) {
	t.Helper()
	root, err := r.Root(t.Context(), p)
	if err != nil {
		t.Error(err)
	}
	want, err := r.rootOf(t.Context(), p)
	if err != nil || !reflect.DeepEqual(root, want) {
		t.Errorf("root %+v, of the tree %+v (error: %v)", root, want, err)
	}
	if a, err := tree.Attr(t.Context(), tree.Root()); err != nil || a != root.Attr {
		t.Errorf("root %+v, of the tree %+v (error: %v)", root.Attr, a, err)
	}
}
