package fusefs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/erofs"
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
	left bool        // another region has taken its place: see move

	push imagePusher
}

// keepTrees is how many bytes of metadata stay in memory; the kernel has them too,
// and seldom asks again.
const keepTrees = 64 << 20

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
		t.region.RootBlocks = im.guessRootBlocks(ctx, t.slot)
	}
	head, _, err := t.region.Head(&root.Attr, xattrs)
	t.head = head
	return head, err
}

// guessRootBlocks returns how large a point's root directory is to be, by the
// machine's newest point: to tell a root's attributes must not take opening each.
func (im *images) guessRootBlocks(ctx context.Context, s *slot) int {
	im.guessing.Lock()
	defer im.guessing.Unlock()
	name := s.point.Machine
	if n := im.guesses[name]; n != 0 {
		return n
	}
	n := erofs.RootBlocks(0, 0)
	im.fs.cat.mu.Lock()
	last := newest(im.fs.cat.byName[name].order)
	im.fs.cat.mu.Unlock()
	if last != nil {
		if p, err := im.fs.acquire(ctx, last); err == nil {
			n, _ = rootBlocks(ctx, p.Tree) // damage shows when it is looked at
			last.release(p)
		}
	}
	im.guesses[name] = n
	return n
}

func rootBlocks(ctx context.Context, tree guestfs.Tree) (int, error) {
	entries, names := 0, 0
	err := tree.ReadDir(ctx, tree.Root(), 0, func(d guestfs.Dirent) bool {
		entries, names = entries+1, names+len(d.Name)
		return true
	})
	return erofs.RootBlocks(entries, names), err
}

// tree returns a point's metadata, made if need be.
func (im *images) tree(ctx context.Context, t *imageTree) (*erofs.Tree, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tree != nil {
		return t.tree, nil
	}
	if t.left {
		return nil, errStale
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
	if errors.Is(err, erofs.ErrRootBlocks) {
		n, lerr := rootBlocks(ctx, p.Tree)
		if lerr != nil {
			return nil, lerr
		}
		t.left = true
		im.move(t, n)
		return nil, fmt.Errorf("%w: it will be shown in a moment", err)
	}
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

// move gives a point another region, whose root directory has so many blocks: the
// one it has says something else already. The next generation has it there.
func (im *images) move(t *imageTree, blocks int) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if len(im.regions) >= imageRegions {
		return
	}
	moved := &imageTree{slot: t.slot}
	im.trees[t.slot] = moved
	im.place(moved)
	moved.region.RootBlocks = blocks
	im.moved = true
	select {
	case im.look <- struct{}{}:
	default:
	}
}

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

// readContent answers a read of a device.
func (im *images) readContent(device uint64, off int64, buf []byte) (fuse.ReadResult, fuse.Status) {
	ctx := context.Background()
	at := device<<32 | uint64(off)>>erofs.BlockBits
	t := im.treeAt(at)
	if t == nil {
		clear(buf)
		return fuse.ReadResultVector([][]byte{buf}), fuse.OK
	}
	tree, err := im.tree(ctx, t)
	if err != nil {
		return nil, im.fail("read", t, err)
	}
	i := tree.FileAt(at)
	if i < 0 {
		clear(buf)
		return fuse.ReadResultVector([][]byte{buf}), fuse.OK
	}
	c := content{im: im, tree: t, file: tree.Files[i]}
	within := int64(at-c.file.Block)<<erofs.BlockBits + off&(erofs.BlockSize-1)
	res, n, err := c.read(ctx, buf, within)
	if err != nil {
		return nil, im.fs.fail("read", c.node(), "", err)
	}
	if within == 0 && int64(n) == c.file.Size && n <= pushFile {
		t.push.missed(im, t, tree, i)
	}
	return res, fuse.OK
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

// read answers a read at off with all of buf's length: the kernel takes a short
// answer for the end of the device. It returns how many of these bytes are the
// file's; the others are zeros.
func (c *content) read(ctx context.Context, buf []byte, off int64) (fuse.ReadResult, int, error) {
	f := c.im.fs
	n := max(0, min(int64(len(buf)), c.file.Size-off))
	clear(buf[n:])
	whole := fuse.ReadResultVector([][]byte{buf})
	if n == 0 {
		return whole, 0, nil
	}
	r, done, err := c.open(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	f.stats.reads.Add(1)
	f.stats.bytes.Add(n)
	if n >= spliceFrom && n == int64(len(buf)) {
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
	return whole, int(n), block.ReadFull(ctx, r, buf[:n], off)
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

// imagePusher pushes a point's small files into the kernel's page cache ahead of
// who reads them in the order in which they lie, which is that of their names.
// pusher has the reasons, and the numbers.
type imagePusher struct {
	mu     sync.Mutex
	last   int // index of the last file that was asked for
	row    int // how many of them came close behind each other
	window int
	pushed int // where the last push ended
	when   time.Time
}

// missed notes that the kernel had to ask for a small file.
func (p *imagePusher) missed(im *images, t *imageTree, tree *erofs.Tree, i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i > p.last && i-p.last <= pushMost && time.Since(p.when) < pushMomentum {
		p.row++
	} else {
		p.row, p.window = 1, 0
	}
	p.last, p.when = i, time.Now()
	if p.row < pushAfter {
		return
	}
	p.window = min(max(2*p.window, pushFirst), pushMost)
	from := i + 1
	if p.pushed > i && p.pushed <= i+pushMost {
		from = p.pushed
	}
	to, bytes := from, int64(0)
	for ; to < len(tree.Files) && to-from < p.window; to++ {
		if size := tree.Files[to].Size; size <= pushFile {
			if bytes += size; bytes > pushBytes {
				break
			}
		}
	}
	if to > from && im.fs.cache.offer(func(server *fuse.Server) { im.pushFiles(server, t, tree.Files[from:to]) }) {
		p.pushed = to
	}
}

// pushFiles pushes the small ones among files.
func (im *images) pushFiles(server *fuse.Server, t *imageTree, files []erofs.File) {
	ctx, buf := context.Background(), im.fs.cache.push.buf
	for _, file := range files {
		if file.Size > pushFile {
			continue
		}
		c := content{im: im, tree: t, file: file}
		n := (file.Size + erofs.BlockSize - 1) &^ (erofs.BlockSize - 1)
		r, done, err := c.open(ctx)
		if err != nil {
			continue // whoever wants the file asks for it, and gets the error
		}
		clear(buf[file.Size:n])
		err = block.ReadFull(ctx, r, buf[:file.Size], 0)
		done()
		if err != nil {
			continue
		}
		at := c.cached()
		if server.InodeNotifyStoreCache(at.node, at.base, buf[:n]) == fuse.OK {
			im.fs.stats.pushed.Add(1)
		}
	}
}
