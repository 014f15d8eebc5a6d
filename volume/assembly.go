package volume

import (
	"context"
	"fmt"
	"log/slog"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// Assembly is a scheme that puts several devices of one machine together: a
// volume manager whose volumes may begin on one disk and end on another.
type Assembly struct {
	Name string
	// Open looks at all of devs and returns what it makes of those that are its
	// own. It fails only when ctx ends: what is damaged or missing is told in the
	// result, beside what isn't.
	Open func(ctx context.Context, devs []Device, opt Options) (*Assembled, error)
}

// Device is a device that an Assembly may make use of.
type Device struct {
	Name   string // for messages; unique among the machine's
	Reader block.Reader
}

// Assembled is what an Assembly has found among the devices it was given.
type Assembled struct {
	Members  []Member // in the order of their devices
	Groups   []Group  // in the order of their names
	Warnings []string // about devices that belong to no group
	// Damage joins the errors of devices that couldn't be looked at at all; it is
	// nil when every device was.
	Damage error
}

// Member is a device that is part of an assembly, and so is nothing else: what
// looks like a filesystem at its beginning is none.
type Member struct {
	Device int    // index among the devices
	Type   string // "LVM2 PV"
	ID     string // as the field's tools write it
	Group  string // name of the group that it belongs to; empty for none
}

// Group is a set of devices put together, and the volumes on it.
type Group struct {
	Scheme   string // "lvm2"
	Name     string
	ID       string   // as the field's tools write it
	Missing  []string // IDs of the members that aren't there
	Volumes  []Volume
	Warnings []string
}

// ErrMissing is matched by the error of a volume that can't be read because a
// device it lies on isn't among the machine's. Such an error matches
// ondisk.ErrCorrupt too: what is there isn't whole.
var ErrMissing error = missingError{}

type missingError struct{}

func (missingError) Error() string { return "not in the restore point" }

func (missingError) Is(target error) bool { return target == ondisk.ErrCorrupt }

// Warnf adds a warning to a, up to a bound.
func (a *Assembled) Warnf(format string, args ...any) {
	a.Warnings = appendWarning(a.Warnings, format, args...)
}

// Warnf adds a warning to g, up to a bound.
func (g *Group) Warnf(format string, args ...any) {
	g.Warnings = appendWarning(g.Warnings, format, args...)
}

// Assemble asks each of assemblies what it makes of devs. What one has made is
// offered to those behind it, as further devices named by the volumes' names: the
// indices of Members go on counting from the end of devs, group by group.
func Assemble(ctx context.Context, devs []Device, opt Options, assemblies ...Assembly) ([]*Assembled, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	var found []*Assembled
	for _, s := range assemblies {
		a, err := s.Open(ctx, devs, opt)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		found = append(found, a)
		for i := range a.Groups {
			for _, v := range a.Groups[i].Volumes {
				devs = append(devs[:len(devs):len(devs)], Device{Name: v.Name, Reader: v.Reader})
			}
		}
	}
	return found, nil
}

// Unreadable is the Reader of a volume that is known to be there and can't be
// read: every read is Err.
type Unreadable struct {
	Bytes int64 // the volume's size
	Err   error
}

// Size implements block.Reader.
func (u *Unreadable) Size() int64 { return u.Bytes }

// ReadAt implements block.Reader.
func (u *Unreadable) ReadAt([]byte, int64) (int, error) { return 0, u.Err }

// Extent implements block.Mapper: nothing is known, not even of holes.
func (u *Unreadable) Extent(context.Context, int64, int64) (block.Extent, error) {
	return block.Extent{}, u.Err
}
