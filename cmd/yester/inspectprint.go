package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"yester/guestfs"
)

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
	for i := range in.Groups {
		fmt.Fprintln(out)
		printGroup(out, &in.Groups[i])
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

func printGroup(out io.Writer, vg *inspectedGroup) {
	fmt.Fprintf(out, "Volume group %s: %s, id %s\n", printable(vg.Name), vg.Scheme, vg.ID)
	for _, s := range vg.Warnings {
		fmt.Fprintf(out, "    warning: %s\n", printable(s))
	}
	for i := range vg.Volumes {
		printVolume(out, &vg.Volumes[i])
	}
}

func printVolume(out io.Writer, v *inspectedVolume) {
	fmt.Fprintf(out, "  Volume %s: %s", v.Name, formatBytes(v.Size))
	if v.UUID == "" {
		fmt.Fprintf(out, " at byte %d", v.Start)
	}
	for _, s := range []struct{ what, value string }{{"type ", v.Type}, {"label ", v.Label}, {"PARTUUID=", v.PartUUID}, {"UUID ", v.UUID}} {
		if s.value != "" {
			fmt.Fprintf(out, ", %s%s", s.what, printable(s.value))
		}
	}
	fmt.Fprintln(out)
	if v.Error != "" {
		fmt.Fprintf(out, "    damaged: %s\n", printable(v.Error))
		return
	}
	if m := v.Member; m != nil {
		fmt.Fprintf(out, "    %s %s", m.Type, m.ID)
		if m.Group != "" {
			fmt.Fprintf(out, " of volume group %s", printable(m.Group))
		}
		fmt.Fprintln(out)
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
