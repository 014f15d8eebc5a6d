package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"yester/cache"
	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/exitcode"
	"yester/restorepoint"
)

func newCacheWarmCommand(g *globalFlags) *cobra.Command {
	var bandwidth string
	cmd := &cobra.Command{
		Use:   "warm SOURCE [PATH...]",
		Short: "Fetch a restore point into the cache",
		Long: `Fetch all that a restore point of a source far away holds, or the files and
directories PATH of it, into the cache on this host, so that looking at it later
costs nothing. Of a disk, what was read in the last looks comes first, and only
what holds data is fetched. Interrupted and begun again, it goes on where it was.`,
		Example: `  yester cache warm ebs://vol-0123456789abcdef0 --at 2006-07-28 --bandwidth 20M
  yester cache warm sftp://backup@vault/srv/web01 /etc /home`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := parseBandwidth(bandwidth)
			if err != nil {
				return err
			}
			if len(args) > 1 {
				return g.warmPaths(cmd.Context(), args[0], args[1:])
			}
			return g.warm(cmd.Context(), args[0], limit)
		},
	}
	cmd.Flags().StringVar(&bandwidth, "bandwidth", "", "fetch at most this many bytes a second, such as `20M` (default no limit)")
	return cmd
}

func parseBandwidth(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := parseSize(s)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("--bandwidth is %q, not a number of bytes a second like 20M", s)
	}
	return n, nil
}

// warmed is what --json prints.
type warmed struct {
	Point   string  `json:"point"`
	Machine string  `json:"machine"`
	Bytes   int64   `json:"bytes"` // fetched, or with PATH: read
	Files   int64   `json:"files,omitempty"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// warm hydrates the disks of a point.
func (g *globalFlags) warm(ctx context.Context, source string, bandwidth int64) error {
	s, err := g.openPoint(ctx, source)
	if err != nil {
		return err
	}
	if s.point.Tree != nil {
		s.Close()
		return g.warmPaths(ctx, source, []string{"/"})
	}
	defer s.Close()
	if !s.point.Far() {
		return &codedError{msg: source + " lies on this host, and needs no cache", code: exitcode.Usage}
	}
	var now atomic.Pointer[restorepoint.Hydration]
	now.Store(&restorepoint.Hydration{})
	var m meter
	stop := g.show(func(at time.Time) string {
		h := now.Load()
		rate := m.add(at, h.Bytes)
		percent := int64(0)
		if h.Total > 0 {
			percent = h.Blocks * 100 / h.Total
		}
		return fmt.Sprintf("%3d%%  %s fetched  %s/s", percent, formatBytes(h.Bytes), formatBytes(int64(rate)))
	})
	began := time.Now()
	err = s.point.Hydrate(ctx, restorepoint.HydrateOptions{
		Bandwidth: bandwidth, Progress: func(h restorepoint.Hydration) { now.Store(&h) },
	})
	stop()
	out := warmed{Point: s.point.Point.ID, Machine: s.point.Point.Machine, Bytes: now.Load().Bytes, Seconds: time.Since(began).Seconds()}
	if errors.Is(err, cache.ErrBudget) {
		err = &codedError{err: err, code: exitcode.Partial, hint: "--cache-size sets how large it may be"}
	}
	return errors.Join(g.printWarmed(out, err), err)
}

func (g *globalFlags) printWarmed(w warmed, err error) error {
	if err != nil {
		w.Error = message(err)
	}
	if g.json {
		return printJSON(g.stdout, w)
	}
	if err == nil {
		fmt.Fprintf(g.stdout, "%s of %s is here: %s fetched in %s\n", w.Point, printable(w.Machine), formatBytes(w.Bytes), formatDuration(time.Duration(w.Seconds*float64(time.Second))))
	}
	return nil
}

// warmPaths reads files through the cache.
func (g *globalFlags) warmPaths(ctx context.Context, source string, paths []string) error {
	s, err := g.openTree(ctx, source)
	if err != nil {
		return err
	}
	defer s.Close()
	out := warmed{Point: s.point.Point.ID, Machine: s.point.Point.Machine}
	var bytes atomic.Int64
	var m meter
	stop := g.show(func(at time.Time) string { return m.line(at, bytes.Load(), -1, "") })
	began := time.Now()
	err = g.eachMatch(ctx, s.tree, paths, true, func(f found) error {
		return warmTree(ctx, s.tree, f.id, func(n int64) { bytes.Add(n) }, &out.Files)
	})
	stop()
	out.Bytes, out.Seconds = bytes.Load(), time.Since(began).Seconds()
	return errors.Join(g.printWarmed(out, err), err)
}

// warmTree reads every regular file at and below id. What can't be read is told
// at the end.
func warmTree(ctx context.Context, tree guestfs.Tree, id guestfs.ID, read func(n int64), files *int64) error {
	buf := make([]byte, 1<<20)
	seen := map[guestfs.ID]bool{}
	var errs []error
	for stack := []guestfs.ID{id}; len(stack) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		id := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[id] {
			continue
		}
		seen[id] = true
		a, err := tree.Attr(ctx, id)
		switch {
		case err != nil:
		case a.IsDir():
			err = tree.ReadDir(ctx, id, 0, func(d guestfs.Dirent) bool { stack = append(stack, d.ID); return true })
		case a.IsRegular():
			*files++
			err = readThrough(ctx, tree, id, buf, read)
		}
		if err != nil && len(errs) < 20 {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// readThrough reads the data of a file, holes apart.
func readThrough(ctx context.Context, tree guestfs.Tree, id guestfs.ID, buf []byte, read func(n int64)) error {
	r, err := tree.Open(ctx, id)
	if err != nil {
		return err
	}
	for off := int64(0); off < r.Size(); {
		e, err := block.ExtentAt(ctx, r, off, int64(len(buf)))
		if err != nil {
			return err
		}
		if !e.Zero {
			if _, err := block.ReadAt(ctx, r, buf[:e.Len], off); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			read(e.Len)
		}
		off += e.Len
	}
	return nil
}
