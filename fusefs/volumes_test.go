package fusefs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"yester/fusefs"
	"yester/internal/treetest"
)

// TestGuestViewOverVolumes mounts a disk with a GPT and three ext4 partitions as
// its fstab does: /, /boot and /var by UUID, label and PARTUUID.
func TestGuestViewOverVolumes(t *testing.T) {
	needRoot(t)
	source := t.TempDir()
	run(t, source, `
		truncate -s 100M db01.img
		sfdisk -q db01.img <<-EOF
			label: gpt
			start=2048, size=8M, type=uefi
			size=40M, type=linux
			size=16M, type=linux
			size=16M, type=linux, uuid=11111111-2222-3333-4444-555555555555
			size=8M, type=swap
		EOF
		part() { # number, options of mkfs, script
			set -- "$1" "$2" "$3" $(partx -s -g -o START,SECTORS -n $1 db01.img); start=$4 size=$5
			dd if=/dev/zero of=part bs=512 count=0 seek=$size status=none
			mkfs.ext4 -q -F $2 part
			mkdir -p m; mount -o loop part m; (cd m; eval "$3"); umount m
			dd if=part of=db01.img bs=512 seek=$start conv=notrunc,sparse status=none
			cp part part$1; rm part
		}
		part 2 "-U 0b0b0b0b-1111-4222-8333-444444444444" 'mkdir etc bin usr boot var
			printf "UUID=0b0b0b0b-1111-4222-8333-444444444444 / ext4 defaults 0 1\nLABEL=boot /boot ext4 ro 0 2\nPARTUUID=11111111-2222-3333-4444-555555555555 /var ext4 defaults 0 2\n" > etc/fstab
			echo covered > boot/hidden'
		part 3 "-L boot" 'mkdir grub; echo kernel > vmlinuz'
		part 4 "" 'mkdir log; echo line > log/syslog; ln log/syslog log/syslog.hard'
		mkdir ../parts && mv part2 part3 part4 ../parts; rmdir m`)
	parts := filepath.Join(source, "../parts")
	dir, _ := mount(t, source, fusefs.Options{Logger: discard()})
	latest := filepath.Join(dir, "latest")

	files := filepath.Join(latest, "files")
	for path, want := range map[string]string{"boot/vmlinuz": "kernel\n", "var/log/syslog": "line\n"} {
		if got, err := os.ReadFile(filepath.Join(files, path)); err != nil || string(got) != want {
			t.Errorf("files/%s: %q, %v", path, got, err)
		}
	}
	if _, err := os.Stat(filepath.Join(files, "boot/hidden")); err == nil {
		t.Error("files/boot shows what the mount on it covers")
	}
	if got, want := names(t, filepath.Join(latest, "volumes")), []string{"p2", "p3", "p4"}; !slices.Equal(got, want) {
		t.Errorf("volumes holds %q, want %q", got, want)
	}
	for _, n := range []string{"2", "3", "4"} {
		m := t.TempDir()
		run(t, parts, "mount -o loop,ro part"+n+" "+m)
		truth, err := treetest.Host(m, nil)
		run(t, parts, "umount "+m)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, filepath.Join(latest, "volumes", "p"+n), truth)
	}

	// Every root of a volume has inode 2; in one tree that would be a circle.
	inodes := map[uint64]string{}
	for _, d := range []string{"", "boot", "var"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(files, d), &st); err != nil {
			t.Fatal(err)
		}
		if other, dup := inodes[st.Ino]; dup {
			t.Errorf("/%s and /%s have the same inode number %d", d, other, st.Ino)
		}
		inodes[st.Ino] = d
	}
	if out, err := exec.Command("find", files, "-newermt", "2200-01-01").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("find: %v: %s", err, out)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(files, "var/log/syslog"), &st); err != nil || st.Nlink != 2 {
		t.Errorf("hard link in a grafted volume: %d links, %v", st.Nlink, err)
	}
}
