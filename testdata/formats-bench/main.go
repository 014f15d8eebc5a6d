// Command formats-bench measures the readers of virtual-disk containers beside
// QEMU's, libvhdi's and libvmdk's, on the same files in the host's page cache. The
// sides take turns; medians and ratios are printed.
//
//	go run ./testdata/formats-bench -yester bin/yester [-rounds 3] [-only qcow2]
//
// This project's readers run in this process, on the files as a source opens
// them; QEMU's in qemu-img, which says itself how long the reads took, so that
// its start isn't in the figure. Both have as many reads under way, of the same
// offsets in the same order; QEMU reads through the page cache (-t writeback) as we
// do, by threads or io_uring, whichever is faster. Before the first round, every image is compared with the raw disk.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"yester/internal/block"
	"yester/restorepoint"
	"yester/testdata/versus"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == openChainMode {
		if err := openChain(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "formats-bench:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{table: versus.Table{Out: os.Stdout}}
	flag.StringVar(&b.yester, "yester", "bin/yester", "the yester binary")
	flag.StringVar(&b.work, "dir", filepath.Join(os.TempDir(), "yester-formats-bench"), "folder for the images (8 GiB), kept for the next run")
	flag.IntVar(&b.table.Rounds, "rounds", 3, "measurements of each kind")
	flag.StringVar(&b.table.Only, "only", "", "measure only what has this in its name")
	flag.Parse()
	err := b.run()
	b.stopAll()
	if err != nil {
		fmt.Fprintln(os.Stderr, "formats-bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	table        versus.Table
	yester, work string
}

func (b *bench) path(name string) string { return filepath.Join(b.work, name) }

func (b *bench) run() error {
	var err error
	if b.yester, err = filepath.Abs(b.yester); err != nil {
		return err
	}
	b.stopAll()
	if err := b.prepare(); err != nil {
		return err
	}
	b.table.Head("peer")
	for _, c := range containers {
		if err := b.container(c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for _, rows := range []func() error{b.chains, b.mounts, b.listing} {
		if err := rows(); err != nil {
			return err
		}
	}
	return nil
}

// opened is a disk of a source that was opened for it.
type opened struct {
	block.Reader
	src   *restorepoint.Source
	point *restorepoint.Opened
}

func open(location string) (*opened, error) {
	ctx := context.Background()
	src, err := restorepoint.Open(location, restorepoint.Options{})
	if err != nil {
		return nil, err
	}
	list, err := src.List(ctx)
	if err == nil && len(list.Points) == 0 {
		err = fmt.Errorf("%s: no points", location)
	}
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	point, err := src.OpenPoint(ctx, list.Points[len(list.Points)-1])
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return &opened{point.Disks[0].Image, src, point}, nil
}

func (o *opened) Close() error {
	o.point.Close()
	return o.src.Close()
}

// container measures one image.
func (b *bench) container(c container) error {
	type row struct {
		what string
		reads
	}
	var rows []row
	for _, depth := range []int{1, 16} {
		for _, r := range []row{
			{"sequential 4 KiB", reads{size: 4 << 10, step: 4 << 10, count: diskSize >> 12}},
			{"sequential 64 KiB", reads{size: 64 << 10, step: 64 << 10, count: diskSize >> 16}},
			{"sequential 1 MiB", reads{size: 1 << 20, step: 1 << 20, count: 2 * diskSize >> 20}},
			{"random 4 KiB", reads{size: 4 << 10, step: strideBlocks * 4096, count: 200_000}},
			{"random 64 KiB", reads{size: 64 << 10, step: strideBlocks * 65536, count: 30_000}},
		} {
			r.what, r.depth = fmt.Sprintf("%s, %s, %d at a time", c.name, r.what, depth), depth
			rows = append(rows, r)
		}
	}
	if c.packed {
		rows = []row{{what: fmt.Sprintf("%s, the whole disk, %d reads of 1 MiB at a time", c.name, inFlight)}}
	}
	if !slices.ContainsFunc(rows, func(r row) bool { return b.table.Wants(r.what) }) {
		return nil
	}
	if err := b.warm(c); err != nil {
		return err
	}
	if err := b.compare(c); err != nil {
		return err
	}
	if c.packed {
		return b.whole(c, rows[0].what)
	}
	for _, r := range rows {
		show, goal := versus.Each(int(r.count)), ">= 1.5"
		if r.step == r.size {
			show = versus.Rate(r.count * r.size)
		}
		if r.size == 1<<20 {
			goal = "" // one copy by the kernel is all there is to it
		}
		err := b.table.Compare(
			versus.Side{Name: "qemu-img bench", Run: func() (time.Duration, error) { return r.qemu(c.driver, b.path(c.file)) }}, show,
			versus.Contender{What: r.what, Goal: goal, Run: func() (time.Duration, error) {
				img, err := open(b.path(c.file))
				if err != nil {
					return 0, err
				}
				defer img.Close()
				return r.own(img)
			}})
		if err != nil {
			return err
		}
	}
	return nil
}

// whole reads a compressed image from beginning to end with all CPUs, beside QEMU,
// or libewf for what QEMU doesn't read. A second row has the CPU time of the two,
// which other work on the machine changes less.
func (b *bench) whole(c container, what string) error {
	name, goal, args := "ewfexport -f raw -t - (libewf)", "", []string{"ewfexport", "-q", "-u", "-f", "raw", "-t", "-", b.path(c.file)}
	if c.driver != "" {
		name, goal = "qemu-img convert -W -m 16, to null-co", ">= 1.0"
		args = []string{"qemu-img", "convert", "-f", c.driver, "-W", "-m", strconv.Itoa(inFlight), "-S", "0", "-n", "--target-image-opts", b.path(c.file),
			fmt.Sprintf("driver=null-co,size=%d", diskSize)}
	}
	var mine, theirs []time.Duration // CPU time
	err := b.table.Compare(
		versus.Side{Name: name, Run: func() (time.Duration, error) {
			cmd := exec.Command(args[0], args[1:]...)
			d, err := versus.Timed(cmd)
			if err == nil {
				theirs = append(theirs, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
			}
			return d, err
		}},
		versus.Rate(diskSize),
		versus.Contender{What: what, Goal: goal, Run: func() (time.Duration, error) {
			img, err := open(b.path(c.file))
			if err != nil {
				return 0, err
			}
			defer img.Close()
			before := cpuTime()
			d, err := readParallel(img)
			mine = append(mine, cpuTime()-before)
			return d, err
		}})
	if err != nil {
		return err
	}
	m, t := versus.Median(mine), versus.Median(theirs)
	b.table.Row(what+", CPU time", versus.Seconds(m), versus.Seconds(t), fmt.Sprintf("%.2f×", float64(t)/float64(m)), "")
	return nil
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// inFlight is how many reads of a whole image are under way, QEMU's and ours.
const inFlight = 16

// readParallel reads a whole image, a mebibyte at a time: what a copy with
// read-ahead does.
func readParallel(img block.Reader) (time.Duration, error) {
	const piece = 1 << 20
	start := time.Now()
	pieces := make(chan int64)
	errs := make([]error, inFlight)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			p := make([]byte, piece)
			for off := range pieces {
				if errs[w] == nil {
					errs[w] = block.ReadFull(context.Background(), img, p[:min(piece, img.Size()-off)], off)
				}
			}
		})
	}
	for off := int64(0); off < img.Size(); off += piece {
		pieces <- off
	}
	close(pieces)
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}

// compare reads an image from beginning to end and compares its SHA-256 with the
// raw disk's.
func (b *bench) compare(c container) error {
	raw, err := os.Open(b.path("disk.raw"))
	if err != nil {
		return err
	}
	defer raw.Close()
	img, err := open(b.path(c.file))
	if err != nil {
		return err
	}
	defer img.Close()
	want, got := sha256.New(), sha256.New()
	if _, err := io.Copy(want, raw); err != nil {
		return err
	}
	// VHD rounds a disk up to whole cylinders unless told otherwise; it was told.
	if _, err := io.CopyBuffer(struct{ io.Writer }{got}, io.NewSectionReader(img, 0, img.Size()), make([]byte, 1<<20)); err != nil {
		return err
	}
	if string(got.Sum(nil)) != string(want.Sum(nil)) {
		return fmt.Errorf("%s doesn't hold the disk", c.file)
	}
	return nil
}

// stopAll takes down what a failed run has left.
func (b *bench) stopAll() {
	if _, err := os.Stat(b.work); err != nil {
		return
	}
	_ = versus.Shell(b.work, "if mountpoint -q mnt; then "+b.yester+" umount mnt || umount -l mnt; fi; if mountpoint -q peer; then umount -l peer; fi")
}
