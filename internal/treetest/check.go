package treetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"yester/guestfs"
	"yester/internal/block"
)

// Options tune Check to what a tree can promise.
type Options struct {
	// MaxFile is the largest file whose content is read whole, in bytes; 0 is 16 MiB.
	MaxFile int64
	// Bytes is about how much content is read in all; 0 is 128 MiB.
	Bytes int64
	// Resume is how many entries of one directory are resumed from; 0 is 300.
	Resume int
	// Sparse promises that Extent reports no data in files of which stat says
	// that they occupy no blocks.
	Sparse bool
}

func (o *Options) defaults() {
	if o.MaxFile == 0 {
		o.MaxFile = 16 << 20
	}
	if o.Bytes == 0 {
		o.Bytes = 128 << 20
	}
	if o.Resume == 0 {
		o.Resume = 300
	}
	if testing.Short() { // as under the race detector
		o.Bytes, o.Resume = o.Bytes/8, o.Resume/8
	}
}

// Check verifies that tree, which must be sound, keeps the contract of
// guestfs.Tree and of the block.Readers that Open returns.
func Check(t *testing.T, tree guestfs.Tree, opt Options) {
	opt.defaults()
	nodes, err := Collect(context.Background(), tree)
	if err != nil {
		t.Fatalf("walk: %v", err)
	}
	t.Run("nodes", func(t *testing.T) { checkNodes(t, tree, nodes) })
	t.Run("lookup", func(t *testing.T) { checkLookup(t, tree, nodes) })
	t.Run("readdir", func(t *testing.T) { checkReadDir(t, tree, nodes, opt) })
	t.Run("errors", func(t *testing.T) { checkErrors(t, tree, nodes) })
	t.Run("files", func(t *testing.T) { checkFiles(t, tree, nodes, opt) })
	t.Run("cancel", func(t *testing.T) { checkCancel(t, tree, nodes) })
	t.Run("parallel", func(t *testing.T) { checkParallel(t, tree, nodes) })
}

func checkNodes(t *testing.T, tree guestfs.Tree, nodes []Node) {
	ctx := context.Background()
	for _, n := range nodes {
		a, err := tree.Attr(ctx, n.ID)
		if err != nil {
			t.Errorf("%q: attributes: %v", n.Path, err)
			continue
		}
		if n.Type != 0 && n.Type != a.Mode&guestfs.ModeType {
			t.Errorf("%q: entry type %#o, mode %#o", n.Path, n.Type, a.Mode)
		}
		for _, tm := range []guestfs.Time{a.Atime, a.Mtime, a.Ctime, a.Btime} {
			if tm.Nsec > 999_999_999 {
				t.Errorf("%q: %d nanoseconds", n.Path, tm.Nsec)
			}
		}
		if a.Size < 0 || a.Blocks < 0 {
			t.Errorf("%q: size %d, blocks %d", n.Path, a.Size, a.Blocks)
		}
		if a.IsSymlink() {
			target, err := tree.ReadLink(ctx, n.ID)
			if err != nil || int64(len(target)) != a.Size {
				t.Errorf("%q: target %q of a size of %d (error: %v)", n.Path, target, a.Size, err)
			}
		}
		if _, err := xattrs(ctx, tree, n.ID); err != nil {
			t.Errorf("%q: extended attributes: %v", n.Path, err)
		}
	}
}

func checkLookup(t *testing.T, tree guestfs.Tree, nodes []Node) {
	ctx := context.Background()
	for _, n := range nodes[1:] {
		if id, err := tree.Lookup(ctx, n.Parent, base(n.Path)); err != nil || id != n.ID {
			t.Errorf("%q: look-up found %v, ReadDir %v (error: %v)", n.Path, id, n.ID, err)
		}
	}
	if id, err := tree.Lookup(ctx, tree.Root(), "no such name"); !errors.Is(err, guestfs.ErrNotExist) {
		t.Errorf("look-up of a missing name: %v, %v", id, err)
	}
}

func base(path string) string { return path[bytes.LastIndexByte([]byte(path), '/')+1:] }

// checkReadDir resumes every directory after each of its entries.
func checkReadDir(t *testing.T, tree guestfs.Tree, nodes []Node, opt Options) {
	ctx := context.Background()
	for _, n := range nodes {
		if a, err := tree.Attr(ctx, n.ID); err != nil || !a.IsDir() {
			continue
		}
		all, err := readDir(ctx, tree, n.ID, 0, -1)
		if err != nil {
			t.Errorf("%q: %v", n.Path, err)
		}
		seen := make(map[string]bool)
		cookies := map[uint64]bool{0: true}
		for _, e := range all {
			if e.Name == "" || e.Name == "." || e.Name == ".." || bytes.ContainsAny([]byte(e.Name), "/\x00") {
				t.Errorf("%q: impossible name %q", n.Path, e.Name)
			}
			if seen[e.Name] || cookies[e.Next] {
				t.Errorf("%q: name %q or cookie %d comes twice", n.Path, e.Name, e.Next)
			}
			seen[e.Name], cookies[e.Next] = true, true
		}
		step := max(1, len(all)/opt.Resume)
		for i := 0; i < len(all); i += step {
			rest, err := readDir(ctx, tree, n.ID, all[i].Next, 3)
			want := all[i+1 : min(i+4, len(all))]
			if err != nil || len(rest) != len(want) {
				t.Errorf("%q: after entry %d: %d entries, want %d (error: %v)", n.Path, i, len(rest), len(want), err)
				continue
			}
			for j := range want {
				if rest[j] != want[j] {
					t.Errorf("%q: after entry %d: %v, want %v", n.Path, i, rest[j], want[j])
				}
			}
		}
	}
}

// readDir reads at most n entries, all if n is negative.
func readDir(ctx context.Context, tree guestfs.Tree, id guestfs.ID, from uint64, n int) ([]guestfs.Dirent, error) {
	var list []guestfs.Dirent
	err := tree.ReadDir(ctx, id, from, func(e guestfs.Dirent) bool {
		list = append(list, e)
		return len(list) != n
	})
	return list, err
}

// checkErrors asks each kind of file for what it doesn't have.
func checkErrors(t *testing.T, tree guestfs.Tree, nodes []Node) {
	ctx := context.Background()
	want := func(n Node, what string, got, want error) {
		if !errors.Is(got, want) {
			t.Errorf("%q: %s: %v, want %v", n.Path, what, got, want)
		}
	}
	done := make(map[uint32]int)
	for _, n := range nodes {
		a, err := tree.Attr(ctx, n.ID)
		if err != nil {
			continue
		}
		typ := a.Mode & guestfs.ModeType
		if done[typ]++; done[typ] > 20 {
			continue
		}
		if typ != guestfs.ModeDir {
			_, err = tree.Lookup(ctx, n.ID, "x")
			want(n, "look-up in no directory", err, guestfs.ErrNotDir)
			_, err = readDir(ctx, tree, n.ID, 0, -1)
			want(n, "reading no directory", err, guestfs.ErrNotDir)
		} else {
			_, err = tree.Open(ctx, n.ID)
			want(n, "opening a directory", err, guestfs.ErrIsDir)
			_, err = tree.Lookup(ctx, n.ID, "no such name")
			want(n, "look-up of a missing name", err, guestfs.ErrNotExist)
			_, err = tree.Lookup(ctx, n.ID, string(bytes.Repeat([]byte("x"), 5000)))
			want(n, "look-up of an endless name", err, guestfs.ErrNotExist)
		}
		if typ != guestfs.ModeSymlink {
			_, err = tree.ReadLink(ctx, n.ID)
			want(n, "link target", err, guestfs.ErrInvalid)
		}
		if typ != guestfs.ModeRegular && typ != guestfs.ModeDir {
			_, err = tree.Open(ctx, n.ID)
			want(n, "opening", err, guestfs.ErrInvalid)
		}
		for _, name := range []string{"user.no such attribute", "nonsense", "", "user."} {
			_, err = tree.Xattr(ctx, n.ID, name)
			want(n, "attribute "+name, err, guestfs.ErrNoXattr)
		}
	}
	if _, err := tree.Attr(ctx, guestfs.ID{Ino: 1<<64 - 1, Sub: 1<<32 - 1}); err == nil {
		t.Error("attributes of an impossible inode: no error")
	}
}

// checkCancel verifies that nothing is done for a caller who has gone.
func checkCancel(t *testing.T, tree guestfs.Tree, nodes []Node) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, n := range nodes {
		a, err := tree.Attr(context.Background(), n.ID)
		if err != nil {
			continue
		}
		if a.IsDir() {
			if _, err := readDir(ctx, tree, n.ID, 0, -1); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%q: ReadDir of a cancelled context: %v", n.Path, err)
			}
		} else if a.IsRegular() && a.Size > 0 {
			r, err := tree.Open(context.Background(), n.ID)
			if err != nil {
				t.Errorf("%q: %v", n.Path, err)
				continue
			}
			e, err := block.ExtentAt(context.Background(), r, 0, 1)
			if err != nil || e.Zero {
				continue
			}
			if n, err := block.ReadAt(ctx, r, make([]byte, 1), 0); err == nil || errors.Is(err, io.EOF) || !errors.Is(err, context.Canceled) {
				t.Errorf("read of a cancelled context: %d, %v", n, err)
			}
		}
	}
}

// checkParallel uses the tree from several goroutines at once, in different orders.
func checkParallel(t *testing.T, tree guestfs.Tree, nodes []Node) {
	ctx := context.Background()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 7))
			buf := make([]byte, 8192)
			for range min(2000, 4*len(nodes)) {
				n := nodes[rng.IntN(len(nodes))]
				a, err := tree.Attr(ctx, n.ID)
				if err != nil {
					t.Errorf("%q: %v", n.Path, err)
					return
				}
				if n.Path != "/" {
					if id, err := tree.Lookup(ctx, n.Parent, base(n.Path)); id != n.ID {
						t.Errorf("%q: look-up found %v (error: %v)", n.Path, id, err)
					}
				}
				switch {
				case a.IsDir():
					_, err = readDir(ctx, tree, n.ID, 0, 10)
				case a.IsSymlink():
					_, err = tree.ReadLink(ctx, n.ID)
				case a.IsRegular() && a.Size > 0:
					var r block.Reader
					if r, err = tree.Open(ctx, n.ID); err == nil {
						if _, err = block.ReadAt(ctx, r, buf, rng.Int64N(a.Size)); err == io.EOF {
							err = nil
						}
					}
				}
				if err != nil {
					t.Errorf("%q: %v", n.Path, err)
				}
			}
		})
	}
	wg.Wait()
}
