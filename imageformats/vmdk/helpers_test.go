package vmdk

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// tool returns the path of a program that a test needs.
func tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is needed", name)
		}
		t.Skipf("%s is needed", name)
	}
	return p
}

func runTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// host is a file as an origin shows it: a Mapper that says where the bytes are.
type host struct{ readertest.File }

func (h host) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	return block.Extent{Len: n, File: h.File.File, Off: off}, nil
}

func openFile(t testing.TB, path string) host {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return host{readertest.File{File: f}}
}

// openImage opens path with the files beside it that it names, over parent unless
// that is nil.
func openImage(t testing.TB, path string, parent imageformats.Image) *Image {
	t.Helper()
	file := openFile(t, path)
	info, err := Format.Probe(t.Context(), file)
	if err != nil {
		t.Fatalf("probe %s: %v", path, err)
	}
	opt := imageformats.OpenOptions{Parent: parent, Name: filepath.Base(path)}
	for _, name := range info.Files {
		opt.Files = append(opt.Files, openFile(t, filepath.Join(filepath.Dir(path), name)))
	}
	img, err := Format.Open(t.Context(), file, opt)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { img.Close() })
	return img.(*Image)
}

// disk makes size bytes with data at random places, the same for one seed.
func disk(size int64, seed uint64, pieces int) readertest.Bytes {
	b := make([]byte, size)
	change(b, seed, pieces)
	return b
}

// change overwrites random pieces of b, most of them in whole sectors, half of
// them with what compresses.
func change(b []byte, seed uint64, pieces int) {
	if len(b) == 0 {
		return
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range pieces {
		off, n := rng.IntN(len(b)), 1+rng.IntN(1<<(1+rng.IntN(18)))
		if rng.IntN(4) > 0 {
			off &^= sectorSize - 1
		}
		for j := off; j < min(off+n, len(b)); j++ {
			b[j] = byte(j >> 7)
			if i%2 == 0 {
				b[j] = byte(rng.Uint32())
			}
		}
	}
}

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
