package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"yester/internal/exitcode"
	"yester/restorepoint"
)

func newVerifyCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "verify SOURCE",
		Short: "Check that everything can be read, and is what was recorded",
		Long: `Check all restore points, or the one that --at names: every version of every file
once, however many points have it.

In an rdiff-backup repository every version is put together and compared with the
SHA-1 that was recorded when it was backed up; of a damaged one, the increment at
fault is named. A disk is compared with the digest that its container stores, where
it stores one; every file of every filesystem on it is read to its end, which checks
what the container and the filesystem have checksums of: metadata, as a rule. The
contents of files on disks and in dated folders can then be read, but nothing tells
whether they are still what they were. The summary says how much was checked in
which way, and what wasn't.

The exit code is 4 if something is damaged.`,
		Example: `  yester verify /backups/www
  yester verify /backups/web01 --at latest --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return g.verify(cmd.Context(), args[0]) },
	}
}

// verifyLine is what --json prints of a fault.
type verifyLine struct {
	Status  string `json:"status"` // "damaged", or "failed" when it can't be read for another reason
	Point   string `json:"point"`
	Machine string `json:"machine"`
	Volume  string `json:"volume,omitempty"`
	Path    string `json:"path,omitempty"`
	PathB64 string `json:"path_b64,omitempty"`
	Error   string `json:"error"`
}

// verifySummary is the last line that --json prints.
type verifySummary struct {
	Status string `json:"status"` // "summary"
	restorepoint.VerifyResult
	Seconds float64 `json:"seconds"`
}

func (g *globalFlags) verify(ctx context.Context, source string) error {
	src, err := g.open(source, g.logger())
	if err != nil {
		return err
	}
	defer src.Close()
	points, err := g.pointsUpTo(ctx, src)
	if err != nil {
		return err
	}
	if g.at != "" {
		points = points[len(points)-1:]
	}
	var t tally
	damaged := false
	progress := &restorepoint.VerifyProgress{}
	start := time.Now()
	stop := g.showVerify(progress)
	res, err := src.Verify(ctx, points, restorepoint.VerifyOptions{
		Volume: g.volume, Progress: progress,
		Report: func(f restorepoint.Fault) {
			f.Err = pointFailure(&f.Point, f.Err)
			c := code(f.Err)
			t.codes = append(t.codes, c)
			damaged = damaged || c == exitcode.Damaged
			g.printFault(&f, c)
		},
	})
	stop()
	if err != nil {
		return err
	}
	if err := g.printVerified(points, &res, time.Since(start)); err != nil {
		return err
	}
	if damaged { // whatever else there is: this is what was asked
		return &silentError{code: exitcode.Damaged}
	}
	if res.Compared+res.Read+int64(res.Disks) > 0 {
		t.ok++
	}
	return t.result()
}

func (g *globalFlags) printFault(f *restorepoint.Fault, c int) {
	if g.json {
		l := verifyLine{Status: "failed", Point: f.Point.ID, Machine: f.Point.Machine, Volume: f.Volume, Error: f.Err.Error()}
		if c == exitcode.Damaged {
			l.Status = "damaged"
		}
		l.Path, l.PathB64 = jsonBytes(f.Path)
		printJSON(g.stdout, l)
		return
	}
	text, where := f.Err.Error(), f.Point.ID
	if volume := "volume " + f.Volume; f.Volume != "" && !strings.HasPrefix(text, volume) {
		where += ": " + volume
	}
	if f.Path != "" {
		where += ": " + f.Path
	}
	if !strings.HasPrefix(text, "restore point "+where) {
		text = where + ": " + text
	}
	g.talk.say(talkLine{Error: text, Hint: hint(f.Err)})
}

// printVerified prints what was checked, and with what.
func (g *globalFlags) printVerified(points []restorepoint.Point, res *restorepoint.VerifyResult, took time.Duration) error {
	if g.json {
		return printJSON(g.stdout, verifySummary{"summary", *res, took.Seconds()})
	}
	line := func(format string, args ...any) error {
		if _, err := fmt.Fprintf(g.stdout, format+"\n", args...); err != nil {
			return newWriteError(err)
		}
		return nil
	}
	versions := func(n, bytes int64) string {
		return fmt.Sprintf("%s of files, %s", count(n, "version", "versions"), formatBytes(bytes))
	}
	err := line("%s: %s", points[0].Machine, count(int64(res.Points), "restore point", "restore points"))
	if err == nil && res.Compared > 0 {
		err = line("compared with a recorded checksum: %s", versions(res.Compared, res.ComparedBytes))
	}
	if err == nil && res.Disks > 0 {
		err = line("compared with the container's digest: %s, %s", count(int64(res.Disks), "disk", "disks"), formatBytes(res.DiskBytes))
	}
	if err == nil && res.Read > 0 {
		err = line("read to the end, with no checksum of the content to compare with: %s", versions(res.Read, res.ReadBytes))
	}
	for _, what := range res.NotChecked {
		if err == nil {
			err = line("not checked: %s", what)
		}
	}
	if err == nil {
		verdict := "nothing is damaged"
		if res.Faults > 0 {
			verdict = count(res.Faults, "fault", "faults")
		}
		err = line("%s", verdict)
	}
	return err
}

// showVerify shows the progress of a check.
func (g *globalFlags) showVerify(p *restorepoint.VerifyProgress) (stop func()) {
	p.WantTotal = !g.json && terminal(g.stderr)
	var m meter
	return g.show(func(now time.Time) string {
		total := int64(-1)
		if p.TotalKnown.Load() {
			total = p.Total.Load()
		}
		return m.line(now, p.Bytes.Load(), total, fmt.Sprintf("%d files  ", p.Files.Load()))
	})
}
