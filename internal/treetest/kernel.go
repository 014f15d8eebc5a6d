package treetest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Need ends the test when one of the tools isn't installed, or when the test
// doesn't run as root, which loop mounts take: skipped on a developer's
// machine, failed in CI.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	end := t.Skipf
	if os.Getenv("CI") == "true" {
		end = t.Fatalf
	}
	if os.Geteuid() != 0 {
		end("needs root for loop mounts")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			end("needs %s", tool)
		}
	}
}

// Run runs a tool that must succeed and returns what it printed.
func Run(t testing.TB, tool string, args ...string) string {
	t.Helper()
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Mount lets the kernel mount image through a loop device and returns where. The
// returned function unmounts; the end of the test does so otherwise.
func Mount(t testing.TB, image, fstype, options string) (dir string, unmount func()) {
	t.Helper()
	dir, unmount, err := TryMount(t, image, fstype, options)
	if err != nil {
		t.Fatal(err)
	}
	return dir, unmount
}

// TryMount is Mount for an image that the kernel may refuse.
func TryMount(t testing.TB, image, fstype, options string) (dir string, unmount func(), err error) {
	t.Helper()
	dir = t.TempDir()
	if options = strings.TrimPrefix(options+",loop", ","); fstype == "" {
		fstype = "auto"
	}
	out, err := exec.Command("mount", "-t", fstype, "-o", options, image, dir).CombinedOutput()
	if err != nil {
		return "", func() {}, &mountError{string(out), err}
	}
	done := false
	unmount = func() {
		if done {
			return
		}
		done = true
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v\n%s", dir, err, out)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount, nil
}

type mountError struct {
	out string
	err error
}

func (e *mountError) Error() string { return "mount: " + e.err.Error() + ": " + e.out }
func (e *mountError) Unwrap() error { return e.err }
