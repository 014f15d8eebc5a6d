package lvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"yester/internal/ondisk"
	"yester/internal/volumetest"
	"yester/volume"
)

// TestWrap lets lvm2 write metadata until they go round the end of their area.
func TestWrap(t *testing.T) {
	l := volumetest.NewLVM(t, 1, 8<<20)
	l.Run("pvcreate", "--metadatasize", "60k", "--dataalignment", "64k", l.Loops[0])
	l.Run("vgcreate", "-s", "64k", "vg", l.Loops[0])
	l.Run("lvcreate", "-an", "-Zn", "-Wn", "-l", "3", "-n", "lv", "vg")
	var tags []string
	for i := range 12 {
		tags = append(tags, "--addtag", fmt.Sprintf("t%d%s", i, strings.Repeat("x", 1000)))
	}
	l.Run("vgchange", append(tags, "vg")...)
	for i := range 12 {
		l.Run("lvrename", fmt.Sprintf("vg/lv%s", strings.Repeat("n", i)), "vg/lv"+strings.Repeat("n", i+1))
		devs := l.Devices()
		a := open(t, devs)
		if v := find(t, a, "vg-lv"+strings.Repeat("n", i+1)); v.Err != nil {
			t.Fatal(v.Err)
		}
		f := &finder{out: &volume.Assembled{}}
		if err := f.findMembers(context.Background(), devs); err != nil {
			t.Fatal(err)
		}
		if err := f.members[0].readHeaders(context.Background()); err != nil {
			t.Fatal(err)
		}
		if len(f.members[0].areas[0].pieces()) == 2 {
			return
		}
	}
	t.Error("the text never went round")
}

// one is a group of one volume on one physical volume.
func one(seqno int, name string) string {
	return vgText("vg", seqno, []string{uuid('A')}, lvText(name, '1', visible, linear(0, 2, "pv0", 0)))
}

// TestRing puts the text at every kind of place in its area.
func TestRing(t *testing.T) {
	n := uint64(len(one(1, "lv")) + 1)
	for _, at := range []uint64{mdaHeaderSize, 1024, testArea - n, testArea - n + 1, testArea - 1, testArea - 512} {
		pv := newPV('A', pvSize, one(1, "lv"))
		pv.at = at
		if v := find(t, open(t, devices(pv.disk())), "vg-lv"); v.Err != nil {
			t.Error(v.Err)
		}
	}
}

// TestCopies damages one of two metadata areas, then both.
func TestCopies(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(area []byte)
	}{
		{"text", func(b []byte) { b[mdaHeaderSize+100] ^= 1 }},
		{"header", func(b []byte) { b[mdaOffLocn] ^= 1 }},
		{"text's place", func(b []byte) { binary.LittleEndian.PutUint64(b[mdaOffLocn:], testArea); fixHeader(b) }},
		{"text's size", func(b []byte) { binary.LittleEndian.PutUint64(b[mdaOffLocn+8:], math.MaxUint64); fixHeader(b) }},
		{"area's place", func(b []byte) { b[mdaOffStart]++; fixHeader(b) }},
		{"area's size", func(b []byte) { binary.LittleEndian.PutUint64(b[mdaOffSize:], math.MaxUint64); fixHeader(b) }},
		{"version", func(b []byte) { b[mdaOffVersion] = 2; fixHeader(b) }},
		{"magic", func(b []byte) { b[mdaOffMagic] = 'x'; fixHeader(b) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			pv := newPV('A', pvSize, one(1, "lv"))
			pv.areas = []region{{4096, testArea}, {pvSize - testArea, testArea}}
			for i, a := range pv.areas {
				d := pv.disk()
				c.damage(d[a.off:][:a.size])
				got := open(t, devices(d))
				if v := find(t, got, "vg-lv"); v.Err != nil {
					t.Error(v.Err)
				}
				if w := got.Groups[0].Warnings; len(w) != 1 || !strings.Contains(w[0], "a copy of the metadata is of no use") {
					t.Errorf("copy %d: warnings %q", i, w)
				}
			}
			d := pv.disk()
			for _, a := range pv.areas {
				c.damage(d[a.off:][:a.size])
			}
			got, err := Open(context.Background(), devices(d), volume.Options{})
			if err != nil || len(got.Groups) != 0 || len(got.Members) != 1 {
				t.Fatalf("%+v, %v", got, err)
			}
			if !errors.Is(got.Damage, ondisk.ErrCorrupt) && !errors.Is(got.Damage, ondisk.ErrUnsupported) {
				t.Errorf("damage %v", got.Damage)
			}
		})
	}
	t.Run("ignored", func(t *testing.T) {
		pv := newPV('A', pvSize, one(1, "lv"))
		pv.areas = []region{{4096, testArea}, {pvSize - testArea, testArea}}
		d := pv.disk()
		b := d[4096:][:testArea]
		b[mdaOffLocn+rawOffFlags] = rawIgnored
		b[mdaHeaderSize+100] ^= 1
		fixHeader(b)
		if a := open(t, devices(d)); find(t, a, "vg-lv").Err != nil || len(a.Groups[0].Warnings) > 0 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("newer", func(t *testing.T) {
		pv := newPV('A', pvSize, one(1, "old"))
		pv.areas = []region{{4096, testArea}, {pvSize - testArea, testArea}}
		d := pv.disk()
		pv.text = one(2, "new")
		copy(d[pvSize-testArea:], pv.disk()[pvSize-testArea:])
		if a := open(t, devices(d)); find(t, a, "vg-new").Err != nil || len(a.Groups[0].Volumes) != 1 {
			t.Errorf("%+v", a)
		}
	})
}

func TestLabels(t *testing.T) {
	good := newPV('A', pvSize, one(1, "lv")).disk()
	for _, c := range []struct {
		name   string
		damage func(d []byte)
	}{
		{"checksum", func(d []byte) { d[sectorSize+40] ^= 1 }},
		{"sector", func(d []byte) { d[sectorSize+labelOffSector] = 2 }},
		{"header's place", func(d []byte) { d[sectorSize+labelOffHeader+1] = 2; fixLabel(d) }},
		{"UUID", func(d []byte) { d[sectorSize+labelEnd] = '/'; fixLabel(d) }},
		{"endless areas", func(d []byte) {
			for i := sectorSize + labelEnd + pvOffAreas; i < 2*sectorSize; i++ {
				d[i] = 1
			}
			fixLabel(d)
		}},
		{"type", func(d []byte) { d[sectorSize+labelOffType] = 'x' }},
	} {
		d := bytes.Clone(good)
		c.damage(d)
		a := open(t, devices(d))
		if len(a.Members) != 0 || len(a.Warnings) != 1 {
			t.Errorf("%s: %+v", c.name, a)
		}
	}
	for n := range labelSectors {
		d := bytes.Clone(good)
		clear(d[sectorSize:][:sectorSize])
		copy(d[n*sectorSize:], good[sectorSize:][:sectorSize])
		d[n*sectorSize+labelOffSector] = byte(n)
		if find(t, open(t, devices(d)), "vg-lv").Err != nil {
			t.Errorf("sector %d", n)
		}
	}
	for _, size := range []int{0, 1, 511, 512, 1023, 1024, 2048, 5000} {
		if _, err := Open(context.Background(), devices(good[:size]), volume.Options{}); err != nil {
			t.Error(err)
		}
	}
	failing := errors.New("cable pulled")
	a, err := Open(context.Background(), []volume.Device{
		{Name: "bad", Reader: volumetest.Broken{Reader: bytes.NewReader(good), From: 0, To: 1, Err: failing}},
		{Name: "good", Reader: good},
	}, volume.Options{})
	if err != nil || !errors.Is(a.Damage, failing) || find(t, a, "vg-lv").Err != nil {
		t.Errorf("%+v, %v", a, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Open(ctx, devices(good), volume.Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestCutOff reads what there is of a disk whose end is lost.
func TestCutOff(t *testing.T) {
	full := newPV('A', pvSize, one(1, "lv")).disk()
	a := open(t, devices(full[:1<<20+6000]))
	v := find(t, a, "vg-lv")
	if v.Err != nil || v.Size() != 8192 || len(a.Groups[0].Warnings) != 1 {
		t.Fatalf("%+v, %q", v, a.Groups[0].Warnings)
	}
	if n, err := v.ReadAt(make([]byte, 6000), 0); n != 6000 || err != nil {
		t.Error(n, err)
	}
	if n, err := v.ReadAt(make([]byte, 1), 6000); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) {
		t.Error(n, err)
	}
	if n, err := v.ReadAt(make([]byte, 8192), 0); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || err == io.EOF {
		t.Error(n, err)
	}
}

// TestHostile opens metadata that contradict themselves.
func TestHostile(t *testing.T) {
	big := fmt.Sprint(math.MaxInt64)
	for _, c := range []struct{ name, lvs, want string }{
		{"itself", lvText("lv", '1', visible, linear(0, 2, "lv", 0)), "lies on itself"},
		{"ring", lvText("lv", '1', visible, linear(0, 2, "b", 0)) + lvText("b", '2', "", linear(0, 2, "lv", 0)), "lies on itself"},
		{"past the PV", lvText("lv", '1', visible, linear(0, 2, "pv0", 63)), "which has 64"},
		{"far past the PV", lvText("lv", '1', visible, linear(0, 2, "pv0", math.MaxInt64)), "which has 64"},
		{"past the volume", lvText("lv", '1', visible, linear(0, 2, "b", 1)) + lvText("b", '2', "", linear(0, 2, "pv0", 0)), "are asked for"},
		{"far past the volume", lvText("lv", '1', visible, linear(0, 2, "b", math.MaxInt64)) + lvText("b", '2', "", linear(0, 2, "pv0", 0)), "no volume is that large"},
		{"huge", lvText("lv", '1', visible, strings.Replace(segText(0, 7, `type = "zero"`), "extent_count = 7", "extent_count = "+big, 1)), "no volume is that large"},
		{"huge together", lvText("lv", '1', visible, segText(0, 1<<50, `type = "zero"`), segText(1<<50, 1<<50, `type = "zero"`)), "no volume is that large"},
		{"gap", lvText("lv", '1', visible, linear(0, 1, "pv0", 0), linear(2, 1, "pv0", 1)), "in none or in two"},
		{"twice", lvText("lv", '1', visible, linear(0, 2, "pv0", 0), linear(1, 1, "pv0", 2)), "in none or in two"},
		{"overlap", lvText("lv", '1', visible, linear(0, 4, "pv0", 0)) + lvText("b", '2', visible, linear(0, 1, "pv0", 3)), "belongs to lv and to b"},
		{"nobody", lvText("lv", '1', visible, linear(0, 1, "pv9", 0)), "neither"},
		{"no segments", lvText("lv", '1', visible), "segment_count"},
		{"no type", lvText("lv", '1', visible, segText(0, 1, "")), "unknown"},
		{"odd type", lvText("lv", '1', visible, segText(0, 1, `type = "../\n"`)), "unknown"},
		{"raid5", lvText("lv", '1', visible, segText(0, 1, `type = "raid5_ls"`)), "RAID 5"},
		{"uneven stripes", lvText("lv", '1', visible, segText(0, 3, "type = \"striped\"\nstripe_count = 2\nstripe_size = 8\nstripes = [\"pv0\", 0, \"pv0\", 2]")), "3 extents on 2 stripes"},
		{"no stripe size", lvText("lv", '1', visible, segText(0, 2, "type = \"striped\"\nstripe_count = 2\nstripes = [\"pv0\", 0, \"pv0\", 2]")), "stripe_size"},
		{"odd stripe size", lvText("lv", '1', visible, segText(0, 2, "type = \"striped\"\nstripe_count = 2\nstripe_size = 3\nstripes = [\"pv0\", 0, \"pv0\", 2]")), "stripe_size"},
		{"stripes that share", lvText("lv", '1', visible, segText(0, 2, "type = \"striped\"\nstripe_count = 2\nstripe_size = 1\nstripes = [\"pv0\", 0, \"pv0\", 0]")), "belongs to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := find(t, open(t, devices(newPV('A', pvSize, vgText("vg", 1, []string{uuid('A')}, c.lvs)).disk())), "vg-lv")
			if v.Err == nil || !strings.Contains(v.Err.Error(), c.want) {
				t.Errorf("error %v", v.Err)
			}
			if !errors.Is(v.Err, ondisk.ErrCorrupt) && !errors.Is(v.Err, ondisk.ErrUnsupported) {
				t.Errorf("%v is neither", v.Err)
			}
		})
	}
	// A tower in which every volume is used twice by the next: 2 to the 30th ways down.
	tower := lvText("lv0", '1', "", linear(0, 1, "pv0", 0))
	for i := range 30 {
		below := fmt.Sprintf("lv%d", i)
		tower += lvText(fmt.Sprintf("lv%d", i+1), '1', visible, linear(0, 1, below, 0), linear(1, 1, below, 0))
	}
	pv := newPV('A', pvSize, vgText("vg", 1, []string{uuid('A')}, tower))
	a := open(t, devices(pv.disk()))
	if v := find(t, a, "vg-lv30"); v.Err == nil || !strings.Contains(v.Err.Error(), "more than 12 high") {
		t.Error(v.Err)
	}
	for _, name := range []string{"../x", "a/b", "..", "-x", ""} {
		text := strings.Replace(one(1, "lv"), "lv {", fmt.Sprintf("%q {", name), 1)
		a, err := Open(context.Background(), devices(newPV('A', pvSize, text).disk()), volume.Options{})
		if err != nil || !errors.Is(a.Damage, ondisk.ErrCorrupt) || len(a.Groups) != 0 {
			t.Errorf("%q: %+v, %v", name, a, err)
		}
	}
}

// TestGroups opens disks whose groups get in each other's way.
func TestGroups(t *testing.T) {
	first := newPV('A', pvSize, one(1, "lv"))
	second := newPV('B', pvSize, strings.NewReplacer(uuid('V'), uuid('W'), uuid('A'), uuid('B')).Replace(one(1, "lv")))
	t.Run("same name", func(t *testing.T) {
		a := open(t, devices(first.disk(), second.disk()))
		for _, id := range []string{uuid('V'), uuid('W')} {
			if v := find(t, a, "vg-lv@"+id); v.Err != nil || v.Devices != nil {
				t.Errorf("%+v", v)
			}
		}
		if w := a.Groups[1].Warnings; len(w) != 1 || !strings.Contains(w[0], "2 volume groups called vg") {
			t.Errorf("%q", w)
		}
	})
	t.Run("same number", func(t *testing.T) {
		x, y := newPV('A', pvSize, vgText("vg", 1, []string{uuid('A'), uuid('B')}, lvText("x", '1', visible, linear(0, 1, "pv0", 0)))),
			newPV('B', pvSize, vgText("vg", 1, []string{uuid('A'), uuid('B')}, lvText("x", '1', visible, linear(0, 1, "pv0", 1))))
		if v := find(t, open(t, devices(x.disk(), y.disk())), "vg-x"); !errors.Is(v.Err, ondisk.ErrCorrupt) {
			t.Error(v.Err)
		}
		y.text = "# written by another\n" + x.text
		if v := find(t, open(t, devices(x.disk(), y.disk())), "vg-x"); v.Err != nil {
			t.Error(v.Err)
		}
	})
	t.Run("left", func(t *testing.T) {
		// A's group has lost B, which still says that it is in it.
		stay := newPV('A', pvSize, one(5, "lv"))
		left := newPV('B', pvSize, vgText("vg", 4, []string{uuid('A'), uuid('B')}, ""))
		a := open(t, devices(stay.disk(), left.disk()))
		if a.Members[1].Group != "" || len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "was taken out") {
			t.Errorf("%+v", a)
		}
	})
	t.Run("moved", func(t *testing.T) {
		// B is in a group of its own; the old one hasn't heard of it.
		old := newPV('A', pvSize, vgText("vg", 4, []string{uuid('A'), uuid('B')}, lvText("x", '1', visible, linear(0, 1, "pv1", 0))))
		a := open(t, devices(old.disk(), second.disk()))
		if v := find(t, a, "vg-x@"+uuid('V')); !errors.Is(v.Err, volume.ErrMissing) {
			t.Error(v.Err)
		}
		if v := find(t, a, "vg-lv@"+uuid('W')); v.Err != nil {
			t.Error(v.Err)
		}
	})
	t.Run("without metadata", func(t *testing.T) {
		text := vgText("vg", 4, []string{uuid('A'), uuid('B')}, lvText("x", '1', visible, linear(0, 1, "pv1", 0)))
		bare := newPV('B', pvSize, "")
		bare.areas = nil
		a := open(t, devices(newPV('A', pvSize, text).disk(), bare.disk()))
		if v := find(t, a, "vg-x"); v.Err != nil || a.Members[1].Group != "vg" {
			t.Error(v.Err)
		}
		if a := open(t, devices(bare.disk())); len(a.Warnings) != 1 || len(a.Members) != 1 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("marked missing", func(t *testing.T) {
		text := strings.Replace(one(1, "lv"), "flags = []\ndev_size", "flags = [\"MISSING\"]\ndev_size", 1)
		v := find(t, open(t, devices(newPV('A', pvSize, text).disk())), "vg-lv")
		if !errors.Is(v.Err, volume.ErrMissing) || !strings.Contains(v.Err.Error(), "out of date") {
			t.Error(v.Err)
		}
	})
}

// TestSweep damages each byte of label, header and metadata in turn: what comes is
// what was there, or an error or a warning.
func TestSweep(t *testing.T) {
	pv := newPV('A', pvSize, one(1, "lv"))
	good := pv.disk()
	want := noise(8192, 1)
	copy(good[1<<20:], want)
	for at := sectorSize; at < 4096+mdaHeaderSize+len(pv.text); at++ {
		if at == 2*sectorSize {
			at = 4096
		}
		good[at] ^= 0x55
		a, err := Open(context.Background(), devices(good), volume.Options{})
		if err != nil {
			t.Fatal(err)
		}
		silent := a.Damage == nil && len(a.Warnings) == 0
		if len(a.Groups) > 0 {
			b := make([]byte, 8192)
			if _, err := a.Groups[0].Volumes[0].ReadAt(b, 0); err == nil && !bytes.Equal(b, want) {
				t.Fatalf("wrong bytes after damage at %#x", at)
			}
			silent = silent && a.Groups[0].Name != "vg"
		}
		// Without its magic a label is none; a device without one has nothing to say.
		if silent && (at < sectorSize || at >= sectorSize+len(labelMagic)) {
			t.Fatalf("damage at %#x isn't noticed", at)
		}
		good[at] ^= 0x55
	}
}
