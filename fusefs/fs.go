// Package fusefs shows the restore points of a source as a FUSE tree: one
// directory per date and "latest", below them the guest view in files/, every
// filesystem in volumes/ and the disks as files in disks/. It knows nothing of
// formats.
package fusefs

import (
	"context"
	"log"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/guestfs"
	"yester/internal/block"
	"yester/restorepoint"
)

// Inode numbers in spaceLayout.
const (
	rootIno    = fuse.FUSE_ROOT_ID // the mount's root, in slot 0
	pointIno   = 1                 // a point's directory
	volumesIno = 3
	disksIno   = 4
	firstDisk  = 0x100 // disks/<name>.raw

	// firstMachine is the first machine's directory, in slot 0.
	firstMachine = 0x1000
)

// Names in a point's directory.
const (
	filesName   = "files"
	volumesName = "volumes"
	disksName   = "disks"
	diskSuffix  = ".raw"
)

// forever is how long the kernel may keep what it knows of the inside of a
// point: a point never changes, and one that does gets new node ids.
const forever = 365 * 24 * time.Hour

// rawFS implements fuse.RawFileSystem. Every method that isn't here is refused by
// the embedded default with ENOSYS; what would write never arrives, since the
// mount is read-only for the kernel too.
type rawFS struct {
	fuse.RawFileSystem
	cat   catalogue
	log   *logger
	stats stats
	cache *kernelCache
	zeros *os.File // a sealed run of zeros to splice from; nil where there is none

	uid, gid uint32 // who owns the directories that no guest has

	pass      passthrough
	noOpenDir bool // the kernel can do without OPENDIR
}

func newFS(src *restorepoint.Source, only, point string, logger *slog.Logger) *rawFS {
	f := &rawFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		log:           newLogger(logger),
		uid:           uint32(os.Getuid()),
		gid:           uint32(os.Getgid()),
		zeros:         zeroFile(),
	}
	f.cat = catalogue{src: src, only: only, onlyPoint: point, log: logger, byName: map[string]*machine{}}
	f.cache = newKernelCache(f)
	f.stats.last.Store(time.Now().UnixNano())
	return f
}

// request is one FUSE request's context: its Done channel is the kernel's
// interrupt, without a goroutine for each.
type request struct{ cancel <-chan struct{} }

func (r request) Deadline() (time.Time, bool) { return time.Time{}, false }
func (r request) Done() <-chan struct{}       { return r.cancel }
func (r request) Value(any) any               { return nil }
func (r request) Err() error {
	select {
	case <-r.cancel:
		return context.Canceled
	default:
		return nil
	}
}

// place is a node that was found: where it lies and what it is reached through.
type place struct {
	fs   *rawFS
	slot *slot
	p    *openPoint
	id   nodeID
	tree guestfs.Tree // nil in spaceLayout
	ino  guestfs.ID   // in tree
}

func (pl *place) release() { pl.slot.release(pl.p) }

// base is the space by which the tree was entered.
func (pl *place) base() uint8 {
	if s := pl.id.space(); s > spaceViewLast {
		return s
	}
	return spaceView
}

// locate finds the node of a request inside a point; the caller releases it.
func (f *rawFS) locate(ctx context.Context, n nodeID) (place, error) {
	s := f.cat.slot(n.slot())
	if s == nil {
		return place{}, errStale
	}
	p, err := f.acquire(ctx, s)
	if err != nil {
		return place{}, err
	}
	pl := place{fs: f, slot: s, p: p, id: n}
	switch {
	case n.space() != spaceLayout:
		pl.tree, err = p.tree(ctx, n.space())
		var ok bool
		if err == nil {
			if pl.ino, ok = pl.inode(n); !ok {
				err = errStale
			}
		}
		if err != nil {
			pl.release()
			return place{}, err
		}
	case s.isTree():
		pl.tree, pl.ino = p.Tree, p.Tree.Root()
	}
	return pl, nil
}

// Lookup implements fuse.RawFileSystem.
func (f *rawFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.stats.begin()
	defer f.stats.end()
	ctx := request{cancel}
	n := nodeID(h.NodeId)
	if n.slot() == 0 {
		return f.fail("lookup", n, name, f.lookupUpper(ctx, n, name, out))
	}
	pl, err := f.locate(ctx, n)
	if err != nil {
		return f.fail("lookup", n, name, err)
	}
	defer pl.release()
	if pl.tree == nil {
		err = pl.lookupLayout(ctx, name, out)
	} else {
		err = pl.lookupTree(ctx, name, out)
	}
	if status(err) == fuse.ENOENT {
		// A point never changes: what is missing now is missing for good.
		out.NodeId = 0
		out.SetEntryTimeout(forever)
		return fuse.OK
	}
	return f.fail("lookup", n, name, err)
}

func (f *rawFS) lookupUpper(ctx context.Context, n nodeID, name string, out *fuse.EntryOut) error {
	if strings.HasPrefix(name, ".") {
		return guestfs.ErrNotExist // a shell or file manager asking for its own
	}
	if err := f.cat.refresh(ctx, relistAfter); err != nil {
		return err
	}
	if m := f.cat.machineAt(n.ino()); m != nil {
		s := f.cat.lookupPoint(m, name)
		if s == nil {
			return guestfs.ErrNotExist
		}
		if err := f.pointEntry(ctx, s, out); err != nil {
			return err
		}
		out.SetEntryTimeout(relistAfter)
		if name == latestName {
			out.SetEntryTimeout(0)
		}
		return nil
	}
	if m := f.cat.lookupMachine(name); m != nil && n.ino() == rootIno {
		id := makeID(0, spaceLayout, m.num)
		out.NodeId = uint64(id)
		f.upperAttr(id, &out.Attr)
		out.SetEntryTimeout(relistAfter)
		out.SetAttrTimeout(relistAfter)
		return nil
	}
	return guestfs.ErrNotExist
}

// lookupTree looks name up in a directory of a tree.
func (pl *place) lookupTree(ctx context.Context, name string, out *fuse.EntryOut) error {
	id, err := pl.tree.Lookup(ctx, pl.ino, name)
	if err != nil {
		return err
	}
	_, err = pl.treeEntry(ctx, pl.tree, pl.base(), id, out)
	return err
}

// treeEntry fills in the entry of an inode of a tree.
func (pl *place) treeEntry(ctx context.Context, tree guestfs.Tree, base uint8, id guestfs.ID, out *fuse.EntryOut) (guestfs.Attr, error) {
	a, err := tree.Attr(ctx, id)
	if err != nil {
		return a, err
	}
	n := pl.node(base, id)
	out.NodeId = uint64(n)
	pl.slot.treeAttr(n, &a, &out.Attr)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	return a, nil
}

// GetAttr implements fuse.RawFileSystem.
func (f *rawFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.stats.begin()
	defer f.stats.end()
	ctx := request{cancel}
	n := nodeID(in.NodeId)
	if n.slot() == 0 {
		if n.ino() == rootIno {
			// A new listing gives the root a new mtime, by which the kernel knows
			// that its copy of the directory is old.
			if err := f.cat.refresh(ctx, relistAfter); err != nil {
				f.fail("list", n, "", err)
			}
		}
		f.upperAttr(n, &out.Attr)
		out.SetTimeout(relistAfter)
		return fuse.OK
	}
	if n.space() == spaceLayout && n.ino() < firstDisk {
		s := f.cat.slot(n.slot())
		if s == nil || s.stale() {
			return f.fail("getattr", n, "", errStale)
		}
		out.SetTimeout(relistAfter)
		return f.fail("getattr", n, "", f.ownDirAttr(ctx, s, n.ino(), &out.Attr))
	}
	pl, err := f.locate(ctx, n)
	if err != nil {
		return f.fail("getattr", n, "", err)
	}
	defer pl.release()
	if pl.tree == nil {
		err = pl.diskAttr(&out.Attr)
	} else {
		var a guestfs.Attr
		if a, err = pl.tree.Attr(ctx, pl.ino); err == nil {
			pl.slot.treeAttr(n, &a, &out.Attr)
		}
	}
	out.SetTimeout(forever)
	return f.fail("getattr", n, "", err)
}

// Readlink implements fuse.RawFileSystem.
func (f *rawFS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	f.stats.begin()
	defer f.stats.end()
	n := nodeID(h.NodeId)
	pl, err := f.locate(request{cancel}, n)
	if err != nil {
		return nil, f.fail("readlink", n, "", err)
	}
	defer pl.release()
	if pl.tree == nil {
		return nil, fuse.EINVAL
	}
	target, err := pl.tree.ReadLink(request{cancel}, pl.ino)
	return []byte(target), f.fail("readlink", n, "", err)
}

// Access implements fuse.RawFileSystem: who may reach the mount at all is the
// kernel's business.
func (f *rawFS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Flush implements fuse.RawFileSystem.
func (f *rawFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Fsync implements fuse.RawFileSystem.
func (f *rawFS) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// FsyncDir implements fuse.RawFileSystem.
func (f *rawFS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Forget implements fuse.RawFileSystem: node ids are not remembered.
func (f *rawFS) Forget(uint64, uint64) {}

// StatFs implements fuse.RawFileSystem: the guest filesystem's own figures, and
// nothing above them.
func (f *rawFS) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	f.stats.begin()
	defer f.stats.end()
	n := nodeID(h.NodeId)
	out.NameLen, out.Bsize, out.Frsize = 255, 4096, 4096
	if n.slot() == 0 || n.space() == spaceLayout {
		return fuse.OK
	}
	pl, err := f.locate(request{cancel}, n)
	if err != nil {
		return f.fail("statfs", n, "", err)
	}
	defer pl.release()
	info := pl.tree.Info()
	bs := uint64(max(info.BlockSize, 512))
	out.Bsize, out.Frsize = uint32(bs), uint32(bs)
	out.Blocks = uint64(info.Size) / bs
	out.Bfree = uint64(info.Free) / bs
	out.Bavail = out.Bfree
	out.Files = uint64(max(info.FilesMax, info.Files))
	out.Ffree = out.Files - uint64(info.Files)
	return fuse.OK
}

// fail logs err if it is a cause and returns its status.
func (f *rawFS) fail(op string, n nodeID, name string, err error) fuse.Status {
	st := status(err)
	if worthLogging(st) {
		f.stats.errors.Add(1)
		point := ""
		if s := f.cat.slot(n.slot()); s != nil {
			point = s.String()
		}
		f.log.failure(op, point, n, name, err)
	}
	return st
}

// reader returns the content of a node, from the point's cache or opened anew.
func (pl *place) reader(ctx context.Context) (block.Reader, error) {
	cell := &pl.p.readers[hash(pl.id)%readerCache]
	if c := cell.Load(); c != nil && c.id == pl.id {
		return c.r, nil
	}
	var r block.Reader
	var err error
	if pl.tree != nil {
		r, err = pl.tree.Open(ctx, pl.ino)
	} else {
		var d *restorepoint.OpenedDisk
		if d, err = pl.disk(); err == nil {
			r = d.Image
		}
	}
	if err != nil {
		return nil, err
	}
	cell.Store(&cachedReader{id: pl.id, r: r})
	return r, nil
}

func hash(n nodeID) uint64 { return uint64(n) * 0x9E3779B97F4A7C15 >> 32 }

// stats are what status shows of a mount.
type stats struct {
	busy    atomic.Int64 // requests being served
	last    atomic.Int64 // end of the last request, Unix nanoseconds
	reads   atomic.Int64
	bytes   atomic.Int64
	spliced atomic.Int64 // of bytes: those that never went through this process
	pushed  atomic.Int64 // small files stored in the kernel's cache unasked
	passed  atomic.Int64 // files opened by passthrough
	errors  atomic.Int64
}

func (s *stats) begin() { s.busy.Add(1) }
func (s *stats) end() {
	s.last.Store(time.Now().UnixNano())
	s.busy.Add(-1)
}

// logger keeps one cause from filling the log: the same failure is written at
// most once in a minute.
type logger struct {
	*slog.Logger
	mu   sync.Mutex
	seen map[string]time.Time
}

const (
	logAgain    = time.Minute
	maxLogCause = 1024 // causes remembered; beyond, all are forgotten
)

// warnings is where the FUSE library says what it has to say.
func (f *rawFS) warnings() *log.Logger { return slog.NewLogLogger(f.log.Handler(), slog.LevelWarn) }

func newLogger(l *slog.Logger) *logger { return &logger{Logger: l, seen: map[string]time.Time{}} }

func (l *logger) failure(op, point string, n nodeID, name string, err error) {
	text := err.Error()
	l.mu.Lock()
	again := time.Since(l.seen[text]) < logAgain
	if !again {
		if len(l.seen) >= maxLogCause {
			clear(l.seen)
		}
		l.seen[text] = time.Now()
	}
	l.mu.Unlock()
	if !again {
		l.Error(text, "op", op, "point", point, "inode", n.ino(), "name", name)
	}
}
