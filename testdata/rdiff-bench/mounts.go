package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"yester/testdata/versus"
)

// walk lists all dates with find -ls, in both mounts. What rdiff-backup-fs doesn't
// reach within the time it is given is extrapolated from the dates that it did.
func (b *bench) walk() error {
	const what = "`find -ls` over all 40 dates"
	if !b.table.Wants(what) {
		return nil
	}
	own, err := b.table.Measure(func() (time.Duration, error) {
		if _, err := b.mountOwn(b.many()); err != nil {
			return 0, err
		}
		d, _, err := b.find(context.Background(), b.path("mnt"), "-mindepth", "1", "-ls")
		return d, errors.Join(err, b.umountOwn())
	})
	if err != nil {
		return err
	}
	if _, err := b.mountOwn(b.many()); err != nil {
		return err
	}
	if _, _, err := b.find(context.Background(), b.path("mnt"), "-ls"); err != nil {
		return errors.Join(err, b.umountOwn())
	}
	peak, err := b.peak()
	if err := errors.Join(err, b.umountOwn()); err != nil {
		return err
	}
	walked, took, note := b.walkPeer()
	if walked == 0 {
		b.table.Row(what, versus.Seconds(own), note, "", ">= 10")
	} else {
		all := took * dates / time.Duration(walked)
		theirs := versus.Seconds(all) + " (rdiff-backup-fs"
		if walked < dates {
			theirs += fmt.Sprintf("; extrapolated from %d dates in %s", walked, versus.Seconds(took))
		}
		b.table.Row(what, versus.Seconds(own), theirs+note+")", fmt.Sprintf("**%.1f×**", all.Seconds()/own.Seconds()), ">= 10")
	}
	b.table.Row("memory of the mount after that (VmHWM)", fmt.Sprintf("%d MiB", peak>>20), "", "", "")
	return nil
}

// walkPeer mounts the repository with rdiff-backup-fs, once, and walks it date by
// date for as long as it is given; the mount is a part of the time.
func (b *bench) walkPeer() (walked int, took time.Duration, note string) {
	mnt := b.path("peer")
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		return 0, 0, err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.walkTime)
	defer cancel()
	start := time.Now()
	// In the foreground, so that one that hangs can be ended.
	b.peerFS = exec.Command("rdiff-backup-fs", mnt, b.many(), "--debug", "0")
	if err := b.peerFS.Start(); err != nil {
		b.peerFS = nil
		return 0, 0, err.Error()
	}
	defer b.stopPeerFS() //nolint:errcheck // it is a peer's
	for exec.CommandContext(ctx, "mountpoint", "-q", mnt).Run() != nil {
		if ctx.Err() != nil {
			return 0, 0, fmt.Sprintf("rdiff-backup-fs did not mount it in %v", b.walkTime)
		}
		time.Sleep(10 * time.Millisecond)
	}
	took = time.Since(start)
	_, names, err := b.find(ctx, mnt, "-mindepth", "1", "-maxdepth", "1", "-printf", `%f\n`)
	if err != nil {
		return 0, 0, fmt.Sprintf("rdiff-backup-fs lists no dates in %v", b.walkTime)
	}
	files := 0
	for _, name := range lines(names) {
		d, list, err := b.find(ctx, filepath.Join(mnt, name), "-ls")
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			note = "; find fails: " + firstLine(err)
			break
		}
		walked++
		took += d
		files = max(files, len(lines(list)))
	}
	if walked == 0 && note == "" {
		note = fmt.Sprintf("rdiff-backup-fs walks no date in %v", b.walkTime)
	}
	if walked > 0 {
		note += fmt.Sprintf("; at most %d entries a date", files)
	}
	return walked, took, note
}

// find runs find, whose output goes to a file as nobody has to be woken to take it,
// and returns how long that took and what it has said.
func (b *bench) find(ctx context.Context, args ...string) (took time.Duration, list []byte, err error) {
	out, err := os.Create(filepath.Join(b.targets, "find"))
	if err != nil {
		return 0, nil, err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, "find", args...)
	cmd.Stdout = out
	cmd.WaitDelay = time.Second // one in the midst of a request that hangs
	start := time.Now()
	err = cmd.Run()
	took = time.Since(start)
	if err == nil {
		list, err = os.ReadFile(out.Name())
	}
	return took, list, err
}

func (b *bench) stopPeerFS() error {
	_ = exec.Command("umount", "-l", b.path("peer")).Run()
	_ = b.peerFS.Process.Signal(syscall.SIGKILL)
	err := b.peerFS.Wait()
	b.peerFS = nil
	return err
}

// mount mounts a repository of 1,000 points and lists them.
func (b *bench) mount() error {
	const what = "mount of a repository with 1,000 points, listed"
	if !b.table.Wants(what) {
		return nil
	}
	d, err := b.table.Measure(func() (time.Duration, error) {
		start := time.Now()
		if _, err := b.mountOwn(b.points()); err != nil {
			return 0, err
		}
		list, err := os.ReadDir(b.path("mnt"))
		d := time.Since(start)
		if err == nil && len(list) < manyDates {
			err = fmt.Errorf("the mount lists %d names", len(list))
		}
		return d, errors.Join(err, b.umountOwn())
	})
	if err != nil {
		return err
	}
	b.table.Row(what, versus.Millis(d), "", "", "< 200 ms")
	return nil
}

func lines(text []byte) []string {
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
