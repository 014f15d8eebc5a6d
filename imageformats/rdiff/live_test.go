package rdiff

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/treetest"
	"yester/origin"
)

// live is a repository that sessions run on while it is open.
type live struct {
	t         *testing.T
	src, repo string
	now       int64
	rng       *rand.Rand
	mu        sync.Mutex                  // of truth
	truth     map[int64]map[string]string // content by time and name
}

func (l *live) know(when int64, files map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.truth[when] = files
}

func (l *live) known(when int64) map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.truth[when]
}

func newLive(t *testing.T) *live {
	t.Helper()
	treetest.Need(t, "rdiff-backup")
	dir := t.TempDir()
	l := &live{t: t, src: dir + "/src", repo: dir + "/repo", now: 1_700_000_000, rng: rand.New(rand.NewPCG(1, 2)),
		truth: make(map[int64]map[string]string)}
	if err := os.MkdirAll(l.src+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

// change writes to some files, makes some and removes some.
func (l *live) change() {
	l.t.Helper()
	for i := range 24 {
		name := filepath.Join(l.src, []string{"", "sub"}[i%2], "file"+strconv.Itoa(i))
		b, err := os.ReadFile(name)
		switch {
		case i%5 == 0 && err == nil && l.rng.IntN(3) == 0:
			if err := os.Remove(name); err != nil {
				l.t.Fatal(err)
			}
			continue
		case err != nil || l.rng.IntN(4) == 0:
			b = make([]byte, 100+l.rng.IntN(60_000))
			for k := range b {
				b[k] = byte(l.rng.Uint32())
			}
		case l.rng.IntN(2) == 0:
			continue
		default:
			at := l.rng.IntN(len(b))
			b = append(b[:at:at], append([]byte(fmt.Sprintf("<%d>", l.rng.Uint64())), b[at:]...)...)
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			l.t.Fatal(err)
		}
	}
}

// run runs rdiff-backup, which waits for no disk.
func (l *live) run(args ...string) error {
	const script = "import sys; sys.path.insert(0, '../../testdata/rdiff'); import session; sys.exit(session.run(*sys.argv[1:], check=False))"
	args = append([]string{"--api-version", "201", "--current-time", strconv.FormatInt(l.now, 10)}, args...)
	out, err := exec.Command("/usr/bin/python3", append([]string{"-B", "-c", script}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("rdiff-backup %q: %w\n%s", args, err, out)
	}
	return nil
}

// backup runs a session and returns its time.
func (l *live) backup() int64 {
	l.t.Helper()
	l.now += 1000
	files := make(map[string]string)
	err := filepath.WalkDir(l.src, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[path[len(l.src)+1:]] = string(b)
		return err
	})
	if err == nil {
		err = l.run("backup", l.src, l.repo)
	}
	if err != nil {
		l.t.Error(err)
	}
	l.know(l.now, files)
	return l.now
}

// check compares a tree with the truth. Errors that match ErrChanged are counted,
// others fail the test, and so do wrong bytes.
func (l *live) check(tree *Tree) (good, changed int) {
	l.t.Helper()
	want := l.known(tree.time)
	seen := 0
	err := treetest.Walk(l.t.Context(), tree, func(n treetest.Node) error {
		if n.Type != guestfs.ModeRegular {
			return nil
		}
		seen++
		r, err := tree.Open(l.t.Context(), n.ID)
		var b []byte
		if err == nil {
			b = make([]byte, r.Size())
			err = block.ReadFull(l.t.Context(), r, b, 0)
		}
		switch {
		case errors.Is(err, origin.ErrChanged):
			changed++
		case err != nil:
			l.t.Errorf("%s at %d: %v", n.Path, tree.time, err)
		case string(b) != want[n.Path[1:]]:
			l.t.Errorf("%s at %d: %d wrong bytes", n.Path, tree.time, len(b))
		default:
			good++
		}
		return nil
	}, nil)
	if err != nil || seen != len(want) {
		l.t.Errorf("at %d: %d files, want %d (error: %v)", tree.time, seen, len(want), err)
	}
	return good, changed
}

// TestSessionsMeanwhile reads all points without pause while sessions run: no byte
// is ever wrong. Afterwards the trees that were opened before show what they did.
func TestSessionsMeanwhile(t *testing.T) {
	l := newLive(t)
	for range 3 {
		l.change()
		l.backup()
	}
	r := openRepo(t, l.repo, imageformats.RepositoryOptions{})
	var trees []*Tree
	for _, p := range points(t, r) {
		trees = append(trees, openPoint(t, r, p.Time.Unix()))
	}
	// Opened before, and read in part: the rest must be of the same version.
	id := lookup(t, trees[2], "file2")
	before, err := trees[2].Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	half := make([]byte, before.Size()/2)
	if err := block.ReadFull(t.Context(), before, half, 0); err != nil {
		t.Fatal(err)
	}

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	good, changed := 0, 0
	for g := range 2 {
		wg.Go(func() {
			for i := g; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				a, b := l.check(trees[i%len(trees)])
				mu.Lock()
				good, changed = good+a, changed+b
				mu.Unlock()
				time.Sleep(5 * time.Millisecond) // the sessions want to get on
			}
		})
	}
	for range 4 {
		l.change()
		l.backupMeanwhile()
	}
	close(stop)
	wg.Wait()
	t.Logf("%d files read, %d refused as changed", good, changed)
	if good == 0 {
		t.Error("nothing was read")
	}

	rest := make([]byte, before.Size()-int64(len(half)))
	if err := block.ReadFull(t.Context(), before, rest, int64(len(half))); err != nil {
		t.Errorf("the rest of a file opened before: %v", err)
	} else if got := string(half) + string(rest); got != l.known(trees[2].time)["file2"] {
		t.Error("a file that was opened before the sessions has bytes of two versions")
	}
	if n := len(points(t, r)); n != 7 {
		t.Errorf("%d points, want 7", n)
	}
	for _, tree := range trees {
		if _, changed := l.check(tree); changed > 0 {
			t.Errorf("%d files refused when nothing runs", changed)
		}
	}
	for _, p := range points(t, r) {
		l.check(openPoint(t, r, p.Time.Unix()))
	}
}

// backupMeanwhile is backup while others look at the truth of earlier points.
func (l *live) backupMeanwhile() {
	l.t.Helper()
	l.now += 1000
	if err := l.run("backup", l.src, l.repo); err != nil {
		l.t.Error(err)
	}
	files := make(map[string]string)
	for _, dir := range []string{"", "sub"} {
		list, err := os.ReadDir(filepath.Join(l.src, dir))
		if err != nil {
			l.t.Error(err)
		}
		for _, e := range list {
			if b, err := os.ReadFile(filepath.Join(l.src, dir, e.Name())); err == nil && !e.IsDir() {
				files[filepath.Join(dir, e.Name())] = string(b)
			}
		}
	}
	l.know(l.now, files)
}

// TestPointsVanish removes increments and takes a session back while trees of those
// points are open.
func TestPointsVanish(t *testing.T) {
	l := newLive(t)
	var times []int64
	for range 4 {
		l.change()
		times = append(times, l.backup())
	}
	r := openRepo(t, l.repo, imageformats.RepositoryOptions{})
	old, kept, newest := openPoint(t, r, times[0]), openPoint(t, r, times[2]), openPoint(t, r, times[3])
	list := points(t, r)
	if err := l.run("--force", "remove", "increments", "--older-than", strconv.FormatInt(times[1], 10), l.repo); err != nil {
		t.Fatal(err)
	}
	if n := len(points(t, r)); n != 3 {
		t.Errorf("%d points after removal, want 3", n)
	}
	if good, _ := l.check(old); good > 0 {
		t.Errorf("%d files of a point that is gone were shown", good)
	}
	if _, err := r.OpenPoint(t.Context(), list[0]); !errors.Is(err, origin.ErrChanged) {
		t.Errorf("opening a point that is gone: %v", err)
	}
	if _, changed := l.check(kept); changed > 0 {
		t.Errorf("%d files of a point that is there were refused", changed)
	}
	if err := l.run("--force", "regress", l.repo); err != nil {
		t.Fatal(err)
	}
	if n := len(points(t, r)); n != 2 {
		t.Errorf("%d points after the regress, want 2", n)
	}
	if good, _ := l.check(newest); good > 0 {
		t.Errorf("%d files of a session that was taken back were shown", good)
	}
	if _, changed := l.check(kept); changed > 0 {
		t.Errorf("%d files of a point that is there were refused", changed)
	}
}

// TestDamage changes bytes of a mirror file and of increments: reading the whole
// file is an error that names the file at fault.
func TestDamage(t *testing.T) {
	l := newLive(t)
	name := filepath.Join(l.src, "big")
	b := make([]byte, 3<<20) // beyond what is compared at once
	for i := range b {
		b[i] = byte(l.rng.Uint32())
	}
	var times []int64
	for i := range 5 {
		copy(b[i*100_000:], bytes.Repeat([]byte{byte(i)}, 3000))
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
		l.now += 1000
		// Of one size and one second it would be taken for unchanged.
		if err := os.Chtimes(name, time.Unix(l.now, 0), time.Unix(l.now, 0)); err != nil {
			t.Fatal(err)
		}
		if err := l.run("backup", "--no-compression", l.src, l.repo); err != nil {
			t.Fatal(err)
		}
		times = append(times, l.now)
	}
	incs, err := filepath.Glob(l.repo + "/rdiff-backup-data/increments/big.*.diff")
	if err != nil || len(incs) != 4 {
		t.Fatalf("increments %q (error: %v)", incs, err)
	}
	for _, victim := range []string{incs[2], incs[0], l.repo + "/big"} {
		repo := cloneRepo(t, l.repo)
		path := filepath.Join(repo, victim[len(l.repo):])
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, fi.ModTime(), fi.ModTime()); err != nil {
			t.Fatal(err)
		}
		r := openRepo(t, repo, imageformats.RepositoryOptions{})
		for i, when := range times {
			tree := openPoint(t, r, when)
			id := lookup(t, tree, "big")
			hit := true // the mirror's file is the base of all
			switch victim {
			case incs[0]:
				hit = i == 0
			case incs[2]:
				hit = i <= 2
			}
			_, err := tree.VerifyFile(t.Context(), id)
			if (err != nil) != hit || hit && !bytes.Contains([]byte(err.Error()), []byte(filepath.Base(victim))) {
				t.Errorf("%s damaged: point %d: %v", filepath.Base(victim), i, err)
			}
			if victim == l.repo+"/big" && i == 4 {
				continue // plain files are for the kernel to read
			}
			rd, err := tree.Open(t.Context(), id)
			if err != nil {
				t.Errorf("point %d: %v", i, err)
				continue
			}
			buf := make([]byte, 256<<10)
			err = nil
			for off := int64(0); off < rd.Size() && err == nil; off += int64(len(buf)) {
				if _, rerr := block.ReadAt(t.Context(), rd, buf, off); off+int64(len(buf)) < rd.Size() || rerr != nil && rerr.Error() != "EOF" {
					err = rerr
				}
			}
			if (err != nil) != hit {
				t.Errorf("%s damaged: point %d read in order: %v", filepath.Base(victim), i, err)
			}
		}
	}
}
