package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"yester/cache"
	"yester/fusefs"
	"yester/internal/running"
	"yester/restorepoint"
)

func newStatusCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "List what yester serves on this machine",
		Long: `List the mounts and iSCSI portals of the user who asks: source, place, age, points,
reads, errors; and of portals the sessions: who, from where, what was read, when
last. A mount whose process has died is shown as dead; ` + "`yester umount`" + ` cleans it up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := serviceStatus(cmd)
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

// mountStats is what a mount answers `yester status` with.
type mountStats struct {
	fusefs.Stats
	Cache     *cache.Stats            `json:"cache,omitempty"`     // nil while nothing has needed it
	Cost      *restorepoint.Cost      `json:"cost,omitempty"`      // of sources that cost money
	Hydration *restorepoint.Hydration `json:"hydration,omitempty"` // nil without --hydrate
}

// statusRow is one service as `yester status --json` shows it.
type statusRow struct {
	running.Service
	State string  `json:"state"` // "serving", "dead"
	Age   float64 `json:"age_seconds"`
	Stats any     `json:"stats,omitempty"` // *mountStats, *iscsiStats
}

func serviceStatus(cmd *cobra.Command) ([]statusRow, error) {
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
			r.Stats = new(mountStats)
			if s.Kind == "iscsi" {
				r.Stats = new(iscsiStats)
			}
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
		_, err := fmt.Fprintln(out, "nothing is mounted or served")
		return err
	}
	mounts := statusTable{head: "DIRECTORY\tSOURCE\tSTATE\tPID\tAGE\tPOINTS\tOPEN\tREADS\tBYTES\tERRORS"}
	portals := statusTable{head: "PORTAL\tSOURCE\tSTATE\tPID\tAGE\tTARGETS\tOPEN\tSESSIONS\tREADS\tBYTES\tERRORS\tLAST"}
	caches := statusTable{head: "CACHE OF\tHITS\tMISSES\tFETCHED\tAHEAD\tUSED\tFAILED\tIN FLIGHT"}
	costs := statusTable{head: "COST OF\tSINCE IT WAS MOUNTED"}
	fetching := statusTable{head: "HYDRATION OF\tFETCHED\tLOOKED AT\tOF\tSTATE"}
	sessions := statusTable{head: "INITIATOR\tFROM\tUSER\tTARGET\tAGE\tCOMMANDS\tREAD\tWRITTEN\tLAST"}
	for _, r := range rows {
		row := fmt.Sprintf("%s\t%s\t%s\t%d\t%s", r.Where, r.Source, r.State, r.PID, formatAge(time.Duration(r.Age)*time.Second))
		switch s := r.Stats.(type) {
		case *mountStats:
			caches.addCache(r.Where, s.Cache)
			fetching.addHydration(r.Where, s.Hydration)
			if s.Cost != nil {
				costs.add(r.Where + "\t" + s.Cost.Text)
			}
			row += fmt.Sprintf("\t%d\t%d\t%d\t%s\t%d", s.Points, s.Open, s.Reads, formatBytes(s.Bytes), s.Errors)
		case *iscsiStats:
			caches.addCache(r.Where, s.Cache)
			row += fmt.Sprintf("\t%d\t%d\t%d\t%d\t%s\t%d\t%s", s.Targets, s.Open, len(s.Sessions), s.Reads, formatBytes(s.Bytes), s.Errors, formatSince(s.Last))
			for _, c := range s.Sessions {
				sessions.add(fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s", printable(c.Initiator), c.From, orDash(printable(c.User)),
					orDash(c.Target), formatSince(c.Since), c.Commands, formatBytes(c.BytesRead), formatBytes(c.BytesWritten), formatSince(c.LastActivity)))
			}
		}
		if r.Kind == "iscsi" {
			portals.add(row)
		} else {
			mounts.add(row)
		}
	}
	between := ""
	for _, t := range []statusTable{mounts, portals, sessions, caches, fetching, costs} {
		if len(t.rows) == 0 {
			continue
		}
		if _, err := io.WriteString(out, between); err != nil {
			return err
		}
		between = "\n"
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, t.head)
		for _, row := range t.rows {
			fmt.Fprintln(w, row)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// statusTable is a table of cells with tabs between them.
type statusTable struct {
	head string
	rows []string
}

// addHydration adds how far a mount's hydration is, if there is one.
func (t *statusTable) addHydration(where string, h *restorepoint.Hydration) {
	if h == nil {
		return
	}
	state := "under way"
	switch {
	case h.Error != "":
		state = "ended: " + printable(h.Error)
	case h.Done:
		state = "done"
	case h.Paused:
		state = "paused"
	}
	t.add(fmt.Sprintf("%s\t%s\t%d\t%d blocks\t%s", where, formatBytes(h.Bytes), h.Blocks, h.Total, state))
}

func (t *statusTable) add(row string) { t.rows = append(t.rows, row) }

// addCache adds the figures of a process's cache, where it has one.
func (t *statusTable) addCache(where string, s *cache.Stats) {
	if s != nil {
		t.add(fmt.Sprintf("%s\t%d\t%d\t%d (%s)\t%d\t%d\t%d\t%d", where, s.Hits, s.Misses, s.Fetched, formatBytes(s.FetchedBytes),
			s.Prefetched, s.PrefetchedUsed, s.Failed, s.InFlight))
	}
}

// formatAge formats a time to the second.
func formatAge(d time.Duration) string { return d.Truncate(time.Second).String() }

// formatSince formats how long ago t was.
func formatSince(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return formatAge(max(0, time.Since(t)))
}
