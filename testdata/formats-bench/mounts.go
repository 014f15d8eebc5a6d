package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"yester/imageformats/vhd"
	"yester/internal/block"
	"yester/testdata/versus"
)

// mounts compares the disk as a file of our mount with the file that libvhdi and
// libvmdk show of the same image.
func (b *bench) mounts() error {
	seq := reads{size: 1 << 20, step: 1 << 20, count: diskSize >> 20, depth: 1}
	rnd := reads{size: 4 << 10, step: strideBlocks * 4096, count: 20_000, depth: 1}
	for _, c := range []struct {
		name, file, tool, shows string
	}{
		{"VHD dynamic", "disk.vhd", "vhdimount", "vhdi1"},
		{"VMDK sparse", "sparse.vmdk", "vmdkmount", "vmdk1"},
		{"VMDK streamOptimized", "stream.vmdk", "vmdkmount", "vmdk1"},
	} {
		for _, r := range []struct {
			what string
			reads
			show func(time.Duration) string
		}{
			{c.name + " as a file in a mount, sequential 1 MiB", seq, versus.Rate(diskSize)},
			{c.name + " as a file in a mount, random 4 KiB", rnd, versus.Each(int(rnd.count))},
		} {
			if !b.table.Wants(r.what) {
				continue
			}
			file, tool, shows, row := b.path(c.file), c.tool, c.shows, r.reads
			err := b.table.Compare(
				versus.Side{Name: tool, Run: func() (time.Duration, error) {
					if out, err := exec.Command(tool, file, b.path("peer")).CombinedOutput(); err != nil {
						return 0, fmt.Errorf("%s: %w: %s", tool, err, out)
					}
					d, err := row.file(filepath.Join(b.path("peer"), shows))
					return d, errors.Join(err, versus.Shell(b.work, "umount peer"))
				}}, r.show,
				versus.Contender{What: r.what, Run: func() (time.Duration, error) {
					if err := versus.Shell(b.work, b.yester+" mount "+file+" mnt --log-file mount.log"); err != nil {
						return 0, err
					}
					found, err := filepath.Glob(b.path("mnt/latest/disks/*.raw"))
					if err == nil && len(found) != 1 {
						err = fmt.Errorf("the mount shows %d disks", len(found))
					}
					var d time.Duration
					if err == nil {
						d, err = row.file(found[0])
					}
					return d, errors.Join(err, versus.Shell(b.work, b.yester+" umount mnt"))
				}})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// file does the reads on a file of diskSize bytes.
func (r reads) file(name string) (time.Duration, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return r.own(f)
}

const listed = 10_000

// listing lists a folder of 10,000 points: ten machines, a thousand dates of each.
func (b *bench) listing() error {
	const what = "listing 10,000 VHD under one root, whole process (`yester points`)"
	if !b.table.Wants(what) {
		return nil
	}
	dir := b.path("points")
	if _, err := os.Stat(dir); err != nil {
		fmt.Fprintln(os.Stderr, "making", listed, "images …")
		if err := makePoints(dir + ".part"); err != nil {
			return err
		}
		if err := os.Rename(dir+".part", dir); err != nil {
			return err
		}
	}
	d, err := b.table.Measure(func() (time.Duration, error) {
		var out lineCounter
		cmd := exec.Command(b.yester, "points", dir, "--json")
		cmd.Stdout = &out
		d, err := versus.Timed(cmd)
		if err == nil && out != listed {
			err = fmt.Errorf("%d points listed", out)
		}
		return d, err
	})
	if err != nil {
		return err
	}
	b.table.Row(what, versus.Seconds(d), "", "", "< 2 s")
	return nil
}

// makePoints writes small dynamic images, with a block of data in each.
func makePoints(dir string) error {
	first := time.Date(2024, 1, 1, 2, 30, 0, 0, time.UTC)
	for i := range listed {
		at := first.AddDate(0, 0, i/10)
		name := filepath.Join(dir, fmt.Sprintf("machine%02d", i%10), at.Format("2006-01-02T15-04-05Z"), "disk.vhd")
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		err = vhd.WriteDynamic(context.Background(), f, filled{}, vhd.WriteOptions{ID: [16]byte{byte(i), byte(i >> 8)}, Created: at, BlockSize: 4096})
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// filled is a small disk without zeros.
type filled struct{}

func (filled) Size() int64 { return 64 << 10 }

func (filled) ReadAt(p []byte, off int64) (int, error) {
	n, err := block.CheckRead(off, len(p), 64<<10)
	for i := range p[:n] {
		p[i] = 1
	}
	return n, err
}

// lineCounter counts the lines that are written to it.
type lineCounter int

func (c *lineCounter) Write(p []byte) (int, error) {
	for _, b := range p {
		if b == '\n' {
			*c++
		}
	}
	return len(p), nil
}
