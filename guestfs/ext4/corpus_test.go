package ext4

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/treetest"
)

// TestCorpus reads foreign images. Sound ones must show what the kernel shows;
// the others must neither crash nor hang, and how they compare is logged.
func TestCorpus(t *testing.T) {
	tally := make(map[string]int)
	for _, im := range treetest.Corpus(t, "fs-ext", "e2fsprogs") {
		t.Run(im.ID, func(t *testing.T) {
			for _, m := range im.Mounts {
				verdict := im.Verdict
				result := readCorpusImage(t, im, m)
				tally[verdict+" "+m.Options+": "+result]++
			}
			if len(im.Mounts) == 0 {
				tally[im.Verdict+": "+readCorpusImage(t, im, treetest.CorpusMount{Options: "ro"})]++
			}
		})
	}
	for k, n := range tally {
		t.Logf("%3d %s", n, k)
	}
}

func readCorpusImage(t *testing.T, im treetest.CorpusImage, m treetest.CorpusMount) string {
	st, err := os.Stat(im.Path)
	if err != nil {
		t.Log(err)
		return "no file"
	}
	if st.IsDir() {
		return "directory"
	}
	replay := guestfs.Replay(!strings.Contains(m.Options, "noload"))
	var dev block.Reader = openHost(t, im.Path)
	if im.Size > 0 {
		if dev, err = block.NewSection(dev, im.Off, im.Size); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := guestfs.Open(context.Background(), dev, guestfs.Options{Replay: replay}, Format)
	if err != nil {
		if im.Verdict == "valid" && !m.Failed && m.Options != "" {
			t.Errorf("%s: %v", m.Options, err)
		} else {
			t.Logf("%s: kernel failed: %v; %v", m.Options, m.Failed, err)
		}
		if m.Failed {
			return "refused, as by the kernel"
		}
		return "refused, mounted by the kernel"
	}
	if m.Manifest == "" {
		walkAll(t, tree)
		return "readable, refused by the kernel"
	}
	want, err := treetest.LoadManifest(m.Manifest)
	if errors.Is(err, os.ErrNotExist) { // the corpus refers to a manifest that it lacks
		image := filepath.Join(t.TempDir(), "copy")
		treetest.Run(t, "cp", im.Path, image)
		want, err = hostManifest(t, image, m.Options), nil
	}
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	diffs, err := treetest.Diff(context.Background(), tree, want)
	if d := time.Since(start); d > time.Minute {
		t.Errorf("took %v", d)
	}
	if err != nil {
		t.Errorf("%s: walk: %v", m.Options, err)
	}
	if len(diffs) == 0 {
		return "equal"
	}
	for i, d := range diffs {
		if i == 8 {
			t.Logf("… %d more", len(diffs)-i)
			break
		}
		if im.Verdict == "valid" {
			t.Errorf("%s: %s", m.Options, d)
		} else {
			t.Logf("%s: (kernel errors: %d) %s", m.Options, m.Errors, d)
		}
	}
	return "different"
}

// walkAll touches everything in a tree that may be damaged.
func walkAll(t testing.TB, tree guestfs.Tree) {
	ctx := context.Background()
	buf := make([]byte, 64<<10)
	err := treetest.Walk(ctx, tree, func(n treetest.Node) error {
		a, err := tree.Attr(ctx, n.ID)
		if err != nil {
			return nil
		}
		if names, err := tree.ListXattr(ctx, n.ID); err == nil {
			for _, name := range names {
				_, _ = tree.Xattr(ctx, n.ID, name)
			}
		}
		if a.IsSymlink() {
			_, _ = tree.ReadLink(ctx, n.ID)
		}
		if r, err := tree.Open(ctx, n.ID); err == nil {
			for _, off := range []int64{0, r.Size() / 2, r.Size() - 1000} {
				if n, err := block.ReadAt(ctx, r, buf, max(0, off)); err == nil && n < len(buf) {
					t.Errorf("short read without an error")
				} else if err == io.EOF && off+int64(len(buf)) < r.Size() {
					t.Errorf("early EOF")
				}
			}
		}
		return nil
	}, func(string, error) {})
	if err != nil {
		t.Log(err)
	}
}
