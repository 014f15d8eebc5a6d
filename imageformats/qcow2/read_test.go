package qcow2

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// TestRead compares with QEMU what images of every layout hold.
func TestRead(t *testing.T) {
	for _, c := range []struct {
		options string
		size    int64
		packed  bool // takes compressed clusters
		backing int64
	}{
		{"compat=0.10", 5<<20 + 1536, true, 0},
		{"compat=0.10,cluster_size=4096", 3 << 20, true, 2 << 20},
		{"cluster_size=512", 1<<20 + 512, true, 0},
		{"cluster_size=1024", 2 << 20, true, 3 << 20},
		{"", 5<<20 + 4608, true, 3<<20 + 512},
		{"cluster_size=2M", 7<<20 + 512, true, 5<<20 + 512},
		{"compression_type=zstd", 5<<20 + 512, true, 0},
		{"compression_type=zstd,cluster_size=2M", 5<<20 + 512, true, 0},
		{"compression_type=zstd,cluster_size=512", 1 << 20, true, 2 << 20},
		{"extended_l2=on", 6<<20 + 512, true, 5 << 20},
		{"extended_l2=on,cluster_size=16k,compression_type=zstd", 5 << 20, true, 0},
		{"extended_l2=on,cluster_size=2M", 5<<20 + 512, true, 4 << 20},
		{"data_file=data", 5<<20 + 512, false, 3 << 20},
		{"data_file=data,data_file_raw=on", 5<<20 + 512, false, 0},
		{"data_file=data,extended_l2=on", 5<<20 + 512, false, 3 << 20},
		{"lazy_refcounts=on", 5 << 20, true, 0},
		{"refcount_bits=1", 5 << 20, true, 0},
		{"preallocation=metadata", 5<<20 + 512, false, 0},
		{"preallocation=falloc", 5<<20 + 512, false, 0},
		{"preallocation=full,cluster_size=8k", 5<<20 + 512, false, 0},
	} {
		t.Run(strings.ReplaceAll(c.options, ",", " "), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "img")
			options := strings.Replace(c.options, "data_file=data", "data_file="+filepath.Join(dir, "data"), 1)
			var backing []string
			if c.backing > 0 {
				base := filepath.Join(dir, "base")
				create(t, base, c.backing, "")
				writes(t, base, 3, 6, true)
				backing = []string{"-b", base, "-F", "qcow2"}
			}
			create(t, path, c.size, options, backing...)
			writes(t, path, 1, 20, c.packed)
			readertest.Run(t, openImage(t, path, ""), asQEMU(t, path, ""), c.backing, 512, 2048, 32<<10)
		})
	}
}

// TestConverted reads images that QEMU filled with data of all kinds, most of
// them compressed.
func TestConverted(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	data := make([]byte, 2<<20+512)
	for i := range data {
		switch i >> 18 % 3 {
		case 0:
			data[i] = byte(i * i >> 7)
		case 1:
			data[i] = "compresses well"[i%15]
		}
	}
	if err := os.WriteFile(plain, data, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, o := range []string{"cluster_size=512", "", "cluster_size=2M", "compression_type=zstd", "compression_type=zstd,cluster_size=1k", "compat=0.10", "extended_l2=on"} {
		for _, flags := range [][]string{nil, {"-c"}} {
			t.Run(o+fmt.Sprint(flags), func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "img")
				args := append([]string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2"}, flags...)
				if o != "" {
					args = append(args, "-o", o)
				}
				tool(t, append(args, plain, path)...)
				readertest.Run(t, openImage(t, path, ""), readertest.Bytes(data), 256<<10, 512<<10)
			})
		}
	}
}

// TestChain reads chains whose disks have different sizes, from every link.
func TestChain(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	if err := os.WriteFile(base, []byte(strings.Repeat("the raw base's sectors\n", 200_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(base, 4<<20+512); err != nil {
		t.Fatal(err)
	}
	below, format := base, "raw"
	for i, c := range []struct {
		size    int64
		options string
	}{
		{5 << 20, ""}, {2<<20 + 512, "cluster_size=4k"}, {6 << 20, "extended_l2=on"}, {6 << 20, "compat=0.10"}, {3 << 20, "cluster_size=512,compression_type=zstd"}, {7 << 20, ""},
	} {
		path := filepath.Join(dir, fmt.Sprint(i))
		create(t, path, c.size, c.options, "-b", below, "-F", format)
		writes(t, path, uint64(i), 5, true)
		img := openImage(t, path, "")
		t.Run(fmt.Sprint(i), func(t *testing.T) { readertest.Run(t, img, asQEMU(t, path, ""), 2<<20, 4<<20, 5<<20) })
		if p := img.Info().Parent; p == nil || p.Name != below || p.Format != format || p.ID != "" {
			t.Errorf("parent of %d: %+v", i, p)
		}
		below, format = path, "qcow2"
	}
}

// TestSnapshots writes, takes snapshots and resizes in turn, and compares each
// snapshot with what QEMU makes of it.
func TestSnapshots(t *testing.T) {
	for _, options := range []string{"compat=0.10", "", "extended_l2=on", "cluster_size=512"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			base, path := filepath.Join(dir, "base"), filepath.Join(dir, "img")
			create(t, base, 2<<20, "")
			writes(t, base, 9, 5, true)
			create(t, path, 3<<20, options, "-b", base, "-F", "qcow2")
			sizes := []int64{3 << 20, 3 << 20, 4 << 20}
			if options == "compat=0.10" {
				sizes[2] = 3 << 20 // QEMU resizes none of version 2 that has snapshots
			}
			for i, size := range sizes {
				if size > 3<<20 {
					tool(t, "qemu-img", "resize", "-q", "-f", "qcow2", path, fmt.Sprint(size))
				}
				writes(t, path, uint64(i), 5, true)
				tool(t, "qemu-img", "snapshot", "-c", fmt.Sprintf("state %d", i), path)
			}
			writes(t, path, 77, 5, true)
			active := openImage(t, path, "")
			info := active.Info()
			if len(info.Snapshots) != len(sizes) || len(info.Warnings) > 0 {
				t.Fatalf("%+v", info)
			}
			for i, s := range info.Snapshots {
				if s.ID != fmt.Sprint(i+1) || s.Name != fmt.Sprintf("state %d", i) || s.Size != sizes[i] || s.Running || s.Time.IsZero() {
					t.Errorf("snapshot %d: %+v", i, s)
				}
				img := openImage(t, path, s.ID)
				if img.Size() != sizes[i] {
					t.Errorf("%s: %d bytes", s.ID, img.Size())
				}
				want, err := block.NewSection(asQEMU(t, path, s.ID), 0, img.Size())
				if err != nil {
					t.Fatal(err)
				}
				t.Run(s.ID, func(t *testing.T) { readertest.Run(t, img, want) })
			}
			t.Run("active", func(t *testing.T) { readertest.Run(t, active, asQEMU(t, path, "")) })
			if _, err := Format.Open(t.Context(), openFile(t, path), imageformats.OpenOptions{Snapshot: "9"}); err == nil || !strings.Contains(err.Error(), `"9"`) {
				t.Errorf("a snapshot that isn't there: %v", err)
			}
		})
	}
}

// TestOwn reads what this package writes.
func TestOwn(t *testing.T) {
	src := islands{1600 << 20, map[int64]string{0: "a", 512<<20 - 1: "bc", 1599 << 20: "d", 1600<<20 - 1: "e"}}
	path := filepath.Join(t.TempDir(), "img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Write(t.Context(), f, src, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	img := openImage(t, path, "")
	for off := int64(0); off < img.Size(); {
		e, err := block.ExtentAt(t.Context(), img, off, img.Size())
		if err != nil {
			t.Fatal(err)
		}
		if !e.Zero {
			a, b := make([]byte, e.Len), make([]byte, e.Len)
			if _, err := img.ReadAt(a, off); err != nil {
				t.Fatal(err)
			}
			src.ReadAt(b, off)
			if string(a) != string(b) || e.File == nil {
				t.Errorf("%+v at %#x has other bytes than were written", e, off)
			}
		}
		off += e.Len
	}
	for at, s := range src.data {
		b := make([]byte, len(s))
		if _, err := img.ReadAt(b, at); err != nil || string(b) != s {
			t.Errorf("%q at %#x, %v", b, at, err)
		}
	}
}
