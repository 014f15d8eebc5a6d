package lvm

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"yester/internal/ondisk"
	"yester/internal/readertest"
	"yester/internal/volumetest"
	"yester/volume"
)

const pvSize = 2 << 20

// extents returns the bytes of n extents of a disk made by synthPV.
func extents(d readertest.Bytes, first, n int) []byte { return d[1<<20+first*4096:][:n*4096] }

// kinds makes the disks of everything, their extents full of noise, and the
// metadata of its RAID 1 empty.
func kinds() (d0, d1 readertest.Bytes) {
	text := vgText("vg", 1, []string{uuid('A'), uuid('B')}, everything)
	d0, d1 = newPV('A', pvSize, text).disk(), newPV('B', pvSize, text).disk()
	copy(d0[1<<20:], noise(1<<20, 1))
	copy(d1[1<<20:], noise(1<<20, 2))
	clear(extents(d0, 4, 1))
	clear(extents(d1, 4, 1))
	return d0, d1
}

func cat(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// checkKinds checks all volumes of everything on d0 and d1.
func checkKinds(t *testing.T, a *volume.Assembled, d0, d1 readertest.Bytes) {
	t.Helper()
	want := map[string][]byte{
		"vg-lin":    cat(extents(d0, 0, 2), extents(d1, 0, 2)),
		"vg-mir":    extents(d0, 2, 2),
		"vg-r1":     extents(d0, 5, 2),
		"vg-origin": extents(d0, 7, 2),
		"vg-r0":     cat(extents(d0, 12, 1), extents(d1, 9, 1), extents(d0, 13, 1), extents(d1, 10, 1)),
		"vg-holes":  cat(extents(d0, 14, 1), make([]byte, 3*4096), extents(d0, 15, 1)),
	}
	unreadable := map[string]string{
		"vg-snap": "a snapshot with a copy-on-write store, of origin", "vg-pool": "a thin pool",
		"vg-thin": "a thin volume", "vg-broken": "taken out of the group",
	}
	if n := len(a.Groups[0].Volumes); n != len(want)+len(unreadable) {
		t.Errorf("%d volumes", n)
	}
	for name, b := range want {
		v := find(t, a, name)
		if v.Err != nil {
			t.Errorf("%s: %v", name, v.Err)
			continue
		}
		readertest.Run(t, v.Reader, readertest.Bytes(b), 4096)
	}
	for name, text := range unreadable {
		v := find(t, a, name)
		if !errors.Is(v.Err, ondisk.ErrUnsupported) && name != "vg-broken" || v.Err == nil || !strings.Contains(v.Err.Error(), text) {
			t.Errorf("%s: %v", name, v.Err)
		}
		if _, err := v.ReadAt(make([]byte, 1), 0); err == nil {
			t.Errorf("%s can be read", name)
		}
	}
}

func TestKinds(t *testing.T) {
	d0, d1 := kinds()
	a := open(t, devices(d0, d1))
	checkKinds(t, a, d0, d1)
	if w := a.Groups[0].Warnings; len(w) > 0 {
		t.Errorf("warnings %q", w)
	}
}

// TestRestored lets lvm2 accept the same group, by vgcfgrestore, and write it.
func TestRestored(t *testing.T) {
	l := volumetest.NewLVM(t, 2, 4<<20)
	text := vgText("vg", 1, []string{uuid('A'), uuid('B')}, everything)
	for i, c := range []byte("AB") {
		l.Run("pvcreate", "--norestorefile", "--dataalignment", "1m", "--uuid", uuid(c), l.Loops[i])
	}
	l.Restore("vg", text)
	d0, d1 := kinds()
	devs := l.Devices()
	l.Write([]volumetest.Piece{{Disk: 0, Off: 1 << 20, N: 64 * 4096}, {Disk: 1, Off: 1 << 20, N: 64 * 4096}}, cat(extents(d0, 0, 64), extents(d1, 0, 64)))
	a := open(t, devs)
	checkKinds(t, a, d0, d1)
	var lvs struct {
		Report []struct {
			LV []struct {
				Type string `json:"segtype"`
			}
		}
	}
	l.Report(&lvs, "lvs", "-o", "segtype", "vg/r1")
	if v := find(t, a, "vg-r1"); lvs.Report[0].LV[0].Type != "raid1" || v.Type != "raid1" {
		t.Errorf("%+v, %q", lvs, v.Type)
	}
}

// putSuperblock writes the superblock of a leg; set changes it.
func putSuperblock(b []byte, position uint32, set func(b []byte)) {
	le := binary.LittleEndian
	clear(b)
	copy(b, raidMagic)
	le.PutUint32(b[raidOffFeatures:], raidFeatureV190)
	le.PutUint32(b[raidOffDevices:], 2)
	le.PutUint32(b[raidOffPosition:], position)
	le.PutUint64(b[raidOffEvents:], 100)
	le.PutUint64(b[raidOffRecovery:], raidNoOffset)
	le.PutUint32(b[raidOffLevel:], 1)
	if set != nil {
		set(b)
	}
}

func TestRAID1(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name       string
		set0, set1 func(b []byte)
		leg        int // -1: none
		warned     string
	}{
		{name: "in sync", leg: 0},
		{name: "first leg failed", set1: func(b []byte) { b[raidOffFailed] = 1 }, leg: 1, warned: "it had failed"},
		{name: "second leg failed", set0: func(b []byte) { b[raidOffFailed] = 2 }, leg: 0},
		{name: "first leg old", set0: func(b []byte) { b[raidOffEvents] = 90 }, leg: 1, warned: "out of date"},
		{name: "first leg one behind", set0: func(b []byte) { b[raidOffEvents] = 99 }, leg: 0},
		{name: "first leg rebuilt", set0: func(b []byte) { le.PutUint64(b[raidOffRecovery:], 8) }, leg: 1, warned: "sector 8"},
		{name: "first leg new", set0: func(b []byte) { clear(b) }, leg: 1, warned: "never in sync"},
		{name: "legs exchanged", set0: func(b []byte) { b[raidOffPosition] = 1 }, leg: 1, warned: "leg 1"},
		{name: "both bad", set0: func(b []byte) { b[raidOffFailed] = 3 }, leg: -1},
		{name: "raid5", set0: func(b []byte) { b[raidOffLevel] = 5; b[raidOffEvents]++ }, leg: -1},
		{name: "reshaping", set0: func(b []byte) { b[raidOffFlags] = 1 }, leg: -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			d0, d1 := kinds()
			putSuperblock(extents(d0, 4, 1), 0, c.set0)
			putSuperblock(extents(d1, 4, 1), 1, c.set1)
			a := open(t, devices(d0, d1))
			v := find(t, a, "vg-r1")
			if c.leg < 0 {
				if v.Err == nil {
					t.Error("no error")
				}
				return
			}
			if v.Err != nil {
				t.Fatal(v.Err)
			}
			readertest.Run(t, v.Reader, readertest.Bytes(extents([]readertest.Bytes{d0, d1}[c.leg], 5, 2)))
			if w := strings.Join(a.Groups[0].Warnings, "\n"); (w != "") != (c.warned != "") || !strings.Contains(w, c.warned) {
				t.Errorf("warnings %q", w)
			}
		})
	}
}

// TestLegMissing reads what has a second leg from that.
func TestLegMissing(t *testing.T) {
	_, d1 := kinds()
	a := open(t, devices(d1))
	for name, want := range map[string][]byte{"vg-mir": extents(d1, 2, 2), "vg-r1": extents(d1, 5, 2)} {
		v := find(t, a, name)
		if v.Err != nil {
			t.Fatal(v.Err)
		}
		readertest.Run(t, v.Reader, readertest.Bytes(want))
		if w := strings.Join(a.Groups[0].Warnings, "\n"); !strings.Contains(w, v.Label+" is read from leg 1") {
			t.Errorf("warnings %q", w)
		}
	}
	for _, name := range []string{"vg-lin", "vg-origin", "vg-r0"} {
		if v := find(t, a, name); !errors.Is(v.Err, volume.ErrMissing) || !strings.Contains(v.Err.Error(), uuid('A')) {
			t.Errorf("%s: %v", name, v.Err)
		}
	}
	putSuperblock(extents(d1, 4, 1), 1, func(b []byte) { b[raidOffFailed] = 2 })
	if v := find(t, open(t, devices(d1)), "vg-r1"); v.Err == nil {
		t.Error("a failed leg is read")
	}
	for _, change := range [][2]string{
		{"mir_mimage_0", "mir_mimage_0"}, // none, to see that the next ones are what changes it
		{`"VISIBLE"]` + "\nflags = []\nsegment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = 2\ntype = \"mirror\"",
			`"VISIBLE", "NOTSYNCED"]` + "\nflags = []\nsegment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = 2\ntype = \"mirror\""},
	} {
		text := strings.Replace(vgText("vg", 2, []string{uuid('A'), uuid('B')}, everything), change[0], change[1], 1)
		v := find(t, open(t, devices(newPV('B', pvSize, text).disk())), "vg-mir")
		if changed := change[0] != change[1]; changed != (v.Err != nil) {
			t.Errorf("changed %v: %v", changed, v.Err)
		}
	}
}

// TestMove reads data that pvmove has on the move from where they are.
func TestMove(t *testing.T) {
	for _, c := range []struct {
		moved string
		disk  int
	}{{"", 0}, {"extents_moved = 1\n", 0}, {"extents_moved = 2\n", 1}} {
		lvs := lvText("data", '1', visible, linear(0, 2, "pvmove0", 0)) +
			lvText("pvmove0", '2', `, "PVMOVE", "LOCKED"`, segText(0, 2, "type = \"mirror\"\nmirror_count = 2\n"+c.moved+"mirrors = [\"pv0\", 3, \"pv1\", 4]"))
		text := vgText("vg", 1, []string{uuid('A'), uuid('B')}, lvs)
		d := []readertest.Bytes{newPV('A', pvSize, text).disk(), newPV('B', pvSize, text).disk()}
		copy(d[0][1<<20:], noise(1<<20, 1))
		copy(d[1][1<<20:], noise(1<<20, 2))
		v := find(t, open(t, devices(d...)), "vg-data")
		if v.Err != nil {
			t.Fatal(v.Err)
		}
		readertest.Run(t, v.Reader, readertest.Bytes(extents(d[c.disk], 3+c.disk, 2)))
	}
}
