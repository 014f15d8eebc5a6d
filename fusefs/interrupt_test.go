package fusefs_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"yester/fusefs"
)

// TestSignalsAreNoErrors looks names up, lists and reads while the thread that
// does so gets signals without end, as of a timer: none of the calls fails by it.
func TestSignalsAreNoErrors(t *testing.T) {
	source, states := chain(t)
	dir, _ := mount(t, source, fusefs.Options{Logger: discard()})
	point := filepath.Join(dir, states[0].id)

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // which Go programs get all the time
		}
	}()
	defer func() { stop.Store(true); <-done }()
	// The unix package's calls; those of package os would try again on EINTR.
	buf := make([]byte, 64<<10)
	for i := range 500 {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(point, "files", fmt.Sprint("nonesuch", i)), &st); err != unix.ENOENT {
			t.Fatalf("look-up %d: %v, want ENOENT", i, err)
		}
	}
	fd, err := unix.Open(filepath.Join(point, "files", "var", "big.bin"), unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		if n == 0 {
			break
		}
	}
	dirfd, err := unix.Open(filepath.Join(point, "files"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dirfd)
	if n, err := unix.ReadDirent(dirfd, buf); n == 0 || err != nil {
		t.Errorf("listing: %d bytes, %v", n, err)
	}
}

// TestReadersCanBeKilled kills readers in the middle of their work: they end, and
// the mount goes on and can be unmounted.
func TestReadersCanBeKilled(t *testing.T) {
	source, states := chain(t)
	dir, _ := mount(t, source, fusefs.Options{Logger: discard()})
	file := filepath.Join(dir, states[0].id, "files", "var", "big.bin")
	for i := range 10 {
		cmd := exec.Command("sh", "-c", `while :; do echo; dd if="$1" of=/dev/null bs=64k iflag=direct 2>/dev/null; done`, "sh", file)
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Scan()
		time.Sleep(time.Duration(i) * time.Millisecond)
		if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("reader %d: %v", i, err)
		}
	}
	if _, err := os.ReadFile(file); err != nil {
		t.Error(err)
	}
}
