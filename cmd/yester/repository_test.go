package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"yester/guestfs"
	"yester/internal/treetest"
)

// repositories are made once per run.
var repositories struct {
	once sync.Once
	dir  string
	err  error
}

// makeRepositories makes rdiff-backup repositories by the real rdiff-backup, and
// returns their folder; "" where that can't be done, which fails a run of CI. Each
// is in NAME/repo, with what it must show in NAME/truth.json:
//
//	cli/       names and texts for people; cli/interrupted and cli/damaged beside it
//	zones/     whatever a source can hold, by sessions in several zones
//	first/     the first session was interrupted
func makeRepositories(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 { // owners and devices
		return ""
	}
	if _, err := exec.LookPath("rdiff-backup"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		return ""
	}
	if dir := os.Getenv("YESTER_RDIFF"); dir != "" { // made before, for all tests
		return dir
	}
	repositories.once.Do(func() {
		dir, err := os.MkdirTemp("", "yester-rdiff-*")
		if err != nil {
			repositories.err = err
			return
		}
		repositories.dir = dir
		// The system's Python is the one that rdiff-backup is for.
		out, err := exec.Command("/usr/bin/python3", "-B", "../../testdata/rdiff/make.py", dir, "cli", "zones", "first").CombinedOutput()
		if err != nil {
			repositories.err = fmt.Errorf("make.py: %w\n%s", err, out)
		}
	})
	if repositories.err != nil {
		t.Fatal(repositories.err)
	}
	return repositories.dir
}

// truth is what make.py writes down of the source before each session.
type truth struct {
	Points []struct {
		Time int64
		Tree map[string]struct {
			Mode, UID, GID, Nlink, Major, Minor uint32
			Mtime, Size                         int64
			SHA256, Target                      string
			Xattrs                              map[string]string
		}
	}
}

// rawBytes returns the bytes that s has as code points: names aren't all UTF-8.
func rawBytes(s string) string {
	var b []byte
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}

// differences compares what the kernel shows of dir with the truth of point i.
func (tr *truth) differences(t *testing.T, i int, dir string) (diffs []string) {
	t.Helper()
	got, err := treetest.Host(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := tr.Points[i].Tree
	for p := range want {
		if got[rawBytes(p)] == nil {
			diffs = append(diffs, fmt.Sprintf("%q: missing", p))
		}
	}
	names := make(map[string]string, len(want))
	for p := range want {
		names[rawBytes(p)] = p
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		name, ok := names[p]
		if !ok {
			diffs = append(diffs, fmt.Sprintf("%q: not expected", p))
			continue
		}
		g, w := got[p], want[name]
		check := func(what string, a, b any) {
			if a != b {
				diffs = append(diffs, fmt.Sprintf("%q: %s %v, want %v", p, what, a, b))
			}
		}
		check("mode", fmt.Sprintf("%o", g.Attr.Mode), fmt.Sprintf("%o", w.Mode))
		check("owner", g.Attr.UID, w.UID)
		check("group", g.Attr.GID, w.GID)
		kind := w.Mode & guestfs.ModeType
		switch kind {
		case guestfs.ModeRegular:
			check("size", g.Attr.Size, w.Size)
			check("SHA-256", g.SHA256, w.SHA256)
		case guestfs.ModeSymlink:
			check("target", g.Target, rawBytes(w.Target))
		case guestfs.ModeChar, guestfs.ModeBlock:
			check("device", [2]uint32{g.Attr.Major, g.Attr.Minor}, [2]uint32{w.Major, w.Minor})
		}
		// rdiff-backup records no times of links and devices.
		if kind != guestfs.ModeSymlink && kind != guestfs.ModeChar && kind != guestfs.ModeBlock {
			check("mtime", g.Attr.Mtime.Sec, w.Mtime)
		}
		xattrs := make(map[string]string)
		for k, v := range w.Xattrs {
			xattrs[rawBytes(k)] = rawBytes(v)
		}
		if !maps.Equal(g.Xattrs, xattrs) {
			diffs = append(diffs, fmt.Sprintf("%q: extended attributes %q, want %q", p, g.Xattrs, xattrs))
		}
		// A link outside of the source counts for the source's links alone.
		if kind == guestfs.ModeRegular && name != "/outside" {
			check("links", g.Attr.Nlink, w.Nlink)
		}
	}
	return diffs
}

func readTruth(t *testing.T, dir string) *truth {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "truth.json"))
	if err != nil {
		t.Fatal(err)
	}
	var tr truth
	if err := json.Unmarshal(b, &tr); err != nil {
		t.Fatal(err)
	}
	return &tr
}

func pointID(unix int64) string { return time.Unix(unix, 0).UTC().Format("2006-01-02T15-04-05Z") }

// TestRepositoryMount mounts repositories and compares every date with the truth:
// as an image that the kernel lists by itself, and served request by request.
func TestRepositoryMount(t *testing.T) {
	dir := needRepositories(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for _, name := range []string{"zones", "cli", "everything", "special", "long"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			continue // made beforehand only, for all tests
		}
		t.Run(name, func(t *testing.T) { compareMount(t, filepath.Join(dir, name), unix.EROFS_SUPER_MAGIC_V1) })
		t.Run(name+" without EROFS", func(t *testing.T) { compareMount(t, filepath.Join(dir, name), unix.FUSE_SUPER_MAGIC, "--no-erofs") })
	}
}

// compareMount mounts the repository in dir, which is to be a filesystem of that
// type, and compares it with the truth.
func compareMount(t *testing.T, dir string, magic int64, args ...string) {
	mnt, ended, talk := mountRepository(t, filepath.Join(dir, "repo"), append(args, "--numeric-ids")...)
	var st unix.Statfs_t
	if err := unix.Statfs(mnt, &st); err != nil || st.Type != magic {
		// Other kernels may be too old for an image.
		if os.Getenv("CI") != "" {
			t.Errorf("a filesystem of type %#x, want %#x (error: %v)", st.Type, magic, err)
		}
	}
	tr := readTruth(t, dir)
	for i, p := range tr.Points {
		for _, d := range tr.differences(t, i, filepath.Join(mnt, pointID(p.Time))) {
			t.Errorf("%s: %s", pointID(p.Time), d)
		}
	}
	entries, err := os.ReadDir(mnt)
	if err != nil || len(entries) != len(tr.Points)+1 { // and latest
		t.Errorf("%d entries for %d points (error: %v)", len(entries), len(tr.Points), err)
	}
	if out, err := exec.Command("yester", "umount", mnt).CombinedOutput(); err != nil {
		t.Errorf("umount: %v\n%s", err, out)
	}
	if err := <-ended; err != nil {
		t.Errorf("mount: %v\n%s", err, talk)
	}
}

// mountRepository mounts a repository and returns where, what gets the command's result
// when it ends, and what it has said.
func mountRepository(t *testing.T, repo string, args ...string) (mnt string, ended chan error, talk *strings.Builder) {
	t.Helper()
	mnt, talk = t.TempDir(), new(strings.Builder)
	t.Cleanup(func() { syscall.Unmount(mnt, syscall.MNT_DETACH) })
	// The command is this program, under another name (TestMain), and must be
	// another process than the one that reads the mount.
	cmd := exec.Command("yester", append([]string{"mount", repo, mnt, "--foreground"}, args...)...)
	cmd.Stderr = talk
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	for {
		select {
		case err := <-ended:
			t.Fatalf("mount: %v\n%s", err, talk)
		case <-time.After(10 * time.Millisecond):
			if _, err := os.Stat(filepath.Join(mnt, "latest")); err == nil {
				return mnt, ended, talk
			}
		}
	}
}

func needRepositories(t *testing.T) string {
	t.Helper()
	dir := makeRepositories(t)
	if dir == "" {
		t.Skip("needs root and rdiff-backup")
	}
	return dir
}

// TestRepositoryCopy copies every date as a whole and compares it with the truth.
func TestRepositoryCopy(t *testing.T) {
	dir := needRepositories(t)
	work := t.TempDir()
	for _, name := range []string{"zones", "cli"} {
		tr := readTruth(t, filepath.Join(dir, name))
		for i, p := range tr.Points {
			to := filepath.Join(work, name, pointID(p.Time))
			cmd := exec.Command("yester", "cp", filepath.Join(dir, name, "repo"), "/.", to+"/", "--numeric-ids", "--at", pointID(p.Time))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("cp: %v\n%s", err, out)
			}
			for _, d := range tr.differences(t, i, to) {
				t.Errorf("%s at %s: %s", name, pointID(p.Time), d)
			}
		}
	}
}
