package fusefs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/fusefs/erofs"
	"yester/guestfs"
	"yester/internal/block"
)

// imageTree is a point's part of the image.
type imageTree struct {
	slot   *slot
	region erofs.Region
	// Where contents begin and end; set under images.placing when the tree is first
	// made, and 0 before.
	start, end uint64

	mu   sync.Mutex // of what follows; held while it is made
	head []byte
	tree *erofs.Tree // nil when there is none in memory
	told bool        // what it lacks has been logged

	push imagePusher
}

// keepTrees is how many bytes of metadata stay in memory; the kernel has them too,
// and seldom asks again.
const keepTrees = 16 << 20

// treeOf returns a point's part of the image; im.mu is held. It is nil when there
// are no regions left.
func (im *images) treeOf(s *slot) *imageTree {
	t := im.trees[s]
	if t == nil {
		if len(im.regions) >= imageRegions {
			return nil
		}
		t = &imageTree{slot: s}
		im.trees[s] = t
		im.place(t)
	}
	return t
}

// place gives t a region; im.mu is held.
func (im *images) place(t *imageTree) {
	t.region = erofs.Region{Base: imageUpper + int64(len(im.regions))*erofs.MaxSize, Parent: imageRoot >> 5}
	im.regions = append(im.regions, t)
}

// readTree fills p from t's region at off.
func (im *images) readTree(ctx context.Context, t *imageTree, p []byte, off int64) error {
	if off < erofs.HeadSize {
		head, err := im.head(ctx, t)
		if err != nil {
			return err
		}
		n := int(min(int64(len(p)), erofs.HeadSize-off))
		clear(p[:n])
		copy(p[:n], head[min(off, int64(len(head))):])
		p, off = p[n:], off+int64(n)
	}
	if len(p) == 0 {
		return nil
	}
	tree, err := im.tree(ctx, t)
	if err == nil {
		_, err = tree.ReadAt(p, off)
	}
	return err
}

// head returns the beginning of a point's region, which can be had without
// opening the point.
func (im *images) head(ctx context.Context, t *imageTree) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return im.headLocked(ctx, t)
}

func (im *images) headLocked(ctx context.Context, t *imageTree) ([]byte, error) {
	if t.head != nil {
		return t.head, nil
	}
	if t.slot.stale() {
		return nil, errStale
	}
	root, err := im.fs.cat.src.Root(ctx, t.slot.point)
	if err != nil {
		return nil, err
	}
	var xattrs []erofs.Xattr
	for _, name := range slices.Sorted(maps.Keys(root.Xattrs)) {
		xattrs = append(xattrs, erofs.Xattr{Name: name, Value: root.Xattrs[name]})
	}
	if t.region.RootBlocks == 0 {
		if t.region.RootBlocks, err = im.rootBlocks(ctx, t.slot); err != nil {
			return nil, err
		}
	}
	head, _, err := t.region.Head(&root.Attr, xattrs)
	t.head = head
	return head, err
}

// rootBlocks returns how many blocks a point's root directory takes. What is known
// of all of a repository's points is mostly enough: to tell a root's attributes
// should not take opening each.
func (im *images) rootBlocks(ctx context.Context, s *slot) (int, error) {
	if n := im.fewRootBlocks(ctx, s); n > 0 {
		return n, nil
	}
	p, err := im.fs.acquire(ctx, s)
	if err != nil {
		return 0, err
	}
	defer s.release(p)
	return erofs.RootBlocks(ctx, p.Tree)
}

// fewRootBlocks returns how many blocks the root directory of any of a machine's
// points takes, as far as that is known: 0 when it isn't.
func (im *images) fewRootBlocks(ctx context.Context, s *slot) int {
	im.sizing.Lock()
	defer im.sizing.Unlock()
	im.fs.cat.mu.Lock()
	changed := im.fs.cat.changed
	im.fs.cat.mu.Unlock()
	if !im.sized.Equal(changed) {
		im.sizes, im.sized = make(map[string]int), changed
	}
	n, known := im.sizes[s.point.Machine]
	if !known {
		if entries, names, err := im.fs.cat.src.RootSize(ctx, s.point); err == nil {
			n = erofs.FewRootBlocks(entries, names)
		}
		im.sizes[s.point.Machine] = n
	}
	return n
}

// tree returns a point's metadata, made if need be.
func (im *images) tree(ctx context.Context, t *imageTree) (*erofs.Tree, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tree != nil {
		return t.tree, nil
	}
	if _, err := im.headLocked(ctx, t); err != nil {
		return nil, err
	}
	p, err := im.fs.acquire(ctx, t.slot)
	if err != nil {
		return nil, err
	}
	defer t.slot.release(p)
	tree, err := im.build(ctx, t, p.Tree)
	if err != nil {
		return nil, err
	}
	t.tree, t.told = tree, true
	im.keep(t)
	go im.give(t, tree) // it waits for pages that this request holds
	return tree, nil
}

// build makes a point's metadata; t.mu is held.
func (im *images) build(ctx context.Context, t *imageTree, src guestfs.Tree) (*erofs.Tree, error) {
	failures := 0
	failed := func(err error) {
		if failures++; !t.told && failures <= maxTold {
			im.fail("list", t, err)
		}
	}
	space := erofs.Space{Next: t.start, Devices: imageDevices, Gap: contentGap}
	if t.start == 0 {
		im.placing.Lock()
		defer im.placing.Unlock()
		space.Next = im.next
	}
	tree, err := erofs.Build(ctx, src, t.region, space, failed)
	if err != nil {
		return nil, err
	}
	if t.start == 0 {
		im.mu.Lock()
		t.start, t.end = im.next, tree.End
		im.runs = append(im.runs, t)
		im.mu.Unlock()
		im.next = tree.End
	}
	if failures > 0 && !t.told {
		im.fs.log.Warn("parts of this restore point can't be read; mounting with --no-erofs shows what can", "point", t.slot, "parts", failures)
	}
	if len(tree.Lacking) > 0 && !t.told {
		im.fs.log.Warn("some extended attributes are shown only by a mount with --no-erofs", "point", t.slot,
			"names", slices.Sorted(maps.Keys(tree.Lacking)))
	}
	return tree, nil
}

// maxTold is how many failures of one point are logged each by itself.
const maxTold = 16

// keep notes that t's metadata are in memory, and forgets others'; t.mu is held.
func (im *images) keep(t *imageTree) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.kept = append(slices.DeleteFunc(im.kept, func(o *imageTree) bool { return o == t }), t)
	sum := int64(0)
	for i, o := range slices.Backward(im.kept) {
		if o != t && !o.mu.TryLock() {
			continue // in use
		}
		if o.tree != nil {
			sum += o.tree.Size()
		}
		if o != t {
			if sum > keepTrees {
				o.tree = nil
				im.kept = slices.Delete(im.kept, i, i+1)
			}
			o.mu.Unlock()
		}
	}
}

// givePiece is how much of a point's metadata is given to the kernel at once.
const givePiece = 256 << 10

// give puts a point's metadata into the kernel's page cache, before it asks for
// each page.
func (im *images) give(t *imageTree, tree *erofs.Tree) {
	im.mu.Lock()
	node := im.cur.node()
	im.mu.Unlock()
	buf := make([]byte, givePiece)
	for off := int64(erofs.HeadSize); off < tree.Size(); off += int64(len(buf)) {
		buf = buf[:min(givePiece, tree.Size()-off)]
		if _, err := tree.ReadAt(buf, off); err != nil {
			continue // a part that can't be read
		}
		if im.server.InodeNotifyStoreCache(node, t.region.Base+off, buf) != fuse.OK {
			return
		}
	}
}

// readContent answers a read of a device, with all of buf's length: the kernel
// takes a short answer for the end of the device.
func (im *images) readContent(device uint64, off int64, buf []byte) (fuse.ReadResult, fuse.Status) {
	ctx := context.Background()
	for done := 0; done < len(buf); {
		at := device<<32 | uint64(off+int64(done))>>erofs.BlockBits
		t := im.treeAt(at)
		if t == nil {
			return nil, im.fail("read", nil, errNothingYet)
		}
		tree, err := im.tree(ctx, t)
		if err != nil {
			return nil, im.fail("read", t, err)
		}
		i, space := tree.FileAt(at)
		if i < 0 {
			return nil, im.fail("read", nil, errNothingYet)
		}
		c := content{im: im, tree: t, file: tree.Files[i]}
		from := int64(at-c.file.Block)<<erofs.BlockBits + (off+int64(done))&(erofs.BlockSize-1)
		part := buf[done:][:min(int64(len(buf)-done), int64(space)<<erofs.BlockBits-from)]
		res, n, err := c.read(ctx, part, from, len(part) == len(buf))
		if err != nil {
			return nil, im.fs.fail("read", c.node(), "", err)
		}
		if res != nil {
			return res, fuse.OK
		}
		if from == 0 && int64(n) == c.file.Size && n <= pushFile {
			t.push.missed(i, func(i int, buf []byte) { im.pushFile(t, tree.Files[i], buf) }, len(tree.Files))
		}
		done += len(part)
	}
	return fuse.ReadResultVector([][]byte{buf}), fuse.OK
}

// treeAt returns the point whose files' contents lie around a place.
func (im *images) treeAt(at uint64) *imageTree {
	im.mu.Lock()
	defer im.mu.Unlock()
	i := sort.Search(len(im.runs), func(i int) bool { return im.runs[i].end > at })
	if i == len(im.runs) || im.runs[i].start > at {
		return nil
	}
	return im.runs[i]
}

// content is a file's content, seen from the device.
type content struct {
	im   *images
	tree *imageTree
	file erofs.File
}

// node returns the file's number as the rest of the package has it.
func (c *content) node() nodeID {
	pl := place{slot: c.tree.slot, p: &openPoint{}}
	return pl.node(spaceVolume, c.file.ID)
}

// read fills buf from off. It returns how many of these bytes are the file's; the
// others are zeros. Where splicing is allowed, the result may be an answer instead.
func (c *content) read(ctx context.Context, buf []byte, off int64, splicing bool) (fuse.ReadResult, int, error) {
	f := c.im.fs
	n := max(0, min(int64(len(buf)), c.file.Size-off))
	clear(buf[n:])
	if n == 0 {
		return nil, 0, nil
	}
	r, done, err := c.open(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	f.stats.reads.Add(1)
	f.stats.bytes.Add(n)
	if splicing && n >= spliceFrom && n == int64(len(buf)) {
		res, err := f.spliced(ctx, r, off, n)
		if err != nil {
			return nil, 0, err
		}
		if res != nil {
			f.stats.spliced.Add(n)
			f.cache.drop.read(c.node(), c.cached(), off, n)
			return res, int(n), nil
		}
	}
	return nil, int(n), block.ReadFull(ctx, r, buf[:n], off)
}

// open returns the file's content; done must be called after.
func (c *content) open(ctx context.Context) (r block.Reader, done func(), err error) {
	f, s := c.im.fs, c.tree.slot
	p, err := f.acquire(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	pl := place{fs: f, slot: s, p: p, id: c.node(), tree: p.Tree, ino: c.file.ID}
	r, err = pl.reader(ctx)
	if err == nil && r.Size() != c.file.Size {
		err = fmt.Errorf("%d bytes where %d were recorded: %w", r.Size(), c.file.Size, errStale)
	}
	if err != nil {
		pl.release()
		return nil, nil, err
	}
	return r, pl.release, nil
}

// cached returns where the kernel's page cache has the file.
func (c *content) cached() cachePlace {
	return cachePlace{node: nodeDevice + c.file.Block>>32, base: int64(c.file.Block&(1<<32-1)) << erofs.BlockBits}
}
