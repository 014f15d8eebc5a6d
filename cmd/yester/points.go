package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"yester/restorepoint"
)

func newPointsCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "points SOURCE",
		Short: "List the restore points",
		Long: `List the restore points of SOURCE, oldest first: their id (which is their time in
UTC), machine, kind of image, size of the disks, bytes that the point's own files
take, and that file, or what has made the point. Where it is known, STATE says how
consistent the disks are: clean, quiesced, crash-consistent, or running for those
that a machine may be writing to. A point that can't be opened says why under
PROBLEM.

The time is that of the snapshot where one is noted, else it comes from a date in
the name of the file or of a folder above it, else from the image's header, else it
is when the file was last modified. Dates in names are local time unless they have
a zone.`,
		Example: `  yester points /backups/web01
  yester points /backups --machine web01 --json
  yester points /backups --layout '{machine}/{time:2006-01-02}/{disk}.vmdk'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			src, err := g.open(args[0], g.logger())
			if err != nil {
				return err
			}
			defer src.Close()
			cat, err := g.list(ctx, src)
			if err != nil {
				return err
			}
			points := cat.Points
			if g.machine != "" || g.at != "" {
				if points, err = g.machinePoints(src, cat); err != nil {
					return err
				}
			}
			if g.at != "" {
				p, err := g.choose(points)
				if err != nil {
					return err
				}
				points = []restorepoint.Point{p}
			}
			if g.json {
				for i := range points {
					if err := printJSON(g.stdout, &points[i]); err != nil {
						return err
					}
				}
				return nil
			}
			return g.printPoints(points)
		},
	}
}

// printPoints prints a table with a line for each point. Columns that would be the
// same for all of them are left out, so that it fits a terminal.
func (g *globalFlags) printPoints(points []restorepoint.Point) error {
	var disks, states, from, problems bool
	for _, p := range points {
		disks = disks || len(p.Disks) > 1
		states = states || p.Consistency != ""
		from = from || p.Provenance != ""
		problems = problems || p.Problem != ""
	}
	quote := terminal(g.stdout)
	w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
	row := func(id, local, machine, kind, count, size, stored, state, origin, problem string) {
		r := []string{id}
		add := func(shown bool, s string) {
			if shown {
				r = append(r, s)
			}
		}
		add(g.local, local)
		r = append(r, machine, kind)
		add(disks, count)
		r = append(r, size, stored)
		add(states, state)
		r = append(r, origin)
		add(problems, problem)
		fmt.Fprintln(w, strings.TrimRight(strings.Join(r, "\t"), "\t"))
	}
	last := "FILE"
	if from {
		last = "FROM"
	}
	row("ID", "LOCAL TIME", "MACHINE", "KIND", "DISKS", "DISK", "STORED", "STATE", last, "PROBLEM")
	for i := range points {
		p := &points[i]
		kind, count, size, stored := p.Layout, "-", "-", "-"
		if p.Kind == restorepoint.KindDisks {
			kind, size, stored = diskSums(p)
			count = strconv.Itoa(len(p.Disks))
		}
		row(p.ID, g.showTime(p.Time), shownName(p.Machine, quote), kind, count, size, stored,
			orDash(string(p.Consistency)), shownName(pointOrigin(p), quote), shownName(p.Problem, quote))
	}
	return w.Flush()
}

// pointOrigin says where a point comes from: what has made it, or else its file.
func pointOrigin(p *restorepoint.Point) string {
	switch {
	case p.Provenance != "":
		return p.Provenance
	case p.Kind == restorepoint.KindTree:
		return orDash(p.Name)
	case len(p.Disks) > 1:
		return fmt.Sprintf("%s and %d more", p.Disks[0].Files[0], len(p.Disks)-1)
	}
	return p.Disks[0].Files[0]
}

// diskSums describes the disks of a point: the kind of their images, the sizes of
// all of them.
func diskSums(p *restorepoint.Point) (kind, size, stored string) {
	var kinds []string
	var virtual, bytes int64
	for _, d := range p.Disks {
		if k := strings.TrimSpace(d.Info.Format + " " + d.Info.Variant); k != "" && !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
		virtual += d.Info.Size
		bytes += d.Bytes
	}
	return orDash(strings.Join(kinds, ", ")), formatBytes(virtual), formatBytes(bytes)
}
