package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"yester/fusefs"
	"yester/internal/treetest"
	"yester/restorepoint"
)

// repository is an rdiff-backup repository in the making, by rdiff-backup itself.
type repository struct {
	src, repo string
	time      int64
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	treetest.Need(t, "rdiff-backup")
	work := t.TempDir()
	r := &repository{src: filepath.Join(work, "src"), repo: filepath.Join(work, "repo"), time: 1_700_000_000}
	if err := os.Mkdir(r.src, 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

// change runs a script in the source and backs it up, a day later than before. It
// returns the point's ID.
func (r *repository) change(t *testing.T, script string) string {
	t.Helper()
	r.time += 86400
	// rdiff-backup knows a file again by its size and the second in which it was
	// changed; those of one test run are all of the same.
	run(t, r.src, fmt.Sprintf("touch -d '10 seconds ago' ../marker\n%s\nfind . -type f -newer ../marker -print0 | xargs -0r touch -d @%d", script, r.time))
	run(t, r.src, fmt.Sprintf("rdiff-backup --current-time %d --api-version 201 --no-fsync backup %s %s", r.time, r.src, r.repo))
	return time.Unix(r.time, 0).UTC().Format("2006-01-02T15-04-05Z")
}

// needImage skips a test where the kernel doesn't mount images.
func needImage(t *testing.T, dir string) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == unix.EROFS_SUPER_MAGIC_V1 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("a filesystem of type %#x", st.Type)
	}
	t.Skip("this kernel mounts no image")
}

// mountsAt returns how many mounts there are on dir.
func mountsAt(t *testing.T, dir string) (n int) {
	t.Helper()
	all, err := fusefs.Mountpoints()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if d == dir {
			n++
		}
	}
	return n
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestImageFollowsTheSource adds and removes points while they are mounted, where
// mounts are private, and where they are propagated to others, as systemd has it.
func TestImageFollowsTheSource(t *testing.T) {
	for _, kind := range []string{"private", "shared"} {
		t.Run(kind, func(t *testing.T) {
			treetest.Need(t)
			around := t.TempDir()
			run(t, around, fmt.Sprintf("mount --bind . . && mount --make-%s .", kind))
			t.Cleanup(func() { unix.Unmount(around, 0) }) // after the test's own
			followSource(t, filepath.Join(around, "mnt"))
		})
	}
}

func followSource(t *testing.T, dir string) {
	r := newRepository(t)
	first := r.change(t, `echo one > f; mkdir d; echo deep > d/g`)
	second := r.change(t, `echo two > f`)
	m := mountOn(t, r.repo, dir, fusefs.Options{Logger: discard()})
	needImage(t, dir)
	if got, want := names(t, dir), []string{first, second, "latest"}; !slices.Equal(got, want) {
		t.Fatalf("the mount shows %q, want %q", got, want)
	}
	if got := content(t, filepath.Join(dir, "latest", "f")); got != "two\n" {
		t.Errorf("latest is %q", got)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := os.Open(filepath.Join(dir, first))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close(); inside.Close() }) // or the mount stays
	var before unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, first, "f"), &before); err != nil {
		t.Fatal(err)
	}

	third := r.change(t, `echo three > f; echo new > n`)
	eventually(t, func() error {
		if got, want := names(t, dir), []string{first, second, third, "latest"}; !slices.Equal(got, want) {
			return fmt.Errorf("the mount shows %q, want %q", got, want)
		}
		return nil
	})
	for id, want := range map[string]string{first: "one\n", second: "two\n", third: "three\n", "latest": "three\n"} {
		if got := content(t, filepath.Join(dir, id, "f")); got != want {
			t.Errorf("%s is %q, want %q", id, got, want)
		}
	}
	if got := content(t, filepath.Join(dir, third, "n")); got != "new\n" {
		t.Errorf("a new file is %q", got)
	}
	if n := mountsAt(t, dir); n != 1 {
		t.Errorf("%d mounts on each other", n)
	}
	// Who was there before stays in what there was.
	if list, err := root.Readdirnames(-1); err != nil || len(list) != 3 {
		t.Errorf("the old root has %q, %v", list, err)
	}
	if fd, err := unix.Openat(int(inside.Fd()), "d/g", unix.O_RDONLY, 0); err != nil {
		t.Error(err)
	} else {
		unix.Close(fd)
	}
	var after unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, first, "f"), &after); err != nil || after.Ino != before.Ino {
		t.Errorf("inode %d, before %d (%v)", after.Ino, before.Ino, err)
	}

	// The oldest goes, with whoever is in it.
	run(t, r.src, fmt.Sprintf("rdiff-backup --current-time %d --api-version 201 --force remove increments --older-than 36h %s", r.time+10, r.repo))
	eventually(t, func() error {
		if got, want := names(t, dir), []string{second, third, "latest"}; !slices.Equal(got, want) {
			return fmt.Errorf("the mount shows %q, want %q", got, want)
		}
		return nil
	})
	for id, want := range map[string]string{second: "two\n", third: "three\n"} {
		if got := content(t, filepath.Join(dir, id, "f")); got != want {
			t.Errorf("%s is %q, want %q", id, got, want)
		}
	}
	if _, err := unix.Openat(int(inside.Fd()), "missing", unix.O_RDONLY, 0); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EIO) {
		t.Errorf("in a point that has vanished: %v", err)
	}
	if st := m.Stats(); st.Points != 2 {
		t.Errorf("%+v", st)
	}
}

// TestImageDamaged damages an increment, and then metadata: what is right stays to
// be had, and what isn't is an error.
func TestImageDamaged(t *testing.T) {
	r := newRepository(t)
	first := r.change(t, `mkdir d; for i in $(seq 100); do head -c $((i * 500)) /dev/urandom > d/f$i; done; head -c 3000000 /dev/urandom > big; cp -a d ../truth-d; cp big ../truth-big`)
	second := r.change(t, `for i in $(seq 100); do echo more >> d/f$i; done; echo more >> big`)
	run(t, r.repo, `f=$(ls rdiff-backup-data/increments/d/f50.*.diff.gz); printf '\377\377\377\377' | dd of=$f bs=1 seek=$(($(stat -c %s $f) / 2)) conv=notrunc status=none`)
	dir, m := mountChanging(t, r.repo, fusefs.Options{Logger: discard()})
	needImage(t, dir)
	truth := filepath.Join(filepath.Dir(r.src), "truth-")
	check := func() {
		t.Helper()
		for i := 1; i <= 100; i++ {
			name := fmt.Sprintf("f%d", i)
			got, err := os.ReadFile(filepath.Join(dir, first, "d", name))
			want, _ := os.ReadFile(filepath.Join(truth+"d", name))
			switch {
			case i == 50 && !errors.Is(err, syscall.EIO):
				t.Errorf("%s, which is damaged: %d bytes, %v", name, len(got), err)
			case i != 50 && (err != nil || !bytes.Equal(got, want)):
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
	}
	check() // in order, so that files are pushed
	check()
	want, _ := os.ReadFile(truth + "big")
	if got, err := os.ReadFile(filepath.Join(dir, first, "big")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("big: %d bytes, %v", len(got), err)
	}
	if st := m.Stats(); st.Errors == 0 {
		t.Errorf("%+v", st)
	}
	// A point's metadata, before anybody has seen them: the others don't suffer.
	run(t, r.repo, `f=$(ls rdiff-backup-data/mirror_metadata.*.diff.gz); printf '\377\377\377\377' | dd of=$f bs=1 seek=$(($(stat -c %s $f) / 2)) conv=notrunc status=none`)
	dir, _ = mountChanging(t, r.repo, fusefs.Options{Logger: discard()})
	if list, err := os.ReadDir(filepath.Join(dir, first, "d")); err == nil || len(list) > 0 {
		t.Errorf("%d files of damaged metadata, %v", len(list), err)
	}
	if list, err := os.ReadDir(filepath.Join(dir, second, "d")); err != nil || len(list) != 100 {
		t.Errorf("%d files of good metadata, %v", len(list), err)
	}
}

// TestImageForgotten reads at random in parallel, with the metadata forgotten here
// and in the kernel again and again.
func TestImageForgotten(t *testing.T) {
	r := newRepository(t)
	ids := []string{}
	for i := range 4 {
		ids = append(ids, r.change(t, fmt.Sprintf(`mkdir -p a%d/b; for i in $(seq 60); do echo %d-$i > a%d/b/f$i; head -c $((i * 3000)) /dev/zero | tr '\0' '%d' > big$i; done`, i, i, i, i)))
	}
	dir, m := mount(t, r.repo, fusefs.Options{Logger: quiet(t)})
	needImage(t, dir)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				m.Forget()
				_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
			}
		}
	})
	var readers sync.WaitGroup
	for w := range 6 {
		readers.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(w)))
			for range 250 {
				p, i := rnd.IntN(len(ids)), 1+rnd.IntN(60)
				a := rnd.IntN(p + 1)
				if got, want := content(t, filepath.Join(dir, ids[p], fmt.Sprintf("a%d/b/f%d", a, i))), fmt.Sprintf("%d-%d\n", a, i); got != want {
					t.Errorf("%s: a%d/b/f%d is %q, want %q", ids[p], a, i, got, want)
				}
				big := filepath.Join(dir, ids[p], fmt.Sprintf("big%d", i))
				if got := content(t, big); got != strings.Repeat(fmt.Sprint(p), i*3000) {
					t.Errorf("%s: %d bytes, or other ones", big, len(got))
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	wg.Wait()
	// Each is made once; "latest", which nobody has looked at, perhaps ahead of who might.
	if n := m.Regions(); n != len(ids) && n != len(ids)+1 {
		t.Errorf("%d places for the contents of %d points", n, len(ids))
	}
}

// TestImageListsFast lists the points without opening them.
func TestImageListsFast(t *testing.T) {
	r := newRepository(t)
	first := r.change(t, `setfattr -n user.root -v top .; chmod 0751 .; echo x > f; touch -d 2001-02-03T04:05:06Z .`)
	r.change(t, `echo y > f`)
	dir, m := mount(t, r.repo, fusefs.Options{Logger: quiet(t)})
	needImage(t, dir)
	fi, err := os.Stat(filepath.Join(dir, first))
	if err != nil || fi.Mode().Perm() != 0o751 || !fi.ModTime().Equal(time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)) {
		t.Errorf("%v %v", fi, err)
	}
	run(t, t.TempDir(), `cd `+dir+`; ls -l > /dev/null; test "$(getfattr -h --only-values -n user.root `+first+`)" = top`)
	if st := m.Stats(); st.Open != 0 {
		t.Errorf("%d points were opened", st.Open)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	for name, flag := range map[string]int64{"ro": unix.ST_RDONLY, "nosuid": unix.ST_NOSUID, "nodev": unix.ST_NODEV, "nosymfollow": 0x2000} {
		if st.Flags&flag == 0 {
			t.Errorf("mounted without %s", name)
		}
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o500 {
		t.Errorf("others may enter: %v %v", fi.Mode(), err)
	}
}

// TestImageLargeRoot has a root directory of many blocks, which differ by point.
func TestImageLargeRoot(t *testing.T) {
	r := newRepository(t)
	first := r.change(t, `for i in $(seq 500); do : > a-rather-long-name-of-a-file-$i; done`)
	second := r.change(t, `rm *; echo one > one`)
	third := r.change(t, `for i in $(seq 300); do : > $i; done`)
	dir, _ := mount(t, r.repo, fusefs.Options{Logger: quiet(t)})
	needImage(t, dir)
	for id, want := range map[string]int{first: 500, second: 1, third: 301} {
		if got := names(t, filepath.Join(dir, id)); len(got) != want {
			t.Errorf("%s: %d names, want %d", id, len(got), want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, first, "a-rather-long-name-of-a-file-123")); err != nil {
		t.Error(err)
	}
}

// TestImageMachines mounts several machines, and one point alone.
func TestImageMachines(t *testing.T) {
	a, b := newRepository(t), newRepository(t)
	ida := a.change(t, `echo a > f`)
	idb := b.change(t, `echo b > f`)
	both := filepath.Join(t.TempDir(), "both")
	run(t, t.TempDir(), `mkdir `+both+`; mv `+a.repo+` `+both+`/alpha; mv `+b.repo+` `+both+`/beta`)
	dir, _ := mount(t, both, fusefs.Options{Logger: quiet(t), AllowOther: true})
	needImage(t, dir)
	if got, want := names(t, dir), []string{"alpha", "beta"}; !slices.Equal(got, want) {
		t.Fatalf("the mount shows %q, want %q", got, want)
	}
	for path, want := range map[string]string{"alpha/" + ida: "a\n", "alpha/latest": "a\n", "beta/" + idb: "b\n"} {
		if got := content(t, filepath.Join(dir, path, "f")); got != want {
			t.Errorf("%s is %q", path, got)
		}
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o555 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
	one, _ := mount(t, both, fusefs.Options{Logger: quiet(t), Machine: "beta", Point: idb})
	if got, want := names(t, one), []string{idb, "latest"}; !slices.Equal(got, want) {
		t.Errorf("one point alone: %q, want %q", got, want)
	}
}

// TestImageCovered leaves alone what somebody has mounted over it.
func TestImageCovered(t *testing.T) {
	r := newRepository(t)
	r.change(t, `echo one > f`)
	dir, _ := mountChanging(t, r.repo, fusefs.Options{Logger: discard()})
	needImage(t, dir)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	run(t, dir, `echo mine > mine`)
	second := r.change(t, `echo two > f`)
	time.Sleep(5 * time.Second)
	if got := content(t, filepath.Join(dir, "mine")); got != "mine\n" {
		t.Errorf("what was mounted over it: %q", got)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := names(t, dir); !slices.Contains(got, second) {
			return fmt.Errorf("the mount shows %q", got)
		}
		return nil
	})
}

// TestImageReplacesItsOwnOnly has the image's place taken by another filesystem, with
// a user left in an older generation, and another filesystem mounted in it.
func TestImageReplacesItsOwnOnly(t *testing.T) {
	r := newRepository(t)
	first := r.change(t, `mkdir d; echo one > f`)
	dir, m := mountChanging(t, r.repo, fusefs.Options{Logger: discard()})
	needImage(t, dir)
	inside := filepath.Join(dir, first, "d")
	if err := unix.Mount("tmpfs", inside, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	run(t, inside, `echo mine > mine`)
	second := r.change(t, `echo two > f`)
	time.Sleep(5 * time.Second)
	if got := content(t, filepath.Join(inside, "mine")); got != "mine\n" {
		t.Errorf("what was mounted in it: %q", got)
	}
	if err := unix.Unmount(inside, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := names(t, dir); !slices.Contains(got, second) {
			return fmt.Errorf("the mount shows %q", got)
		}
		return nil
	})

	old, err := os.Open(filepath.Join(dir, first))
	if err != nil {
		t.Fatal(err)
	}
	third := r.change(t, `echo three > f`)
	eventually(t, func() error {
		if got := names(t, dir); !slices.Contains(got, third) {
			return fmt.Errorf("the mount shows %q", got)
		}
		return nil
	})
	if err := m.Unmount(false); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	run(t, dir, `echo mine > mine`)
	r.change(t, `echo four > f`)
	time.Sleep(5 * time.Second)
	if got := content(t, filepath.Join(dir, "mine")); got != "mine\n" {
		t.Errorf("what was mounted after it: %q", got)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
	if mounted, _, _ := fusefs.Mounted(dir); mounted {
		t.Error("it was mounted again by itself")
	}
	old.Close()
	m.Wait()
}

// TestImageTransient has attributes that can't be read for a while, in the midst of
// looks at two points: each file is its own afterwards.
func TestImageTransient(t *testing.T) {
	r := newRepository(t)
	first := r.change(t, `for i in 1 2 3 4 5; do echo first-$i > f$i; setfattr -n user.a -v b f$i; done`)
	second := r.change(t, `for i in 1 2 3 4 5; do echo second-$i > f$i; done`)
	dir, m := mountChanging(t, r.repo, fusefs.Options{Logger: discard()})
	needImage(t, dir)
	if _, err := os.Stat(filepath.Join(dir, first)); err != nil {
		t.Fatal(err)
	}
	run(t, r.repo, `for f in rdiff-backup-data/extended_attributes.*; do cp -a $f ../$(basename $f); echo x > $f; done`)
	if list, err := os.ReadDir(filepath.Join(dir, first)); err == nil {
		t.Errorf("%d files without their attributes", len(list))
	}
	run(t, r.repo, `for f in rdiff-backup-data/extended_attributes.*; do cp -a ../$(basename $f) $f; done`)
	for range 2 {
		for id, text := range map[string]string{second: "second", first: "first"} {
			for i := 1; i <= 5; i++ {
				if got, want := content(t, filepath.Join(dir, id, fmt.Sprint("f", i))), fmt.Sprintf("%s-%d\n", text, i); got != want {
					t.Errorf("%s: f%d is %q, want %q", id, i, got, want)
				}
			}
		}
		m.Forget()
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestImageByLink mounts on a symbolic link to a directory.
func TestImageByLink(t *testing.T) {
	r := newRepository(t)
	id := r.change(t, `echo one > f`)
	work := t.TempDir()
	run(t, work, `mkdir real; ln -s real link`)
	src, err := restorepoint.Open(r.repo, restorepoint.Options{Replay: true, Logger: quiet(t), Location: time.UTC})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	m, err := fusefs.Start(t.Context(), src, filepath.Join(work, "link"), fusefs.Options{Logger: quiet(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Wait()
	defer m.Unmount(false)
	needImage(t, filepath.Join(work, "real"))
	if got := content(t, filepath.Join(work, "link", id, "f")); got != "one\n" {
		t.Errorf("f is %q", got)
	}
}
