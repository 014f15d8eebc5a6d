package fusefs

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/internal/block"
)

// passthroughFrom is the size in bytes from which a file that is a whole host file
// is handed to the kernel, which then reads it without asking at all. Below, the
// system call that registers it costs more than the reads it saves.
const passthroughFrom = 128 << 10

// passthrough hands files that lie whole in one host file to the kernel. It needs
// OPEN requests, which cost two round trips a file; a mount of disks, whose files
// are never whole host files, does without. The kernel takes that choice once for
// all: the first ENOSYS means "never ask again".
type passthrough struct {
	open   bool // the mount answers OPEN; set before it is served
	server *fuse.Server

	mu      sync.Mutex
	off     bool // the kernel has refused: not root, or too old
	backing map[nodeID]*backing
}

// backing is a host file that the kernel knows as the content of an inode. All
// opens of one inode at a time must share it (fs/fuse/iomode.c).
type backing struct {
	id   int32
	refs int
}

// passedFh is the handle of an opened file that has a backing; others have 0.
const passedFh = 1

// openCached are the flags of an opened file that the kernel reads through us: it
// may keep what it has read, and needs not tell when it is closed.
const openCached = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH

// Open implements fuse.RawFileSystem.
func (f *rawFS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !f.pass.open {
		return fuse.ENOSYS
	}
	f.stats.begin()
	defer f.stats.end()
	ctx := request{cancel}
	n := nodeID(in.NodeId)
	out.OpenFlags = openCached
	pl, err := f.locate(ctx, n)
	if err != nil {
		return f.fail("open", n, "", err)
	}
	defer pl.release()
	if pl.p.Tree == nil {
		return fuse.OK
	}
	a, err := pl.tree.Attr(ctx, pl.ino)
	if err != nil || a.Size < passthroughFrom {
		return f.fail("open", n, "", err)
	}
	r, err := pl.reader(ctx)
	if err != nil {
		return f.fail("open", n, "", err)
	}
	fd, ok, err := wholeFile(ctx, r)
	if err != nil {
		return f.fail("open", n, "", err)
	}
	if ok {
		if id := f.pass.acquire(n, fd); id != 0 {
			out.OpenFlags = fuse.FOPEN_PASSTHROUGH
			out.BackingID, out.Fh = id, passedFh
			f.stats.passed.Add(1)
		}
	}
	return fuse.OK
}

// Release implements fuse.RawFileSystem.
func (f *rawFS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if in.Fh == passedFh {
		f.pass.release(nodeID(in.NodeId))
	}
}

// wholeFile returns the host file that r is, all of it and nothing else.
func wholeFile(ctx context.Context, r block.Reader) (fd uintptr, ok bool, err error) {
	e, err := block.ExtentAt(ctx, r, 0, r.Size())
	if err != nil || e.File == nil || e.Off != 0 || e.Len != r.Size() {
		return 0, false, err
	}
	fi, err := e.File.Stat()
	if err != nil || fi.Size() != e.Len {
		return 0, false, err
	}
	return e.File.Fd(), true, nil
}

// acquire returns the kernel's number for the backing of n, which is registered
// when n is first opened; 0 when the kernel takes none.
func (p *passthrough) acquire(n nodeID, fd uintptr) int32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return 0
	}
	if b := p.backing[n]; b != nil {
		b.refs++
		return b.id
	}
	id, errno := p.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
	if errno != 0 || id == 0 {
		// EPERM and the like hold for every file. So does what one file is refused
		// for, when it lies on a filesystem that is itself stacked.
		p.off = len(p.backing) == 0
		return 0
	}
	if p.backing == nil {
		p.backing = make(map[nodeID]*backing)
	}
	p.backing[n] = &backing{id: id, refs: 1}
	return id
}

// release ends one open of n.
func (p *passthrough) release(n nodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.backing[n]
	if b == nil {
		return
	}
	if b.refs--; b.refs == 0 {
		p.server.UnregisterBackingFd(b.id)
		delete(p.backing, n)
	}
}
