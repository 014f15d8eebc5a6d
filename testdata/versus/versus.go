// Package versus measures this project beside its peers: sides take turns within
// each round, and a table in Markdown shows their medians, the ratio and the goal.
// The benchmarks of testdata share it.
package versus

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Side is one way to do what is measured.
type Side struct {
	Name string
	// Run does it once and returns how long it took: what needs preparing or
	// cleaning up isn't in that.
	Run func() (time.Duration, error)
}

// Table prints the rows of what was measured.
type Table struct {
	Rounds int
	// Only leaves out the rows in whose name it isn't; empty: none.
	Only string
	Out  io.Writer
}

// Head prints what the machine is, and the head of the table.
func (t *Table) Head(peer string) {
	fmt.Fprintf(t.Out, "%s, %d CPUs, %s; medians of %d\n\n", kernel(), runtime.NumCPU(), time.Now().Format("2006-01-02"), t.Rounds)
	fmt.Fprintf(t.Out, "| what | yester | %s | ratio | goal |\n|---|---|---|---|---|\n", peer)
}

// Wants reports whether a row is to be measured.
func (t *Table) Wants(what string) bool { return strings.Contains(what, t.Only) }

// Row prints a row as it is.
func (t *Table) Row(what, own, peer, ratio, goal string) {
	fmt.Fprintf(t.Out, "| %s | %s | %s | %s | %s |\n", what, own, peer, ratio, goal)
}

// Contender is a row: something of this project's own that is measured beside a peer.
type Contender struct {
	What, Goal string
	Run        func() (time.Duration, error)
}

// Compare measures a peer and its contenders in turn and prints a row for each,
// with what show makes of the medians; the ratio is that of the medians, more
// than 1 when the contender is faster.
func (t *Table) Compare(peer Side, show func(time.Duration) string, contenders ...Contender) error {
	contenders = slices.DeleteFunc(contenders, func(c Contender) bool { return !t.Wants(c.What) })
	if len(contenders) == 0 {
		return nil
	}
	var theirs []time.Duration
	mine := make([][]time.Duration, len(contenders))
	for range t.Rounds {
		d, err := peer.Run()
		if err != nil {
			return fmt.Errorf("%s, %s: %w", contenders[0].What, peer.Name, err)
		}
		theirs = append(theirs, d)
		for i, c := range contenders {
			if d, err = c.Run(); err != nil {
				return fmt.Errorf("%s: %w", c.What, err)
			}
			mine[i] = append(mine[i], d)
		}
	}
	p := Median(theirs)
	name := ""
	if peer.Name != "" {
		name = " (" + peer.Name + ")"
	}
	for i, c := range contenders {
		m := Median(mine[i])
		t.Row(c.What, show(m), show(p)+name, fmt.Sprintf("**%.2f×**", float64(p)/float64(m)), c.Goal)
	}
	return nil
}

// Measure runs one side alone, and returns the median.
func (t *Table) Measure(run func() (time.Duration, error)) (time.Duration, error) {
	var all []time.Duration
	for range t.Rounds {
		d, err := run()
		if err != nil {
			return 0, err
		}
		all = append(all, d)
	}
	return Median(all), nil
}

// Median returns the median, and sorts.
func Median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// Millis shows a duration in milliseconds.
func Millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// Seconds shows a duration in seconds.
func Seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// Rate shows how fast n bytes went.
func Rate(n int64) func(time.Duration) string {
	return func(d time.Duration) string {
		return fmt.Sprintf("%.2f s, %.2f GB/s", d.Seconds(), float64(n)/1e9/d.Seconds())
	}
}

// Each shows what each of n operations took.
func Each(n int) func(time.Duration) string {
	return func(d time.Duration) string {
		return fmt.Sprintf("%.2f µs each", float64(d.Nanoseconds())/1000/float64(n))
	}
}

// Timed runs cmd to its end and returns how long it took. What it prints is read
// and, unless cmd says otherwise, thrown away; an error holds its stderr.
func Timed(cmd *exec.Cmd) (time.Duration, error) {
	var talk strings.Builder
	if cmd.Stderr == nil {
		cmd.Stderr = &talk
	}
	start := time.Now()
	out := io.Discard
	if cmd.Stdout != nil {
		out = cmd.Stdout
		cmd.Stdout = nil
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_, copyErr := io.Copy(out, struct{ io.Reader }{pipe})
	err = cmd.Wait()
	took := time.Since(start)
	if err == nil {
		err = copyErr
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, talk.String())
	}
	return took, err
}

// Shell runs a script in dir.
func Shell(dir, script string) error {
	cmd := exec.Command("sh", "-e", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.TrimSpace(script), err, out)
	}
	return nil
}

// Peak returns the highest resident size of a process that runs, in bytes.
func Peak(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kib int64
			_, err := fmt.Sscan(rest, &kib)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d says no VmHWM", pid)
}

func kernel() string {
	out, _ := exec.Command("uname", "-sr").Output()
	return strings.TrimSpace(string(out))
}
