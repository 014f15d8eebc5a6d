package restorepoint

import (
	"context"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"yester/origin"
)

// hiding is a folder whose listings don't show the folders of storage snapshots,
// which answer to their names all the same, as ONTAP and ZFS have it. It counts
// what is opened.
type hiding struct {
	origin.Folder
	opened atomic.Int64
}

func (h *hiding) ReadDir(ctx context.Context, name string) ([]origin.DirEntry, error) {
	entries, err := h.Folder.ReadDir(ctx, name)
	return slices.DeleteFunc(entries, func(e origin.DirEntry) bool { return e.Name == ".snapshot" || e.Name == ".zfs" }), err
}

func (h *hiding) Walk(ctx context.Context, enter func(string) bool, visit func(origin.Entry), unreadable func(string, error)) error {
	return origin.WalkFolder(ctx, h, func(dir string) bool {
		if base := path.Base(dir); base == ".snapshot" || base == ".zfs" {
			panic("a hidden folder was listed")
		}
		return enter(dir)
	}, visit, unreadable)
}

func (h *hiding) Open(ctx context.Context, name string) (origin.File, error) {
	h.opened.Add(1)
	return h.Folder.Open(ctx, name)
}

// TestHiddenSnapshots finds storage snapshots that no listing shows, of plain
// images, with their chains apart from those that lie there now, and reads nothing
// twice.
func TestHiddenSnapshots(t *testing.T) {
	d := newDatastore(t)
	for i, dir := range []string{"", ".snapshot/daily.2026-11-17_0010/", ".snapshot/daily.2026-11-16_0010/"} {
		d.disk("ds/"+dir+"vm/base.qcow2", "", 1)
		d.disk("ds/"+dir+"vm/vm.qcow2", "base.qcow2", 2+i)
		d.touch("ds/"+dir+"vm/base.qcow2", stamp.Add(-100*time.Hour))
		d.touch("ds/"+dir+"vm/vm.qcow2", stamp)
		d.disk("ds/"+dir+"old-2026-10-01.qcow2", "", 9)
		d.touch("ds/"+dir+"old-2026-10-01.qcow2", stamp)
		d.text("tank/"+strings.ReplaceAll(dir, ".snapshot", ".zfs/snapshot")+"docs/a.txt", "plain\n")
	}
	// An image that lies in the snapshot alone, and one whose absolute parent is to
	// be found in the snapshot and not in what lies there now.
	d.disk("ds/.snapshot/daily.2026-11-16_0010/gone/gone.qcow2", "", 20)
	src := d.open("")
	h := &hiding{Folder: src.dir}
	src.dir = h
	const day = "ds/.snapshot/daily.2026-11-1"
	want := []string{
		"gone 2026-11-16T00-10-00Z name storage-snapshot [daily.2026-11-16_0010] crash-consistent gone=" + day + "6_0010/gone/gone.qcow2",
		"old 2026-10-01T00-00-00Z name folder []  old=ds/old-2026-10-01.qcow2",
		"tank 2026-11-16T00-10-00Z catalogue storage-snapshot [daily.2026-11-16_0010] ",
		"tank 2026-11-17T00-10-00Z catalogue storage-snapshot [daily.2026-11-17_0010] ",
		"vm 2026-11-13T22-30-00Z mtime folder []  vm=ds/vm/base.qcow2",
		"vm 2026-11-16T00-10-00Z name storage-snapshot [daily.2026-11-16_0010] crash-consistent vm=" + day + "6_0010/vm/vm.qcow2",
		"vm 2026-11-17T00-10-00Z name storage-snapshot [daily.2026-11-17_0010] crash-consistent vm=" + day + "7_0010/vm/vm.qcow2",
		"vm 2026-11-18T02-30-00Z mtime folder []  vm=ds/vm/vm.qcow2",
	}
	cat := d.check(src, want...)
	for _, p := range cat.Points {
		for _, disk := range p.Disks {
			snapshot := func(f string) string { // that the file lies in
				_, below, _ := strings.Cut(f, ".snapshot/")
				name, _, _ := strings.Cut(below, "/")
				return name
			}
			for _, f := range disk.Files {
				if snapshot(f) != snapshot(disk.Files[0]) {
					t.Errorf("%s of %s is made of %q", disk.Name, p.ID, disk.Files)
				}
			}
		}
		if p.Layout == LayoutStorage && p.Kind == KindDisks && p.Provenance != "NetApp, storage snapshot "+p.Name {
			t.Errorf("provenance %q", p.Provenance)
		}
	}
	before := h.opened.Load()
	if again := d.must(src); len(again.Points) != len(cat.Points) {
		t.Errorf("%d points, then %d", len(cat.Points), len(again.Points))
	}
	if n := h.opened.Load() - before; n != 0 {
		t.Errorf("%d files were read again", n)
	}
	d.disk("ds/vm/new.qcow2", "", 30)
	d.must(src)
	if n := h.opened.Load() - before; n != 1 {
		t.Errorf("%d files were read for one new image", n)
	}
}
