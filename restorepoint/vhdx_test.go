package restorepoint

import (
	"context"
	"os"
	"strings"
	"testing"

	"yester/imageformats/vhdx"
)

// TestHyperV lists chains as Hyper-V leaves them: parents are named by Windows'
// paths, and have one of two ids while a merge is under way.
func TestHyperV(t *testing.T) {
	ctx := context.Background()
	s := newSource(t)
	opt := func(n byte) vhdx.WriteOptions { return vhdx.WriteOptions{ID: id(n), BlockSize: 1 << 20} }
	base := func(name string, n byte) {
		s.write(name, func(f *os.File) error { return vhdx.WriteDynamic(ctx, f, state(n), opt(n)) })
	}
	child := func(name string, n, p, alt byte, relative, absolute string) {
		d := vhdx.DiffOptions{WriteOptions: opt(n), ParentID: id(p), Locators: vhdx.ParentLocators(relative, absolute)}
		if alt != 0 {
			d.ParentAltID = id(alt)
		}
		s.write(name, func(f *os.File) error { return vhdx.WriteDiff(ctx, f, state(n), state(p), d) })
	}
	base("vm/disks/web01.vhdx", 1)
	base("other/web01.vhdx", 9)
	child("vm/snapshots/a.avhdx", 2, 1, 0, `..\disks\web01.vhdx`, `C:\ClusterStorage\Volume1\vm\disks\web01.vhdx`)
	// Moved since: it lies beside its parent, which it knows by an absolute path.
	child("vm/snapshots/b.avhdx", 3, 2, 0, `..\..\gone\a.avhdx`, `C:\gone\a.avhdx`)
	// Their parents are being merged into: found by the second id, by name and anywhere.
	child("vm/snapshots/c.avhdx", 4, 8, 3, `.\b.avhdx`, `C:\gone\b.avhdx`)
	child("elsewhere/d.avhdx", 5, 8, 4, `.\lost.avhdx`, `D:\lost.avhdx`)
	src := s.open("")
	c, err := src.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Points) != 6 || len(c.Ignored) > 0 {
		t.Fatalf("points %q, ignored %+v", lines(c), c.Ignored)
	}
	chain := "elsewhere/d.avhdx vm/snapshots/c.avhdx vm/snapshots/b.avhdx vm/snapshots/a.avhdx vm/disks/web01.vhdx"
	for _, p := range c.Points {
		d := p.Disks[0]
		switch {
		case d.Files[0] == "other/web01.vhdx":
			s.holds(src, p, 9)
		case !strings.HasSuffix(chain, strings.Join(d.Files, " ")):
			t.Errorf("chain %q: %s", d.Files, p.Problem)
		default:
			s.holds(src, p, byte(len(d.Files)))
		}
	}
}
