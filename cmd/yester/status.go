package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"yester/fusefs"
	"yester/internal/running"
)

func newStatusCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "List what yester serves on this machine",
		Long: `List the mounts of the user who asks: source, directory, age, points, reads, errors.
A mount whose process has died is shown as dead; ` + "`yester umount`" + ` cleans it up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := mountStatus(cmd)
			if err != nil {
				return err
			}
			if g.json {
				enc := json.NewEncoder(cmd.OutOrStdout())
				for _, r := range rows {
					if err := enc.Encode(r); err != nil {
						return err
					}
				}
				return nil
			}
			return printStatus(cmd.OutOrStdout(), rows)
		},
	}
}

// statusRow is one mount as `yester status --json` shows it.
type statusRow struct {
	running.Service
	State string        `json:"state"` // "serving", "dead"
	Age   float64       `json:"age_seconds"`
	Stats *fusefs.Stats `json:"stats,omitempty"`
}

func mountStatus(cmd *cobra.Command) ([]statusRow, error) {
	services, err := running.List(cmd.Context())
	if err != nil {
		return nil, err
	}
	mounted, err := fusefs.Mountpoints()
	if err != nil {
		return nil, err
	}
	var rows []statusRow
	for _, s := range services {
		r := statusRow{Service: s.Service, State: "serving", Age: time.Since(s.Started).Seconds()}
		if !s.Alive {
			if !slices.Contains(mounted, s.Where) {
				s.Forget() // nothing is left of it but its entry
				continue
			}
			r.State = "dead"
		} else if s.Stats != nil {
			r.Stats = new(fusefs.Stats)
			if err := json.Unmarshal(s.Stats, r.Stats); err != nil {
				return nil, fmt.Errorf("process %d: %w", s.PID, err)
			}
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func printStatus(out io.Writer, rows []statusRow) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "nothing is mounted")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DIRECTORY\tSOURCE\tSTATE\tPID\tAGE\tPOINTS\tOPEN\tREADS\tBYTES\tERRORS")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s", r.Where, r.Source, r.State, r.PID,
			(time.Duration(r.Age) * time.Second).String())
		if s := r.Stats; s != nil {
			fmt.Fprintf(w, "\t%d\t%d\t%d\t%s\t%d", s.Points, s.Open, s.Reads, formatBytes(s.Bytes), s.Errors)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}
