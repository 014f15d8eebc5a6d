package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tools make the fixtures: e2fsprogs, util-linux and QEMU.
var tools = []string{"mkfs.ext4", "debugfs", "sfdisk", "qemu-img"}

const (
	rootUUID = "0b5e7d0c-9a3f-4e0b-8f52-6c1f3f0f2a01"
	dataUUID = "0b5e7d0c-9a3f-4e0b-8f52-6c1f3f0f2a02"
	mib      = 1 << 20
)

// makeFixtures makes a folder of sources, the same each time:
//
//	web01/            a chain of three VHD images: a GPT disk with a root and a data volume
//	plain.raw         one ext4 filesystem without a root layout, no partitions
//	two.raw           two such filesystems in partitions
//	orphan/           the last image of a chain without its parents
//	cut/              a dynamic VHD that is cut off
//	damaged.raw       plain.raw with a directory's checksum wrong, and a file's inode
//	machines/         two machines
//	vmware/           a machine with two disks, a snapshot, and deltas on it
//	text.txt          no image at all
func makeFixtures(t *testing.T) string {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin") // where Debian keeps them from users
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	work, dir := t.TempDir(), t.TempDir()
	f := &fixture{t: t, work: work}

	root := f.mkfs("root", 20*mib, rootUUID, "root", rootCommands(f))
	data := f.mkfs("data", 8*mib, dataUUID, "data", f.write("www.txt", "hello from srv\n", 0o644))
	var states []string
	for i, edit := range []string{
		f.write("home/ada/report.txt", "draft 1\n", 0o640),
		"rm home/ada/report.txt\n" + f.write("home/ada/report.txt", "draft 2, longer\n", 0o640),
		"rm home/ada/report.txt\n",
	} {
		f.debugfs(root, edit+
			"sif home/ada/report.txt uid 1000\nsif home/ada/report.txt gid 1000\nsif home/ada mtime 20061118023000\n")
		states = append(states, fmt.Sprintf("%s@2006-11-%dT02:30:00Z", f.disk(fmt.Sprint("state", i), root, data), 18+i))
	}
	f.mkchain(filepath.Join(dir, "web01"), "web01", states...)

	plain := f.mkfs("plain", 4*mib, dataUUID, "plain", "mkdir d\n"+
		f.write("d/a.txt", "a\n", 0o644)+f.write("d/b.txt", "b\n", 0o644)+f.write("d/x[1].txt", "brackets\n", 0o644))
	f.copy(plain, filepath.Join(dir, "plain.raw"))
	f.copy(f.disk("two", plain, data), filepath.Join(dir, "two.raw"))
	bad := f.copy(plain, filepath.Join(dir, "damaged.raw"))
	f.spoilInode(bad, "d/b.txt")

	chain, err := filepath.Glob(filepath.Join(dir, "web01", "*"))
	if err != nil || len(chain) != 3 {
		t.Fatalf("chain %q: %v", chain, err)
	}
	f.copy(chain[2], filepath.Join(dir, "orphan", filepath.Base(chain[2])))
	f.copy(chain[0], filepath.Join(dir, "cut", "web01.vhd"))
	if err := os.Truncate(filepath.Join(dir, "cut", "web01.vhd"), 3*mib); err != nil {
		t.Fatal(err)
	}
	f.mkchain(filepath.Join(dir, "machines", "a"), "alpha", plain+"@2006-11-18T02:30:00Z")
	f.mkchain(filepath.Join(dir, "machines", "b"), "beta", plain+"@2006-11-18T02:30:00Z")
	f.vmware(filepath.Join(dir, "vmware", "app"), root, data)
	f.file(filepath.Join(dir, "text.txt"), "no image\n", 0o644)
	return dir
}

// rootCommands are debugfs commands that make a small Linux system.
func rootCommands(f *fixture) string {
	return "mkdir etc\nmkdir usr\nmkdir usr/bin\nmkdir home\nmkdir home/ada\nmkdir srv\nmkdir home/ada/photos\nmkdir var\n" +
		f.write("etc/fstab", "UUID="+rootUUID+" / ext4 defaults 0 1\nLABEL=data /srv ext4 noatime 0 2\n", 0o644) +
		f.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n", 0o644) +
		f.write("etc/group", "root:x:0:\nstaff:x:1000:\n", 0o644) +
		f.write("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 3.1 (sarge)\"\nVERSION_ID=3.1\n", 0o644) +
		f.write("etc/hostname", "web01\n", 0o644) +
		f.write("usr/bin/sudo", "#!/bin/sh\n", 0o4755) +
		f.write("home/ada/photos/one.jpg", "jpeg one", 0o644) +
		f.write("home/ada/photos/two.jpg", "jpeg two", 0o600) +
		f.write("home/ada/photos/.hidden", "dot", 0o600) +
		f.write("home/ada/big", strings.Repeat("0123456789abcdef", 3*mib/16), 0o644) +
		"symlink home/ada/latest report.txt\nsymlink home/ada/out /etc/passwd\n" +
		"ln home/ada/photos/one.jpg home/ada/same.jpg\nsif home/ada/photos/one.jpg links_count 2\n" +
		"ea_set home/ada/big user.comment \"a comment\"\n" +
		"cd var\nmknod fifo p\nmknod null c 1 3\ncd /\n" +
		"sif home/ada uid 1000\nsif home/ada gid 1000\nsif etc/passwd mtime 20051224180000\n"
}

// vmware makes a machine as ESXi leaves it after a snapshot, a disk for each of the
// filesystems: the root's has changed since.
func (f *fixture) vmware(dir, root, data string) {
	f.t.Helper()
	f.file(filepath.Join(dir, "app.vmx"), `.encoding = "UTF-8"
displayName = "App Server"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "app_1-000001.vmdk"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "app-000001.vmdk"
`, 0o644)
	// 2006-11-18T02:30:00Z in microseconds; the halves are signed.
	const µs = int64(1163817000000000)
	lowHalf := µs & 0xffffffff
	f.file(filepath.Join(dir, "app.vmsd"), fmt.Sprintf(`.encoding = "UTF-8"
snapshot.lastUID = "1"
snapshot.current = "1"
snapshot0.uid = "1"
snapshot0.filename = "app-Snapshot1.vmsn"
snapshot0.displayName = "before the update"
snapshot0.createTimeHigh = "%d"
snapshot0.createTimeLow = "%d"
snapshot0.numDisks = "2"
snapshot0.disk0.fileName = "app.vmdk"
snapshot0.disk0.node = "scsi0:0"
snapshot0.disk1.fileName = "app_1.vmdk"
snapshot0.disk1.node = "scsi0:1"
snapshot.numSnapshots = "1"
`, µs>>32, int32(lowHalf)), 0o644)
	convert := func(raw, name string, more ...string) {
		path := filepath.Join(dir, name)
		f.run("", "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "vmdk"}, more...), raw, path)...)
		f.settle(path)
	}
	before := f.disk("before", f.copy(root, filepath.Join(f.work, "old.ext4")))
	f.debugfs(root, f.write("home/ada/update.log", "updated\n", 0o644))
	after, only := f.disk("after", root), f.disk("only", data)
	convert(before, "app.vmdk")
	convert(only, "app_1.vmdk")
	convert(after, "app-000001.vmdk", "-B", filepath.Join(dir, "app.vmdk"), "-F", "vmdk")
	convert(only, "app_1-000001.vmdk", "-B", filepath.Join(dir, "app_1.vmdk"), "-F", "vmdk")
}

// settle gives a file a time that stands still.
func (f *fixture) settle(path string) {
	f.t.Helper()
	at := time.Date(2006, 11, 19, 2, 30, 0, 0, time.UTC)
	if err := os.Chtimes(path, at, at); err != nil {
		f.t.Fatal(err)
	}
}

// fixture makes disk images without root.
type fixture struct {
	t    *testing.T
	work string
	n    int
}

// run runs a tool, with a clock that stands still.
func (f *fixture) run(stdin, name string, args ...string) string {
	f.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1163817000", "TZ=UTC", "MKE2FS_CONFIG=/dev/null") // 2006-11-18T02:30:00Z
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		f.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (f *fixture) file(path, content string, perm os.FileMode) string {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), perm); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// write returns the debugfs commands that make a regular file.
func (f *fixture) write(name, content string, mode uint32) string {
	f.n++
	src := f.file(filepath.Join(f.work, fmt.Sprint("content", f.n)), content, 0o644)
	return fmt.Sprintf("write %s %s\nsif %s mode 0%o\n", src, name, name, 0o100000|mode)
}

// mkfs makes an ext4 filesystem and runs debugfs commands on it.
func (f *fixture) mkfs(name string, size int64, uuid, label, commands string) string {
	f.t.Helper()
	path := f.file(filepath.Join(f.work, name+".ext4"), "", 0o644)
	if err := os.Truncate(path, size); err != nil {
		f.t.Fatal(err)
	}
	f.run("", "mkfs.ext4", "-q", "-F", "-U", uuid, "-L", label, "-E", "hash_seed="+uuid+",root_owner=0:0",
		"-b", "1024", "-I", "256", "-N", "256", "-J", "size=1",
		"-O", "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,dir_nlink,extra_isize,metadata_csum", path)
	f.debugfs(path, commands)
	return path
}

// debugfs runs commands. Some of them fail with a message only, so that what was
// made is for the scripts to see.
func (f *fixture) debugfs(image, commands string) {
	f.t.Helper()
	f.run("", "debugfs", "-w", "-f", f.file(filepath.Join(f.work, "commands"), commands, 0o644), image)
}

// disk makes a GPT disk of filesystems.
func (f *fixture) disk(name string, filesystems ...string) string {
	f.t.Helper()
	path := f.file(filepath.Join(f.work, name+".raw"), "", 0o644)
	table := "label: gpt\nlabel-id: 0b5e7d0c-9a3f-4e0b-8f52-6c1f3f0f2a00\n"
	at := int64(mib)
	var starts []int64
	for i, fs := range filesystems {
		fi, err := os.Stat(fs)
		if err != nil {
			f.t.Fatal(err)
		}
		table += fmt.Sprintf("start=%d, size=%d, type=L, uuid=0b5e7d0c-9a3f-4e0b-8f52-6c1f3f0f2b%02d\n", at/512, fi.Size()/512, i+1)
		starts = append(starts, at)
		at += fi.Size()
	}
	if err := os.Truncate(path, at+mib); err != nil {
		f.t.Fatal(err)
	}
	f.run(table, "sfdisk", "-q", path)
	out, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	defer out.Close()
	for i, fs := range filesystems {
		b, err := os.ReadFile(fs)
		if err == nil {
			_, err = out.WriteAt(b, starts[i])
		}
		if err != nil {
			f.t.Fatal(err)
		}
	}
	return path
}

func (f *fixture) mkchain(dir, name string, states ...string) {
	f.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	f.run("", "go", append([]string{"run", "../../testdata/mkchain", "-o", dir, "-name", name}, states...)...)
}

func (f *fixture) copy(from, to string) string {
	f.t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.file(to, string(b), 0o644)
}

// spoilInode flips a bit in the inode of a file, outside of what any tool would
// repair silently.
func (f *fixture) spoilInode(image, name string) {
	f.t.Helper()
	var inode, group, block, offset int
	out := f.run("", "debugfs", "-R", "imap "+name, image)
	at := strings.Index(out, "Inode ")
	if at < 0 {
		f.t.Fatal(out)
	}
	if _, err := fmt.Sscanf(out[at:], "Inode %d is part of block group %d\n\tlocated at block %d, offset %v", &inode, &group, &block, &offset); err != nil {
		f.t.Fatal(err, out)
	}
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	b := make([]byte, 1)
	pos := int64(block)*1024 + int64(offset) + 8 // i_atime
	if _, err := file.ReadAt(b, pos); err != nil {
		f.t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := file.WriteAt(b, pos); err != nil {
		f.t.Fatal(err)
	}
}

// hashTree sums up names, contents, sizes and modification times.
func hashTree(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintln(sum, path, fi.Mode(), fi.Size(), fi.ModTime().UnixNano())
		if !fi.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(sum, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}
