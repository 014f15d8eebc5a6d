package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMountCommand runs the program itself, since `yester mount` starts another
// process of it: in the background, found by status, gone without a trace after
// umount and after a signal, and cleaned up after a crash.
func TestMountCommand(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts as root; as another user it is fusermount3's business")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Run("disks", func(t *testing.T) { mountLives(t, filepath.Join(makeFixtures(t), "web01")) })
	t.Run("a repository", func(t *testing.T) { mountLives(t, filepath.Join(needRepositories(t), "cli", "repo")) })
}

// mountLives takes a mount of source through its life.
func mountLives(t *testing.T, source string) {
	work := t.TempDir()
	bin, dir := filepath.Join(work, "yester"), filepath.Join(work, "mnt")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	yester := func(args ...string) (stdout, stderr string, code int) {
		t.Helper()
		var out, errs strings.Builder
		cmd := exec.Command(bin, args...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = work, &out, &errs
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
	mounted := func() bool {
		_, err := os.Stat(filepath.Join(dir, "latest"))
		return err == nil
	}
	mount := func() int {
		t.Helper()
		_, errs, code := yester("mount", source, "mnt", "--pid-file", "pid", "--log-file", "log")
		if code != 0 || !mounted() {
			t.Fatalf("mount: exit code %d, mounted %t\n%s", code, mounted(), errs)
		}
		data, err := os.ReadFile(filepath.Join(work, "pid"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
		return pid
	}
	ended := func(pid int) {
		t.Helper()
		for range 200 {
			if syscall.Kill(pid, 0) != nil {
				if _, err := os.Stat(filepath.Join(work, "pid")); err == nil {
					t.Error("the pid file is still there")
				}
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("process %d is still there", pid)
	}
	state := func() string {
		t.Helper()
		out, _, _ := yester("status", "--json")
		for line := range strings.Lines(out) {
			var s struct{ Where, State string }
			if err := json.Unmarshal([]byte(line), &s); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if s.Where == dir {
				return s.State
			}
		}
		return ""
	}

	pid := mount()
	if cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd"); err != nil || cwd != "/" {
		t.Errorf("the process in the background stays in %s, %v", cwd, err)
	}
	if s := state(); s != "serving" {
		t.Errorf("status %q, want serving", s)
	}
	if _, errs, code := yester("mount", source, dir, "--log-file", "log"); code != 2 || !strings.Contains(errs, "already") {
		t.Errorf("second mount: exit code %d: %s", code, errs)
	}
	if _, errs, code := yester("umount", "mnt"); code != 0 || mounted() {
		t.Errorf("umount: exit code %d, still mounted %t: %s", code, mounted(), errs)
	}
	ended(pid)

	pid = mount()
	syscall.Kill(pid, syscall.SIGTERM)
	ended(pid)
	if mounted() || state() != "" {
		t.Errorf("after SIGTERM: mounted %t, status %q", mounted(), state())
	}

	pid = mount()
	syscall.Kill(pid, syscall.SIGKILL)
	for i := 0; syscall.Kill(pid, 0) == nil && i < 200; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	os.Remove(filepath.Join(work, "pid"))
	if s := state(); s != "dead" {
		t.Errorf("after a crash: status %q, want dead", s)
	}
	if _, errs, code := yester("mount", source, dir, "--log-file", "log"); code != 2 || !strings.Contains(errs, "yester umount") {
		t.Errorf("mount over a dead one: exit code %d: %s", code, errs)
	}
	if _, errs, code := yester("umount", "mnt"); code != 0 || state() != "" {
		t.Errorf("umount of a dead mount: exit code %d, status %q: %s", code, state(), errs)
	}
}
