package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"yester/fusefs"
	"yester/internal/treetest"
)

// compare fails t where what the mount shows below dir differs from what the
// kernel showed of the same state. Inode numbers may be shifted by one constant.
func compare(t *testing.T, dir string, want treetest.Manifest) (inoShift uint64) {
	t.Helper()
	got, err := treetest.Host(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	inoShift = got["/"].Ino - want["/"].Ino
	for path, w := range want {
		g := got[path]
		if g == nil {
			t.Errorf("%s: %q is missing", dir, path)
			continue
		}
		if g.Ino-inoShift != w.Ino {
			t.Errorf("%s: %q: inode %#x, want %#x shifted by %#x", dir, path, g.Ino, w.Ino, inoShift)
		}
		g.Ino = w.Ino
		if !reflect.DeepEqual(g, w) {
			t.Errorf("%s: %q:\n got %+v\nwant %+v", dir, path, g, w)
		}
	}
	for path := range got {
		if want[path] == nil {
			t.Errorf("%s: %q should not be there", dir, path)
		}
	}
	return inoShift
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestMountShowsEveryDate(t *testing.T) {
	source, states := chain(t)
	dir, _ := mount(t, source, fusefs.Options{Logger: quiet(t)})

	want := []string{states[0].id, states[1].id, states[2].id, "latest"}
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Fatalf("the mount shows %q, want %q", got, want)
	}
	shifts := map[uint64]string{}
	for _, s := range states {
		point := filepath.Join(dir, s.id)
		if got, want := names(t, point), []string{"disks", "files", "volumes"}; !slices.Equal(got, want) {
			t.Errorf("%s holds %q, want %q", s.id, got, want)
		}
		shift := compare(t, filepath.Join(point, "files"), s.truth)
		if other := shifts[shift]; other != "" {
			t.Errorf("%s and %s show the same inode numbers: diff and tar would take their files for one", s.id, other)
		}
		shifts[shift] = s.id
		compare(t, filepath.Join(point, "volumes", "disk"), s.truth)
		if got, want := hash(t, filepath.Join(point, "disks", "web01.raw")), hash(t, s.raw); got != want {
			t.Errorf("%s: disks/web01.raw has SHA-256 %s, the disk has %s", s.id, got, want)
		}
	}
	if shifts[0] != states[0].id {
		t.Errorf("inode numbers are the guest's own in %q, want %q", shifts[0], states[0].id)
	}
	compare(t, filepath.Join(dir, "latest", "files"), states[2].truth)

	// What the tools make of it: no circles, and differences found.
	if out, err := exec.Command("find", dir, "-printf", "").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("find: %v: %s", err, out)
	}
	out, err := exec.Command("diff", "-rq", filepath.Join(dir, states[1].id, "files", "home", "ann", "fresh"),
		filepath.Join(dir, states[2].id, "files", "home", "ann", "fresh")).CombinedOutput()
	if err == nil {
		t.Errorf("diff finds nothing: %s", out)
	}
}

func TestMountRefusesWrites(t *testing.T) {
	source, states := chain(t)
	dir, _ := mount(t, source, fusefs.Options{Logger: quiet(t)})
	ann := filepath.Join(dir, states[0].id, "files", "home", "ann")
	file := filepath.Join(ann, "hard")
	for name, try := range map[string]func() error{
		"open":     func() error { _, err := os.OpenFile(file, os.O_WRONLY, 0); return err },
		"create":   func() error { _, err := os.Create(filepath.Join(ann, "x")); return err },
		"mkdir":    func() error { return os.Mkdir(filepath.Join(ann, "x"), 0o755) },
		"remove":   func() error { return os.Remove(file) },
		"rename":   func() error { return os.Rename(file, file+"2") },
		"link":     func() error { return os.Link(file, file+"2") },
		"symlink":  func() error { return os.Symlink("a", filepath.Join(ann, "x")) },
		"chmod":    func() error { return os.Chmod(file, 0o600) },
		"chown":    func() error { return os.Chown(file, 1, 1) },
		"utimes":   func() error { return os.Chtimes(file, time.Now(), time.Now()) },
		"truncate": func() error { return os.Truncate(file, 0) },
		"setxattr": func() error { return unix.Setxattr(file, "user.x", []byte("y"), 0) },
		"rmxattr":  func() error { return unix.Removexattr(file, "user.note") },
		"mknod":    func() error { return unix.Mknod(filepath.Join(ann, "x"), unix.S_IFIFO|0o600, 0) },
		"root":     func() error { return os.Mkdir(filepath.Join(dir, "x"), 0o755) },
		"disk": func() error {
			_, err := os.OpenFile(filepath.Join(dir, states[0].id, "disks", "web01.raw"), os.O_RDWR, 0)
			return err
		},
	} {
		if err := try(); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v, want EROFS", name, err)
		}
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
	if _, err := os.ReadFile(filepath.Join(ann, "absolute")); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a link of the guest's was followed into the host: %v", err)
	}
	if err := unix.Statfs(ann, &st); err != nil || st.Blocks == 0 || st.Files == 0 || st.Bfree >= st.Blocks {
		t.Errorf("statfs of the guest's filesystem: %+v, %v", st, err)
	}
}

func TestMountFollowsTheSource(t *testing.T) {
	source, states := chain(t)
	hidden := filepath.Join(t.TempDir(), "hidden")
	if err := os.Rename(states[2].vhd, hidden); err != nil {
		t.Fatal(err)
	}
	dir, _ := mount(t, source, fusefs.Options{Logger: discard()})
	latest := filepath.Join(dir, "latest", "files", "etc", "hostname")
	read := func() string {
		b, err := os.ReadFile(latest)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	if got := read(); got != "second\n" {
		t.Fatalf("latest is %q, want the second", got)
	}
	inside, err := os.Open(filepath.Join(dir, "latest", "files", "etc"))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()

	if err := os.Rename(hidden, states[2].vhd); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := read(); got != "third\n" {
			return fmt.Errorf("latest is %q, want the third", got)
		}
		if got := names(t, dir); !slices.Contains(got, states[2].id) {
			return fmt.Errorf("the mount shows %q without %s", got, states[2].id)
		}
		return nil
	})
	// Who was in the old "latest" stays in it.
	fd, err := unix.Openat(int(inside.Fd()), "hostname", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "hostname")
	defer f.Close()
	buf := make([]byte, 100)
	if n, _ := f.Read(buf); string(buf[:n]) != "second\n" {
		t.Errorf("the old latest reads %q, want the second", buf[:n])
	}

	if err := os.Remove(states[2].vhd); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := names(t, dir); slices.Contains(got, states[2].id) {
			return fmt.Errorf("the mount still shows %q", got)
		}
		if _, err := os.Stat(filepath.Join(dir, states[2].id)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("stat of the vanished point: %v", err)
		}
		if got := read(); got != "second\n" {
			return fmt.Errorf("latest is %q, want the second", got)
		}
		return nil
	})
}

// eventually waits until check is content: the mount looks at its source once in
// a second.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func TestParallelReads(t *testing.T) {
	source, states := chain(t)
	dir, _ := mount(t, source, fusefs.Options{Logger: quiet(t)})
	want, err := os.ReadFile(states[1].raw)
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, states[1].id, "disks", "web01.raw")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f, err := os.Open(disk)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for range 200 {
				off := rnd.IntN(len(want))
				buf := make([]byte, 1+rnd.IntN(2<<20))
				n, _ := f.ReadAt(buf, int64(off))
				if n != min(len(buf), len(want)-off) || !bytes.Equal(buf[:n], want[off:off+n]) {
					t.Errorf("read of %d bytes at %d: got %d, or other bytes", len(buf), off, n)
					return
				}
			}
		}()
	}
	wg.Wait()
}

func TestSeekHole(t *testing.T) {
	source, states := chain(t)
	dir, _ := mount(t, source, fusefs.Options{Logger: quiet(t)})
	f, err := os.Open(filepath.Join(dir, states[0].id, "files", "var", "sparse.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if err != nil || data == 0 || data > 5000000 {
		t.Errorf("SEEK_DATA from 0: %d, %v", data, err)
	}
	hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
	if err != nil || hole <= 5000000 || hole > 5000000+1<<16 {
		t.Errorf("SEEK_HOLE from %d: %d, %v", data, hole, err)
	}
	if _, err := unix.Seek(int(f.Fd()), hole, unix.SEEK_DATA); err != unix.ENXIO {
		t.Errorf("SEEK_DATA behind the last data: %v, want ENXIO", err)
	}
}

// TestLargeReadsAreSpliced guards what no content test can see: that every stage
// between the mount and the host file passes on where the bytes lie.
func TestLargeReadsAreSpliced(t *testing.T) {
	source, states := chain(t)
	dir, m := mount(t, source, fusefs.Options{Logger: quiet(t)})
	for _, path := range []string{"files/var/big.bin", "volumes/disk/var/sparse.bin", "disks/web01.raw"} {
		before := m.Stats()
		hash(t, filepath.Join(dir, states[1].id, path))
		after := m.Stats()
		read, spliced := after.Bytes-before.Bytes, after.Spliced-before.Spliced
		if read == 0 || spliced < read*3/4 {
			t.Errorf("%s: %d of %d bytes were spliced", path, spliced, read)
		}
	}
}

// pushFirst is how many files the first push holds (fusefs/push.go).
const pushFirst = 8

// TestSmallFilesArePushed reads a directory's files one after the other: many of
// them reach the kernel before it asks, with the right content, and none is
// pushed for somebody who reads just one.
func TestSmallFilesArePushed(t *testing.T) {
	source, states := chain(t)
	dir, m := mount(t, source, fusefs.Options{Logger: quiet(t)})
	log := filepath.Join(dir, states[1].id, "files", "var", "log")
	entries, err := os.ReadDir(log)
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) {
		t.Helper()
		want := strings.TrimPrefix(name, "entry-") + "\n"
		if name == "entry-8" {
			want += "more\n"
		}
		if got, err := os.ReadFile(filepath.Join(log, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	read("entry-100")
	time.Sleep(100 * time.Millisecond)
	if n := m.Stats().Pushed; n != 0 {
		t.Errorf("%d files were pushed for one that was read", n)
	}
	for _, e := range entries {
		read(e.Name())
	}
	st := m.Stats()
	if len(entries) != 499 || st.Pushed < pushFirst { // how many more is a matter of speed
		t.Errorf("%d files: %d pushed, %d asked for", len(entries), st.Pushed, st.Reads)
	}
}
