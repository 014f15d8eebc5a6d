package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The disk: ext4 without a partition table, in a dynamic VHD.
const (
	diskSize   = 3 << 30
	bigSize    = 1 << 30
	smallFiles = 30000
)

func (b *bench) path(name string) string { return filepath.Join(b.work, name) }
func (b *bench) vhd() string             { return b.path("source/disk.vhd") }

// prepare makes the disk unless an earlier run has.
func (b *bench) prepare() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to mount")
	}
	for _, dir := range []string{"source", "mnt", "loop"} {
		if err := os.MkdirAll(b.path(dir), 0o755); err != nil {
			return err
		}
	}
	if _, err := os.Stat(b.vhd()); err == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "making the disk …")
	// Contents come from a fixed key stream: random enough that nothing is sparse.
	return sh(b.work, `
		rm -f disk.raw; truncate -s `+strconv.Itoa(diskSize)+` disk.raw; mkfs.ext4 -q -F disk.raw
		mount -o loop disk.raw loop
		trap 'umount loop' EXIT
		openssl enc -aes-128-ctr -nosalt -pass pass:big -pbkdf2 </dev/zero 2>/dev/null | head -c `+strconv.Itoa(bigSize)+` > loop/big.bin
		i=0
		for d in $(seq -f 'loop/small/d%03g' 0 299); do
			mkdir -p $d
			for f in $(seq -f 'file%03g.txt' 0 99); do
				i=$((i + 1))
				case $((i % 5)) in 0) n=200 ;; 1) n=1000 ;; 2) n=3000 ;; 3) n=6000 ;; 4) n=12000 ;; esac
				dd if=loop/big.bin of=$d/$f bs=$n count=1 skip=$i status=none
			done
		done
		mkdir loop/etc loop/bin loop/usr
		umount loop; trap - EXIT
		qemu-img convert -O vpc -o subformat=dynamic,force_size=on disk.raw source/tmp
		mv source/tmp source/disk.vhd`)
}

// warmHost puts the VHD into the host's page cache.
func (b *bench) warmHost() error {
	for _, name := range []string{b.vhd(), b.path("disk.raw")} {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// own is yester's mount.
func (b *bench) own() side {
	mnt := b.path("mnt")
	return side{
		name:  "yester",
		files: filepath.Join(mnt, "latest/files"),
		disk:  filepath.Join(mnt, "latest/disks/disk.raw"),
		start: func() error { return sh(b.work, b.yester+" mount source mnt") },
		stop: func() error {
			b.noteMemory()
			return sh(b.work, b.yester+" umount mnt")
		},
	}
}

// noteMemory remembers the highest memory use of the mount's process.
func (b *bench) noteMemory() {
	out, _ := exec.Command("pgrep", "-f", "mount --foreground").Output()
	for _, pid := range strings.Fields(string(out)) {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			continue
		}
		for line := range bytes.Lines(status) {
			if rest, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
				kib, _ := strconv.ParseInt(string(bytes.Fields(rest)[0]), 10, 64)
				b.memory = max(b.memory, kib)
			}
		}
	}
}

// peer is QEMU's export, and the kernel's mount of it.
func (b *bench) peer() side {
	return side{
		name: "qemu-storage-daemon + loop", files: b.path("loop"), disk: b.path("export.raw"),
		start: func() error {
			if err := os.WriteFile(b.path("export.raw"), nil, 0o644); err != nil {
				return err
			}
			b.qsd = exec.Command("qemu-storage-daemon",
				"--blockdev", "driver=file,filename="+b.vhd()+",node-name=f,read-only=on",
				"--blockdev", "driver=vpc,file=f,node-name=v,read-only=on",
				"--export", "type=fuse,id=e,node-name=v,mountpoint="+b.path("export.raw")+",writable=off")
			b.qsd.Stderr = os.Stderr
			if err := b.qsd.Start(); err != nil {
				return err
			}
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				if fi, err := os.Stat(b.path("export.raw")); err == nil && fi.Size() == diskSize {
					break
				}
				if time.Now().After(end) {
					return errors.New("the export did not come up")
				}
			}
			return sh(b.work, "mount -o loop,ro export.raw loop")
		},
		stop: func() error {
			err := sh(b.work, "umount loop")
			return errors.Join(err, b.stopQSD())
		},
	}
}

func (b *bench) stopQSD() error {
	if b.qsd == nil {
		return nil
	}
	b.qsd.Process.Signal(os.Interrupt)
	err := b.qsd.Wait()
	b.qsd = nil
	return err
}

// kernel is the kernel's own mount of the raw disk.
func (b *bench) kernel() side {
	return side{
		name: "kernel, loop mount of the raw disk", files: b.path("loop"), disk: b.path("disk.raw"),
		start: func() error { return sh(b.work, "mount -o loop,ro disk.raw loop") },
		stop:  func() error { return sh(b.work, "umount loop") },
	}
}

// stopAll takes down what a failed run has left.
func (b *bench) stopAll() {
	sh(b.work, b.yester+" umount mnt >/dev/null 2>&1; umount loop >/dev/null 2>&1; true")
	b.stopQSD()
}

func sh(dir, script string) error {
	cmd := exec.Command("sh", "-e", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.TrimSpace(script), err, out)
	}
	return nil
}
