package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"yester/cache"
	"yester/cache/store"
	"yester/internal/exitcode"
	"yester/restorepoint/timeexpr"
)

func newCacheCommand(g *globalFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Look after what is kept of sources that lie far away",
		Long: `yester keeps what it has fetched from afar, and what was dear to make, in a
directory on this host: $XDG_CACHE_HOME/yester (~/.cache/yester), or --cache-dir. It
never takes up more than --cache-size, nor more than half of the disk's free space; what was used
least goes first. It may be removed at any time.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newCacheStatusCommand(g), newCacheWarmCommand(g), newCachePruneCommand(g), newCacheVerifyCommand(g))
	return cmd
}

func newCacheStatusCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "List what the cache holds",
		Long: `List what the cache holds: for each object its size, how much of it is present,
what it takes up on the disk and when it was last used. What running mounts and
targets read from it is shown by ` + "`yester status`" + `.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.existingCache()
			if err != nil {
				return err
			}
			sum, list := cacheSummary{Kind: "cache", Dir: g.cache.cfg.Dir}, []store.Info(nil)
			if c != nil {
				if list, err = c.Store().Objects(); err == nil {
					sum.Used, sum.Limit, err = c.Store().Usage()
				}
				if err != nil {
					return err
				}
			}
			if !g.json {
				return g.printCache(cmd.OutOrStdout(), sum, list)
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			err = enc.Encode(sum)
			for _, i := range list {
				err = errors.Join(err, enc.Encode(i))
			}
			return err
		},
	}
}

// cacheSummary is the first object of `yester cache status --json`.
type cacheSummary struct {
	Kind  string `json:"kind"` // "cache"
	Dir   string `json:"dir"`
	Used  int64  `json:"used"`  // bytes on disk
	Limit int64  `json:"limit"` // that it may take up
}

// existingCache returns the cache; nil when there is none yet.
func (g *globalFlags) existingCache() (*cache.Cache, error) {
	if g.cache.cfg.Dir == "" {
		dir, err := cache.Dir()
		if err != nil {
			return nil, err
		}
		g.cache.cfg.Dir = dir
	}
	if _, err := os.Stat(g.cache.cfg.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return g.cache.get()
}

func (g *globalFlags) printCache(out io.Writer, sum cacheSummary, list []store.Info) error {
	if sum.Limit == 0 {
		_, err := fmt.Fprintf(out, "%s: nothing is cached\n", sum.Dir)
		return err
	}
	fmt.Fprintf(out, "%s: %s of at most %s\n", sum.Dir, formatBytes(sum.Used), formatBytes(sum.Limit))
	if len(list) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	// The key is last: it may be long.
	fmt.Fprintln(w, "KIND\tSIZE\tPRESENT\tON DISK\tLAST USE\tKEY")
	for _, i := range list {
		used := "-"
		if !i.LastUse.IsZero() {
			used = g.showTime(i.LastUse)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", i.Kind, formatBytes(i.Size), formatBytes(i.Present), formatBytes(i.OnDisk), used, printable(i.Key))
	}
	return w.Flush()
}

func newCachePruneCommand(g *globalFlags) *cobra.Command {
	var older, keep string
	cmd := &cobra.Command{
		Use:   "prune [KEY-PREFIX]",
		Short: "Remove what the cache holds",
		Long: `Remove from the cache what nobody has in use: everything, or what has a key that
begins with KEY-PREFIX, or what wasn't used for some time, or the least used until
the rest fits into a size.`,
		Example: `  yester cache prune --older-than 30D
  yester cache prune --keep 2G`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if older != "" && keep != "" {
				return &codedError{msg: "--older-than and --keep can't be given together", code: exitcode.Usage}
			}
			var what store.Pruning
			if len(args) > 0 {
				what.Prefix = args[0]
			}
			var err error
			if what.OlderThan, err = parseAge(older); err != nil {
				return &codedError{err: err, code: exitcode.Usage}
			}
			if keep != "" {
				if what.Keep, err = parseSize(keep); err != nil {
					return &codedError{msg: "--keep", err: err, code: exitcode.Usage}
				}
			}
			c, err := g.existingCache()
			if err != nil {
				return err
			}
			var freed int64
			if c != nil {
				if freed, err = c.Store().Prune(cmd.Context(), what); err != nil {
					return err
				}
			}
			if g.json {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Freed int64 `json:"freed"`
				}{freed})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s freed\n", formatBytes(freed))
			return err
		},
	}
	cmd.Flags().StringVar(&older, "older-than", "", "only what wasn't used for `AGE`: 12h, 30D, 4W")
	cmd.Flags().StringVar(&keep, "keep", "", "keep the most recently used `SIZE`: 500M, 2G")
	return cmd
}

// parseAge reads an age in the form that --at takes.
func parseAge(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	now := time.Now()
	e, err := timeexpr.Parse(s, now, nil)
	if err != nil || e.Kind != timeexpr.Instant || !e.Time.Before(now) {
		return 0, fmt.Errorf("--older-than %q is no age like 12h or 30D", s)
	}
	return now.Sub(e.Time), nil
}

func newCacheVerifyCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Read all that the cache holds and drop what is damaged",
		Long: `Read every block that the cache holds and compare it with its checksum. What is
damaged is dropped, and fetched again when it is needed. A block is verified
anyway before its first use; this finds out about a disk that fails.

The exit code is 1 when something was damaged.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.existingCache()
			if err != nil {
				return err
			}
			var p store.Progress
			if c != nil {
				if p, err = c.Store().Verify(cmd.Context(), nil); err != nil {
					return err
				}
			}
			if g.json {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Blocks  int64 `json:"blocks"`
					Bytes   int64 `json:"bytes"`
					Damaged int64 `json:"damaged"`
				}{p.Blocks, p.Bytes, p.Bad})
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d blocks (%s) verified, %d damaged\n", p.Blocks, formatBytes(p.Bytes), p.Bad)
			}
			if err == nil && p.Bad > 0 {
				err = &codedError{msg: fmt.Sprintf("%d blocks of the cache were damaged, and are dropped", p.Bad),
					hint: "they are fetched again when they are needed; see to the disk", code: exitcode.Partial}
			}
			return err
		},
	}
}
