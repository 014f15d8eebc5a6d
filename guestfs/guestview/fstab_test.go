package guestview

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/internal/memtree"
)

// As the installers of the distributions write them.
const (
	debian = `# /etc/fstab: static file system information.
#
# Use 'blkid' to print the universally unique identifier for a
# device; this may be used with UUID= as a more robust way to name devices
#
# <file system> <mount point>   <type>  <options>       <dump>  <pass>
# / was on /dev/sda1 during installation
UUID=0a3407de-014b-458b-b5c1-848e92a327a3 /               ext4    errors=remount-ro 0       1
# swap was on /dev/sda5 during installation
UUID=b411dc99-f0a0-4c87-9e05-184977be8539 none            swap    sw              0       0
/dev/sr0        /media/cdrom0   udf,iso9660 user,noauto     0       0
LABEL=Big\040Data /srv/big\011data ext4 nofail 0 2
`
	ubuntuCloud = "LABEL=cloudimg-rootfs\t/\t ext4\tdiscard,commit=30,errors=remount-ro\t0 1\n" +
		"LABEL=BOOT\t/boot\text4\tdefaults\t0 2\nLABEL=UEFI\t/boot/efi\tvfat\tumask=0077\t0 1\n" +
		"/dev/disk/cloud/azure_resource-part1\t/mnt\tauto\tdefaults,nofail,x-systemd.after=cloud-init.service,_netdev,comment=cloudconfig\t0\t2\n"
	rhel = `
#
# /etc/fstab
# Created by anaconda on Tue Mar  5 10:11:12 2024
#
/dev/mapper/rhel-root   /                       xfs     defaults        0 0
UUID="2f1b8b2e-0b7a-4f0e-9c83-21d2e6b8f3a1" /boot xfs   defaults        0 0
UUID=7B77-95E7          /boot/efi               vfat    umask=0077,shortname=winnt 0 2
/dev/mapper/rhel-home   /home                   xfs     defaults        0 0
/dev/mapper/rhel-swap   none                    swap    defaults        0 0
nas01:/export/home /nfs nfs4 rw,_netdev 0 0
//fs01/share /mnt/share cifs credentials=/root/c 0 0
`
	suse = "UUID=5c9f  /                       btrfs  defaults                      0  0\r\n" +
		"UUID=5c9f  /var                    btrfs  subvol=/@/var                 0  0\r\n" +
		"UUID=5c9f  /.snapshots             btrfs  subvol=/@/.snapshots          0  0\r\n" +
		"/dev/system/swap swap swap defaults 0 0\r\ntmpfs /tmp tmpfs size=1G\r\n/data/home /home none bind"
)

func TestParseFstab(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string // spec|dir|type|options|kind
	}{
		{"debian", debian, []string{
			"UUID=0a3407de-014b-458b-b5c1-848e92a327a3|/|ext4|errors=remount-ro|1",
			"UUID=b411dc99-f0a0-4c87-9e05-184977be8539|none|swap|sw|0",
			"/dev/sr0|/media/cdrom0|udf,iso9660|user,noauto|1",
			"LABEL=Big Data|/srv/big\tdata|ext4|nofail|1",
		}},
		{"ubuntu", ubuntuCloud, []string{
			"LABEL=cloudimg-rootfs|/|ext4|discard,commit=30,errors=remount-ro|1",
			"LABEL=BOOT|/boot|ext4|defaults|1",
			"LABEL=UEFI|/boot/efi|vfat|umask=0077|1",
			"/dev/disk/cloud/azure_resource-part1|/mnt|auto|defaults,nofail,x-systemd.after=cloud-init.service,_netdev,comment=cloudconfig|1",
		}},
		{"rhel", rhel, []string{
			"/dev/mapper/rhel-root|/|xfs|defaults|1",
			"UUID=2f1b8b2e-0b7a-4f0e-9c83-21d2e6b8f3a1|/boot|xfs|defaults|1",
			"UUID=7B77-95E7|/boot/efi|vfat|umask=0077,shortname=winnt|1",
			"/dev/mapper/rhel-home|/home|xfs|defaults|1",
			"/dev/mapper/rhel-swap|none|swap|defaults|0",
			"nas01:/export/home|/nfs|nfs4|rw,_netdev|0",
			"//fs01/share|/mnt/share|cifs|credentials=/root/c|0",
		}},
		{"suse", suse, []string{
			"UUID=5c9f|/|btrfs|defaults|1",
			"UUID=5c9f|/var|btrfs|subvol=/@/var|1",
			"UUID=5c9f|/.snapshots|btrfs|subvol=/@/.snapshots|1",
			"/dev/system/swap|swap|swap|defaults|0",
			"tmpfs|/tmp|tmpfs|size=1G|0",
			"/data/home|/home|none|bind|2",
		}},
		{"odd", "#c\n   # c\n\t/dev/sda1 /a\n/dev/sdb\n/dev/sdc /c\\0 ext4\nPARTLABEL='x' \\057d auto ro # comment\n" +
			"/dev/sd\x00d /d ext4\n", []string{"/dev/sda1|/a|auto||1", "/dev/sdc|/c\\0|ext4||1", "PARTLABEL=x|/d|auto|ro|1"}},
		{"empty", "", nil},
	}
	for _, test := range tests {
		entries, warned := ParseFstab([]byte(test.text))
		var got []string
		for _, e := range entries {
			got = append(got, fmt.Sprintf("%s|%s|%s|%s|%d", e.Spec, e.Dir, e.Type, strings.Join(e.Options, ","), e.kind()))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", test.name, got, test.want)
		}
		if want := map[string]int{"odd": 2}[test.name]; len(warned) != want {
			t.Errorf("%s: warnings %q", test.name, warned)
		}
	}
}

// TestFindmnt compares with what util-linux reads of the same files.
func TestFindmnt(t *testing.T) {
	findmnt, err := exec.LookPath("findmnt")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	odd := "# c\n   # c\n\t/dev/sda1\t /a  ext4\nLABEL=\"x\" \\057d\\040\\134e auto ro\nLABEL=a\\134\\043b /f xfs rw,noauto 0\n\\043x /g\\9 ext4 ro 0 0\n"
	for name, text := range map[string]string{"debian": debian, "ubuntu": ubuntuCloud, "rhel": rhel, "suse": strings.ReplaceAll(suse, "\r", "") + "\n", "odd": odd} {
		path := filepath.Join(t.TempDir(), "fstab")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(findmnt, "--fstab", "--tab-file", path, "--list", "--json", "--output", "SOURCE,TARGET,FSTYPE,OPTIONS").Output()
		if err != nil {
			t.Fatal(name, err)
		}
		var v struct {
			Filesystems []struct{ Source, Target, Fstype, Options string }
		}
		if err := json.Unmarshal(out, &v); err != nil {
			t.Fatal(err)
		}
		entries, warned := ParseFstab([]byte(text))
		if len(warned) > 0 || len(entries) != len(v.Filesystems) {
			t.Errorf("%s: %d entries, findmnt has %d; %q", name, len(entries), len(v.Filesystems), warned)
			continue
		}
		for i, e := range entries {
			f := v.Filesystems[i]
			// findmnt writes what the kernel takes as defaults where the file has nothing.
			if e.Spec != unquote(f.Source) || e.Dir != f.Target || e.Type != f.Fstype || len(e.Options) > 0 && strings.Join(e.Options, ",") != f.Options {
				t.Errorf("%s: %+v, findmnt: %+v", name, e, f)
			}
		}
	}
}

func TestParseDevice(t *testing.T) {
	tests := map[string]device{
		"sda": {0, 0}, "sda1": {0, 1}, "sdb12": {1, 12}, "sdz3": {25, 3}, "sdaa1": {26, 1}, "sdzz": {701, 0},
		"vda2": {0, 2}, "hdc1": {2, 1}, "xvdf1": {5, 1},
		"nvme0n1": {0, 0}, "nvme0n1p2": {0, 2}, "nvme1n1p1": {1, 1}, "nvme0n2p1": {1, 1},
		"mmcblk0p1": {0, 1}, "mmcblk1": {1, 0},
	}
	for name, want := range tests {
		if got, ok := parseDevice(name); !ok || got != want {
			t.Errorf("%s: %v, %v; want %v", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "sd", "sda0", "sda1x", "sd1", "sr0", "nvme0", "nvme0n", "nvme0n0", "nvme0n1p", "nvme0n1p0",
		"mmcblk", "mmcblk0p", "dm-0", "md0", "loop0", "sdaaaa", "mmcblk99999999999999999999"} {
		if got, ok := parseDevice(name); ok {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzFstab(f *testing.F) {
	for _, s := range []string{debian, ubuntuCloud, rhel, suse, "/dev/sda1 /a\\040b ext4 bind,subvol=@\\x20 0 0\n/a /etc/../b none rbind"} {
		f.Add([]byte(s))
	}
	escape := strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`, "\r", `\015`, "#", `\043`)
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, _ := ParseFstab(b)
		if len(entries) > maxEntries {
			t.Fatalf("%d entries", len(entries))
		}
		// What is written as it was read reads the same.
		var again strings.Builder
		line := 0
		for i := range entries {
			e := &entries[i]
			if strings.ContainsRune(e.Spec+e.Dir+e.Type+strings.Join(e.Options, ","), 0) || strings.ContainsAny(e.Spec, `"'`) {
				e.Spec = "" // can't be written
				continue
			}
			line++
			fmt.Fprintf(&again, "%s %s %s", escape.Replace(e.Spec), escape.Replace(e.Dir), escape.Replace(e.Type))
			if e.Options != nil {
				fmt.Fprintf(&again, " %s", escape.Replace(strings.Join(e.Options, ",")))
			}
			again.WriteByte('\n')
			e.Line = line
		}
		entries = slices.DeleteFunc(entries, func(e Entry) bool { return e.Spec == "" })
		if got, _ := ParseFstab([]byte(again.String())); len(got) != len(entries) || len(got) > 0 && !reflect.DeepEqual(got, entries) {
			t.Errorf("read    %+v\nwritten %q\nread    %+v", entries, again.String(), got)
		}

		root := memtree.New(guestfs.Info{Type: "btrfs", UUID: "5c9f", Size: 2})
		root.File("etc/fstab", string(b))
		root.Mkdir("usr")
		root.Mkdir("a")
		root.Symlink("b", "a/../b2")
		root.Symlink("b2", "etc")
		root.Mkdir("home")
		data := memtree.New(guestfs.Info{Label: "BOOT", Size: 1})
		data.Mkdir("a/b")
		v, err := New(t.Context(), []Member{
			{Name: "p1", Tree: root, Number: 1, Devices: []string{"/dev/mapper/rhel-root"}},
			{Name: "p2", Tree: data, Number: 2},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Warnings) > 3*maxWarnings {
			t.Errorf("%d warnings", len(v.Warnings))
		}
		n := 0
		count(t, v, v.Root(), &n)
	})
}

// count walks the whole view, which has to end: mounts don't nest for ever.
func count(t *testing.T, v *View, dir guestfs.ID, n *int) {
	if *n++; *n > 1_000_000 {
		t.Fatal("the view has no end")
	}
	entries, err := guestfs.ReadDir(t.Context(), v, dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type == guestfs.ModeDir {
			count(t, v, e.ID, n)
		}
	}
}
