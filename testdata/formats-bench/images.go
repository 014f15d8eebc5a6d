package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"yester/testdata/versus"
)

const (
	diskSize = 1 << 30
	// strideBlocks, odd, makes a row of multiples of it, taken by the disk's blocks,
	// go all over the disk, and through all blocks before one is read again:
	// qemu-img bench has no other way to read here and there.
	strideBlocks = 20_011
)

// container is an image of the disk.
type container struct {
	name, file string
	driver     string   // QEMU's name for it; empty: it doesn't read it
	packed     bool     // compressed
	make       []string // qemu-img convert's arguments; nil for EWF
}

var containers = []container{
	{name: "VHD dynamic", file: "disk.vhd", driver: "vpc", make: []string{"-O", "vpc", "-o", "subformat=dynamic,force_size=on"}},
	{name: "VHDX dynamic", file: "disk.vhdx", driver: "vhdx", make: []string{"-O", "vhdx", "-o", "subformat=dynamic"}},
	{name: "VMDK sparse", file: "sparse.vmdk", driver: "vmdk", make: []string{"-O", "vmdk", "-o", "subformat=monolithicSparse"}},
	{name: "qcow2", file: "disk.qcow2", driver: "qcow2", make: []string{"-O", "qcow2"}},
	{name: "VMDK streamOptimized", file: "stream.vmdk", driver: "vmdk", packed: true, make: []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}},
	{name: "qcow2 zlib", file: "zlib.qcow2", driver: "qcow2", packed: true, make: []string{"-O", "qcow2", "-c"}},
	{name: "qcow2 zstd", file: "zstd.qcow2", driver: "qcow2", packed: true, make: []string{"-O", "qcow2", "-c", "-o", "compression_type=zstd"}},
	{name: "EWF fast", file: "ewf/disk.E01", packed: true},
}

// prepare makes the images that aren't there yet.
func (b *bench) prepare() error {
	for _, dir := range []string{"mnt", "peer", "ewf"} {
		if err := os.MkdirAll(b.path(dir), 0o755); err != nil {
			return err
		}
	}
	raw := b.path("disk.raw")
	if _, err := os.Stat(raw); err != nil {
		fmt.Fprintln(os.Stderr, "making the disk …")
		if err := writeDisk(raw + ".part"); err != nil {
			return err
		}
		if err := os.Rename(raw+".part", raw); err != nil {
			return err
		}
	}
	for _, c := range containers {
		if _, err := os.Stat(b.path(c.file)); err == nil {
			continue
		}
		fmt.Fprintln(os.Stderr, "making", c.file, "…")
		if c.make == nil {
			if err := versus.Shell(b.work, "rm -f ewf/*; ewfacquire -u -q -t ewf/part -C case -D disk -e none -E 1 -N none -m fixed -M physical -c fast -S 8000000000 disk.raw && mv ewf/part.E01 ewf/disk.E01"); err != nil {
				return err
			}
			continue
		}
		// Some name themselves in their descriptor, so it gets its name at once.
		part := b.path("part/" + c.file)
		if err := errors.Join(os.RemoveAll(b.path("part")), os.MkdirAll(b.path("part"), 0o755)); err != nil {
			return err
		}
		args := append(append([]string{"convert", "-f", "raw"}, c.make...), raw, part)
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("qemu-img %s: %w: %s", strings.Join(args, " "), err, out)
		}
		if err := os.Rename(part, b.path(c.file)); err != nil {
			return err
		}
	}
	return nil
}

// writeDisk writes a disk as they are: of each eight pieces of 64 KiB, one is zeros,
// three don't compress (photographs, archives) and four do, to about a third (text,
// programs).
func writeDisk(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	rnd := rand.New(rand.NewPCG(6, 6))
	random := rand.NewChaCha8([32]byte{6})
	words := make([]string, 4000)
	for i := range words {
		w := make([]byte, 2+rnd.IntN(9))
		for j := range w {
			w[j] = 'a' + byte(rnd.IntN(26))
		}
		words[i] = string(w) + " "
	}
	out := bufio.NewWriterSize(f, 1<<20)
	piece := make([]byte, 64<<10)
	for range int64(diskSize) / int64(len(piece)) {
		switch k := rnd.IntN(8); {
		case k == 0:
			clear(piece)
		case k < 4:
			if _, err := io.ReadFull(random, piece); err != nil {
				return err
			}
		default:
			for n := 0; n < len(piece); {
				n += copy(piece[n:], words[int(float64(len(words))*rnd.Float64()*rnd.Float64())])
			}
		}
		if _, err := out.Write(piece); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// warm puts an image into the host's page cache.
func (b *bench) warm(c container) error {
	files, err := filepath.Glob(strings.TrimSuffix(b.path(c.file), "1") + "*")
	if err != nil {
		return err
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, struct{ io.Reader }{f})
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// reads is a row of reads, so many of them under way at a time.
type reads struct {
	size, step, count int64 // bytes, bytes from one to the next, how many
	depth             int
}

// own does them in this process.
func (r reads) own(img io.ReaderAt) (time.Duration, error) {
	var next atomic.Int64
	errs := make([]error, r.depth)
	var wg sync.WaitGroup
	start := time.Now()
	for w := range errs {
		wg.Go(func() {
			p := make([]byte, r.size)
			for i := next.Add(1) - 1; i < r.count; i = next.Add(1) - 1 {
				off := i * r.step % diskSize
				if _, err := img.ReadAt(p, off); err != nil {
					errs[w] = fmt.Errorf("at %d: %w", off, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}

// qemu has qemu-img do them in each of the two ways in which QEMU reads a file
// through the page cache, and returns how long it says that the faster one took.
func (r reads) qemu(driver, file string) (time.Duration, error) {
	threads, err := r.qemuBy("threads", driver, file)
	if err != nil {
		return 0, err
	}
	// Not every kernel lets one have io_uring.
	if uring, err := r.qemuBy("io_uring", driver, file); err == nil {
		return min(threads, uring), nil
	}
	return threads, nil
}

func (r reads) qemuBy(aio, driver, file string) (time.Duration, error) {
	out, err := exec.Command("qemu-img", "bench", "-f", driver, "-t", "writeback", "-i", aio, "-d", strconv.Itoa(r.depth),
		"-c", strconv.FormatInt(r.count, 10), "-s", strconv.FormatInt(r.size, 10), "-S", strconv.FormatInt(r.step, 10), file).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("qemu-img bench: %w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		var seconds float64
		if _, err := fmt.Sscanf(line, "Run completed in %f seconds.", &seconds); err == nil {
			return time.Duration(seconds * float64(time.Second)), nil
		}
	}
	return 0, fmt.Errorf("qemu-img bench doesn't say how long it took: %s", out)
}
