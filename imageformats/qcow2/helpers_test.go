package qcow2

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/imageformats/raw"
	"yester/internal/block"
	"yester/internal/readertest"
)

// tool runs a program that a test needs and returns what it prints.
func tool(t testing.TB, args ...string) string {
	t.Helper()
	p, err := exec.LookPath(args[0])
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is needed", args[0])
		}
		t.Skipf("%s is needed", args[0])
	}
	out, err := exec.Command(p, args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
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

// openImage opens path and the backing and data files that it names beside it.
func openImage(t testing.TB, path, snapshot string) *Image {
	t.Helper()
	file := openFile(t, path)
	info, err := Format.Probe(t.Context(), file)
	if err != nil {
		t.Fatalf("probe %s: %v", path, err)
	}
	opt := imageformats.OpenOptions{Name: filepath.Base(path), Snapshot: snapshot}
	beside := func(name string) string { return filepath.Join(filepath.Dir(path), filepath.Base(name)) }
	for _, f := range info.Files {
		opt.Files = append(opt.Files, openFile(t, beside(f)))
	}
	if p := info.Parent; p != nil && p.Format == "raw" {
		if opt.Parent, err = raw.Format.Open(t.Context(), openFile(t, beside(p.Name)), imageformats.OpenOptions{}); err != nil {
			t.Fatal(err)
		}
	} else if p != nil {
		opt.Parent = openImage(t, beside(p.Name), "")
	}
	img, err := Format.Open(t.Context(), file, opt)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { img.Close() })
	return img.(*Image)
}

// asQEMU returns what QEMU reads of the image, or of its snapshot. Of a snapshot
// it reads as many bytes as the disk has now.
func asQEMU(t testing.TB, path, snapshot string) host {
	t.Helper()
	out := filepath.Join(t.TempDir(), "raw")
	args := []string{"qemu-img", "convert", "-t", "unsafe", "-O", "raw"}
	if snapshot != "" {
		args = append(args, "-l", "snapshot.id="+snapshot)
	}
	tool(t, append(args, "-f", "qcow2", path, out)...)
	return openFile(t, out)
}

// create makes an image of size bytes.
func create(t testing.TB, path string, size int64, options string, args ...string) {
	t.Helper()
	a := []string{"qemu-img", "create", "-q", "-f", "qcow2"}
	if options != "" {
		a = append(a, "-o", options)
	}
	tool(t, append(append(a, args...), path, fmt.Sprint(size))...)
}

// writes changes an image at random places through QEMU, the same for one seed:
// data, zeros with and without giving the cluster up, discards, and compressed
// clusters where those are allowed.
func writes(t testing.TB, path string, seed uint64, count int, packed bool) {
	t.Helper()
	img := tool(t, "qemu-img", "info", "--output=json", path)
	size, cluster := int64(field(t, img, `"virtual-size": `)), int64(field(t, img, `"cluster-size": `))
	rng := rand.New(rand.NewPCG(seed, 2))
	noise := filepath.Join(t.TempDir(), "noise")
	b := make([]byte, 64<<10)
	for i := range b {
		b[i] = byte(rng.Uint32())
		if i>>12%2 == 0 {
			b[i] &= 0x11 // something to compress
		}
	}
	if err := os.WriteFile(noise, b, 0o644); err != nil {
		t.Fatal(err)
	}
	args, compress := []string{"qemu-io", "-t", "unsafe", "-f", "qcow2"}, []string{"-t", "unsafe", "-f", "qcow2"}
	for range count {
		off := rng.Int64N(size) &^ 511
		n := min(512*(1+rng.Int64N(min(size, 4*cluster+64<<10)/512)), size-off)
		kind := rng.IntN(8)
		if kind < 2 && !packed {
			kind += 2
		}
		switch kind {
		case 0, 1:
			off &^= cluster - 1
			n = min(cluster, size-off)
			if n%cluster == 0 {
				compress = append(compress, "-c", fmt.Sprintf("write -c -s %s %d %d", noise, off, n))
			}
		case 2:
			args = append(args, "-c", fmt.Sprintf("write -z %d %d", off, n))
		case 3:
			args = append(args, "-c", fmt.Sprintf("write -z -u %d %d", off, n))
		case 4:
			args = append(args, "-c", fmt.Sprintf("discard %d %d", off, n))
		case 5:
			args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), off, n))
		default:
			args = append(args, "-c", fmt.Sprintf("write -s %s %d %d", noise, off, n))
		}
	}
	if packed {
		// QEMU refuses to compress a cluster that has been written to.
		exec.Command("qemu-io", append(compress, path)...).Run()
	}
	if out := tool(t, append(args, path)...); strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Fatalf("%q\n%s", args, out)
	}
}

// field finds a number in JSON by what stands before it.
func field(t testing.TB, json, before string) (n int) {
	t.Helper()
	_, rest, _ := strings.Cut(json, before)
	if _, err := fmt.Sscan(strings.TrimRight(strings.SplitN(rest, "\n", 2)[0], ","), &n); err != nil {
		t.Fatalf("%s in %s: %v", before, json, err)
	}
	return n
}
