package restorepoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/internal/ondisk"
	"yester/internal/treetest"
	"yester/internal/volumetest"
	"yester/volume"
)

// lvmDisks makes a machine of two disks, the first with a partition table, and one
// volume group on both: a system's root, and a volume that its fstab mounts. It
// returns the disks' files and the root volume's bytes, put together by lvm2's
// word for where they are.
func lvmDisks(t *testing.T) (files []string, root []byte) {
	treetest.Need(t, "mkfs.ext4", "sfdisk", "lvm", "mount")
	l := volumetest.NewLVM(t, 2, 24<<20)
	l.Run("pvcreate", l.Loops[0], l.Loops[1])
	l.Run("vgcreate", "-s", "1m", "sys-vg", l.Loops[0], l.Loops[1])
	l.Run("lvcreate", "-an", "-Zn", "-Wn", "-i", "2", "-I", "64k", "-L", "8m", "-n", "root", "sys-vg")
	l.Run("lvextend", "-i", "1", "-L", "+8m", "sys-vg/root", l.Loops[1])
	l.Run("lvcreate", "-an", "-Zn", "-Wn", "-L", "4m", "-n", "srv", "sys-vg", l.Loops[0])
	tree := t.TempDir()
	for name, content := range map[string]string{
		"etc/fstab":      "/dev/mapper/sys--vg-root / ext4 defaults 0 1\n/dev/sys-vg/srv /srv ext4 defaults 0 2\n",
		"etc/os-release": "NAME=Test\n", "usr/bin/true": strings.Repeat("x", 3<<20), "srv/hidden": "x",
	} {
		file := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	srv := t.TempDir()
	if err := os.WriteFile(filepath.Join(srv, "data"), []byte("on the volume"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct{ lv, dir, size string }{{"root", tree, "16m"}, {"srv", srv, "4m"}} {
		img := filepath.Join(t.TempDir(), "img")
		treetest.Run(t, "mkfs.ext4", "-q", "-d", v.dir, img, v.size)
		b, err := os.ReadFile(img)
		if err != nil {
			t.Fatal(err)
		}
		l.Write(l.Pieces("sys-vg", v.lv), b)
	}
	root = l.Read(l.Pieces("sys-vg", "root"))

	pv, err := os.ReadFile(l.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	parted := filepath.Join(t.TempDir(), "parted.raw")
	if err := os.WriteFile(parted, append(make([]byte, 1<<20), pv...), 0o600); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("label: dos\nstart=2048, size=49152, type=8e\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	treetest.Run(t, "sh", "-c", "sfdisk -q --no-reread "+parted+" <"+script)
	return []string{parted, l.Files[1]}, root
}

// openDisks opens files as the disks of one restore point.
func openDisks(t *testing.T, files ...string) *Opened {
	t.Helper()
	ctx := context.Background()
	all := &Opened{}
	for i, file := range files {
		s := newSource(t)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := "disk" + string('0'+rune(i)) + ".raw"
		s.write(name, func(f *os.File) error { _, err := f.Write(b); return err })
		src := s.open("")
		c, err := src.List(ctx)
		if err != nil || len(c.Points) != 1 {
			t.Fatal(c, err)
		}
		o, err := src.OpenPoint(ctx, c.Points[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(o.Close)
		d := o.Disks[0]
		d.Name = "disk" + string('0'+rune(i))
		all.src, all.Point = src, o.Point
		all.Disks = append(all.Disks, d)
	}
	t.Cleanup(all.Close)
	return all
}

// TestLVM shows a machine whose root lies on two disks as its own system saw it.
func TestLVM(t *testing.T) {
	ctx := context.Background()
	files, root := lvmDisks(t)
	o := openDisks(t, files...)
	vols, err := o.Volumes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range vols {
		names = append(names, v.Name)
	}
	if want := []string{"disk0-p1", "disk1-disk", "sys--vg-root", "sys--vg-srv"}; !slices.Equal(names, want) {
		t.Fatalf("volumes %q, want %q", names, want)
	}
	for _, v := range vols[:2] {
		if v.Member == nil || v.Member.Type != "LVM2 PV" || v.Member.Group != "sys-vg" {
			t.Errorf("%s: member %+v", v.Name, v.Member)
		}
		if _, err := v.Tree(ctx); !errors.Is(err, ondisk.ErrFormat) {
			t.Errorf("%s: %v", v.Name, err)
		}
	}

	// The kernel reads the same filesystem from a copy made by lvm2's own word.
	img := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(img, root, 0o600); err != nil {
		t.Fatal(err)
	}
	dir, unmount := treetest.Mount(t, img, "ext4", "ro")
	want, err := treetest.Host(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := vols[2].Tree(ctx)
	if err != nil {
		t.Fatal(err)
	}
	treetest.Compare(t, tree, want)
	unmount()

	view, err := o.GuestView(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(view.Warnings) > 0 {
		t.Errorf("warnings %q", view.Warnings)
	}
	id, err := guestfs.Resolve(ctx, view, "/srv/data", true)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := guestfs.ReadFile(ctx, view, id, 100); err != nil || string(b) != "on the volume" {
		t.Errorf("%q, %v", b, err)
	}
	if m := view.Mounts(); len(m) != 2 || m[0].Volume != "sys--vg-root" || m[0].Spec != "/dev/mapper/sys--vg-root" || m[1].Volume != "sys--vg-srv" {
		t.Errorf("mounts %+v", m)
	}
	groups, warned, err := o.Groups(ctx)
	if err != nil || len(groups) != 1 || groups[0].Name != "sys-vg" || len(warned)+len(groups[0].Warnings) > 0 {
		t.Errorf("groups %+v, %q, %v", groups, warned, err)
	}
}

// TestLVMHalf opens one of the two disks only: what lies on it alone is there, and
// the rest says what it lacks.
func TestLVMHalf(t *testing.T) {
	ctx := context.Background()
	files, _ := lvmDisks(t)
	o := openDisks(t, files[0])
	v, err := o.Volume(ctx, "sys--vg-srv")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Tree(ctx); err != nil {
		t.Error(err)
	}
	if v, err = o.Volume(ctx, "sys--vg-root"); err != nil {
		t.Fatal(err)
	}
	groups, _, _ := o.Groups(ctx)
	if _, err := v.Tree(ctx); !errors.Is(err, volume.ErrMissing) || !strings.Contains(err.Error(), groups[0].Missing[0]) {
		t.Error(err)
	}
}
