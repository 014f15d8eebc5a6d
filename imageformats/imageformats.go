// Package imageformats is the contract of virtual-disk containers: how a file is
// recognised, what its header says, and how it becomes the disk that the guest
// saw. Readers live in sub-packages; none knows of the others, and none opens a
// file by itself: a parent that an image names is found by restorepoint, inside
// the source, and passed to Open.
package imageformats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// Image is a decoded virtual disk: Size and offsets are the guest's.
type Image interface {
	block.Reader
	// Close releases what the Image holds; not the file it was opened from, and
	// not its parent.
	io.Closer
}

// Hasher is an Image whose container stores digests of the whole disk: what a
// check of all its bytes is to be compared with.
type Hasher interface {
	// Hashes returns the stored digests; nil for those that there are none of.
	Hashes() (md5, sha1 []byte)
}

// Digests are those of a Hasher, in lower-case hexadecimal; empty for those that
// there are none of.
type Digests struct {
	MD5  string `json:"md5,omitempty"`
	SHA1 string `json:"sha1,omitempty"`
}

// Info is what a container's headers say, read without its data or its parent.
type Info struct {
	Format     string    `json:"format"`               // "vhd", "raw", …
	Variant    string    `json:"variant,omitempty"`    // "fixed", "dynamic", "differencing"
	Size       int64     `json:"size"`                 // of the virtual disk, bytes
	BlockSize  int64     `json:"block_size,omitempty"` // allocation unit, bytes
	SectorSize int       `json:"sector_size"`          // logical sector, bytes; 0 when the format doesn't say
	ID         string    `json:"id,omitempty"`         // unique id, lower-case UUID form
	Created    time.Time `json:"created,omitzero"`     // by the header; zero when it has none
	Creator    string    `json:"creator,omitempty"`    // application and version
	Parent     *Parent   `json:"parent,omitempty"`     // nil when the image stands alone
	// Files names the further files that hold parts of the image (VMDK extents, a
	// qcow2 data file, EWF segments), as the image names them: not to be trusted
	// as paths. Whoever opens the image finds them inside the source.
	Files []string `json:"files,omitempty"`
	// Snapshots are the states that the image holds beside its active one, oldest
	// first.
	Snapshots []Snapshot `json:"snapshots,omitempty"`
	Digests   *Digests   `json:"digests,omitempty"`  // of the whole disk, as the container stores them; nil when it has none
	Warnings  []string   `json:"warnings,omitempty"` // damage that a second copy made good, a dirty log, …
}

// Snapshot is a state kept inside an image (a qcow2 internal snapshot).
type Snapshot struct {
	ID   string    `json:"id"` // unique in the image; what OpenOptions.Snapshot takes
	Name string    `json:"name,omitempty"`
	Time time.Time `json:"time,omitzero"`
	Size int64     `json:"size"` // of the virtual disk at that time, bytes
	// Running: it holds a machine's memory, so the disk is of a running machine.
	Running bool `json:"running,omitempty"`
}

// Parent is what a differencing image says of its parent. Everything in it comes
// from the image and is not to be trusted as a path.
type Parent struct {
	ID    string `json:"id,omitempty"`     // must equal the parent's Info.ID; empty when the format has none
	AltID string `json:"alt_id,omitempty"` // will do as well as ID, where the format has two
	// IDShared says that the ID tells contents, not images: clones have the same,
	// and writing to an image changes it (VMDK). The parent is the one that the
	// names lead to, and the ID only proves it.
	IDShared bool      `json:"-"`
	Format   string    `json:"format,omitempty"`   // the parent's container, where the child says it ("raw")
	Modified time.Time `json:"modified,omitzero"`  // the parent's time stamp when the child was made
	Name     string    `json:"name,omitempty"`     // file name; of formats without ids and locators, the path as stored
	Locators []Locator `json:"locators,omitempty"` // in the order of preference
}

// Locator is one way in which a child names its parent's file.
type Locator struct {
	Platform string `json:"platform"` // "W2ru", "W2ku", "MacX"
	Path     string `json:"path"`     // decoded to UTF-8, as stored: back slashes and drive letters
	Relative bool   `json:"relative"` // to the child's folder
}

// OpenOptions go to a Format's Open.
type OpenOptions struct {
	// Parent is the opened parent that Info.Parent asks for, and ParentInfo its
	// Info; nil for images that stand alone.
	Parent     Image
	ParentInfo *Info
	// Files are the files that Info.Files names, in its order.
	Files []block.Reader
	// Snapshot is the ID of the Snapshot to open; empty for the active state.
	Snapshot string
	// IgnoreLog shows the container as it lies there, without replaying its own
	// log in memory (VHDX): the image may then be stale or inconsistent.
	IgnoreLog bool
	// Name and ParentName are the files' names, for messages only.
	Name, ParentName string
	// ParentModTime is the parent file's modification time; zero when unknown.
	ParentModTime time.Time
	// AllowChangedParent turns the error about a parent with the right id but a
	// changed time stamp into a warning; where the id itself changes with what is
	// on the disk (VHDX), that about a wrong id.
	AllowChangedParent bool
	// Logger receives warnings; never nil when passed through Open.
	Logger *slog.Logger
}

// Format is a container reader that Probe and Open can choose.
type Format struct {
	Name string
	// Probe reads the headers of file. An error matching ondisk.ErrFormat says
	// that it is something else. It reads a few kilobytes only.
	Probe func(ctx context.Context, file block.Reader) (Info, error)
	// Open opens the container. It verifies the parent it is given against what
	// the headers say.
	Open func(ctx context.Context, file block.Reader, opt OpenOptions) (Image, error)
}

// ErrPart is matched by the error of a Probe about a file that holds a part of a
// disk and says so, but can't be opened without the file that names it: a VMDK
// extent without its descriptor, a segment that isn't the first. No other format
// is asked then. It matches ondisk.ErrFormat: such a file is no image, nor damage.
var ErrPart error = partError{}

type partError struct{}

func (partError) Error() string        { return "part of a disk" }
func (partError) Is(target error) bool { return target == ondisk.ErrFormat }

// Probe recognises file by its content with the first of formats that knows it;
// an error matching ondisk.ErrFormat when none does, and ondisk.ErrUnsupported when
// it is a disk image of another kind.
func Probe(ctx context.Context, file block.Reader, formats ...Format) (Format, Info, error) {
	for _, f := range formats {
		info, err := f.Probe(ctx, file)
		if err == nil {
			return f, info, nil
		}
		if !errors.Is(err, ondisk.ErrFormat) || errors.Is(err, ErrPart) {
			return f, Info{}, err
		}
	}
	if err := probeForeign(ctx, file); err != nil {
		return Format{}, Info{}, err
	}
	return Format{}, Info{}, fmt.Errorf("disk image: %w", ondisk.ErrFormat)
}
