package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"yester/internal/block"
	"yester/internal/ebsfake"
	"yester/internal/sparse"
	"yester/testdata/versus"
)

// The disk: 8 GiB with one partition of ext4, of which 2 GiB are allocated.
const (
	diskSize   = 8 << 30
	fsStart    = 1 << 20
	fsSize     = 8184 << 20 // a whole number of LVM's extents of 4 MiB, with room for a label before it
	lvStart    = 2 << 20    // in the disk with LVM: the partition, and its first extent
	folders    = 300
	perFolder  = 100
	smallFiles = folders * perFolder
	largeFile  = "srv/large.bin"
	largeSize  = 1 << 30
	tenSize    = 10 << 20
	tens       = 10
	looked     = "srv/data/dir107" // what is listed first, and copied from
	changes    = 240               // files that change by the next day
)

func smallFile(n int) string {
	return fmt.Sprintf("srv/data/dir%03d/document %03d.txt", n/perFolder, n%perFolder)
}
func tenFile(n int) string { return fmt.Sprintf("srv/data/dir%03d/ten.bin", n*30+17) }

// sizes are from 1 to 55 KiB.
func smallSize(n int) int64 { return 1000 + int64(uint32(n)*2654435761%54_000) }

// content is what a file holds on the first day.
func content(name string, size int64) io.Reader {
	seed := sha256.Sum256([]byte(name))
	return io.LimitReader(rand.NewChaCha8(seed), size)
}

// prepare makes the disks unless an earlier run has.
func (b *bench) prepare() error {
	for _, dir := range []string{"mnt", "loop"} {
		if err := os.MkdirAll(b.path(dir), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []struct {
		name string
		make func(part string) error
	}{{"day1.raw", b.makeFirst}, {"day2.raw", b.makeSecond}, {"lvm.raw", b.makeLVM}} {
		if _, err := os.Stat(b.path(d.name)); err == nil {
			continue
		}
		fmt.Fprintln(os.Stderr, "making", d.name, "…")
		part := d.name + ".part"
		if err := d.make(part); err != nil {
			return err
		}
		if err := os.Rename(b.path(part), b.path(d.name)); err != nil {
			return err
		}
	}
	return nil
}

// mounted runs f while the filesystem at the usual place of a disk is mounted.
func (b *bench) mounted(disk string, f func(root string) error) error {
	if err := versus.Shell(b.work, fmt.Sprintf("mount -o loop,offset=%d,sizelimit=%d %s loop", fsStart, fsSize, disk)); err != nil {
		return err
	}
	return errors.Join(f(b.path("loop")), versus.Shell(b.work, "umount loop"))
}

func (b *bench) makeFirst(disk string) error {
	err := versus.Shell(b.work, fmt.Sprintf(`rm -f %[1]s; truncate -s %[2]d %[1]s
		printf 'label: gpt\nstart=2048, size=%[4]d, type=linux\n' | sfdisk -q %[1]s
		mkfs.ext4 -q -F -L root -E offset=%[3]d,lazy_itable_init=1,nodiscard %[1]s %[5]dk`,
		disk, diskSize, fsStart, fsSize/512, fsSize>>10))
	if err != nil {
		return err
	}
	return b.mounted(disk, func(root string) error {
		for _, dir := range []string{"etc", "bin", "usr/bin", "var/log", "srv/data"} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(root, "etc/fstab"), []byte("LABEL=root / ext4 defaults 0 1\n"), 0o644); err != nil {
			return err
		}
		for n := range smallFiles {
			if err := write(root, smallFile(n), smallSize(n)); err != nil {
				return err
			}
		}
		for n := range tens {
			if err := write(root, tenFile(n), tenSize); err != nil {
				return err
			}
		}
		return write(root, largeFile, largeSize)
	})
}

func write(root, name string, size int64) error {
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content(name, size))
	return errors.Join(err, f.Close())
}

// makeSecond is the next day: some of the files have been written to.
func (b *bench) makeSecond(disk string) error {
	if err := versus.Shell(b.work, "cp --sparse=always day1.raw "+disk); err != nil {
		return err
	}
	return b.mounted(disk, func(root string) error {
		rnd := rand.New(rand.NewPCG(2, 2))
		for range changes {
			name := filepath.Join(root, smallFile(rnd.IntN(smallFiles)))
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("written on the second day"), 100)
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
		return nil
	})
}

// makeLVM puts the filesystem of the first day on a logical volume. It takes no
// device mapper: the volume is made without being activated, and lies in one piece.
func (b *bench) makeLVM(disk string) error {
	return versus.Shell(b.work, fmt.Sprintf(`rm -f %[1]s; truncate -s %[2]d %[1]s
		printf 'label: gpt\nstart=2048, type=lvm\n' | sfdisk -q %[1]s
		loop=$(losetup --find --show --offset %[3]d %[1]s)
		trap 'losetup -d $loop' EXIT
		lvm() { command lvm "$@" --driverloaded n --config "devices{use_devicesfile=0 filter=[\"a|^$loop\$|\",\"r|.*|\"]}" >/dev/null; }
		lvm pvcreate -y -q $loop
		lvm vgcreate -y -q vg $loop
		lvm lvcreate -y -q -an -Zn -Wn -l %[4]d -n root vg $loop
		losetup -d $loop; trap - EXIT
		dd if=day1.raw of=%[1]s bs=1M skip=1 seek=2 count=%[5]d conv=sparse,notrunc status=none`,
		disk, diskSize, fsStart, fsSize>>22, fsSize>>20))
}

// verify reads each disk as a whole through the cache and compares it with the file
// that it was made of. The fake has no limits meanwhile, and knows the checksums of
// its blocks afterwards.
func (b *bench) verify() error {
	b.fake.SetSettings(ebsfake.Settings{})
	defer b.fake.SetSettings(asAWS())
	for _, s := range []snapshot{day1, day2, inVG} {
		o, err := open(s, b.path("cache"), true)
		if err != nil {
			return err
		}
		if err := errors.Join(b.same(o, s), o.Close()); err != nil {
			return err
		}
	}
	return nil
}

// same compares all of an opened snapshot with the file that it was made of.
func (b *bench) same(o *opened, s snapshot) error {
	raw, err := ebsfake.OpenFile(b.path(s.file))
	if err != nil {
		return err
	}
	defer raw.Close()
	ctx := context.Background()
	img := o.point.Disks[0].Image
	if img.Size() != raw.Size() {
		return fmt.Errorf("%s has %d bytes, %s %d", s.id, img.Size(), s.file, raw.Size())
	}
	p, q := make([]byte, ebsfake.BlockSize), make([]byte, ebsfake.BlockSize)
	for off := int64(0); off < diskSize; off += int64(len(p)) {
		hole, err := sparse.Hole(ctx, img, off, int64(len(p)))
		if err != nil {
			return err
		}
		if data, err := unix.Seek(int(raw.Fd()), off, unix.SEEK_DATA); hole && (errors.Is(err, unix.ENXIO) || err == nil && data >= off+int64(len(p))) {
			continue // both say that there is nothing
		}
		if err := block.ReadFull(ctx, img, p, off); err != nil {
			return err
		}
		if _, err := raw.ReadAt(q, off); err != nil {
			return err
		}
		if !bytes.Equal(p, q) {
			return fmt.Errorf("%s differs from %s, in the block at %d", s.id, s.file, off)
		}
	}
	return nil
}

// changed counts the blocks in which the two days differ, and all that were written
// on the second.
func (b *bench) changed() (changed, written int64, err error) {
	one, err := ebsfake.OpenFile(b.path("day1.raw"))
	if err != nil {
		return 0, 0, err
	}
	defer one.Close()
	two, err := ebsfake.OpenFile(b.path("day2.raw"))
	if err != nil {
		return 0, 0, err
	}
	defer two.Close()
	p, q, zero := make([]byte, ebsfake.BlockSize), make([]byte, ebsfake.BlockSize), make([]byte, ebsfake.BlockSize)
	for off := int64(0); off < diskSize; off += int64(len(p)) {
		if data, err := unix.Seek(int(two.Fd()), off, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			break // nothing was written from here on
		} else if err == nil && data >= off+int64(len(p)) {
			continue
		}
		if _, err := one.ReadAt(p, off); err != nil {
			return 0, 0, err
		}
		if _, err := two.ReadAt(q, off); err != nil {
			return 0, 0, err
		}
		if string(p) != string(q) {
			changed++
		}
		if string(q) != string(zero) {
			written++
		}
	}
	return changed, written, nil
}

func percent(part, whole int64) string {
	return strconv.FormatFloat(100*float64(part)/float64(whole), 'f', 1, 64) + " %"
}
