package guestview

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"yester/guestfs"
	"yester/internal/memtree"
	"yester/internal/ondisk"
)

// system returns a tree with a root layout and that /etc/fstab.
func system(info guestfs.Info, fstab string, dirs ...string) *memtree.Tree {
	t := memtree.New(info)
	t.Mkdir("usr/bin")
	t.Symlink("bin", "usr/bin")
	if fstab != "" {
		t.File("etc/fstab", fstab)
	} else {
		t.Mkdir("etc")
	}
	for _, d := range dirs {
		t.Mkdir(d)
	}
	return t
}

// data returns a tree that holds a file of its own name.
func data(name string, info guestfs.Info, dirs ...string) *memtree.Tree {
	t := memtree.New(info)
	t.File(name, name)
	for _, d := range dirs {
		t.Mkdir(d)
	}
	return t
}

func TestMounts(t *testing.T) {
	boot := guestfs.Info{UUID: "7B77-95E7", Label: "BOOT", Size: 1}
	big := guestfs.Info{UUID: "0a3407de-014b-458b-b5c1-848e92a327a3", Label: "Big Data", Size: 100}
	tests := []struct {
		name  string
		fstab string
		dirs  []string // of the root filesystem, beside its layout
		want  []string // path=volume, beside the root
		warn  string   // in the warnings; "" for none
	}{
		{"UUID, any case", "UUID=7b77-95e7 /boot vfat defaults 0 0", []string{"boot"}, []string{"/boot=boot"}, ""},
		{"quoted", `UUID="7B77-95E7" /boot vfat`, []string{"boot"}, []string{"/boot=boot"}, ""},
		{"LABEL with a blank", `LABEL=Big\040Data /srv ext4`, []string{"srv"}, []string{"/srv=big"}, ""},
		{"LABEL minds case", `LABEL=boot /boot ext4`, []string{"boot"}, nil, "LABEL=boot isn't mounted at /boot (/etc/fstab line 2): no volume"},
		{"PARTUUID", "PARTUUID=ABCD-02 /boot ext4", []string{"boot"}, []string{"/boot=boot"}, ""},
		{"PARTLABEL", "PARTLABEL=EFI /boot ext4", []string{"boot"}, []string{"/boot=boot"}, ""},
		{"by-uuid", "/dev/disk/by-uuid/7B77-95E7 /boot ext4", []string{"boot"}, []string{"/boot=boot"}, ""},
		{"by-label", `/dev/disk/by-label/Big\x20Data /srv ext4`, []string{"srv"}, []string{"/srv=big"}, ""},
		{"by-partuuid", "/dev/disk/by-partuuid/abcd-02 /boot ext4", []string{"boot"}, []string{"/boot=boot"}, ""},
		{"by-path", "/dev/disk/by-path/pci-0 /boot ext4", []string{"boot"}, nil, "no volume"},
		{"sda2", "/dev/sda2 /boot ext4", []string{"boot"}, []string{"/boot=boot"}, ""},
		{"second disk, whole", "/dev/vdb /srv ext4", []string{"srv"}, []string{"/srv=big"}, ""},
		{"nvme", "/dev/nvme1n1 /srv ext4\n/dev/nvme0n1p2 /boot ext4", []string{"srv", "boot"}, []string{"/srv=big", "/boot=boot"}, ""},
		{"mapper", "/dev/mapper/vg-log /srv xfs", []string{"srv"}, []string{"/srv=log"}, ""},
		{"empty tag", "UUID= /srv ext4\nLABEL= /boot ext4", []string{"srv", "boot"}, nil, "UUID= isn't mounted"},
		{"nested, out of order", "/dev/mapper/vg-log /srv/a/b xfs\n/dev/sdb /srv ext4\nLABEL=BOOT /srv/a ext4", []string{"srv"}, []string{"/srv=big", "/srv/a=boot", "/srv/a/b=log"}, ""},
		{"missing mount point", "LABEL=BOOT /boot ext4", nil, nil, `LABEL=BOOT isn't mounted at /boot (/etc/fstab line 2): mount point: "/boot": file does not exist`},
		{"mount point is a file", "LABEL=BOOT /etc/fstab ext4", nil, nil, "not a directory"},
		{"mount point is a link", "LABEL=BOOT /var/link ext4", []string{"srv"}, []string{"/srv=boot"}, ""},
		{"link into a mount", "LABEL=BOOT /var/deep ext4\n/dev/sdb /srv ext4", []string{"srv/a"}, []string{"/srv=big", "/srv/a=boot"}, ""},
		{"link to the host's depths", "LABEL=BOOT /var/out ext4", []string{"srv"}, []string{"/srv=boot"}, ""},
		{"link to itself", "LABEL=BOOT /var/loop ext4", nil, nil, "too many levels"},
		{"link to the root", "LABEL=BOOT /var/root ext4", nil, nil, "the root directory"},
		{"dots", "LABEL=BOOT /srv/../srv//a/. ext4", []string{"srv/a"}, []string{"/srv/a=boot"}, ""},
		{"same twice", "LABEL=BOOT /srv ext4\nUUID=7B77-95E7 /srv ext4", []string{"srv"}, []string{"/srv=boot"}, ""},
		{"stacked", "LABEL=BOOT /srv ext4\n/dev/sdb /srv ext4", []string{"srv"}, []string{"/srv=boot", "/srv=big"}, ""},
		{"two places", "LABEL=BOOT /srv ext4\nLABEL=BOOT /boot ext4", []string{"srv", "boot"}, []string{"/srv=boot", "/boot=boot"}, ""},
		{"noauto", "LABEL=BOOT /boot ext4 noauto", []string{"boot"}, []string{"/boot=boot"}, ""},
		{"noauto elsewhere", "LABEL=BOOT /srv ext4 noauto\nLABEL=BOOT /boot ext4", []string{"srv", "boot"}, []string{"/boot=boot"}, ""},
		{"noauto missing", "/dev/sr0 /srv auto user,noauto", []string{"srv"}, nil, ""},
		{"automount", "LABEL=BOOT /boot ext4 noauto,x-systemd.automount", []string{"boot"}, []string{"/boot=boot"}, ""},
		{"passed over", "proc /proc proc\ntmpfs /srv tmpfs\nnas:/x /srv nfs\n//a/b /srv cifs\n/swapfile none swap sw\nUUID=7B77-95E7 swap swap\nsshfs#a:/b /srv fuse\n", []string{"srv"}, nil, ""},
		{"bind", "/dev/sdb /srv ext4\n/srv/a /home none bind", []string{"srv", "home"}, []string{"/srv=big", "/home=big"}, ""},
		{"bind of the root", "/ /home none rbind", []string{"home"}, []string{"/home=root"}, ""},
		{"bind of nothing", "/nowhere /home none bind", []string{"home"}, nil, "source: "},
		{"bind noauto", "/etc /home none bind,noauto", []string{"home"}, nil, ""},
		{"no path", "LABEL=BOOT boot ext4", nil, nil, `"boot" is no mount point`},
		{"two of one name", "LABEL=twin /srv ext4", []string{"srv"}, []string{"/srv=twin1"}, "LABEL=twin names twin1 and twin2 alike; twin1 is at /srv"},
		{"both of one name", "LABEL=twin /srv ext4\nLABEL=twin /home ext4", []string{"srv", "home"}, []string{"/srv=twin1", "/home=twin2"}, "alike"},
		{"subvolume of what has none", "LABEL=BOOT /srv btrfs subvol=@x", []string{"srv"}, nil, "file does not exist"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root := system(guestfs.Info{Label: "root", Size: 50}, "LABEL=root / ext4 defaults 0 1\n"+test.fstab, test.dirs...)
			root.Symlink("var/link", "../srv")
			root.Symlink("var/deep", "/srv/a")
			root.Symlink("var/out", "../../../../srv")
			root.Symlink("var/loop", "loop")
			root.Symlink("var/root", "/")
			members := []Member{
				{Name: "boot", Tree: data("boot", boot, "b"), Disk: 0, Number: 2, PartUUID: "abcd-02", PartLabel: "EFI"},
				{Name: "root", Tree: root, Disk: 0, Number: 1, PartUUID: "abcd-01"},
				{Name: "big", Tree: data("big", big, "a/b"), Disk: 1},
				{Name: "log", Tree: data("log", guestfs.Info{}), Disk: -1, Devices: []string{"/dev/vg/log", "/dev/mapper/vg-log"}},
				{Name: "twin1", Tree: data("twin1", guestfs.Info{Label: "twin"}), Disk: 2},
				{Name: "twin2", Tree: data("twin2", guestfs.Info{Label: "twin"}), Disk: 3},
			}
			v, err := New(t.Context(), members, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range v.Mounts() {
				got = append(got, m.Path+"="+m.Volume)
				if m.Member != slices.IndexFunc(members, func(x Member) bool { return x.Name == m.Volume }) {
					t.Errorf("%+v", m)
				}
			}
			if want := append([]string{"/=root"}, test.want...); !slices.Equal(got, want) {
				t.Errorf("mounts %q, want %q", got, want)
			}
			warned := strings.Join(v.Warnings, "\n")
			if test.warn == "" && warned != "" || !strings.Contains(warned, test.warn) {
				t.Errorf("warnings %q, want %q", warned, test.warn)
			}
			// The last mount's own file is at its path.
			if last := v.Mounts()[len(v.mounts)-1]; last.Path != "/" && !strings.HasPrefix(test.name, "bind") {
				id, err := guestfs.Resolve(t.Context(), v, last.Path+"/"+last.Volume, false)
				if err != nil {
					t.Fatal(err)
				}
				if b, err := guestfs.ReadFile(t.Context(), v, id, 99); err != nil || string(b) != last.Volume {
					t.Errorf("%q, %v", b, err)
				}
			}
			n := 0
			count(t, v, v.Root(), &n)
			for _, m := range members {
				if err := v.Close(); err != nil || m.Tree.(*memtree.Tree).Closed() != 0 {
					t.Errorf("Close: %v", err)
				}
			}
		})
	}
}

// TestCrossing: look-up, listing and attributes agree at a mount point, and what
// the mount covers is out of sight.
func TestCrossing(t *testing.T) {
	ctx := t.Context()
	root := system(guestfs.Info{Type: "ext4", UUID: "u", Size: 9}, "UUID=u / ext4\n/dev/sda2 /var ext4\n/dev/sda3 /var/log ext4\n", "var/covered")
	variable := data("variable", guestfs.Info{}, "log/covered")
	variable.Mkdir("").Attr.UID = 42
	variable.Symlink("link", "/etc/fstab")
	logs := data("logs", guestfs.Info{})
	logs.File("f", "content").Xattrs = map[string][]byte{"user.x": []byte("y")}
	v, err := New(ctx, []Member{{Name: "a", Tree: root, Number: 1}, {Name: "b", Tree: variable, Number: 2}, {Name: "c", Tree: logs, Number: 3}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v.Info().Type != "ext4" || len(v.Warnings) != 0 {
		t.Errorf("%+v, %q", v.Info(), v.Warnings)
	}
	at, err := v.Lookup(ctx, v.Root(), "var")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := v.Attr(ctx, at); err != nil || a.UID != 42 {
		t.Errorf("the mounted root's attributes: %+v, %v", a, err)
	}
	list, err := guestfs.ReadDir(ctx, v, v.Root(), 99)
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(list, func(e guestfs.Dirent) bool { return e.Name == "var" }); i < 0 || list[i].ID != at {
		t.Errorf("the listing has another ID than the look-up: %+v, %v", list, at)
	}
	seen := map[guestfs.ID]string{}
	var walk func(path string, dir guestfs.ID)
	walk = func(path string, dir guestfs.ID) {
		if seen[dir] != "" {
			t.Errorf("%s and %s have one ID", seen[dir], path)
		}
		seen[dir] = path
		list, err := guestfs.ReadDir(ctx, v, dir, 99)
		if err != nil {
			t.Error(err)
		}
		for _, e := range list {
			if id, err := v.Lookup(ctx, dir, e.Name); err != nil || id != e.ID {
				t.Errorf("%s/%s: %v, %v; listed %v", path, e.Name, id, err, e.ID)
			}
			if e.Type == guestfs.ModeDir {
				walk(path+"/"+e.Name, e.ID)
			} else {
				seen[e.ID] = path + "/" + e.Name
			}
		}
	}
	walk("", v.Root())
	var paths []string
	for _, p := range seen {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	want := []string{"", "/bin", "/etc", "/etc/fstab", "/usr", "/usr/bin", "/var", "/var/link", "/var/log", "/var/log/f", "/var/log/logs", "/var/variable"}
	if !slices.Equal(paths, want) {
		t.Errorf("got  %q\nwant %q", paths, want)
	}
	id, err := guestfs.Resolve(ctx, v, "/var/log/f", true)
	if err != nil {
		t.Fatal(err)
	}
	if x, err := v.Xattr(ctx, id, "user.x"); err != nil || string(x) != "y" {
		t.Errorf("%q, %v", x, err)
	}
	if names, err := v.ListXattr(ctx, id); err != nil || len(names) != 1 {
		t.Errorf("%q, %v", names, err)
	}
	if id, err = guestfs.Resolve(ctx, v, "/var/link", false); err != nil {
		t.Fatal(err)
	}
	if target, err := v.ReadLink(ctx, id); err != nil || target != "/etc/fstab" {
		t.Errorf("%q, %v", target, err)
	}
	if _, err := v.Attr(ctx, guestfs.ID{Ino: 2, Sub: 3 << 30}); !errors.Is(err, guestfs.ErrNotExist) {
		t.Errorf("foreign ID: %v", err)
	}
	if err := fstest.TestFS(guestfs.FS(ctx, v), "var/log/f", "etc/fstab"); err != nil {
		t.Error(err)
	}
}

// TestDamagedVolume: what can't be read is an error where the guest had it, by
// whatever name, never the empty directory that it was mounted on.
func TestDamagedVolume(t *testing.T) {
	ctx := t.Context()
	damage := ondisk.Corruptf("ext4", "superblock", 1024, "checksum")
	fstab := "/dev/sda1 / ext4\nUUID=0a34 /home ext4\nPARTUUID=cd-02 /srv ext4\nUUID=77 /boot ext4\nLABEL=stick /media ext4 noauto\n"
	root := system(guestfs.Info{Size: 5}, fstab, "home/anna", "srv", "boot", "media")
	v, err := New(ctx, []Member{
		{Name: "p1", Tree: root, Number: 1},
		{Name: "p2", Err: damage, Number: 2, PartUUID: "cd-02"},
		{Name: "p3", Tree: data("boot", guestfs.Info{UUID: "77"}), Number: 3},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/home", "/home/anna", "/srv", "/srv/x"} {
		if _, err := guestfs.Resolve(ctx, v, path, false); err == nil {
			id, _ := guestfs.Resolve(ctx, v, path, false)
			if _, err = v.Attr(ctx, id); !errors.Is(err, ondisk.ErrCorrupt) {
				t.Errorf("%s: %v, want the damage", path, err)
			}
		} else if !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s: %v, want the damage", path, err)
		}
	}
	for _, path := range []string{"/boot/boot", "/media", "/usr/bin"} {
		if _, err := guestfs.Resolve(ctx, v, path, false); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	problems := 0
	for _, m := range v.Mounts() {
		if m.Problem != "" {
			problems++
		}
	}
	if problems != 2 {
		t.Errorf("mounts %+v, want two with a problem", v.Mounts())
	}
	// Without a root the damage is the likelier cause, and said.
	if _, err := New(ctx, []Member{{Name: "p2", Err: damage}}, nil); !errors.Is(err, ErrNoRoot) || !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("no root: %v", err)
	}
}

// TestBtrfs: one filesystem with subvolumes for / and /home, whose top level is
// mounted, too. As on the guest, the inner mount point of that is empty.
func TestBtrfs(t *testing.T) {
	tree := memtree.New(guestfs.Info{Type: "btrfs", UUID: "5c9f", Size: 9})
	tree.File("@/etc/fstab", "UUID=5c9f / btrfs subvol=@ 0 0\nUUID=5c9f /home btrfs subvol=/@home 0 0\nUUID=5c9f /top btrfs subvolid=5 0 0\nUUID=5c9f /mnt btrfs subvolid=300\n")
	for _, d := range []string{"@/usr", "@/home", "@/top", "@/mnt", "@home/anna", "@/.snapshots/1/snapshot/etc", "@/.snapshots/1/snapshot/usr"} {
		tree.Mkdir(d)
	}
	v, err := New(t.Context(), []Member{{Name: "p1", Tree: tree, Number: 1}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(v.Mounts()); !strings.HasPrefix(got, "[{/ p1 0 UUID=5c9f [subvol=@] } {/home p1 0 UUID=5c9f [subvol=/@home] } {/top p1 0 ") {
		t.Error(got)
	}
	if len(v.Warnings) != 1 || !strings.Contains(v.Warnings[0], "subvolid=300") {
		t.Errorf("%q", v.Warnings)
	}
	for path, want := range map[string]int{"/": 6, "/home": 1, "/top": 2, "/top/@/top": 0, "/top/@/home": 0, "/top/@home": 1} {
		id, err := guestfs.Resolve(t.Context(), v, path, false)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if list, err := guestfs.ReadDir(t.Context(), v, id, 99); err != nil || len(list) != want {
			t.Errorf("%s: %v, %v", path, list, err)
		}
	}
}

func TestRoots(t *testing.T) {
	ctx := t.Context()
	if _, err := New(ctx, []Member{{Name: "a", Tree: data("a", guestfs.Info{}, "etc")}}, nil); !errors.Is(err, ErrNoRoot) {
		t.Errorf("no root: %v", err)
	}
	if _, err := New(ctx, nil, nil); !errors.Is(err, ErrNoRoot) {
		t.Errorf("no members: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := New(cancelled, []Member{{Name: "a", Tree: system(guestfs.Info{}, "")}}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	damage := errors.New("bad block")
	broken := system(guestfs.Info{Size: 99}, "")
	broken.Mkdir("").Err = damage
	noFstab := system(guestfs.Info{Size: 20}, "")
	badFstab := system(guestfs.Info{Size: 20}, "x")
	old := memtree.New(guestfs.Info{Size: 30})
	for _, d := range []string{"etc", "bin", "sbin"} {
		old.Mkdir(d)
	}
	listed := system(guestfs.Info{UUID: "l", Size: 1}, "UUID=l / ext4")
	misled := system(guestfs.Info{UUID: "m", Size: 50}, "UUID=l / ext4\nUUID=m /mnt ext4\n")
	huge := system(guestfs.Info{Size: 5}, strings.Repeat("#", maxFstab+1))
	tests := []struct {
		name string
		in   []guestfs.Tree
		root int
		warn string
	}{
		{"no fstab", []guestfs.Tree{noFstab}, 0, ""},
		{"usr alone isn't needed", []guestfs.Tree{data("x", guestfs.Info{Size: 99}), old}, 1, ""},
		{"largest", []guestfs.Tree{noFstab, old}, 1, "v0 could be a root filesystem too; v1 was chosen, since of the other its filesystem is not larger"},
		{"first of equals", []guestfs.Tree{noFstab, badFstab}, 0, "could be a root"},
		{"bad line", []guestfs.Tree{badFstab}, 0, "/etc/fstab line 1 is no entry"},
		{"listed", []guestfs.Tree{misled, listed}, 1, "v0 could be a root filesystem too; v1 was chosen, since of the other its /etc/fstab doesn't list it as /"},
		{"damaged", []guestfs.Tree{broken, noFstab}, 1, "v0 can't be looked at for a root filesystem: bad block"},
		{"fstab too long", []guestfs.Tree{huge}, 0, "/etc/fstab can't be read"},
	}
	for _, test := range tests {
		var members []Member
		for i, tree := range test.in {
			members = append(members, Member{Name: fmt.Sprintf("v%d", i), Tree: tree, Disk: i})
		}
		v, err := New(ctx, members, nil)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := v.Mounts()[0]; got.Member != test.root || got.Path != "/" {
			t.Errorf("%s: root %+v", test.name, got)
		}
		warned := strings.Join(v.Warnings, "\n")
		if test.warn == "" && warned != "" || !strings.Contains(warned, test.warn) {
			t.Errorf("%s: warnings %q", test.name, warned)
		}
	}
}

// wide is a tree whose files are in an inode space of a large number.
type wide struct {
	*memtree.Tree
	sub uint32
}

func (w wide) Lookup(ctx context.Context, dir guestfs.ID, name string) (guestfs.ID, error) {
	dir.Sub = 0
	id, err := w.Tree.Lookup(ctx, dir, name)
	id.Sub = w.sub
	return id, err
}

func (w wide) Attr(ctx context.Context, id guestfs.ID) (guestfs.Attr, error) {
	id.Sub = 0
	return w.Tree.Attr(ctx, id)
}

// TestInodeSpaces: what has no room in an ID is an error, not another file.
func TestInodeSpaces(t *testing.T) {
	small := wide{system(guestfs.Info{Size: 9}, ""), 1<<32 - 1}
	v, err := New(t.Context(), []Member{{Name: "a", Tree: small}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := v.Lookup(t.Context(), v.Root(), "etc"); err != nil || id.Sub != small.sub {
		t.Errorf("one mount: %v, %v", id, err)
	}
	v = newView(v.mounts[0], 2)
	if _, err := v.Lookup(t.Context(), v.Root(), "etc"); !errors.Is(err, ondisk.ErrUnsupported) {
		t.Errorf("two mounts: %v", err)
	}
}
