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
	"yester/internal/block"
)

// imageTree is a point's part of the image.
type imageTree struct {
	slot   *slot
	region erofs.Region
	// Where contents begin and end; set under images.placing when the tree is first
	// made, and 0 before.
	start, end uint64

	mu     sync.Mutex // of what follows; held while it is made
	head   []byte
	stored *erofs.Stored // nil before it is first looked at

	files *erofs.Files // of stored; nil when it isn't in memory; guarded by images.mu

	push imagePusher
}

// keepFiles is how many places of files stay in memory, at 40 bytes each.
const keepFiles = 256 << 10

// treeOf returns a point's part of the image; im.mu is held. It is nil when there
// are no regions left.
func (im *images) treeOf(s *slot) *imageTree {
	t := im.trees[s]
	if t == nil {
		if len(im.regions) >= imageRegions {
			return nil
		}
		at := imageUpper + int64(len(im.regions))*erofs.MaxSize
		t = &imageTree{slot: s, region: erofs.Region{Base: at, Parent: erofs.NID(imageRoot)}}
		im.trees[s] = t
		im.regions = append(im.regions, t)
	}
	return t
}

// readTree fills p from t's region at off.
func (im *images) readTree(ctx context.Context, t *imageTree, p []byte, off int64) error {
	if off < erofs.HeadSize {
		head, made, err := im.head(ctx, t)
		if err != nil {
			return err
		}
		if made { // the kernel has all the rest
			im.entered(t)
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
		im.entered(t)
		_, err = tree.ReadAt(p, off)
	}
	return err
}

// head returns the beginning of a point's region, which can be had without
// opening the point, and whether the rest has been made.
func (im *images) head(ctx context.Context, t *imageTree) (head []byte, made bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	head, err = im.headLocked(ctx, t)
	return head, t.stored != nil, err
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
	head, left, err := t.region.Head(&root.Attr, xattrs)
	if len(left) > 0 {
		im.lacking(t, left)
	}
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

// tree returns a point's metadata, made if need be. They are made once: the kernel
// keeps what it has been told, and the same names could come to mean other inodes if
// users, or files of the repository, had changed since.
func (im *images) tree(ctx context.Context, t *imageTree) (*erofs.Stored, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stored != nil {
		return t.stored, nil
	}
	if _, err := im.headLocked(ctx, t); err != nil {
		return nil, err
	}
	p, err := im.fs.acquire(ctx, t.slot)
	if err != nil {
		return nil, err
	}
	defer t.slot.release(p)
	var failures []error
	im.placing.Lock()
	defer im.placing.Unlock()
	tree, err := erofs.Build(ctx, p.Tree, t.region, erofs.Space{Next: im.next, Devices: imageDevices, Gap: contentGap},
		func(err error) { failures = append(failures, err) })
	if err != nil {
		return nil, fmt.Errorf("%w (mounting with --no-erofs shows what can be read)", err)
	}
	stored, end, err := tree.Store(im.spool, im.spooled)
	if err != nil {
		return nil, fmt.Errorf("keeping metadata in %s (TMPDIR chooses another place): %w", im.spool.Name(), err)
	}
	for _, err := range failures[:min(len(failures), maxTold)] {
		im.fail("list", t, err)
	}
	if n := len(failures); n > 0 {
		im.fs.log.Warn("parts of this restore point can't be read; mounting with --no-erofs shows what can", "point", t.slot, "parts", n)
	}
	if len(tree.Lacking) > 0 {
		im.lacking(t, slices.Sorted(maps.Keys(tree.Lacking)))
	}
	im.mu.Lock()
	t.start, t.end = im.next, tree.End
	im.runs = append(im.runs, t)
	im.mu.Unlock()
	im.next, im.spooled = tree.End, end
	t.stored = stored
	go im.give(t, stored) // it waits for pages that this request holds
	return stored, nil
}

// entered notes that somebody looks into t. Who looks into one point after the other
// finds the next one made already.
func (im *images) entered(t *imageTree) {
	im.mu.Lock()
	defer im.mu.Unlock()
	i := slices.Index(im.regions, t)
	row := i == im.walked+1
	im.walked = i
	if !row || im.ahead || i+1 >= len(im.regions) {
		return
	}
	next := im.regions[i+1]
	im.ahead = true
	go func() {
		_, _ = im.tree(context.Background(), next) // whoever wants it gets the error
		im.mu.Lock()
		defer im.mu.Unlock()
		im.ahead = false
	}()
}

// lacking tells of extended attributes that an image can't have.
func (im *images) lacking(t *imageTree, names []string) {
	im.fs.log.Warn("some extended attributes are shown only by a mount with --no-erofs", "point", t.slot, "names", names)
}

// filesOf returns the places of a point's files.
func (im *images) filesOf(ctx context.Context, t *imageTree) (*erofs.Files, error) {
	im.mu.Lock()
	files := t.files
	if n := len(im.loaded); files != nil && im.loaded[n-1] != t {
		im.loaded = append(slices.DeleteFunc(im.loaded, func(o *imageTree) bool { return o == t }), t)
	}
	im.mu.Unlock()
	if files != nil {
		return files, nil
	}
	tree, err := im.tree(ctx, t)
	if err != nil {
		return nil, err
	}
	if files, err = tree.Files(); err != nil {
		return nil, err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if t.files == nil {
		t.files = files
		im.loaded = append(im.loaded, t)
	}
	sum := 0
	for i, o := range slices.Backward(im.loaded) {
		if sum += len(o.files.List); sum > keepFiles && i < len(im.loaded)-1 {
			for _, old := range im.loaded[:i+1] {
				old.files = nil
			}
			im.loaded = slices.Delete(im.loaded, 0, i+1)
			break
		}
	}
	return files, nil
}

// maxTold is how many failures of one point are logged each by itself.
const maxTold = 16

// givePiece is how much of a point's metadata is given to the kernel at once.
const givePiece = 256 << 10

// give puts a point's metadata into the kernel's page cache, before it asks for
// each page.
func (im *images) give(t *imageTree, tree *erofs.Stored) {
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
		files, err := im.filesOf(ctx, t)
		if err != nil {
			return nil, im.fail("read", t, err)
		}
		i, space := files.At(at)
		if i < 0 {
			return nil, im.fail("read", nil, errNothingYet)
		}
		c := content{im: im, tree: t, file: files.List[i]}
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
			t.push.missed(i, func(i int, buf []byte) bool { return im.pushFile(t, files.List[i], buf) }, len(files.List))
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
