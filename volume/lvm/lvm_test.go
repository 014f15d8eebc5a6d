package lvm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/readertest"
	"yester/internal/volumetest"
	"yester/volume"
)

// open opens devs, of which nothing may be damaged.
func open(t testing.TB, devs []volume.Device) *volume.Assembled {
	t.Helper()
	a, err := Open(context.Background(), devs, volume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if a.Damage != nil {
		t.Fatal(a.Damage)
	}
	return a
}

// find returns the volume of that name.
func find(t testing.TB, a *volume.Assembled, name string) volume.Volume {
	t.Helper()
	var names []string
	for _, g := range a.Groups {
		for _, v := range g.Volumes {
			if v.Name == name {
				return v
			}
			names = append(names, v.Name)
		}
	}
	t.Fatalf("no volume %s among %q", name, names)
	return volume.Volume{}
}

func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestTools compares linear and striped volumes, made by lvm2's tools on three
// disks, with where these say that the volumes are.
func TestTools(t *testing.T) {
	l := volumetest.NewLVM(t, 3, 24<<20)
	l.Run("pvcreate", l.Loops[0], l.Loops[1])
	l.Run("pvcreate", "--pvmetadatacopies", "2", "--dataalignment", "2m", l.Loops[2])
	l.Run("vgcreate", "-s", "512k", "vg-a", l.Loops[0], l.Loops[1], l.Loops[2])
	create := func(args ...string) { l.Run("lvcreate", append([]string{"-an", "-Zn", "-Wn"}, args...)...) }
	create("-L", "3m", "-n", "root", "vg-a", l.Loops[0])
	create("-L", "2m", "-n", "var-log", "vg-a", l.Loops[0])
	create("-L", "6m", "-i", "3", "-I", "64k", "-n", "striped", "vg-a")
	l.Run("lvextend", "-L", "+4m", "vg-a/root", l.Loops[1])
	l.Run("lvextend", "-L", "+4m", "-i", "2", "-I", "4k", "vg-a/striped")
	l.Run("lvextend", "-L", "+512k", "vg-a/root", l.Loops[2])
	create("-L", "1m", "-n", "empty", "vg-a")
	want := make(map[string][]byte)
	for i, lv := range []string{"root", "var-log", "striped", "empty"} {
		pieces := l.Pieces("vg-a", lv)
		n := int64(0)
		for _, p := range pieces {
			n += p.N
		}
		want[lv] = noise(int(n), uint64(i))
		l.Write(pieces, want[lv])
	}
	a := open(t, l.Devices())
	if len(a.Groups) != 1 || len(a.Groups[0].Volumes) != 4 || len(a.Groups[0].Warnings)+len(a.Warnings) > 0 {
		t.Fatalf("got %+v", a)
	}
	var pvs struct {
		Report []struct {
			PV []struct {
				Name string `json:"pv_name"`
				UUID string `json:"pv_uuid"`
			}
		}
	}
	l.Report(&pvs, "pvs", "-o", "pv_name,pv_uuid")
	for _, p := range pvs.Report[0].PV {
		for i, loop := range l.Loops {
			if w := (volume.Member{Device: i, Type: "LVM2 PV", ID: p.UUID, Group: "vg-a"}); p.Name == loop && a.Members[i] != w {
				t.Errorf("member %+v, want %+v", a.Members[i], w)
			}
		}
	}
	var lvs struct {
		Report []struct {
			LV []struct {
				Name string `json:"lv_name"`
				UUID string `json:"lv_uuid"`
				Size string `json:"lv_size"`
				VG   string `json:"vg_uuid"`
				DM   string `json:"lv_dm_path"`
				Path string `json:"lv_path"`
				Type string `json:"segtype"`
			}
		}
	}
	l.Report(&lvs, "lvs", "-o", "lv_name,lv_uuid,lv_size,vg_uuid,lv_dm_path,lv_path")
	for _, r := range lvs.Report[0].LV {
		t.Run(r.Name, func(t *testing.T) {
			v := find(t, a, strings.TrimPrefix(r.DM, "/dev/mapper/"))
			if v.Err != nil || v.ID != r.UUID || v.Label != r.Name || fmt.Sprint(v.Size()) != r.Size || a.Groups[0].ID != r.VG {
				t.Errorf("got %+v, want %+v", v, r)
			}
			bare := strings.ReplaceAll(r.VG+r.UUID, "-", "")
			if w := []string{r.DM, r.Path, "/dev/disk/by-id/dm-name-" + v.Name, "/dev/disk/by-id/dm-uuid-LVM-" + bare}; fmt.Sprint(w) != fmt.Sprint(v.Devices) {
				t.Errorf("devices %q, want %q", v.Devices, w)
			}
			readertest.Run(t, v.Reader, readertest.Bytes(want[r.Name]), 512<<10, 3<<20, 64<<10, 6<<20)
			checkExtents(t, v.Reader, want[r.Name])
		})
	}
	t.Run("missing", func(t *testing.T) { checkMissing(t, l, a.Members[1].ID) })
	t.Run("copied disk", func(t *testing.T) {
		devs := l.Devices()
		a := open(t, append(devs, volume.Device{Name: "copy", Reader: devs[1].Reader}))
		if v := find(t, a, "vg--a-root"); !errors.Is(v.Err, ondisk.ErrCorrupt) || !strings.Contains(v.Err.Error(), "disk1 and on copy") {
			t.Error(v.Err)
		}
		if v := find(t, a, "vg--a-var--log"); v.Err != nil {
			t.Error(v.Err)
		}
	})
	t.Run("older disk", func(t *testing.T) {
		old, err := os.ReadFile(l.Files[1])
		if err != nil {
			t.Fatal(err)
		}
		l.Run("lvrename", "vg-a/empty", "vg-a/renamed")
		devs := l.Devices()
		devs[1].Reader = readertest.Bytes(old)
		a := open(t, devs)
		if v := find(t, a, "vg--a-renamed"); v.Err != nil {
			t.Error(v.Err)
		}
		if w := a.Groups[0].Warnings; len(w) != 1 || !strings.Contains(w[0], "disk1 has older metadata") {
			t.Errorf("warnings %q", w)
		}
	})
}

// checkExtents reads what v says lies in host files there.
func checkExtents(t *testing.T, r block.Reader, want []byte) {
	t.Helper()
	for off := int64(0); off < r.Size(); {
		e, err := block.ExtentAt(context.Background(), r, off, r.Size()-off)
		if err != nil {
			t.Fatal(err)
		}
		if e.File != nil {
			b := make([]byte, e.Len)
			if _, err := e.File.ReadAt(b, e.Off); err != nil || string(b) != string(want[off:][:e.Len]) {
				t.Fatalf("extent at %#x isn't what lies there: %v", off, err)
			}
		}
		off += e.Len
	}
}

// checkMissing leaves the second disk away.
func checkMissing(t *testing.T, l *volumetest.LVM, uuid string) {
	devs := l.Devices()
	a := open(t, []volume.Device{devs[0], devs[2]})
	if g := a.Groups[0]; len(g.Missing) != 1 || g.Missing[0] != uuid || len(g.Warnings) != 1 {
		t.Errorf("group %+v", g)
	}
	for name, missing := range map[string]bool{"vg--a-root": true, "vg--a-var--log": false, "vg--a-striped": true, "vg--a-empty": false} {
		v := find(t, a, name)
		if !missing {
			if v.Err != nil {
				t.Errorf("%s: %v", name, v.Err)
			}
			continue
		}
		if !errors.Is(v.Err, volume.ErrMissing) || !errors.Is(v.Err, ondisk.ErrCorrupt) || !strings.Contains(v.Err.Error(), uuid) {
			t.Errorf("%s: %v", name, v.Err)
		}
		if n, err := v.ReadAt(make([]byte, 512), 0); n != 0 || !errors.Is(err, v.Err) || v.Size() == 0 {
			t.Errorf("%s: read %d bytes of %d: %v", name, n, v.Size(), err)
		}
	}
}
