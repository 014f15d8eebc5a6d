package erofs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/memtree"
	"yester/internal/ondisk"
	"yester/internal/treetest"
)

// everything returns a tree with what a tree can hold.
func everything() *memtree.Tree {
	t := memtree.New(guestfs.Info{})
	for name, data := range map[string]string{"empty": "", "one": "x", "block": strings.Repeat("b", BlockSize), "more": strings.Repeat("m", 3*BlockSize+1)} {
		t.File(name, data).Attr.Mtime = guestfs.Time{Sec: -1, Nsec: 999_999_999}
	}
	t.File("a/b/c/d/e/f/deep", "deep")
	t.Symlink("link", "a/b")
	t.Symlink("long-link", strings.Repeat("l", 4000))
	hard := t.File("hard", "hard")
	for _, name := range []string{"a/hard", "z/hard", "hard2"} {
		t.Link(name, hard)
	}
	for i, mode := range []uint32{guestfs.ModeChar, guestfs.ModeBlock, guestfs.ModeFifo, guestfs.ModeSocket} {
		n := t.Add(fmt.Sprintf("special-%d", i), mode|0o640)
		if i < 2 {
			n.Attr.Major, n.Attr.Minor = 4095, 1<<20-1
		}
	}
	n := t.File("attrs", "attrs")
	n.Attr.Mode = guestfs.ModeRegular | 0o7777
	n.Attr.UID, n.Attr.GID = 1<<32-2, 70000
	n.Attr.Mtime = guestfs.Time{Sec: 1 << 40}
	n.Xattrs = map[string][]byte{
		"user.empty": {}, "user.note": []byte("there"), "trusted.t": []byte("t"), "security.s": {0, 1, 2},
		"user.big":                bytes.Repeat([]byte("v"), 65535),
		"system.posix_acl_access": []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x04\x00\xd2\x04\x00\x00\x04\x00\x07\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x07\x00\xff\xff\xff\xff"),
	}
	dir := t.Mkdir("dir-with-attrs")
	dir.Xattrs = map[string][]byte{"user.big": bytes.Repeat([]byte("w"), 5000)}
	t.File("dir-with-attrs/in", "in")
	t.File("odd\xff\nname", "odd")
	t.File(strings.Repeat("n", 255), "long")
	t.File("-before", "sorts before the dots")
	for i := range 3000 {
		t.File(fmt.Sprintf("many/%d-%s", i, strings.Repeat("x", i%40)), fmt.Sprint(i))
	}
	for i := range 200 {
		t.Mkdir(fmt.Sprintf("dirs/%d", i))
	}
	return t
}

// build makes the image of a tree, as one whose root directory has the region after
// the beginning to itself.
func build(t *testing.T, src guestfs.Tree, failed func(error)) (*Tree, []byte) {
	t.Helper()
	tree, stored := buildStored(t, src, failed)
	return tree, imageOf(t, src, stored)
}

func buildStored(t *testing.T, src guestfs.Tree, failed func(error)) (*Tree, *Stored) {
	t.Helper()
	ctx := t.Context()
	r := Region{Base: testRegion, Parent: testRegion >> nidBits}
	var err error
	if r.RootBlocks, err = RootBlocks(ctx, src); err != nil {
		t.Fatal(err)
	}
	tree, err := Build(ctx, src, r, Space{Next: 1, Devices: 2, Gap: 3}, failed)
	if err != nil {
		t.Fatal(err)
	}
	return tree, store(t, tree)
}

// testRegion is where the trees of tests lie.
const testRegion = 1 << 20

func store(t *testing.T, tree *Tree) *Stored {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stored"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	stored, end, err := tree.Store(f, 12345)
	if fi, serr := f.Stat(); err != nil || serr != nil || fi.Size() != end {
		t.Fatal(end, err, serr)
	}
	files, err := stored.Files()
	if err != nil || !slices.Equal(files.List, tree.Files) || files.End != tree.End {
		t.Fatalf("%d files of %d, end %d of %d, error %v", len(files.List), len(tree.Files), files.End, tree.End, err)
	}
	return stored
}

// imageOf returns the whole image.
func imageOf(t *testing.T, src guestfs.Tree, stored *Stored) []byte {
	t.Helper()
	r := Region{Base: testRegion, Parent: testRegion >> nidBits}
	var err error
	if r.RootBlocks, err = RootBlocks(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	root, err := src.Attr(t.Context(), src.Root())
	if err != nil {
		t.Fatal(err)
	}
	head, left, err := r.Head(&root, []Xattr{{"user.root", []byte("top")}})
	if err != nil || len(left) > 0 {
		t.Fatal(left, err)
	}
	super, err := Super(r.Root(), 2)
	if err != nil {
		t.Fatal(err)
	}
	image := make([]byte, r.Base+stored.Size())
	copy(image, super)
	copy(image[r.Base:], head)
	for off := int64(HeadSize); off < stored.Size(); off += BlockSize {
		if _, err := stored.ReadAt(image[r.Base+off:][:BlockSize], off); errors.Is(err, ErrUnreadable) {
			// A file has no part that can't be read: something that no inode or
			// directory can begin with stands for it.
			copy(image[r.Base+off:], bytes.Repeat([]byte{0xff}, BlockSize))
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return image
}

// mountImage has the kernel mount an image, with the contents of src on its devices.
func mountImage(t *testing.T, src guestfs.Tree, tree *Tree, image []byte) (dir string) {
	t.Helper()
	treetest.Need(t)
	_ = exec.Command("modprobe", "erofs").Run() // it may be built in, or loaded when it is mounted
	work := t.TempDir()
	file := filepath.Join(work, "image")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	var devices []string
	for i := range 2 {
		name := filepath.Join(work, fmt.Sprint("contents-", i))
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, c := range tree.Files {
			if c.Block>>32 != uint64(i) {
				continue
			}
			r, err := src.Open(t.Context(), c.ID)
			if err != nil {
				t.Fatal(err)
			}
			data := make([]byte, c.Size)
			if err := block.ReadFull(t.Context(), r, data, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(data, int64(c.Block&noBlock)<<BlockBits); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(int64(tree.End+1) << BlockBits); err != nil {
			t.Fatal(err)
		}
		devices = append(devices, "device="+name)
	}
	dir = filepath.Join(work, "m")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, dir, "erofs", unix.MS_RDONLY, strings.Join(devices, ",")); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("the kernel mounts no EROFS from a file: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

const told = treetest.FieldMode | treetest.FieldOwner | treetest.FieldNlink | treetest.FieldSize | treetest.FieldRdev |
	treetest.FieldMtime | treetest.FieldTarget | treetest.FieldXattrs | treetest.FieldContent

// TestKernel compares what the kernel reads of an image with the tree, in both
// directions.
func TestKernel(t *testing.T) {
	src := everything()
	tree, image := build(t, src, func(err error) { t.Error(err) })
	dir := mountImage(t, src, tree, image)
	got, err := treetest.Host(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got["/"].Xattrs["user.root"] != "top" {
		t.Errorf("the root has %q", got["/"].Xattrs)
	}
	got["/"].Xattrs = map[string]string{}
	for _, e := range got {
		e.Fields &= told
	}
	treetest.Compare(t, src, got)
	if a, b := got["/hard"].Ino, got["/z/hard"].Ino; a != b {
		t.Errorf("a hard link has two inodes: %d, %d", a, b)
	}
	for _, name := range []string{"missing", "many/missing", "many/0", "~", "!"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRandomTrees does the same for trees of random shapes.
func TestRandomTrees(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		src := memtree.New(guestfs.Info{})
		dirs := []string{"."}
		for i := range rnd.IntN(1500) {
			name := fmt.Sprintf("%x%s", sha256.Sum256([]byte{byte(i), byte(i >> 8)}), strings.Repeat("y", rnd.IntN(190)))[rnd.IntN(60):]
			name = filepath.Join(dirs[rnd.IntN(len(dirs))], fmt.Sprint(i, "-", name))
			if len(filepath.Base(name)) > maxName {
				name = filepath.Join(filepath.Dir(name), fmt.Sprint(i))
			}
			switch rnd.IntN(8) {
			case 0:
				src.Mkdir(name).Xattrs = map[string][]byte{"user.d": make([]byte, rnd.IntN(5000))}
				dirs = append(dirs, name)
			case 1:
				src.Symlink(name, strings.Repeat("t", 1+rnd.IntN(4094)))
			default:
				n := src.File(name, strings.Repeat("c", rnd.IntN(9000)))
				if rnd.IntN(4) == 0 {
					n.Xattrs = map[string][]byte{"user.f": make([]byte, rnd.IntN(3000))}
				}
			}
		}
		tree, image := build(t, src, func(err error) { t.Error(err) })
		dir := mountImage(t, src, tree, image)
		got, err := treetest.Host(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		got["/"].Xattrs = map[string]string{}
		for _, e := range got {
			e.Fields &= told
		}
		treetest.Compare(t, src, got)
	}
}

// TestUnreadable looks at a tree that can't tell everything.
func TestUnreadable(t *testing.T) {
	src := everything()
	bad := fmt.Errorf("damaged: %w", ondisk.ErrCorrupt)
	src.File("many/bad", "").Err = bad
	src.File("lost", "").Err = bad
	dirBad := src.Mkdir("dirs/bad")
	src.File("dirs/bad/hidden", "")
	dirBad.Err = bad
	failures := 0
	tree, image := build(t, src, func(err error) {
		if failures++; !errors.Is(err, bad) {
			t.Error(err)
		}
	})
	if failures != 3 || len(tree.bad) == 0 {
		t.Errorf("%d failures, %d blocks that can't be read", failures, len(tree.bad))
	}
	dir := mountImage(t, src, tree, image)
	for _, name := range []string{"lost", "many/bad", "dirs/bad"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"one", "many/1-x", "dirs/7", "special-2"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "dirs"))
	if len(entries) != 201 {
		t.Errorf("%d directories (error: %v)", len(entries), err)
	}
}

// listBroken is a tree with a directory that ends in an error.
type listBroken struct {
	*memtree.Tree
	dir guestfs.ID
}

func (l listBroken) ReadDir(ctx context.Context, dir guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	err := l.Tree.ReadDir(ctx, dir, from, emit)
	if dir == l.dir {
		err = fmt.Errorf("the end is missing: %w", ondisk.ErrCorrupt)
	}
	return err
}

// TestBrokenList looks at a directory that can't be listed to its end: it must not
// pass for a whole one.
func TestBrokenList(t *testing.T) {
	mem := everything()
	id, err := mem.Lookup(t.Context(), mem.Root(), "many")
	if err != nil {
		t.Fatal(err)
	}
	src := listBroken{mem, id}
	failures := 0
	tree, image := build(t, src, func(error) { failures++ })
	dir := mountImage(t, src, tree, image)
	if entries, err := os.ReadDir(filepath.Join(dir, "many")); err == nil || len(entries) > 0 || failures != 1 {
		t.Errorf("%d entries, %d failures, error %v", len(entries), failures, err)
	}
	if _, err := os.ReadDir(filepath.Join(dir, "dirs")); err != nil {
		t.Error(err)
	}
}

// TestTransient has an error that may not be there the next time: nothing is made
// of it.
func TestTransient(t *testing.T) {
	for _, kind := range []uint32{guestfs.ModeRegular, guestfs.ModeDir, guestfs.ModeSymlink, guestfs.ModeFifo} {
		src := everything()
		src.Add("dirs/passing", kind|0o700).Err = io.ErrUnexpectedEOF
		failed := func(err error) { t.Errorf("kept: %v", err) }
		if _, err := Build(t.Context(), src, Region{Base: testRegion, RootBlocks: 1}, Space{Next: 1, Devices: 1}, failed); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%#o: %v", kind, err)
		}
	}
}

// TestNoSpace has more in it than there is space for: that isn't to be had, and the
// rest is.
func TestNoSpace(t *testing.T) {
	src := memtree.New(guestfs.Info{})
	src.File("small", "x")
	src.File("vast", "").Content = vast{}
	var failures []error
	tree, err := Build(t.Context(), src, Region{Base: testRegion, RootBlocks: 1}, Space{Next: 1, Devices: 1}, func(err error) { failures = append(failures, err) })
	if err != nil || len(tree.Files) != 1 || len(failures) != 1 || !errors.Is(failures[0], ErrTooLarge) {
		t.Errorf("%v, %v", failures, err)
	}
}

// vast is a content of 32 TiB.
type vast struct{}

func (vast) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }
func (vast) Size() int64                       { return 32 << 40 }

func TestRootBlocks(t *testing.T) {
	few := memtree.New(guestfs.Info{})
	few.File("x", "x")
	for name, c := range map[string]struct {
		src  guestfs.Tree
		want int
	}{"few": {few, 1}, "empty": {memtree.New(guestfs.Info{}), 1}} {
		if n, err := RootBlocks(t.Context(), c.src); err != nil || n != c.want {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		// With more blocks than are needed, as where only a bound is known.
		r := Region{Base: 1 << 20, RootBlocks: FewRootBlocks(100, 1000)}
		tree, err := Build(t.Context(), c.src, r, Space{Next: 1, Devices: 2}, nil)
		if err != nil || r.RootBlocks != 2 {
			t.Fatal(r.RootBlocks, err)
		}
		stored := store(t, tree)
		image := make([]byte, r.Base+stored.Size())
		super, _ := Super(r.Root(), 2)
		copy(image, super)
		root, _ := c.src.Attr(t.Context(), c.src.Root())
		head, _, err := r.Head(&root, nil)
		if err != nil {
			t.Fatal(err)
		}
		copy(image[r.Base:], head)
		if _, err := stored.ReadAt(image[r.Base+HeadSize:], HeadSize); err != nil {
			t.Fatal(err)
		}
		got, err := treetest.Host(mountImage(t, c.src, tree, image), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range got {
			e.Fields &= told
		}
		treetest.Compare(t, c.src, got)
	}
	if n := FewRootBlocks(500, 5000); n != 0 {
		t.Errorf("500 entries of 5000 bytes take %d blocks for sure", n)
	}
	many := memtree.New(guestfs.Info{})
	for i := range 500 {
		many.File(fmt.Sprintf("%030d", i), "")
	}
	if _, err := Build(t.Context(), many, Region{Base: 1 << 20, RootBlocks: 2}, Space{Next: 1, Devices: 1}, nil); !errors.Is(err, ErrRootBlocks) {
		t.Errorf("500 entries in two blocks: %v", err)
	}
}

func TestSpace(t *testing.T) {
	s := Space{Next: 1, Devices: 2, Gap: 10}
	for _, c := range []struct {
		size int64
		want uint64
		err  bool
	}{
		{1, 1, false},
		{BlockSize, 12, false},
		{BlockSize + 1, 23, false},
		{1 << 62, 0, true},
		{(noBlock - 30) << BlockBits, 1 << 32, false}, // on the next device, whole
		{20 << BlockBits, 0, true},
	} {
		at, err := s.take(c.size)
		if at != c.want || (err != nil) != c.err || err != nil && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes: at %#x, %v; want %#x", c.size, at, err, c.want)
		}
	}
	files := Files{List: []File{{Block: 5}, {Block: 20}}, End: 40}
	for block, want := range map[uint64][2]int{4: {-1, 0}, 5: {0, 15}, 19: {0, 15}, 20: {1, 20}, 39: {1, 20}} {
		if i, n := files.At(block); i != want[0] || int(n) != want[1] {
			t.Errorf("block %d: file %d of %d blocks", block, i, n)
		}
	}
}

// TestHostile gives trees that no filesystem should have.
func TestHostile(t *testing.T) {
	for _, name := range []string{"a/b", "nul\x00", "", ".", "..", strings.Repeat("n", 256)} {
		if validName(name) {
			t.Errorf("%q is taken", name)
		}
	}
	src := memtree.New(guestfs.Info{})
	src.File("x", "x").Xattrs = map[string][]byte{"user.n": make([]byte, 65536)}
	src.File("y", "y").Xattrs = map[string][]byte{"weird.n": nil, "system.posix_acl_accessory": nil, "user.": nil}
	failures := 0
	tree, err := Build(t.Context(), src, Region{Base: 1 << 20, RootBlocks: 1}, Space{Next: 1, Devices: 1}, func(err error) {
		if failures++; !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
	if err != nil || failures != 1 || len(tree.Lacking) != 3 {
		t.Errorf("%d failures, lacking %v, error %v", failures, tree.Lacking, err)
	}
	deep := memtree.New(guestfs.Info{})
	deep.File(strings.Repeat("d/", maxDepth+1)+"x", "")
	if _, err := Build(t.Context(), deep, Region{Base: 1 << 20, RootBlocks: 1}, Space{Next: 1, Devices: 1}, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%d directories in each other: %v", maxDepth+1, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Build(ctx, everything(), Region{Base: 1 << 20, RootBlocks: 1}, Space{Next: 1, Devices: 1}, func(error) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("of a context that is done: %v", err)
	}
}
