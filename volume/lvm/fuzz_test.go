package lvm

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"yester/internal/block"
	"yester/internal/readertest"
	"yester/volume"
)

func newBudget() *budget { return &budget{bytes: maxAllText, values: maxAllValues} }

func TestParse(t *testing.T) {
	s, err := parse("a = 1 # one\nb=\"x\\\"\\\\y\"\n\"q k\" = [1, [ ], \"s\",] c { d = -5.5e3 e = [] }\n# end\x00junk {", newBudget())
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := s.number("a"); n != 1 || !ok {
		t.Error(n)
	}
	if b, _ := s.text("b"); b != `x"\y` {
		t.Errorf("%q", b)
	}
	if l, _ := s.array("q k"); len(l) != 3 || l[1].kind != kindList || l[2].str != "s" {
		t.Errorf("%+v", l)
	}
	c, ok := s.section("c")
	if !ok || len(c.entries) != 2 || c.lookup("d").kind != kindFloat {
		t.Errorf("%+v", c)
	}
	for _, bad := range []string{
		"a", "a =", "a = [", "a = [1", "a = [1 2]", "a = \"x", "a = \"x\\", "a {", "}", "a = 1 a = 2", "a = b", "= 1", "a = {", "a = 99999999999999999999x",
		strings.Repeat("a {", maxDepth+2), "a = " + strings.Repeat("[", maxDepth+2), strings.Repeat("a {", 1<<20), "a = [" + strings.Repeat("[],", maxAllValues) + "]",
	} {
		if _, err := parse(bad, newBudget()); err == nil {
			t.Errorf("%.40q is accepted", bad)
		}
	}
	if _, err := parse("a = 1\nb = 2\nc = =\n", newBudget()); err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(one(1, "lv"))
	f.Add(vgText("vg", 1, []string{uuid('A'), uuid('B')}, everything))
	f.Add("a = [1, [2], \"x\\\"\"] b { c = 1.5 } # end")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parse(text, newBudget())
		if err != nil {
			return
		}
		if again, err := parse(text, newBudget()); err != nil || !equal(s, again) {
			t.Fatal("two readings differ")
		}
		g, err := newGroup(s)
		if err == nil && (g.name == "" || g.extent == 0) {
			t.Fatalf("%+v", g)
		}
	})
}

// FuzzOpen opens a physical volume whose text is right by its checksum, whatever
// it says, and one whose other parts aren't.
func FuzzOpen(f *testing.F) {
	f.Add(vgText("vg", 1, []string{uuid('A'), uuid('B')}, everything), uint16(0), uint64(0), byte(0))
	f.Add(one(1, "lv"), uint16(sectorSize+labelEnd), uint64(1), byte(1))
	f.Add(one(1, "lv"), uint16(4096+mdaOffLocn), uint64(1<<63), byte(2))
	f.Add(one(1, "lv"), uint16(4096+mdaOffLocn+rawOffSize), uint64(testArea), byte(2))
	f.Fuzz(func(t *testing.T, text string, at uint16, change uint64, fix byte) {
		if len(text) > testArea-mdaHeaderSize-1 {
			return
		}
		const size = 1<<20 + 64*4096
		d0, d1 := newPV('A', size, text).disk(), newPV('B', size, "").disk()
		for i := range 8 {
			if int(at)+i < len(d0) {
				d0[int(at)+i] ^= byte(change >> (8 * i))
			}
		}
		if fix&1 != 0 {
			fixLabel(d0)
		}
		if fix&2 != 0 {
			fixHeader(d0[4096:])
		}
		a, err := Open(context.Background(), devices(d0, d1), volume.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range a.Groups {
			for _, v := range g.Volumes[:min(8, len(g.Volumes))] {
				checkVolume(t, v)
			}
		}
	})
}

// checkVolume compares a read of the whole with reads of pieces, and with what the
// map says is zeros.
func checkVolume(t *testing.T, v volume.Volume) {
	if strings.ContainsAny(v.Name, "/\x00") {
		t.Fatalf("name %q", v.Name)
	}
	b := make([]byte, max(0, min(v.Size(), 1<<20)))
	n, err := v.ReadAt(b, 0)
	if v.Err != nil {
		if n != 0 || err == nil {
			t.Fatalf("%s: read %d bytes in spite of %v", v.Name, n, v.Err)
		}
		return
	}
	if n < len(b) && err == nil || v.Size() < 1 {
		t.Fatalf("%s: %d of %d bytes without an error", v.Name, n, v.Size())
	}
	p := make([]byte, 1500)
	for off := 0; off+len(p) <= n; off += 1500 {
		if _, err := v.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, b[off:][:len(p)]) {
			t.Fatalf("%s: another read at %d: %v", v.Name, off, err)
		}
	}
	for off, steps := int64(0), 0; off < int64(n) && steps < 1000; steps++ {
		e, err := block.ExtentAt(context.Background(), v.Reader, off, int64(n)-off)
		if err != nil {
			t.Fatal(err)
		}
		if e.Zero && len(bytes.Trim(b[off:off+e.Len], "\x00")) > 0 {
			t.Fatalf("%s: no zeros at %d", v.Name, off)
		}
		off += e.Len
	}
}

// far is a disk that notes what it was asked to fetch, and what was read that it
// wasn't asked for.
type far struct {
	readertest.Bytes
	hinted  []block.Range
	batches int
	cold    int // reads of what wasn't hinted
}

func (f *far) Prefetch(ranges []block.Range) bool {
	if len(ranges) > 0 {
		f.batches++
	}
	f.hinted = append(f.hinted, ranges...)
	return true
}

func (f *far) ReadAt(p []byte, off int64) (int, error) {
	for _, g := range f.hinted {
		if off >= g.Off && off+int64(len(p)) <= g.Off+g.Len {
			return f.Bytes.ReadAt(p, off)
		}
	}
	f.cold++
	return f.Bytes.ReadAt(p, off)
}

// TestHints checks that all that opening reads was asked for beforehand, in few
// batches, and that a volume passes hints on to the right places.
func TestHints(t *testing.T) {
	d0, d1 := kinds()
	f0, f1 := &far{Bytes: d0}, &far{Bytes: d1}
	a := open(t, []volume.Device{{Name: "disk0", Reader: f0}, {Name: "disk1", Reader: f1}})
	for _, f := range []*far{f0, f1} {
		if f.cold > 0 || f.batches > 4 {
			t.Errorf("%d reads without a hint, %d batches", f.cold, f.batches)
		}
	}
	for _, name := range []string{"vg-lin", "vg-r0", "vg-holes", "vg-mir"} {
		v := find(t, a, name)
		for off := int64(0); off < v.Size(); off += 1000 {
			for _, n := range []int64{1, 1000, 5000, 9000, 1 << 30} {
				f0.hinted, f1.hinted, f0.cold, f1.cold = nil, nil, 0, 0
				if !block.Prefetch(v.Reader, block.Range{Off: off, Len: n}) {
					t.Fatalf("%s takes no hints", name)
				}
				n = min(n, v.Size()-off)
				if err := block.ReadFull(context.Background(), v.Reader, make([]byte, n), off); err != nil {
					t.Fatal(err)
				}
				if f0.cold+f1.cold > 0 {
					t.Fatalf("%s: %d bytes at %d: read at other places than hinted", name, n, off)
				}
			}
		}
	}
	if !block.Prefetch(find(t, a, "vg-lin").Reader) {
		t.Error("hints are of no use, it says")
	}
	d0, d1 = kinds()
	if block.Prefetch(find(t, open(t, devices(d0, d1)), "vg-lin").Reader) {
		t.Error("hints are of use, it says")
	}
}
