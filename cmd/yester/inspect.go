package main

import (
	"bufio"
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"yester/guestfs"
	"yester/guestfs/guestview"
	"yester/imageformats"
	"yester/internal/ondisk"
	"yester/restorepoint"
)

func newInspectCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect SOURCE",
		Short: "Show what a restore point is made of",
		Long: `Show what a restore point is made of: the files of its image chain, partition
tables, volumes, filesystems with the state of their journals, the operating
system, and where its /etc/fstab mounts the volumes.`,
		Example: `  yester inspect /backups/web01
  yester inspect /backups/web01 --at 1W --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			s, err := g.openPoint(ctx, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			var t tally
			in, err := g.inspect(ctx, s, &t)
			if err != nil {
				return err
			}
			if g.json {
				err = printJSON(g.stdout, in)
			} else {
				out := bufio.NewWriter(g.stdout)
				g.printInspection(out, in)
				err = out.Flush()
			}
			if err != nil {
				return err
			}
			return t.result()
		},
	}
}

// inspection is what --json prints.
type inspection struct {
	Source      string                   `json:"source"`
	Point       string                   `json:"point"`
	Machine     string                   `json:"machine"`
	Time        string                   `json:"time"`
	TimeFrom    string                   `json:"time_from"`
	Kind        restorepoint.Kind        `json:"kind"`
	Layout      string                   `json:"layout"`
	Name        string                   `json:"name,omitempty"`
	Provenance  string                   `json:"provenance,omitempty"`
	Consistency restorepoint.Consistency `json:"consistency,omitempty"`
	Notes       []string                 `json:"notes,omitempty"`
	Tree        *guestfs.Info            `json:"tree,omitempty"`   // of a point without disks
	Disks       []inspectedDisk          `json:"disks,omitempty"`  // of a point that has disks
	Groups      []inspectedGroup         `json:"groups,omitempty"` // volume groups on these disks
	OS          *guestview.OS            `json:"os,omitempty"`
	Mounts      []guestview.Mount        `json:"mounts,omitempty"` // of the guest view; none without a root filesystem
	Warnings    []string                 `json:"warnings,omitempty"`
}

type inspectedDisk struct {
	Name       string             `json:"name"`
	Size       int64              `json:"size"`
	MaxCost    *restorepoint.Cost `json:"max_cost,omitempty"` // of reading all of it, where that costs money
	Chain      []inspectedImage   `json:"chain"`              // the point's own image first
	Scheme     string             `json:"scheme,omitempty"`
	ID         string             `json:"id,omitempty"`
	SectorSize int                `json:"sector_size,omitempty"`
	Warnings   []string           `json:"warnings,omitempty"`
	Error      string             `json:"error,omitempty"` // why there are no volumes
	Volumes    []inspectedVolume  `json:"volumes,omitempty"`
}

type inspectedImage struct {
	File   string             `json:"file"`
	Stored int64              `json:"stored"` // bytes
	Image  *imageformats.Info `json:"image,omitempty"`
}

type inspectedVolume struct {
	Name       string        `json:"name"`
	Start      int64         `json:"start"` // bytes
	Size       int64         `json:"size"`  // bytes
	Type       string        `json:"type,omitempty"`
	Label      string        `json:"label,omitempty"`
	PartUUID   string        `json:"partuuid,omitempty"` // of a partition
	UUID       string        `json:"uuid,omitempty"`     // of a logical volume
	Active     bool          `json:"active,omitempty"`
	Member     *volumeMember `json:"member,omitempty"` // of a volume that is part of a group
	Filesystem *guestfs.Info `json:"filesystem,omitempty"`
	Error      string        `json:"error,omitempty"` // why the filesystem can't be read
}

// inspectedGroup is a volume group.
type inspectedGroup struct {
	Name     string            `json:"name"`
	Scheme   string            `json:"scheme"`
	ID       string            `json:"id"`
	Missing  []string          `json:"missing,omitempty"` // UUIDs of the physical volumes that aren't there
	Warnings []string          `json:"warnings,omitempty"`
	Volumes  []inspectedVolume `json:"volumes,omitempty"`
}

// volumeMember says what a volume is part of.
type volumeMember struct {
	Type  string `json:"type"`
	ID    string `json:"id"`
	Group string `json:"group,omitempty"`
}

// inspect finds everything out. What is damaged is reported, and counted in t.
func (g *globalFlags) inspect(ctx context.Context, s *session, t *tally) (*inspection, error) {
	p := &s.point.Point
	in := &inspection{
		Source: s.src.Location(), Point: p.ID, Machine: p.Machine,
		Time: g.showTime(p.Time), TimeFrom: string(p.TimeFrom),
	}
	in.Kind, in.Layout, in.Name = p.Kind, p.Layout, p.Name
	in.Provenance, in.Consistency, in.Notes = p.Provenance, p.Consistency, p.Notes
	if s.point.Tree != nil {
		info := s.point.Tree.Info()
		in.Tree = &info
		t.ok++
		return in, nil
	}
	vols, err := s.point.Volumes(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		g.problem(t, err)
	}
	for _, d := range s.point.Disks {
		out := inspectedDisk{Name: d.Name, Size: d.Image.Size(), MaxCost: d.MaxCost()}
		for _, img := range d.Chain() {
			out.Chain = append(out.Chain, inspectedImage{File: img.Name, Stored: img.Bytes, Image: &img.Info})
		}
		if table, err := d.Table(ctx); err != nil {
			out.Error = err.Error()
		} else {
			out.Scheme, out.ID, out.SectorSize, out.Warnings = table.Scheme, table.ID, table.SectorSize, table.Warnings
		}
		for _, v := range vols {
			if v.Disk == d {
				iv, err := g.inspectVolume(ctx, v, t)
				if err != nil {
					return nil, err
				}
				out.Volumes = append(out.Volumes, iv)
			}
		}
		in.Disks = append(in.Disks, out)
	}
	if err := g.inspectGroups(ctx, s, in, vols, t); err != nil {
		return nil, err
	}
	return in, g.inspectGuest(ctx, s, in, t)
}

// inspectGroups adds the volume groups, and vols that belong to no disk, to in.
func (g *globalFlags) inspectGroups(ctx context.Context, s *session, in *inspection, vols []*restorepoint.OpenedVolume, t *tally) error {
	groups, warned, err := s.point.Groups(ctx)
	if err != nil {
		return ctx.Err() // which has been reported with the volumes
	}
	in.Warnings = append(in.Warnings, warned...)
	assembled := slices.DeleteFunc(slices.Clone(vols), func(v *restorepoint.OpenedVolume) bool { return v.Disk != nil })
	for i := range groups {
		vg := &groups[i]
		out := inspectedGroup{Name: vg.Name, Scheme: vg.Scheme, ID: vg.ID, Missing: vg.Missing, Warnings: vg.Warnings}
		for _, v := range assembled[:len(vg.Volumes)] {
			iv, err := g.inspectVolume(ctx, v, t)
			if err != nil {
				return err
			}
			out.Volumes = append(out.Volumes, iv)
		}
		assembled = assembled[len(vg.Volumes):]
		in.Groups = append(in.Groups, out)
	}
	return nil
}

func (g *globalFlags) inspectVolume(ctx context.Context, v *restorepoint.OpenedVolume, t *tally) (inspectedVolume, error) {
	iv := inspectedVolume{
		Name: v.Name, Start: v.Start, Size: v.Size(), Type: v.Type, Active: v.Active,
	}
	if v.Disk != nil {
		iv.Label, iv.PartUUID = v.Label, v.ID
	} else {
		iv.UUID = v.ID
	}
	if m := v.Member; m != nil {
		iv.Member = &volumeMember{Type: m.Type, ID: m.ID, Group: m.Group}
	}
	tree, err := v.Tree(ctx)
	switch {
	case err == nil:
		info := tree.Info()
		iv.Filesystem = &info
		t.ok++
	case ctx.Err() != nil:
		return iv, ctx.Err()
	case !errors.Is(err, ondisk.ErrFormat):
		iv.Error = err.Error()
		g.problem(t, err)
	}
	return iv, nil
}

// inspectGuest finds the operating system and its mounts.
func (g *globalFlags) inspectGuest(ctx context.Context, s *session, in *inspection, t *tally) error {
	view, err := s.point.GuestView(ctx)
	if err != nil {
		// Damage has been reported with its volume.
		return ctx.Err()
	}
	in.Mounts, in.Warnings = view.Mounts(), append(in.Warnings, view.Warnings...)
	system, err := guestview.DetectOS(ctx, view)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !errors.Is(err, guestfs.ErrNotExist) {
		g.problem(t, err)
	}
	if system != (guestview.OS{}) {
		in.OS = &system
	}
	return nil
}
