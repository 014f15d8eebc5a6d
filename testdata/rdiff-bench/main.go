// Command rdiff-bench measures reading rdiff-backup repositories beside
// rdiff-backup itself and rdiff-backup-fs, on repositories that rdiff-backup made
// (testdata/rdiff/bench.py). The sides take turns; medians and ratios are printed.
// It needs root, to restore owners and to mount.
//
//	go run ./testdata/rdiff-bench -yester bin/yester [-rounds 3] [-only "one small file"]
//
// Every command is a new process with an empty cache of its own; the repositories
// stay in the host's page cache, for both sides. What is measured has been compared
// byte for byte with what rdiff-backup restores, before the first round.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"yester/testdata/versus"
)

// What testdata/rdiff/bench.py makes.
const (
	oldest    = "2023-11-14T22:13:20Z"
	largeSize = 200 << 20
	largeName = "database.img"
	dates     = 40
	manyDates = 1000
)

func main() {
	b := &bench{table: versus.Table{Out: os.Stdout}}
	flag.StringVar(&b.yester, "yester", "bin/yester", "the yester binary")
	flag.StringVar(&b.work, "dir", filepath.Join(os.TempDir(), "yester-rdiff-bench"), "folder for the repositories (2 GiB), kept for the next run")
	flag.StringVar(&b.maker, "maker", "testdata/rdiff/bench.py", "the program that makes them")
	flag.IntVar(&b.table.Rounds, "rounds", 3, "measurements of each kind")
	flag.StringVar(&b.table.Only, "only", "", "measure only what has this in its name")
	flag.DurationVar(&b.walkTime, "walk-time", 5*time.Minute, "how long rdiff-backup-fs may walk before the rest is extrapolated")
	flag.Parse()
	err := b.run()
	b.stopAll()
	_ = os.RemoveAll(b.targets)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rdiff-bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	table               versus.Table
	yester, work, maker string
	targets             string
	walkTime            time.Duration
	peerFS              *exec.Cmd
}

func (b *bench) path(name string) string { return filepath.Join(b.work, name) }

// target names what is copied or restored. It lies in memory: a disk's filesystem
// takes its time with what was deleted there just before.
func (b *bench) target(name string) string { return filepath.Join(b.targets, name) }
func (b *bench) many() string              { return b.path("many/repo") }
func (b *bench) large() string             { return b.path("large/repo") }
func (b *bench) points() string            { return b.path("points/repo") }

func (b *bench) run() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to restore owners and to mount")
	}
	var err error
	if b.yester, err = filepath.Abs(b.yester); err != nil {
		return err
	}
	if b.targets, err = os.MkdirTemp("/dev/shm", "yester-rdiff-bench"); err != nil {
		return err
	}
	if err := os.MkdirAll(b.path("mnt"), 0o755); err != nil {
		return err
	}
	make := exec.Command("/usr/bin/python3", b.maker, b.work)
	make.Stdout, make.Stderr = os.Stderr, os.Stderr
	if err := make.Run(); err != nil {
		return fmt.Errorf("%s: %w", b.maker, err)
	}
	b.stopAll()
	small, err := changedFile(b.many())
	if err != nil {
		return err
	}
	if err := b.check(small); err != nil {
		return err
	}
	b.table.Head("rdiff-backup")
	for _, rows := range []func() error{
		func() error { return b.smallFile(small) }, b.list, b.wholeTree, b.largeFile, b.random, b.walk, b.mount,
	} {
		if err := rows(); err != nil {
			return err
		}
	}
	return nil
}

// changedFile returns a file of a few kilobytes that has changed since the oldest
// date, by its path in the repository: its content then has to be put together.
func changedFile(repo string) (string, error) {
	top := filepath.Join(repo, "rdiff-backup-data/increments")
	found, err := filepath.Glob(filepath.Join(top, "*/*/*."+oldest+".diff*"))
	if err != nil {
		return "", err
	}
	for _, name := range found {
		rel, _ := filepath.Rel(top, name)
		rel, _, _ = strings.Cut(rel, "."+oldest)
		if fi, err := os.Stat(filepath.Join(repo, rel)); err == nil && fi.Size() > 2000 {
			return rel, nil
		}
	}
	return "", fmt.Errorf("%s: no file has changed since the oldest date", repo)
}

// own returns a command of yester's with a home, a folder for temporary files and
// a cache of its own, all empty.
func (b *bench) own(args ...string) *exec.Cmd {
	home := b.path("home")
	_ = os.RemoveAll(home)
	_ = os.MkdirAll(filepath.Join(home, "tmp"), 0o700)
	cmd := exec.Command(b.yester, append(args, "--cache-dir="+filepath.Join(home, "cache"))...)
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+filepath.Join(home, "tmp"), "XDG_CACHE_HOME=", "XDG_STATE_HOME=", "TZ=UTC")
	return cmd
}

// peer returns a command of rdiff-backup's. It isn't held up by syncing what it
// writes, which cp -a doesn't do either.
func peer(args ...string) *exec.Cmd {
	return exec.Command("rdiff-backup", append([]string{"-v1", "--no-fsync"}, args...)...)
}

// restore has rdiff-backup restore what is at path, anew.
func (b *bench) restore(repo, path string) (time.Duration, error) {
	if err := os.RemoveAll(b.target("restored")); err != nil {
		return 0, err
	}
	return versus.Timed(peer("restore", "--at", oldest, filepath.Join(repo, path), b.target("restored")))
}

// check compares what will be measured with what rdiff-backup restores.
func (b *bench) check(small string) error {
	for _, c := range [][2]string{{b.many(), small}, {b.large(), largeName}} {
		repo, path := c[0], c[1]
		if _, err := b.restore(repo, path); err != nil {
			return err
		}
		want, err := os.ReadFile(b.target("restored"))
		if err != nil {
			return err
		}
		got, err := b.own("cat", repo, "/"+path, "--at", oldest).Output()
		if err != nil {
			return fmt.Errorf("yester cat %s: %w", path, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s: yester cat and rdiff-backup restore differ", path)
		}
	}
	return os.Rename(b.target("restored"), b.target("large.restored"))
}

func (b *bench) smallFile(path string) error {
	return b.table.Compare(
		versus.Side{Name: "restore", Run: func() (time.Duration, error) { return b.restore(b.many(), path) }},
		versus.Millis,
		versus.Contender{What: "one small file at the oldest of 40 dates, whole process (`yester cat`)", Goal: ">= 10", Run: func() (time.Duration, error) {
			return versus.Timed(b.own("cat", b.many(), "/"+path, "--at", oldest))
		}})
}

func (b *bench) list() error {
	lines := func(cmd *exec.Cmd, n *int) (time.Duration, error) {
		var out bytes.Buffer
		cmd.Stdout = &out
		d, err := versus.Timed(cmd)
		*n = bytes.Count(out.Bytes(), []byte("\n"))
		return d, err
	}
	var mine, theirs int
	err := b.table.Compare(
		versus.Side{Name: "list files", Run: func() (time.Duration, error) {
			return lines(peer("list", "files", "--at", oldest, b.many()), &theirs)
		}},
		versus.Millis,
		versus.Contender{What: "list of 20,000 files at the oldest date, whole process (`yester ls -R`)", Goal: ">= 10", Run: func() (time.Duration, error) {
			return lines(b.own("ls", "-R", b.many(), "/", "--at", oldest), &mine)
		}})
	if err == nil && theirs > 0 && mine < theirs*9/10 {
		err = fmt.Errorf("yester lists %d lines, rdiff-backup %d", mine, theirs)
	}
	return err
}

// wholeTree copies the oldest tree, by yester and out of its mount.
func (b *bench) wholeTree() error {
	fresh := func(name string) (string, error) {
		dir := b.target(name)
		return dir, errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755))
	}
	defer os.RemoveAll(b.target("copied"))
	defer os.RemoveAll(b.target("restored"))
	first := true
	// same compares a copy with what was restored just before, once; but not the
	// folder itself that it was copied into, which yester cp leaves as it found it.
	same := func(dir string) error {
		return versus.Shell(b.targets, `out=$(rsync -aHAXnc --delete -i restored/ `+dir+`/ | grep -v ' \./$' || true); [ -z "$out" ] || { echo "$out" | head -20; exit 1; }`)
	}
	return b.table.Compare(
		versus.Side{Name: "restore", Run: func() (time.Duration, error) { return b.restore(b.many(), "") }},
		versus.Seconds,
		versus.Contender{What: "the whole oldest tree, 20,000 files: `cp -a` out of the mount", Goal: ">= 4", Run: func() (d time.Duration, err error) {
			dir, err := fresh("copied")
			if err != nil {
				return 0, err
			}
			at, err := b.mountOwn(b.many(), "--at", oldest)
			if err != nil {
				return 0, err
			}
			if d, err = versus.Timed(exec.Command("cp", "-a", at+"/.", dir)); err == nil && first {
				err = same("copied")
			}
			return d, errors.Join(err, b.umountOwn())
		}},
		versus.Contender{What: "the same by `yester cp`", Goal: ">= 6", Run: func() (time.Duration, error) {
			dir, err := fresh("copied")
			if err != nil {
				return 0, err
			}
			d, err := versus.Timed(b.own("cp", b.many(), "/.", dir, "--at", oldest))
			if err == nil && first {
				first, err = false, same("copied")
			}
			return d, err
		}})
}

// mountOwn mounts a repository and returns the folder of its only, or oldest, tree.
func (b *bench) mountOwn(repo string, args ...string) (string, error) {
	cmd := b.own(append([]string{"mount", repo, b.path("mnt"), "--log-file", b.path("mount.log"), "--pid-file", b.path("mount.pid")}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	found, err := filepath.Glob(filepath.Join(b.path("mnt"), "[0-9]*"))
	if err != nil || len(found) == 0 {
		return "", errors.Join(fmt.Errorf("nothing in the mount of %s", repo), err)
	}
	return found[0], nil
}

func (b *bench) umountOwn() error {
	return versus.Shell(b.work, b.yester+" umount mnt")
}

// peak is the highest memory use of the mount, so far.
func (b *bench) peak() (int64, error) {
	text, err := os.ReadFile(b.path("mount.pid"))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, err
	}
	return versus.Peak(pid)
}

// stopAll takes down what a failed run has left.
func (b *bench) stopAll() {
	if b.peerFS != nil {
		_ = b.stopPeerFS()
	}
	_ = versus.Shell(b.work, "if mountpoint -q mnt; then "+b.yester+" umount mnt || umount -l mnt; fi; if mountpoint -q peer; then umount -l peer; fi")
	_ = os.RemoveAll(b.path("home"))
}
