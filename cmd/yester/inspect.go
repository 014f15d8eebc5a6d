package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

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
	Tree        *guestfs.Info            `json:"tree,omitempty"`  // of a point without disks
	Disks       []inspectedDisk          `json:"disks,omitempty"` // of a point that has disks
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
	PartUUID   string        `json:"partuuid,omitempty"`
	Active     bool          `json:"active,omitempty"`
	Filesystem *guestfs.Info `json:"filesystem,omitempty"`
	Error      string        `json:"error,omitempty"` // why the filesystem can't be read
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
	return in, g.inspectGuest(ctx, s, in, t)
}

func (g *globalFlags) inspectVolume(ctx context.Context, v *restorepoint.OpenedVolume, t *tally) (inspectedVolume, error) {
	iv := inspectedVolume{
		Name: v.Name, Start: v.Start, Size: v.Size(), Type: v.Type, Label: v.Label, PartUUID: v.ID, Active: v.Active,
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
	in.Mounts, in.Warnings = view.Mounts(), view.Warnings
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

func (g *globalFlags) printInspection(out io.Writer, in *inspection) {
	fmt.Fprintf(out, "Restore point %s of %s (%s, by its %s)\n", in.Point, printable(in.Machine), in.Time, in.TimeFrom)
	if in.Tree != nil {
		fmt.Fprintf(out, "\nA directory tree, found as %s", in.Layout)
		if in.Name != "" {
			fmt.Fprintf(out, ", called %s", printable(in.Name))
		}
		fmt.Fprintln(out)
		if in.Tree.Files > 0 {
			fmt.Fprintf(out, "%d files and directories\n", in.Tree.Files)
		}
	}
	if in.Tree == nil && in.Provenance != "" {
		fmt.Fprintln(out, printable(in.Provenance))
	}
	if in.Name != "" && in.Tree == nil {
		fmt.Fprintf(out, "Called %s\n", printable(in.Name))
	}
	if in.Consistency != "" {
		fmt.Fprintf(out, "State: %s\n", in.Consistency)
	}
	for _, s := range in.Notes {
		fmt.Fprintf(out, "Note: %s\n", printable(s))
	}
	for i := range in.Disks {
		fmt.Fprintln(out)
		g.printDisk(out, &in.Disks[i])
	}
	if o := in.OS; o != nil {
		fmt.Fprintf(out, "\nSystem: %s", printable(o.Name))
		for _, s := range []string{o.Hostname, o.Arch} {
			if s != "" {
				fmt.Fprintf(out, ", %s", printable(s))
			}
		}
		fmt.Fprintln(out)
	}
	if len(in.Mounts) > 0 {
		fmt.Fprintln(out, "\nMounts, by its /etc/fstab:")
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, m := range in.Mounts {
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", printable(m.Path), orDash(m.Volume), printable(orDash(m.Spec)), printable(strings.Join(m.Options, ",")))
		}
		w.Flush()
	}
	for _, w := range in.Warnings {
		fmt.Fprintf(out, "  warning: %s\n", printable(w))
	}
}

func (g *globalFlags) printDisk(out io.Writer, d *inspectedDisk) {
	fmt.Fprintf(out, "Disk %s: %s (%d bytes)\n", printable(d.Name), formatBytes(d.Size), d.Size)
	if d.MaxCost != nil {
		fmt.Fprintf(out, "  Reading all of it costs at most %s\n", d.MaxCost.Text)
	}
	fmt.Fprintln(out, "  Image chain, this point's first:")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, img := range d.Chain {
		fmt.Fprintf(w, "    %s", printable(img.File))
		if i := img.Image; i != nil {
			fmt.Fprintf(w, "\t%s\t%s stored", strings.TrimSpace(i.Format+" "+i.Variant), formatBytes(img.Stored))
			if i.ID != "" {
				fmt.Fprintf(w, "\tid %s", i.ID)
			}
			if !i.Created.IsZero() {
				fmt.Fprintf(w, "\tmade %s by %s", g.showTime(i.Created), printable(orDash(i.Creator)))
			}
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	for _, img := range d.Chain {
		if img.Image != nil {
			for _, s := range img.Image.Warnings {
				fmt.Fprintf(out, "    warning: %s: %s\n", printable(img.File), printable(s))
			}
		}
	}
	switch {
	case d.Error != "":
		fmt.Fprintf(out, "  Partition table: damaged: %s\n", printable(d.Error))
		return
	case d.Scheme == "disk":
		fmt.Fprintln(out, "  Partition table: none")
	default:
		fmt.Fprintf(out, "  Partition table: %s, id %s, sectors of %d bytes\n", d.Scheme, orDash(d.ID), d.SectorSize)
	}
	for _, s := range d.Warnings {
		fmt.Fprintf(out, "    warning: %s\n", printable(s))
	}
	for i := range d.Volumes {
		printVolume(out, &d.Volumes[i])
	}
}

func printVolume(out io.Writer, v *inspectedVolume) {
	fmt.Fprintf(out, "  Volume %s: %s at byte %d", v.Name, formatBytes(v.Size), v.Start)
	for _, s := range []struct{ what, value string }{{"type ", v.Type}, {"label ", v.Label}, {"PARTUUID=", v.PartUUID}} {
		if s.value != "" {
			fmt.Fprintf(out, ", %s%s", s.what, printable(s.value))
		}
	}
	fmt.Fprintln(out)
	if v.Error != "" {
		fmt.Fprintf(out, "    damaged: %s\n", printable(v.Error))
		return
	}
	fs := v.Filesystem
	if fs == nil {
		fmt.Fprintln(out, "    no filesystem that yester can read")
		return
	}
	fmt.Fprintf(out, "    %s, %s of %s used, %d files", fs.Type, formatBytes(fs.Size-fs.Free), formatBytes(fs.Size), fs.Files)
	if fs.Label != "" {
		fmt.Fprintf(out, ", label %s", printable(fs.Label))
	}
	if fs.UUID != "" {
		fmt.Fprintf(out, ", UUID=%s", fs.UUID)
	}
	fmt.Fprintf(out, "\n    journal: %s", journalTexts[fs.Journal])
	if fs.LastMount != "" {
		fmt.Fprintf(out, "; last mounted on %s", printable(fs.LastMount))
	}
	fmt.Fprintln(out)
	if len(fs.Features) > 0 {
		fmt.Fprintf(out, "    features: %s\n", strings.Join(fs.Features, " "))
	}
}

// journalTexts say what the states of a journal mean.
var journalTexts = map[guestfs.Journal]string{
	guestfs.JournalNone:     "none",
	guestfs.JournalClean:    "clean",
	guestfs.JournalReplayed: "was in use, replayed in memory",
	guestfs.JournalIgnored:  "was in use and is not replayed: files may be stale or missing",
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
