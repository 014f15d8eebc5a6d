package store

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mount mounts a filesystem of its own, or skips the test where that can't be.
func mount(t *testing.T, source, kind string, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("mount", append([]string{"-t", kind, source, dir}, options...)...).CombinedOutput()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mount: %v: %s", err, out)
		}
		t.Skipf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

func ext4(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 32<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-O", "^has_journal", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return mount(t, image, "ext4", "-o", "loop")
}

// TestFullDisk fills the disk under a cache, and makes room again.
func TestFullDisk(t *testing.T) {
	for name, mounted := range map[string]func(*testing.T) string{
		"tmpfs": func(t *testing.T) string { return mount(t, "none", "tmpfs", "-o", "size=16m") },
		"ext4":  ext4,
	} {
		t.Run(name, func(t *testing.T) {
			where := mounted(t)
			c, said := newClock(), &logs{}
			s, err := Open(filepath.Join(where, "cache"), Options{clock: c.now, Logger: said.logger()})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			o := object(t, s, "k", 256*blk, blk)
			put(t, o, 0, 1, 2, 3)
			s.Sync()
			s.releaseIdle(0)
			// A small disk isn't one without room.
			if s.measure(0, true); len(present(o)) != 4 {
				t.Errorf("left: %v", present(o))
			}
			// Not all at once: the last blocks are put into what the counting still
			// promises.
			junk := filepath.Join(where, "junk")
			fill(t, junk)
			for n := int64(4); n < 40; n++ {
				put(t, o, n)
				if !check(t, o, n) {
					t.Errorf("block %d isn't there", n)
				}
			}
			if got := said.count("level=WARN"); got != 1 {
				t.Errorf("%d warnings:\n%s", got, said.text.String())
			}
			if sp, err := s.Spool(t.Context(), "s", spoolOf("s")); err != nil {
				t.Error(err)
			} else {
				checkSpool(t, sp, "s")
				sp.Close()
			}
			if err := s.SetBlob("b", make([]byte, 1<<20)); err != nil {
				t.Error(err)
			} else if p, err := s.Blob("b"); err != nil || len(p) != 1<<20 {
				t.Error(err)
			}
			if err := os.Remove(junk); err != nil {
				t.Fatal(err)
			}
			c.pass(s, 60)
			s.room.left.Store(0)
			put(t, o, 100)
			if e, err := o.disk.entry(100); err != nil || e.state == stateAbsent {
				t.Error("the disk isn't used again")
			}
			for _, n := range []int64{39, 100} {
				if !check(t, o, n) {
					t.Errorf("block %d isn't there", n)
				}
			}
			o.Close()
		})
	}
}

func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 4096; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	_ = f.Sync()
}

func TestReadOnlyDisk(t *testing.T) {
	where := mount(t, "none", "tmpfs", "-o", "size=16m")
	dir := filepath.Join(where, "cache")
	var said logs
	s := open(t, dir, Options{Logger: said.logger()})
	o := object(t, s, "k", 64*blk, blk)
	put(t, o, 0, 1)
	s.Sync()
	// Read-only for others from now on; this one has its files open.
	before := open(t, dir, Options{Logger: said.logger(), hook: func(change) error { return unix.EROFS }})
	p := object(t, before, "k", 64*blk, blk)
	put(t, p, 5, 6)
	if !check(t, p, 0) || !check(t, p, 5) || !check(t, p, 6) || check(t, p, 7) {
		t.Error("blocks are missing")
	}
	if said.count("level=WARN") != 1 {
		t.Errorf("warnings:\n%s", said.text.String())
	}
	o.Close()
	p.Close()
	s.Close()
	before.Close()
	if err := unix.Mount("", where, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dir, filepath.Join(where, "new"), "/proc/nothing/here", "/dev/null"} {
		var said logs
		s := open(t, dir, Options{Logger: said.logger(), Memory: 8 * blk})
		if !s.InMemory() {
			t.Errorf("%s: on a disk that can't be written to", dir)
		}
		o := object(t, s, "k", 64*blk, blk)
		for n := range int64(64) {
			put(t, o, n)
			if !check(t, o, n) {
				t.Errorf("block %d isn't there", n)
			}
			s.releaseIdle(0)
		}
		if got := len(present(o)); got < 3 || got > 8 {
			t.Errorf("%d blocks in memory for 8", got)
		}
		if said.count("level=WARN") != 1 || !strings.Contains(said.text.String(), "memory only") {
			t.Errorf("warnings:\n%s", said.text.String())
		}
		o.Close()
	}
}

// TestFailingDisk has the disk fail at each of the things that are done to it.
func TestFailingDisk(t *testing.T) {
	for _, what := range []kind{write, punch, truncate, dataSync} {
		for _, suffix := range []string{indexSuffix, partSuffix + "0", recordSuffix, ""} {
			var said logs
			failing := false
			dir := quickDir(t)
			s := open(t, dir, Options{Budget: 16 * blk, Logger: said.logger(), hook: func(c change) error {
				if failing && c.kind == what && strings.HasSuffix(c.file.name, suffix) {
					return unix.EIO
				}
				return nil
			}})
			o := object(t, s, "k", 64*blk, blk)
			put(t, o, 0)
			s.Sync()
			failing = true
			late := object(t, s, "late", 64*blk, blk)
			for n := range int64(40) {
				put(t, o, n)
				put(t, late, n)
				check(t, o, n)
				check(t, late, n)
				if n%10 == 0 {
					_ = s.Sync() // fails, where that is what fails
					s.releaseIdle(0)
				}
			}
			if sp, err := s.Spool(t.Context(), "s", spoolOf("s")); err != nil {
				t.Error(err)
			} else {
				checkSpool(t, sp, "s")
				sp.Close()
			}
			_ = s.SetBlob("b", truth("b", 0, 1000))
			if p, err := s.Blob("b"); err != nil || len(p) != 1000 {
				t.Error(err)
			}
			failing = false
			_ = s.Close()
			checkAll(t, open(t, dir, Options{}))
		}
	}
}

// TestLostSync has a disk that fails to take blocks: they are not there any more.
func TestLostSync(t *testing.T) {
	dir := tempDir(t)
	failing := true
	var said logs
	s := open(t, dir, Options{Logger: said.logger(), hook: func(c change) error {
		if c.kind == dataSync && failing {
			return unix.EIO
		}
		return nil
	}})
	o := object(t, s, "k", 8*blk, blk)
	put(t, o, 1)
	other := open(t, dir, Options{})
	p := object(t, other, "k", 8*blk, blk)
	if err := s.Sync(); err == nil {
		t.Error("no error")
	}
	if check(t, o, 1) || check(t, p, 1) {
		t.Error("a block that the disk may not have")
	}
	if said.count("level=WARN") != 1 {
		t.Errorf("warnings:\n%s", said.text.String())
	}
	put(t, o, 1)
	if !check(t, o, 1) || o.mem.Load() == nil {
		t.Error("not kept in memory")
	}
	failing = false
	s.now.Add(uint32(retryDisk/time.Second) + 1)
	put(t, o, 2)
	if err := s.Sync(); err != nil || !check(t, p, 2) {
		t.Errorf("not on disk again: %v", err)
	}
}
