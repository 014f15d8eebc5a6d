// Package copyout copies files and directories out of a guestfs.Tree into a
// directory of the host.
//
// A file appears under its name only when it is whole: it is written to a
// temporary name beside it and renamed. Nothing that the tree says can lead out
// of the destination: every step down is one checked name below an os.Root of
// its own, and symbolic links that lie in the destination are never followed.
//
// What is on disk when: at its end a run of few files synchronises them and their
// directories one by one; a run of more ends with one syncfs(2) of the
// destination's filesystem. A file that replaces another is always synchronised
// before it does.
package copyout

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"yester/guestfs"
)

// Overwrite says what becomes of files that exist in the destination.
type Overwrite string

// The values of Overwrite. Directories are merged in any case; with Never, those
// that exist keep their attributes.
const (
	Never     Overwrite = "never"      // they are left alone, and reported
	IfNewer   Overwrite = "if-newer"   // replaced by files with a later modification time
	IfChanged Overwrite = "if-changed" // replaced when type, size, modification time or link target differ
	Always    Overwrite = "always"     // replaced
)

// ParseOverwrite returns the Overwrite that s names.
func ParseOverwrite(s string) (Overwrite, error) {
	switch o := Overwrite(s); o {
	case Never, IfNewer, IfChanged, Always:
		return o, nil
	}
	return "", fmt.Errorf("%q is none of never, if-newer, if-changed, always", s)
}

// Item is a file or directory to copy, with all that is in it.
type Item struct {
	ID guestfs.ID
	// Name is what it is called in the destination. Empty for a directory whose
	// entries go into the destination itself.
	Name string
	// Path is where it lies in the tree, for messages.
	Path string
	// Parents are directories of the tree, each in the one before, that are made
	// on the way to it where they don't exist.
	Parents []Parent
}

// Parent is a directory of the tree and its name in the destination.
type Parent struct {
	ID   guestfs.ID
	Name string
}

// Action is what became of one file.
type Action string

// The actions that are reported.
const (
	Copied    Action = "copied"
	Exists    Action = "exists"    // left alone, since something has its name
	Unchanged Action = "unchanged" // left alone, as IfNewer or IfChanged asks for
	Failed    Action = "failed"
)

// Event reports what became of one file or directory.
type Event struct {
	Action Action
	Source string // path in the tree
	Dest   string // path in the destination, relative to it; "." for itself
	Mode   uint32 // st_mode in the tree; 0 when that isn't known
	Size   int64  // bytes, of a regular file
	Err    error  // with Failed
}

// Options of a run.
type Options struct {
	Overwrite Overwrite // "" is Never
	// DryRun reports what would be done; the destination may then be nil, which
	// stands for one that doesn't exist yet.
	DryRun bool
	// Discard leaves out owners, times, extended attributes and special mode bits:
	// files become the user's own, by the umask.
	Discard bool
	// OwnDest says that the destination was made for this run, so that an Item
	// without a name may give it its attributes.
	OwnDest bool
	// Protected reports files of the host that must not be replaced whatever
	// Overwrite says: those that the tree is read from.
	Protected func(os.FileInfo) bool
	// Report is called for each file and directory, by one goroutine at a time.
	Report func(Event)
	// Progress, when set, is kept up to date; see Progress.
	Progress *Progress
}

// Result says what a run did.
type Result struct {
	Files  int64 `json:"files"`       // regular files, hard links among them
	Dirs   int64 `json:"directories"` // made, or there already
	Others int64 `json:"others"`      // links, devices and so on
	Bytes  int64 `json:"bytes"`       // content of the files, holes counted
	Exists int64 `json:"exists"`
	// Unchanged and Failed count files and directories with these actions.
	Unchanged int64  `json:"unchanged"`
	Failed    int64  `json:"failed"`
	Losses    []Loss `json:"not_preserved,omitempty"`
}

// Loss is one kind of attribute that could not be preserved.
type Loss struct {
	Kind  string `json:"what"`
	Count int64  `json:"files"`
	Path  string `json:"example"` // first file that lost it, in the tree
	Err   error  `json:"-"`       // and why
	// Damaged says that the source is the cause, not the host.
	Damaged bool `json:"damaged,omitempty"`
}

const (
	// workers is how many files are copied at a time. Sources may be remote, where
	// latency costs more than bytes do.
	workers = 4
	// queue is how many files may wait for a worker; their directories are open.
	queue = 64
	// maxDepth bounds how deep a tree is descended. It's half of what PATH_MAX lets
	// programs reach, and each level has two descriptors open.
	maxDepth = 1000
)

// copier is the state of one run.
type copier struct {
	tree  guestfs.Tree
	opt   Options
	euid  int
	egid  int
	umask uint32
	stop  context.CancelCauseFunc
	dirs  map[guestfs.ID]bool // directories walked for the current Item
	jobs  chan job
	synct syncer

	noCopyRange atomic.Bool // copy_file_range doesn't work between these files

	mu       sync.Mutex // guards what follows, and calls of Report
	res      Result
	losses   map[string]int // index into res.Losses
	links    map[guestfs.ID]*firstLink
	deferred []deferredLink
	lateDirs []lateDir
}

// job is a file that isn't a directory, on its way to a worker.
type job struct {
	dir  *hostDir
	id   guestfs.ID
	name string
	path string // in the tree
	kind uint32 // type by the directory entry; 0 when it doesn't say
}

// Copy copies items of tree into dest. What goes wrong with one file is reported
// and counted, and doesn't keep the others from being copied. The error is about
// the run as a whole: it was cancelled, or the destination is full.
func Copy(ctx context.Context, tree guestfs.Tree, dest *os.Root, items []Item, opt Options) (Result, error) {
	if dest == nil && !opt.DryRun {
		return Result{}, errors.New("copyout: no destination")
	}
	if opt.Overwrite == "" {
		opt.Overwrite = Never
	}
	run, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	c := &copier{
		tree: tree, opt: opt, euid: os.Geteuid(), egid: os.Getegid(), stop: stop,
		jobs:   make(chan job, queue),
		losses: make(map[string]int),
		links:  make(map[guestfs.ID]*firstLink),
	}
	c.umask = uint32(unix.Umask(0o077)) // there is no other way to ask for it
	unix.Umask(int(c.umask))
	top, err := c.openTop(dest)
	if err != nil {
		return Result{}, err
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for j := range c.jobs {
				c.work(run, j)
				j.dir.unref(run)
			}
		})
	}
	if p := opt.Progress; p != nil && p.WantTotals {
		wg.Go(func() { p.scan(run, tree, items) })
	}
	for _, it := range items {
		c.item(run, top, it)
	}
	close(c.jobs)
	wg.Wait()
	c.linkDeferred(run, dest)
	top.unref(run)
	c.finishLate(run, dest)
	if !opt.DryRun {
		if err := c.synct.finish(dest); err != nil {
			c.stop(fmt.Errorf("synchronise the destination: %w", err))
		}
	}
	if run.Err() != nil {
		return c.res, context.Cause(run)
	}
	return c.res, nil
}

// item copies one Item.
func (c *copier) item(ctx context.Context, top *hostDir, it Item) {
	c.dirs = make(map[guestfs.ID]bool)
	top, ok := c.parents(ctx, top, it)
	if !ok {
		return
	}
	defer top.unref(ctx)
	if it.Name != "" {
		c.entry(ctx, top, it.Path, guestfs.Dirent{Name: it.Name, ID: it.ID}, 0)
		return
	}
	attr, err := c.tree.Attr(ctx, it.ID)
	if err == nil && !attr.IsDir() {
		err = guestfs.ErrNotDir
	}
	if err != nil {
		c.failed(ctx, it.Path, ".", attr.Mode, err)
		return
	}
	if c.opt.OwnDest && len(it.Parents) == 0 {
		top.adopt(it.ID, attr)
	}
	if len(it.Parents) == 0 {
		top.source = it.Path
	}
	c.directory(ctx, top, it.ID, it.Path, 0)
}

// parents opens the directories that lead to it. Those that were made in this run
// get their attributes at its end, since more Items may go into them.
func (c *copier) parents(ctx context.Context, d *hostDir, it Item) (*hostDir, bool) {
	d.refs.Add(1)
	source := "/"
	for _, p := range it.Parents {
		source = path.Join(source, p.Name)
		attr, err := c.tree.Attr(ctx, p.ID)
		if err == nil {
			err = checkName(p.Name)
		}
		var sub *hostDir
		var made bool
		if err == nil {
			sub, made, err = d.enter(p.Name)
		}
		if err != nil {
			c.failed(ctx, it.Path, path.Join(d.name, p.Name), attr.Mode, err)
			d.unref(ctx)
			return nil, false
		}
		sub.source = source
		if made {
			sub.adopt(p.ID, attr)
			sub.setLate()
		}
		d.unref(ctx)
		d = sub
	}
	return d, true
}

// report counts and reports an event.
func (c *copier) report(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch e.Action {
	case Exists:
		c.res.Exists++
	case Unchanged:
		c.res.Unchanged++
	case Failed:
		c.res.Failed++
	case Copied:
		switch e.Mode & guestfs.ModeType {
		case guestfs.ModeDir:
			c.res.Dirs++
		case guestfs.ModeRegular:
			c.res.Files++
			c.res.Bytes += e.Size
		default:
			c.res.Others++
		}
	}
	if e.Mode&guestfs.ModeType == guestfs.ModeRegular {
		c.opt.Progress.fileDone()
	}
	if c.opt.Report != nil {
		c.opt.Report(e)
	}
}

// failed reports a file that could not be copied, unless the run is over anyway.
// A destination that is full or read-only ends the run.
func (c *copier) failed(ctx context.Context, source, dest string, mode uint32, err error) {
	if ctx.Err() != nil {
		return
	}
	for _, fatal := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		if errors.Is(err, fatal) {
			c.stop(fmt.Errorf("the copy ends here: %w", fatal)) // the file's own error is reported below
		}
	}
	c.report(Event{Action: Failed, Source: source, Dest: dest, Mode: mode, Err: err})
}

// lost notes that source was copied without an attribute of the given kind.
func (c *copier) lost(kind, source string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.losses[kind]
	if !ok {
		i = len(c.res.Losses)
		c.losses[kind] = i
		c.res.Losses = append(c.res.Losses, Loss{Kind: kind, Path: source, Err: err})
	}
	c.res.Losses[i].Count++
}

// metadataGrace bounds how long attributes of directories that were made are
// still read after a run was cancelled.
const metadataGrace = 2 * time.Second
