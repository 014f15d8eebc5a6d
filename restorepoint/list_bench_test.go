package restorepoint

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"yester/internal/treetest"
)

// BenchmarkList lists 10,000 points of 100 machines below one folder, from a cold
// start and again while nothing has changed.
func BenchmarkList(b *testing.B) {
	treetest.Need(b, "qemu-img")
	s := source{nil, b.TempDir()}
	one := s.dir + "/one"
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", one, "64M").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	image, err := os.ReadFile(one)
	if err != nil {
		b.Fatal(err)
	}
	os.Remove(one)
	for m := range 100 {
		for day := range 100 {
			name := s.path(fmt.Sprintf("vm%03d/vm%03d-2026%02d%02dT023000Z.qcow2", m, m, day/25+1, day%25+1))
			if err := os.WriteFile(name, image, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	list := func(src *Source) {
		b.Helper()
		if cat, err := src.List(b.Context()); err != nil || len(cat.Points) != 10000 {
			b.Fatal(len(cat.Points), err)
		}
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			src, err := Open(s.dir, Options{})
			if err != nil {
				b.Fatal(err)
			}
			list(src)
			src.Close()
		}
	})
	b.Run("again", func(b *testing.B) {
		src, err := Open(s.dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		defer src.Close()
		list(src)
		for b.Loop() {
			list(src)
		}
	})
}
