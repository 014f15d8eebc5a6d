package main

import (
	"fmt"
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
UTC), machine, kind of image, size of the disk, bytes that the point's own file
takes, and that file. A point that can't be opened says why under PROBLEM.

The time comes from a date in the name of the file or of a folder above it, else
from the image's header, else it is when the file was last modified. Dates in
names are local time unless they have a zone.`,
		Example: `  yester points /backups/web01
  yester points /backups --machine web01 --json`,
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

func (g *globalFlags) printPoints(points []restorepoint.Point) error {
	quote := terminal(g.stdout)
	problems := false
	for _, p := range points {
		problems = problems || p.Problem != ""
	}
	w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
	head := []string{"ID"}
	if g.local {
		head = append(head, "LOCAL TIME")
	}
	head = append(head, "MACHINE", "KIND", "DISK", "STORED", "FILE")
	if problems {
		head = append(head, "PROBLEM")
	}
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, p := range points {
		if p.Kind == restorepoint.KindTree {
			row := []string{p.ID}
			if g.local {
				row = append(row, g.showTime(p.Time))
			}
			row = append(row, shownName(p.Machine, quote), p.Layout, "-", "-", shownName(orDash(p.Name), quote))
			if problems {
				row = append(row, shownName(p.Problem, quote))
			}
			fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t"))
		}
		for i, d := range p.Disks {
			row := []string{p.ID}
			if i > 0 {
				row[0] = ""
			}
			if g.local {
				row = append(row, g.showTime(p.Time))
			}
			row = append(row, shownName(p.Machine, quote), strings.TrimSpace(d.Info.Format+" "+d.Info.Variant),
				formatBytes(d.Info.Size), formatBytes(d.Bytes), shownName(d.Files[0], quote))
			if problems {
				row = append(row, shownName(p.Problem, quote))
			}
			fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t"))
		}
	}
	return w.Flush()
}
