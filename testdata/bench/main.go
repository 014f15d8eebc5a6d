// Command bench measures yester's mount against what a user has without it:
// QEMU's storage daemon, which exports the same VHD through FUSE, and the
// kernel's loop mount of that export. Both are measured in turn in one run, and
// medians and their ratio are printed. It needs root.
//
//	go run ./testdata/bench -yester bin/yester
//
// Before each measurement both sides are started anew, so that nothing is cached
// in the mounts; the VHD itself stays in the host's page cache.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	b := &bench{}
	flag.StringVar(&b.yester, "yester", "bin/yester", "the yester binary")
	flag.StringVar(&b.work, "dir", filepath.Join(os.TempDir(), "yester-bench"), "folder for the disk (5 GiB), kept for the next run")
	flag.IntVar(&b.rounds, "rounds", 5, "measurements of each kind")
	flag.Parse()
	if err := b.run(); err != nil {
		b.stopAll()
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	yester, work string
	rounds       int
	qsd          *exec.Cmd
	memory       int64 // highest VmHWM seen of a yester process, KiB
}

// side is one way to look at the disk.
type side struct {
	name        string
	start, stop func() error
	files       string // where the guest's files are
	disk        string // the whole disk as a file
}

// check is one thing to measure: less is better.
type check struct {
	name    string
	want    string // what the ratio should be
	measure func(s side) (time.Duration, error)
	bytes   int64 // to show a rate
	ops     int
}

func (b *bench) run() error {
	var err error
	if b.yester, err = filepath.Abs(b.yester); err != nil {
		return err
	}
	if err := b.prepare(); err != nil {
		return err
	}
	peer, own, kernel := b.peer(), b.own(), b.kernel()
	vs := []struct {
		check
		peer side
	}{
		{check{"sequential read of a 1 GiB file", ">= 4.0", sequential("big.bin"), bigSize, 0}, peer},
		{check{"tar of 30,000 small files", ">= 1.5", tarSmall, 0, smallFiles}, peer},
		{check{"find -ls over them, against the peer", "", findSmall, 0, smallFiles}, peer},
		{check{"find -ls over them, against the kernel", ">= 0.5", findSmall, 0, smallFiles}, kernel},
		{check{"random 4 KiB reads, 16 threads", ">= 2.0", randomReads, 0, randomTotal}, peer},
		{check{"sequential read of the whole disk", ">= 2.0", wholeDisk, diskSize, 0}, peer},
	}
	fmt.Printf("%s, %d CPUs, %s; medians of %d, each side started anew every time\n\n", kernelVersion(), runtime.NumCPU(), time.Now().Format("2006-01-02"), b.rounds)
	fmt.Println("| what | yester | peer | ratio | goal |")
	fmt.Println("|---|---|---|---|---|")
	for _, c := range vs {
		var mine, theirs []time.Duration
		for range b.rounds {
			for _, s := range []side{c.peer, own} {
				d, err := b.once(s, c.check)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, s.name, err)
				}
				if s.name == own.name {
					mine = append(mine, d)
				} else {
					theirs = append(theirs, d)
				}
			}
		}
		m, t := median(mine), median(theirs)
		fmt.Printf("| %s | %s | %s (%s) | **%.2f×** | %s |\n", c.name, c.show(m), c.show(t), c.peer.name, float64(t)/float64(m), c.want)
	}
	if err := b.coldCat(); err != nil {
		return err
	}
	fmt.Printf("| memory of the mount (VmHWM, highest of all) | %d MiB | | | < 100 MiB |\n", b.memory>>10)
	return nil
}

// once measures c once on a freshly started side.
func (b *bench) once(s side, c check) (time.Duration, error) {
	if err := b.warmHost(); err != nil {
		return 0, err
	}
	if err := s.start(); err != nil {
		return 0, err
	}
	d, err := c.measure(s)
	if serr := s.stop(); err == nil {
		err = serr
	}
	return d, err
}

func (c check) show(d time.Duration) string {
	switch {
	case c.bytes > 0:
		return fmt.Sprintf("%.2f s, %.2f GB/s", d.Seconds(), float64(c.bytes)/1e9/d.Seconds())
	case c.ops > 0:
		return fmt.Sprintf("%.2f s, %.1f µs each", d.Seconds(), float64(d.Microseconds())/float64(c.ops))
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// coldCat measures a whole process that prints one small file, against cat on
// the kernel's mount.
func (b *bench) coldCat() error {
	k := b.kernel()
	if err := k.start(); err != nil {
		return err
	}
	defer k.stop()
	var mine, theirs []time.Duration
	const file = "small/d123/file045.txt"
	for range 5 * b.rounds {
		d, err := timed(exec.Command(b.yester, "cat", b.vhd(), "/"+file))
		if err != nil {
			return err
		}
		mine = append(mine, d)
		if d, err = timed(exec.Command("cat", filepath.Join(k.files, file))); err != nil {
			return err
		}
		theirs = append(theirs, d)
	}
	m, t := median(mine), median(theirs)
	fmt.Printf("| yester cat of one small file, whole process | %.1f ms | %.1f ms (cat, kernel's mount) | +%.1f ms | < +30 ms |\n",
		ms(m), ms(t), ms(m-t))
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func kernelVersion() string {
	out, _ := exec.Command("uname", "-sr").Output()
	return strings.TrimSpace(string(out))
}
