package restorepoint

import (
	"bytes"
	"context"
	"crypto/md5"  //nolint:gosec // what containers store
	"crypto/sha1" //nolint:gosec // what containers store
	"errors"
	"fmt"
	"hash"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// VerifyOptions go to Verify.
type VerifyOptions struct {
	// Volume limits the check of disks to the volume of that name; "": all of them.
	Volume string
	// Report is called for each fault, by one goroutine at a time; never nil.
	Report func(Fault)
	// Progress, when set, is kept up to date.
	Progress *VerifyProgress
}

// VerifyProgress says how far Verify is. Its counters may be read at any time.
type VerifyProgress struct {
	// WantTotal makes Verify find out beforehand what there is to do.
	WantTotal    bool
	Files, Bytes atomic.Int64 // looked at
	Total        atomic.Int64 // bytes to look at; meaningful once TotalKnown
	TotalKnown   atomic.Bool
}

// Fault is something that is damaged, or can't be read.
type Fault struct {
	Point  Point
	Volume string // of a disk
	Path   string // in the tree or volume, beginning with a slash; empty when it is about more than one file
	Err    error
}

// VerifyResult says what was checked, and with what.
type VerifyResult struct {
	Points int `json:"points"`
	// Compared counts the versions of files whose content was compared with a
	// recorded checksum, Read those that were read to their end, for lack of one.
	// A version that several points share counts once.
	Compared      int64 `json:"compared"`
	ComparedBytes int64 `json:"compared_bytes"`
	Read          int64 `json:"read"`
	ReadBytes     int64 `json:"read_bytes"`
	// Disks counts the whole disks that were compared with a digest that their
	// container stores.
	Disks     int   `json:"disks"`
	DiskBytes int64 `json:"disk_bytes"`
	Faults    int64 `json:"faults"`
	// NotChecked names what there is no check for.
	NotChecked []string `json:"not_checked,omitempty"`
}

// Verify checks points of one machine, oldest first: every version of every file
// once, however many points have it. The error is one that ends it; what is
// damaged is reported, and counted in the result.
func (s *Source) Verify(ctx context.Context, points []Point, opt VerifyOptions) (VerifyResult, error) {
	v := &verification{src: s, opt: opt, skipped: make(map[string]bool)}
	if v.opt.Progress == nil {
		v.opt.Progress = &VerifyProgress{}
	}
	v.res.Points = len(points)
	repo, same := repositoryOf(points)
	differ, ok := repo.(imageformats.Differ)
	var err error
	if same && ok {
		err = v.repository(ctx, differ, points)
	} else {
		err = v.trees(ctx, points)
	}
	return v.res, err
}

// verification is the state of one Verify.
type verification struct {
	src *Source
	opt VerifyOptions

	mu      sync.Mutex // of what follows, and of calls of Report
	res     VerifyResult
	skipped map[string]bool
}

func (v *verification) fault(f Fault) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.res.Faults++
	v.opt.Report(f)
}

func (v *verification) skip(what string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.skipped[what] {
		v.skipped[what] = true
		v.res.NotChecked = append(v.res.NotChecked, what)
	}
}

// task is a regular file to check.
type task struct {
	point *Point
	tree  guestfs.Tree
	vol   string
	path  string
	id    guestfs.ID
	size  int64
	done  func() // tells that the tree isn't needed for it any more
}

// verifyChunk is how many bytes are read at a time.
const verifyChunk = 1 << 20

// parallel runs list, and checks the files that it hands over meanwhile.
func (v *verification) parallel(ctx context.Context, list func(ctx context.Context, check func(task) error) error) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan task, 64)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() (err error) {
			buf := make([]byte, verifyChunk)
			for t := range queue { // to its end, since each has to be done with
				if err == nil {
					err = v.file(ctx, t, buf)
				}
				t.done()
			}
			return err
		})
	}
	g.Go(func() error {
		defer close(queue)
		return list(ctx, func(t task) error {
			select {
			case queue <- t:
				return nil
			case <-ctx.Done():
				t.done()
				return ctx.Err()
			}
		})
	})
	return g.Wait()
}

// file checks the content of one file. The error is that the work was ended.
func (v *verification) file(ctx context.Context, t task, buf []byte) error {
	var known bool
	var err error
	if c, ok := t.tree.(imageformats.Verifier); ok {
		known, err = c.VerifyFile(ctx, t.id)
		v.opt.Progress.Bytes.Add(t.size)
	} else {
		err = v.read(ctx, t, buf)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	v.opt.Progress.Files.Add(1)
	if err != nil {
		v.fault(Fault{Point: *t.point, Volume: t.vol, Path: "/" + t.path, Err: err})
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if known {
		v.res.Compared++
		v.res.ComparedBytes += t.size
	} else {
		v.res.Read++
		v.res.ReadBytes += t.size
	}
	return nil
}

// read reads a file to its end, without its holes.
func (v *verification) read(ctx context.Context, t task, buf []byte) error {
	r, err := t.tree.Open(ctx, t.id)
	if err != nil {
		return err
	}
	for off, size := int64(0), r.Size(); off < size; {
		e, err := block.ExtentAt(ctx, r, off, size-off)
		if err != nil {
			return err
		}
		n := e.Len
		if !e.Zero {
			n = min(n, int64(len(buf)))
			if err := block.ReadFull(ctx, r, buf[:n], off); err != nil {
				return fmt.Errorf("read at %d: %w", off, err)
			}
		}
		off += n
		v.opt.Progress.Bytes.Add(n)
	}
	return nil
}

// identity is a version of an inode. What writes to one sets its Ctime.
type identity struct {
	volume       string
	id           guestfs.ID
	size         int64
	mtime, ctime guestfs.Time
}

// trees checks points one by one, and passes over what a newer one has unchanged.
func (v *verification) trees(ctx context.Context, points []Point) error {
	seen := make(map[identity]bool)
	disks := make(map[*imageFile]bool)
	for i := len(points) - 1; i >= 0; i-- {
		p := &points[i]
		err := v.point(ctx, p, seen, disks)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.fault(Fault{Point: *p, Err: err})
		}
	}
	return nil
}

// reportDegraded tells of what is lost of a tree that can be opened all the same.
func reportDegraded(p *Point, fault func(Fault)) {
	if lost := p.tree.point.Degraded; lost != "" {
		fault(Fault{Point: *p, Err: fmt.Errorf("%s: %w", lost, ondisk.ErrCorrupt)})
	}
}

// point checks one point: a tree, or disks and the filesystems on them.
func (v *verification) point(ctx context.Context, p *Point, seen map[identity]bool, disks map[*imageFile]bool) error {
	o, err := v.src.OpenPoint(ctx, *p)
	if err != nil {
		return err
	}
	defer o.Close()
	if o.Tree != nil {
		reportDegraded(p, v.fault)
		return v.tree(ctx, p, "", o.Tree, seen)
	}
	for _, d := range o.Disks {
		if disks[d.image] {
			continue
		}
		disks[d.image] = true
		if err := v.disk(ctx, d); err != nil {
			if ctx.Err() != nil {
				return err
			}
			v.fault(Fault{Point: *p, Err: fmt.Errorf("disk %s: %w", d.Name, err)})
		}
	}
	vols, err := o.Volumes(ctx)
	if v.opt.Volume != "" {
		vol, err := o.Volume(ctx, v.opt.Volume)
		if err != nil {
			return err
		}
		vols = []*OpenedVolume{vol}
	}
	for _, vol := range vols {
		tree, err := vol.Tree(ctx)
		if errors.Is(err, ondisk.ErrFormat) {
			v.skip(fmt.Sprintf("volume %s: no filesystem that is known", vol.Name))
			continue
		}
		if err == nil {
			err = v.tree(ctx, p, vol.Name, tree, seen)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.fault(Fault{Point: *p, Volume: vol.Name, Err: err})
		}
	}
	return err
}

// disk compares a whole disk with the digests that its container stores.
func (v *verification) disk(ctx context.Context, d *OpenedDisk) error {
	var wants [2][]byte
	if h, ok := d.Image.(imageformats.Hasher); ok {
		wants[0], wants[1] = h.Hashes()
	}
	if wants[0] == nil && wants[1] == nil {
		v.skip(d.Info.Format + " images store no digest of the whole disk: what no file takes isn't checked")
		return nil
	}
	sums := [2]hash.Hash{md5.New(), sha1.New()} //nolint:gosec // what containers store
	buf := make([]byte, verifyChunk)
	for off := int64(0); off < d.Image.Size(); {
		n := min(int64(len(buf)), d.Image.Size()-off)
		if err := block.ReadFull(ctx, d.Image, buf[:n], off); err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		for i, sum := range sums {
			if wants[i] != nil {
				sum.Write(buf[:n])
			}
		}
		off += n
		v.opt.Progress.Bytes.Add(n)
	}
	for i, name := range []string{"MD5", "SHA-1"} {
		if got := sums[i].Sum(nil); wants[i] != nil && !bytes.Equal(got, wants[i]) {
			return ondisk.Corruptf(d.Info.Format, d.Files[0], -1, "the disk's %s is %x, stored is %x", name, got, wants[i])
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.res.Disks++
	v.res.DiskBytes += d.Image.Size()
	return nil
}

// tree reads all of one tree that wasn't seen yet.
func (v *verification) tree(ctx context.Context, p *Point, vol string, tree guestfs.Tree, seen map[identity]bool) error {
	return v.parallel(ctx, func(ctx context.Context, check func(task) error) error {
		w := &walker{verification: v, point: p, tree: tree, volume: vol, fault: v.fault, check: check, versions: seen}
		return v.walk(ctx, w, "", tree.Root(), 0)
	})
}
