package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/fusefs/erofs"
)

// A walk of a FUSE tree costs a round trip to this process for each directory and
// several for each file. Where a point is a tree whose attributes are all known
// beforehand, the kernel can have them at once: as an EROFS image, which it then
// lists and looks up in by itself. What is mounted for users is that filesystem;
// its image and the devices with the files' contents are files of a FUSE mount
// without a place in any directory, of which the kernel reads what is looked at.
//
// The image is as large as EROFS can have it and hardly any of it exists: each
// point has a region of its own, which is made when it is first read.
//
//	0            imageUpper                                          16 TiB
//	┌────────────┬──────────────┬──────────────┬─────────────────────┐
//	│ superblock │ region 0     │ region 1     │ …                   │
//	│ root,      │ (erofs.Tree) │              │                     │
//	│ machines   │              │              │                     │
//	└────────────┴──────────────┴──────────────┴─────────────────────┘
//
// A mounted image never changes. When points appear or vanish, another generation
// of it is mounted in its place, with another beginning and the same regions.
const (
	// imageSize is the length of the image and of each device: 2^32 blocks.
	imageSize = 1 << (32 + erofs.BlockBits)
	// imageUpper is where the regions begin.
	imageUpper = 16 << 20
	// imageRoot is where the root directory is, which must be below 2 MiB.
	imageRoot = 64 << 10
	// imageRegions is how many regions there are.
	imageRegions = (imageSize - imageUpper) / erofs.MaxSize
	// imageDevices is how many devices of 16 TiB there are for contents.
	imageDevices = 32
	// contentGap is what is left free behind each file, in blocks: as far as the kernel
	// mostly reads ahead, so that few requests span two files. One that does, and whose
	// second file can't be read, is asked again page by page.
	contentGap = imageReadAheadKB << 10 / erofs.BlockSize
	// imageReadAheadKB is how far the kernel reads ahead on a device, in KiB.
	imageReadAheadKB = 512
)

// Node numbers of the files that an image is made of: the root's is FUSE's, a
// generation's and a device's their number above these.
const (
	nodeGeneration = 1 << 32
	nodeDevice     = 2 << 32
)

// images is the filesystem in which the image and the devices are files.
type images struct {
	fuse.RawFileSystem
	fs     *rawFS
	name   string // of the image; it is what /proc/mounts shows as the source
	server *fuse.Server
	root   *os.File // the filesystem's root directory
	ended  atomic.Bool
	dir    string // where the image is mounted
	mount  uint64 // the unique number of that mount
	opt    Options

	mu  sync.Mutex
	cur *generation // that LOOKUP finds
	// generations counts those that were made.
	generations uint64
	open        map[uint64]*generation
	mounting    bool
	trees       map[*slot]*imageTree
	walked      int            // the region that was looked into last
	ahead       bool           // the one after it is being made
	said        map[*slot]bool // points of which something was logged
	regions     []*imageTree   // by number; what a region once was stays in its place
	runs        []*imageTree   // those that have places for contents, by them
	loaded      []*imageTree   // those whose files' places are in memory, the last used last

	placing sync.Mutex // of what follows; held while a tree is made
	next    uint64     // the next place for contents
	spool   *os.File   // where trees are kept; it has no name
	spooled int64      // its length

	sizing sync.Mutex     // of what follows
	sized  time.Time      // the change of the catalogue that sizes are of
	sizes  map[string]int // what fewRootBlocks has found, by machine
}

// generation is the image as of one listing of the source.
type generation struct {
	num   uint64
	upper []byte
	users int // files that are open
}

// node returns the generation's node number.
func (g *generation) node() uint64 { return nodeGeneration + g.num }

func deviceName(i int) string { return fmt.Sprintf("contents-%d", i) }

// Lookup implements fuse.RawFileSystem.
func (im *images) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name == im.name {
		im.mu.Lock()
		out.NodeId = im.cur.node()
		im.mu.Unlock()
	}
	for i := range imageDevices {
		if name == deviceName(i) {
			out.NodeId = nodeDevice + uint64(i)
			out.SetEntryTimeout(forever)
		}
	}
	if out.NodeId == 0 {
		return fuse.ENOENT
	}
	fileAttr(out.NodeId, &out.Attr)
	out.SetAttrTimeout(forever)
	return fuse.OK
}

func fileAttr(node uint64, out *fuse.Attr) {
	*out = fuse.Attr{Ino: node, Mode: fuse.S_IFREG | 0o400, Size: imageSize, Nlink: 1}
	if node == fuse.FUSE_ROOT_ID {
		*out = fuse.Attr{Ino: node, Mode: fuse.S_IFDIR | 0o500, Nlink: 2}
	}
}

// GetAttr implements fuse.RawFileSystem.
func (im *images) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	fileAttr(in.NodeId, &out.Attr)
	out.SetTimeout(forever)
	return fuse.OK
}

// Open implements fuse.RawFileSystem.
func (im *images) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	if in.NodeId < nodeDevice {
		im.mu.Lock()
		defer im.mu.Unlock()
		if im.cur.node() != in.NodeId {
			return fuse.ENOENT
		}
		im.open[in.NodeId] = im.cur
		im.cur.users++
	}
	return fuse.OK
}

// Release implements fuse.RawFileSystem: when nobody has an image open any more,
// nothing of it is mounted, and the filesystem ends.
func (im *images) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if g := im.open[in.NodeId]; g != nil {
		if g.users--; g.users == 0 {
			delete(im.open, in.NodeId)
		}
		if len(im.open) == 0 && !im.mounting {
			im.end()
		}
	}
}

// end lets go of the filesystem's root directory: it ends once nothing else holds it.
func (im *images) end() {
	im.ended.Store(true)
	im.root.Close()
}

// endWriter takes what the FUSE library has to say. When the filesystem ends, it is
// that a request was cut off.
type endWriter struct {
	im *images
	to io.Writer
}

func (w endWriter) Write(p []byte) (int, error) {
	if w.im.ended.Load() {
		return len(p), nil
	}
	return w.to.Write(p)
}

// Forget implements fuse.RawFileSystem.
func (im *images) Forget(uint64, uint64) {}

// Read implements fuse.RawFileSystem. An interrupt ends no read: the kernel asks
// on behalf of everybody who may come by that part of the image.
func (im *images) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	im.fs.stats.begin()
	defer im.fs.stats.end()
	buf = buf[:min(int(in.Size), len(buf))]
	if in.NodeId >= nodeDevice {
		return im.readContent(in.NodeId-nodeDevice, int64(in.Offset), buf)
	}
	im.mu.Lock()
	g := im.open[in.NodeId]
	im.mu.Unlock()
	if g == nil {
		return nil, fuse.EIO
	}
	if t, err := im.readImage(context.Background(), g, buf, int64(in.Offset)); err != nil {
		return nil, im.fail("list", t, err)
	}
	return fuse.ReadResultVector([][]byte{buf}), fuse.OK
}

// readImage fills p from the image at off.
func (im *images) readImage(ctx context.Context, g *generation, p []byte, off int64) (*imageTree, error) {
	for len(p) > 0 {
		if off < imageUpper {
			n := copy(p[:min(int64(len(p)), imageUpper-off)], g.upper[min(off, int64(len(g.upper))):])
			if n == 0 {
				n = int(min(int64(len(p)), imageUpper-off))
				clear(p[:n])
			}
			p, off = p[n:], off+int64(n)
			continue
		}
		i := (off - imageUpper) / erofs.MaxSize
		im.mu.Lock()
		var t *imageTree
		if i < int64(len(im.regions)) {
			t = im.regions[i]
		}
		im.mu.Unlock()
		at := (off - imageUpper) % erofs.MaxSize
		n := int(min(int64(len(p)), erofs.MaxSize-at))
		if t == nil {
			return nil, errNothingYet
		}
		if err := im.readTree(ctx, t, p[:n], at); err != nil {
			return t, err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil, nil
}

// errNothingYet is what a read gets of a part of the image or a device that isn't
// given to anything. The kernel, which reads ahead, must not keep anything of it:
// it may be given to something later.
var errNothingYet = errors.New("nothing is there yet")

// fail logs why a request about a point has failed.
func (im *images) fail(op string, t *imageTree, err error) fuse.Status {
	var n nodeID
	if t != nil {
		n = makeID(t.slot.num, spaceLayout, pointIno)
	}
	if errors.Is(err, erofs.ErrUnreadable) || errors.Is(err, errNothingYet) {
		return fuse.EIO // why has been said, or nobody has asked
	}
	im.fs.fail(op, n, "", err)
	return fuse.EIO
}
