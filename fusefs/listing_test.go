package fusefs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"yester/fusefs"
)

// TestListingWhilePointsVanish lists the points in small steps while the oldest
// ones go: all others are listed, and once.
func TestListingWhilePointsVanish(t *testing.T) {
	needRoot(t)
	source := t.TempDir()
	run(t, source, "truncate -s 256k first && mkfs.ext4 -q -F -N 32 -O ^has_journal first")
	data, err := os.ReadFile(filepath.Join(source, "first"))
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(source, "first"))
	const days = 28 * 12
	file := func(i int) string {
		return filepath.Join(source, fmt.Sprintf("web-2024-%02d-%02d.img", i/28+1, i%28+1))
	}
	for i := range days {
		if err := os.WriteFile(file(i), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir, _ := mountChanging(t, source, fusefs.Options{Logger: discard()})
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	seen := map[string]int{}
	buf := make([]byte, 512)
	for step := 0; ; step++ {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		_, _, list := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range list {
			seen[name]++
		}
		if step == 2 {
			for i := range 100 {
				os.Remove(file(i))
			}
			gone := filepath.Base(file(0))[len("web-") : len("web-")+len("2024-01-01")]
			eventually(t, func() error {
				if _, err := os.Stat(filepath.Join(dir, gone+"T00-00-00Z")); err == nil {
					return fmt.Errorf("%s is still there", gone)
				}
				return nil
			})
		}
	}
	for i := 100; i < days; i++ {
		id := time.Date(2024, time.Month(i/28+1), i%28+1, 0, 0, 0, 0, time.UTC).Format("2006-01-02T15-04-05Z")
		if seen[id] != 1 {
			t.Errorf("%s was listed %d times", id, seen[id])
		}
	}
}
