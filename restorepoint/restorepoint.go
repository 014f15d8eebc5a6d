// Package restorepoint is the catalogue: it lists the restore points of a
// source, picks one by date, and wires the stages that open it together: origin,
// image, volumes, filesystems, guest view.
package restorepoint

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"yester/cache"
	"yester/guestfs"
	"yester/imageformats"
	"yester/imageformats/ebs"
	"yester/origin"
	"yester/restorepoint/layout"
)

// TimeFrom says where a point's time was found, in the order of precedence.
type TimeFrom string

// The places a point's time can come from.
const (
	FromName   TimeFrom = "name"   // a date in the file's name, or in a folder's above it
	FromHeader TimeFrom = "header" // the time stamp in the container's header
	FromMtime  TimeFrom = "mtime"  // the file's modification time
	// FromCatalogue: what the backup itself keeps in its own catalogue or names.
	FromCatalogue TimeFrom = "catalogue"
	// FromSnapshot: the time noted of a snapshot, by the image that it is inside of
	// or in the machine's configuration, which comes before all others.
	FromSnapshot TimeFrom = "snapshot"
)

// Kind says what a point holds.
type Kind string

// The kinds of Point.
const (
	KindDisks Kind = "disks" // virtual disks of a machine
	KindTree  Kind = "tree"  // a directory tree
)

// Consistency says what state a point's disks were in.
type Consistency string

// The states of a machine's disks; empty where nothing is known. Only Clean and
// Quiesced ones need no recovery by the guest.
const (
	Clean           Consistency = "clean"            // the machine was off
	Quiesced        Consistency = "quiesced"         // the guest had written everything out
	CrashConsistent Consistency = "crash-consistent" // as if the power had been cut
	Running         Consistency = "running"          // a running machine's own disks: they may be written to
)

// Layouts of disks; those of trees are called by their format.
const (
	LayoutFolder        = "folder"                // images that lie in folders in no known order
	LayoutDescribed     = "described"             // by Options.Layout
	LayoutStorage       = "storage-snapshot"      // the same in a storage system's snapshots
	LayoutVMware        = "vmware"                // .vmx, .vmsd
	LayoutWindowsBackup = "windows-server-backup" // WindowsImageBackup
	LayoutHyperV        = "hyper-v"               // .vmcx, .xml
	LayoutProxmox       = "proxmox"               // vm-<VMID>-disk-<N>
	LayoutLibvirt       = "libvirt"               // a domain's .xml
)

// Point is one restore point: a machine's state at one time. Listing it has read
// the headers of its files only.
type Point struct {
	// ID is unique within the machine, sorts by time, and holds no character that
	// a file name can't: "2026-11-20T02-30-00Z", with "-2", "-3", … behind it
	// where several points have the same second.
	ID       string    `json:"id"`
	Machine  string    `json:"machine"`
	Time     time.Time `json:"time"` // UTC
	TimeFrom TimeFrom  `json:"time_from"`
	Kind     Kind      `json:"kind"`
	// Layout says what has written the point, by the layout in which it was found:
	// one of the Layout constants, "rdiff-backup", …
	Layout string `json:"layout"`
	// Name is the point's own name where it has one ("daily.3", a snapshot's); else
	// empty.
	Name string `json:"name,omitempty"`
	// Provenance says in words what has made the point: product, job, snapshot.
	Provenance  string      `json:"provenance,omitempty"`
	Consistency Consistency `json:"consistency,omitempty"`
	// Secondary: another point shows the same moment better, so that this one is
	// opened by its ID only.
	Secondary bool `json:"secondary,omitempty"`
	// Notes are for whoever looks closer.
	Notes []string `json:"notes,omitempty"`
	Disks []Disk   `json:"disks,omitempty"` // of KindDisks
	// Problem says why the point can't be opened (its parent is missing, …);
	// empty when nothing is known against it.
	Problem string `json:"problem,omitempty"`

	tree    treePoint // of KindTree
	problem error     // of Problem, of KindDisks
	key     string    // identifies the files and their versions: changes when one changes
}

// Recorded reports whether the point is a tree of which all that a listing shows is
// recorded, with one time for each file, and nothing is known to be lost.
func (p *Point) Recorded() bool { return p.tree.recorded && p.Problem == "" }

// Key identifies the point's content: two listings that give the same key speak
// of the same bytes.
func (p *Point) Key() string { return p.key }

// Disk is one virtual disk of a point.
type Disk struct {
	Name string            `json:"name"` // unique within the point, the same at all dates
	Info imageformats.Info `json:"image"`
	// Files lists the container's files from the point's own to the base of its
	// chain, relative to the source.
	Files []string `json:"files"`
	Bytes int64    `json:"bytes"` // length on the host of Files[0], with all its parts
	// Allocated is what these take of the host's disk, bytes; 0 where that isn't
	// known.
	Allocated int64 `json:"allocated,omitempty"`
	// Snapshot is the ID of the snapshot inside Files[0] that the disk is the state
	// of, the only one in Info.Snapshots then; empty for the image's active state.
	Snapshot string `json:"snapshot,omitempty"`

	// What the disk is made of: one of the two.
	image *imageFile
	snap  *ebs.Snapshot
}

// ChainImage is one of the images that a disk is made of.
type ChainImage struct {
	Name  string // of its file, relative to the source
	Bytes int64  // length on the host, with all its parts
	Info  imageformats.Info
}

// Chain returns the images that d is made of, as Files names them.
func (d *Disk) Chain() (chain []ChainImage) {
	if d.image == nil {
		return []ChainImage{{d.Files[0], d.Bytes, d.Info}}
	}
	for _, f := range d.image.chain() {
		chain = append(chain, ChainImage{f.name, f.bytes(), f.info})
	}
	return chain
}

// Options tell how a source's points are found and opened.
type Options struct {
	Replay guestfs.Replay
	// AllowChangedParent opens differencing images whose parent has the right id
	// but another time stamp than they recorded.
	AllowChangedParent bool
	// Location is the zone in which dates in file names are read; nil: local.
	Location *time.Location
	// Layout tells machine, disk and time from the paths of images; nil: they are
	// recognised.
	Layout *layout.Template
	// GroupWindow is how far apart the times of a machine's disks may lie in one
	// point; 0: DefaultGroupWindow, negative: not at all.
	GroupWindow time.Duration
	// Spool keeps bytes that are dear to make; nil: in temporary files.
	Spool imageformats.Spooler
	// Cache returns the cache that is laid over what lies far away, opened when it
	// is first needed; nil: a source that lies far away can't be opened.
	Cache func() (*cache.Cache, error)
	// SSH is the ssh program with its options; empty: "ssh".
	SSH []string
	// EBS says what snapshots cost and may cost at most; the rest of it comes from
	// the source's location and from what AWS's own tools are configured with.
	EBS EBSOptions
	// NumericIDs takes recorded owners by number instead of by name.
	NumericIDs bool
	// Logger receives warnings; nil discards them.
	Logger *slog.Logger
}

// ErrNotFound is matched by every "no such point, machine, disk or volume".
var ErrNotFound = errors.New("not found")

// ErrChanged is matched by an error about a file of the source that has been
// written to since it was listed or opened: what it is now is another point.
var ErrChanged = origin.ErrChanged

func notFoundf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrNotFound)...)
}
