package main

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"yester/cache"
	"yester/internal/ebsfake"
	"yester/testdata/versus"
)

// mount mounts a snapshot's point with the cache in dir, and returns where its files
// are.
func (b *bench) mount(s snapshot, dir string) (files string, err error) {
	cmd := exec.Command(b.yester, "mount", "ebs://"+s.volume, b.path("mnt"), "--at", s.at, "--cache-dir", dir,
		"--log-file", b.path("mount.log"), "--pid-file", b.path("mount.pid"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return filepath.Join(b.path("mnt"), "latest/files"), nil
}

// umount unmounts, and waits for the process that served the mount: it writes the
// last blocks to the cache after the mount has gone.
func (b *bench) umount() error {
	pid, err := b.pid()
	if err := errors.Join(err, versus.Shell(b.work, b.yester+" umount mnt")); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(stat), ") Z ") {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d goes on a minute after its mount", pid)
		}
	}
}

func (b *bench) pid() (int, error) {
	text, err := os.ReadFile(b.path("mount.pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// peak is the highest memory use of the mount, so far.
func (b *bench) peak() (int64, error) {
	pid, err := b.pid()
	if err != nil {
		return 0, err
	}
	return versus.Peak(pid)
}

// tripLatency makes the fake so slow that what else takes time doesn't count: how
// long something takes is then how many requests waited for one another.
const tripLatency = 500 * time.Millisecond

// firstLook lists a directory of a mount that has nothing in its cache, and copies
// a file out of it; then the same again, in another mount.
func (b *bench) firstLook(disk string, s snapshot) error {
	what := []string{
		disk + ": first `ls -l` of a directory of 101 files",
		disk + ": copy of a file of 10 MiB out of it, right after",
		disk + ": the same by a second mount with the same cache",
	}
	if !b.table.Wants(what[0]) && !b.table.Wants(what[1]) && !b.table.Wants(what[2]) {
		return nil
	}
	dir := b.path("cache")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	b.fake.SetSettings(ebsfake.Settings{Latency: ebsfake.Duration(tripLatency)})
	b.fake.ResetCounts()
	files, err := b.mount(s, dir)
	if err != nil {
		return err
	}
	mounted := b.lists()
	if _, err := os.Stat(files); err != nil {
		// Opening it has fetched something already, but this is no figure to keep.
		return errors.Join(b.umount(), b.unsupported(disk, err))
	}
	if err := b.umount(); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if files, err = b.mount(s, dir); err != nil {
		return err
	}
	stop := func(err error) error { return errors.Join(err, b.umount()) }
	b.fake.ResetCounts()
	list := func() (time.Duration, error) {
		var out strings.Builder
		cmd := exec.Command("ls", "-l", filepath.Join(files, looked))
		cmd.Stdout = &out
		d, err := versus.Timed(cmd)
		if n := strings.Count(out.String(), "\n"); err == nil && n != perFolder+2 { // a "total", and the file of 10 MiB
			err = fmt.Errorf("ls lists %d lines of %d", n, perFolder+2)
		}
		return d, err
	}
	d, err := list()
	if err != nil {
		return stop(err)
	}
	waited := b.blocks()
	time.Sleep(2 * time.Second) // what is fetched ahead counts too
	b.table.Row(what[0], fmt.Sprintf("%.1f round trips, %d blocks (%d while it waited), %d lists (%d more to mount)",
		float64(d)/float64(tripLatency), b.blocks(), waited, b.lists(), mounted), "", "", "<= 12 round trips, <= 40 blocks")
	b.fake.SetSettings(asAWS())
	b.fake.ResetCounts()
	if d, err = b.copyTen(files); err != nil {
		return stop(err)
	}
	time.Sleep(time.Second)
	b.table.Row(what[1], fmt.Sprintf("%.2f× its size fetched, %s", float64(b.blocks())*ebsfake.BlockSize/tenSize, versus.Millis(d)), "", "", "<= 1.3×")
	if err := b.umount(); err != nil {
		return err
	}
	b.fake.ResetCounts()
	if files, err = b.mount(s, dir); err != nil {
		return err
	}
	if _, err := list(); err != nil {
		return stop(err)
	}
	if _, err := b.copyTen(files); err != nil {
		return stop(err)
	}
	b.table.Row(what[2], fmt.Sprintf("%d blocks, %d lists", b.blocks(), b.lists()), "", "", "0 blocks")
	return b.umount()
}

// unsupported prints a row instead of an error for a disk that this version has no
// reader for.
func (b *bench) unsupported(disk string, err error) error {
	if disk == "ext4" {
		return err
	}
	b.table.Row(disk, "not measured: its files don't show in the mount", "", "", "")
	return nil
}

// copyTen copies the file of 10 MiB, as cp does, and compares it.
func (b *bench) copyTen(files string) (time.Duration, error) {
	return compared(filepath.Join(files, looked, "ten.bin"), looked+"/ten.bin", tenSize)
}

// compared reads a file, 128 KiB at a time, and compares it with what was written
// to it, by 64 bits of a hash that costs next to nothing: it shares the CPUs with
// both sides. The time is that of the reads.
func compared(path, name string, size int64) (time.Duration, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var want, got maphash.Hash
	got.SetSeed(want.Seed())
	if _, err := io.Copy(&want, content(name, size)); err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := io.CopyBuffer(&got, struct{ io.Reader }{f}, make([]byte, 128<<10)); err != nil {
		return 0, err
	}
	took := time.Since(start)
	if got.Sum64() != want.Sum64() {
		return 0, fmt.Errorf("%s doesn't hold what was written to it", path)
	}
	return took, nil
}

// nextDay reads the whole second day, when the first is in the cache.
func (b *bench) nextDay() error {
	const what = "the whole next day, when the day before is in the cache"
	if !b.table.Wants(what) {
		return nil
	}
	b.fake.SetSettings(ebsfake.Settings{Latency: ebsfake.Duration(latency)})
	hydrate := func(s snapshot, fresh bool) (err error) {
		o, err := open(s, b.path("cache"), fresh)
		if err != nil {
			return err
		}
		return errors.Join(o.Hydrate(context.Background(), cache.HydrateOptions{}), o.Close())
	}
	if err := hydrate(day1, true); err != nil {
		return err
	}
	b.fake.ResetCounts()
	if err := hydrate(day2, false); err != nil {
		return err
	}
	fetched, lists := b.blocks(), b.lists()
	changed, written, err := b.changed()
	if err != nil {
		return err
	}
	o, err := open(day2, b.path("cache"), false)
	if err != nil {
		return err
	}
	if err := errors.Join(b.same(o, day2), o.Close()); err != nil {
		return err
	}
	b.table.Row(what, fmt.Sprintf("%d blocks fetched, %d have changed (%s of %d), %d lists", fetched, changed, percent(changed, written), written, lists), "", "", "the changed ones only")
	return nil
}

const traced = 2000

// trace reads files here and there of a mount, as a machine that boots does, and
// compares those that haven't changed with what was written to them.
func trace(files string) (time.Duration, error) {
	rnd := rand.New(rand.NewPCG(3, 3))
	start := time.Now()
	got := make(map[int][]byte, traced)
	for _, n := range rnd.Perm(smallFiles)[:traced] {
		p, err := os.ReadFile(filepath.Join(files, smallFile(n)))
		if err != nil {
			return 0, err
		}
		got[n] = p
	}
	took := time.Since(start)
	const touched = 125 // bytes of a file that a change on the second day may reach
	for n, p := range got {
		want, err := io.ReadAll(content(smallFile(n), smallSize(n)))
		if err != nil {
			return 0, err
		}
		if len(p) != len(want) || string(p[touched:]) != string(want[touched:]) {
			return 0, fmt.Errorf("%s doesn't hold what was written to it", smallFile(n))
		}
	}
	return took, nil
}

// hotFirst records a trace on the first day and runs it on the second, with no
// blocks in the cache: with what the first has left of a map, and without.
func (b *bench) hotFirst() error {
	const what = "boot-like trace of 2,000 files on the next day, no blocks cached but the hot map kept"
	if !b.table.Wants(what) {
		return nil
	}
	look := func(s snapshot, dir string) (d time.Duration, err error) {
		files, err := b.mount(s, dir)
		if err != nil {
			return 0, err
		}
		d, err = trace(files)
		return d, errors.Join(err, b.umount())
	}
	recorded := b.path("cache-recorded")
	if err := os.RemoveAll(recorded); err != nil {
		return err
	}
	if _, err := look(day1, recorded); err != nil {
		return err
	}
	// What is left of blocks are the files with an o; the maps of what is hot, and of
	// what has been written, stay.
	side := func(more string) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			if err := versus.Shell(b.work, "rm -rf cache; cp -r cache-recorded cache; rm cache/o-*; "+more); err != nil {
				return 0, err
			}
			return look(day2, b.path("cache"))
		}
	}
	err := b.table.Compare(versus.Side{Name: "without the map", Run: side(b.yester + " cache prune 'hot ' --cache-dir cache")}, versus.Seconds,
		versus.Contender{What: what, Goal: ">= 4", Run: side("")})
	return errors.Join(err, os.RemoveAll(recorded))
}
