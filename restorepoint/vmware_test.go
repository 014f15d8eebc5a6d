package restorepoint

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"yester/internal/treetest"
)

// vmx and vmsd are as ESXi writes them, less what is not about names and disks.
const webVMX = `.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "13"
nvram = "web01.nvram"
displayName = "Web 01 (größer)"
uuid.bios = "42 1c 8a 5e 6f 11 2d 0a-5b 7c 33 a0 d2 4e 91 0f"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0:1.present = "TRUE"
scsi0:1.deviceType = "scsi-hardDisk"
scsi0:1.fileName = "%[2]s"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "%[1]s"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:2.present = "FALSE"
scsi0:2.fileName = "gone.vmdk"
ide1:0.present = "TRUE"
ide1:0.fileName = "/vmfs/volumes/53a1/iso/debian.iso"
ide1:0.deviceType = "cdrom-image"
ethernet0.present = "TRUE"
`

const webVMSD = `.encoding = "UTF-8"
snapshot.lastUID = "7"
snapshot.current = "7"
snapshot0.uid = "7"
snapshot0.filename = "web01-Snapshot7.vmsn"
snapshot0.displayName = "%s"
snapshot0.description = ""
snapshot0.createTimeHigh = "%d"
snapshot0.createTimeLow = "%d"
snapshot0.numDisks = "2"
snapshot0.disk0.fileName = "web01.vmdk"
snapshot0.disk0.node = "scsi0:0"
snapshot0.disk1.fileName = "web01_1.vmdk"
snapshot0.disk1.node = "scsi0:1"
snapshot.numSnapshots = "1"
`

// datastore makes machine folders of VMware's, with disks by qemu-img.
type datastore struct {
	source
	sums map[string]string // of the disks, by image
}

func newDatastore(t *testing.T) *datastore {
	treetest.Need(t, "qemu-img", "qemu-io")
	return &datastore{newSource(t), map[string]string{}}
}

func (d *datastore) text(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(d.path(name), []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// disk makes an image with bytes of its own, on a parent or none, and notes what
// QEMU reads in it.
func (d *datastore) disk(name, parent string, fill int) {
	d.t.Helper()
	full := d.path(name)
	format := strings.TrimPrefix(path.Ext(name), ".")
	if format == "vhd" {
		format = "vpc"
	}
	args := []string{"create", "-q", "-f", format}
	if parent != "" {
		args = append(args, "-b", parent, "-F", format)
	}
	if args = append(args, full); parent == "" {
		args = append(args, "4M")
	}
	treetest.Run(d.t, "qemu-img", args...)
	treetest.Run(d.t, "qemu-io", "-f", format, "-c", fmt.Sprintf("write -q -P %d %dk 64k", fill, 64*(fill%32)), "-c", fmt.Sprintf("write -q -P %d 0 4k", fill), full)
	d.sums[name] = d.sum("-f", format, full)
}

// sum hashes what qemu-img reads, given its arguments.
func (d *datastore) sum(args ...string) string {
	d.t.Helper()
	raw := filepath.Join(d.t.TempDir(), "raw")
	treetest.Run(d.t, "qemu-img", append(append([]string{"convert", "-O", "raw"}, args...), raw)...)
	data, err := os.ReadFile(raw)
	if err != nil {
		d.t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// machine makes web01 with two disks and a running delta on each, if any.
func (d *datastore) machine(dir string, fill int, snapshot string, at time.Time) {
	d.t.Helper()
	d.disk(dir+"/web01.vmdk", "", fill)
	d.disk(dir+"/web01_1.vmdk", "", fill+1)
	tops := []any{"web01.vmdk", "web01_1.vmdk"}
	if snapshot != "" {
		d.disk(dir+"/web01-000001.vmdk", "web01.vmdk", fill+2)
		d.disk(dir+"/web01_1-000001.vmdk", "web01_1.vmdk", fill+3)
		tops = []any{"web01-000001.vmdk", "web01_1-000001.vmdk"}
		µs := at.UnixMicro()
		d.text(dir+"/web01.vmsd", fmt.Sprintf(webVMSD, snapshot, µs>>32, int32(µs)))
	} else {
		d.text(dir+"/web01.vmsd", "")
	}
	d.text(dir+"/web01.vmx", fmt.Sprintf(webVMX, tops...))
}

// told describes a point for comparison: everything but its disks.
func told(p *Point) string {
	s := fmt.Sprintf("%s %s %s %s [%s] %s", p.Machine, p.ID, p.TimeFrom, p.Layout, p.Name, p.Consistency)
	if p.Secondary {
		s += " secondary"
	}
	if p.Problem != "" {
		s += " !" + p.Problem
	}
	return s
}

// check lists the source and compares points, and the hash of each disk of each
// with that of the image that it is to be.
func (d *datastore) check(src *Source, want ...string) *Catalogue {
	d.t.Helper()
	cat, err := src.List(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	var got []string
	for i := range cat.Points {
		p := &cat.Points[i]
		line := told(p)
		for _, disk := range p.Disks {
			line += fmt.Sprintf(" %s=%s", disk.Name, disk.Files[0])
			if disk.Snapshot != "" {
				line += "@" + disk.Snapshot
			}
		}
		got = append(got, line)
	}
	for i := 0; i < max(len(got), len(want)); i++ {
		switch {
		case i >= len(got):
			d.t.Errorf("missing: %s", want[i])
		case i >= len(want):
			d.t.Errorf("unexpected: %s", got[i])
		case got[i] != want[i]:
			d.t.Errorf("point %d is\n %s, want\n %s", i, got[i], want[i])
		}
	}
	for _, p := range cat.Points {
		if p.Problem != "" || p.Kind != KindDisks {
			continue
		}
		o, err := src.OpenPoint(d.t.Context(), p)
		if err != nil {
			d.t.Error(err)
			continue
		}
		for _, disk := range o.Disks {
			h := sha256.New()
			if _, err := io.Copy(h, io.NewSectionReader(disk.Image, 0, disk.Image.Size())); err != nil {
				d.t.Errorf("%s, disk %s: %v", p.ID, disk.Name, err)
			}
			name := disk.Files[0]
			if disk.Snapshot != "" {
				name += "@" + disk.Snapshot
			}
			if sum, ok := d.sums[name]; ok && fmt.Sprintf("%x", h.Sum(nil)) != sum {
				d.t.Errorf("%s of %s: disk %s differs from what QEMU reads in %s", p.ID, p.Machine, disk.Name, name)
			}
		}
		o.Close()
	}
	return cat
}

// quiet fails when something is ignored as damaged.
func (d *datastore) quiet(cat *Catalogue) {
	d.t.Helper()
	for _, i := range cat.Ignored {
		if i.Damaged {
			d.t.Errorf("%s is ignored as damaged: %s", i.Name, i.Reason)
		}
	}
}

func (d *datastore) touch(name string, at time.Time) {
	d.t.Helper()
	if err := os.Chtimes(filepath.Join(d.dir, name), at, at); err != nil {
		d.t.Fatal(err)
	}
}

// TestVMware lists a NetApp datastore: the live machine, hourly snapshots, and those
// of VSC, in which the quiesced state is under the running delta.
func TestVMware(t *testing.T) {
	d := newDatastore(t)
	job := time.Date(2026, 11, 18, 2, 30, 0, 0, time.UTC)
	user := time.Date(2026, 11, 10, 9, 15, 30, 123456000, time.UTC)
	d.machine("web01", 1, "before upgrade", user)
	d.machine(".snapshot/hourly.2026-11-19_0005/web01", 1, "before upgrade", user)
	d.machine(".snapshot/smvi__nightly_job_20261118023000/web01", 9, "smvi_8f1d27e3", job.Add(-40*time.Second))
	d.machine(".snapshot/smvi__nightly_job_recent/web01", 13, "smvi_77aa00b1", job.Add(24*time.Hour-time.Minute))
	d.machine(".snapshot/daily.0/web01", 17, "", time.Time{})
	d.touch(".snapshot/smvi__nightly_job_recent", job.Add(24*time.Hour))
	d.touch(".snapshot/daily.0", job.Add(-26*time.Hour))
	for _, n := range []string{"web01", "web01-000001", "web01_1", "web01_1-000001"} {
		d.touch("web01/"+n+".vmdk", job.Add(48*time.Hour))
	}
	d.text(".snapshot/weekly.2026-11-15_0015/plain/readme.txt", "no machine here\n")
	const m = "Web 01 (größer) "
	src := d.open("")
	cat := d.check(src,
		filepath.Base(d.dir)+" 2026-11-15T00-15-00Z catalogue storage-snapshot [weekly.2026-11-15_0015] ",
		m+"2026-11-10T09-15-30Z snapshot vmware [before upgrade] crash-consistent scsi0-0=web01/web01.vmdk scsi0-1=web01/web01_1.vmdk",
		m+"2026-11-17T00-30-00Z mtime vmware [daily.0] crash-consistent scsi0-0=.snapshot/daily.0/web01/web01.vmdk scsi0-1=.snapshot/daily.0/web01/web01_1.vmdk",
		m+"2026-11-18T02-29-20Z snapshot vmware [smvi_8f1d27e3] quiesced scsi0-0=.snapshot/smvi__nightly_job_20261118023000/web01/web01.vmdk scsi0-1=.snapshot/smvi__nightly_job_20261118023000/web01/web01_1.vmdk",
		m+"2026-11-18T02-30-00Z name vmware [smvi__nightly_job_20261118023000] running secondary scsi0-0=.snapshot/smvi__nightly_job_20261118023000/web01/web01-000001.vmdk scsi0-1=.snapshot/smvi__nightly_job_20261118023000/web01/web01_1-000001.vmdk",
		m+"2026-11-19T00-05-00Z name vmware [hourly.2026-11-19_0005] crash-consistent scsi0-0=.snapshot/hourly.2026-11-19_0005/web01/web01-000001.vmdk scsi0-1=.snapshot/hourly.2026-11-19_0005/web01/web01_1-000001.vmdk",
		m+"2026-11-19T02-29-00Z snapshot vmware [smvi_77aa00b1] quiesced scsi0-0=.snapshot/smvi__nightly_job_recent/web01/web01.vmdk scsi0-1=.snapshot/smvi__nightly_job_recent/web01/web01_1.vmdk",
		m+"2026-11-19T02-30-00Z mtime vmware [smvi__nightly_job_recent] running secondary scsi0-0=.snapshot/smvi__nightly_job_recent/web01/web01-000001.vmdk scsi0-1=.snapshot/smvi__nightly_job_recent/web01/web01_1-000001.vmdk",
		m+"2026-11-20T02-30-00Z mtime vmware [] running scsi0-0=web01/web01-000001.vmdk scsi0-1=web01/web01_1-000001.vmdk",
	)
	d.quiet(cat)
	if p := cat.Points[3]; p.Provenance != `NetApp VSC job nightly_job, storage snapshot smvi__nightly_job_20261118023000, VMware snapshot "smvi_8f1d27e3"` || len(p.Notes) != 1 {
		t.Errorf("provenance %q, notes %q", p.Provenance, p.Notes)
	}
	for _, c := range cat.Points[3].Disks[0].Chain() {
		if strings.HasPrefix(c.Name, "web01/") {
			t.Errorf("a storage snapshot's disk is based on the live %s", c.Name)
		}
	}
	// The folder of the snapshots as the source shows the same, but for what lives.
	if cat := d.must(d.open(".snapshot")); len(cat.Points) != 8 {
		t.Errorf("%d points in .snapshot, want 8", len(cat.Points))
	}
	// So does the machine's configuration alone, for what lives.
	if cat := d.must(d.open("web01/web01.vmx")); len(cat.Points) != 2 {
		t.Errorf("%d points of the .vmx, want 2", len(cat.Points))
	}
	for _, i := range cat.Ignored {
		if ext := path.Ext(i.Name); ext == ".vmx" || ext == ".vmsd" && !strings.Contains(i.Name, "daily") {
			t.Errorf("%s, which was read, is left out: %s", i.Name, i.Reason)
		}
	}
	// Nothing is read again.
	before := len(src.texts)
	again, err := src.List(t.Context())
	if err != nil || len(src.texts) != before || !slices.EqualFunc(again.Points[:3], d.must(src).Points[:3], func(a, b Point) bool { return a.Key() == b.Key() }) {
		t.Errorf("relisted: %v", err)
	}
}

func (d *datastore) must(src *Source) *Catalogue {
	d.t.Helper()
	cat, err := src.List(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return cat
}

// TestVMwareDamage shows what is said of files that are missing, hostile or
// changed, and that the other machines stay usable.
func TestVMwareDamage(t *testing.T) {
	d := newDatastore(t)
	d.machine("good", 1, "", time.Time{})
	d.disk("half/web01.vmdk", "", 5)
	d.text("half/web01.vmx", strings.ReplaceAll(fmt.Sprintf(webVMX, "web01.vmdk", "../../../etc/passwd"), "Web 01", "Half"))
	d.disk("alone/web01.vmdk", "", 6)
	d.text("alone/web01.vmx", "\x00\x01binary")
	d.disk("loop/web01.vmdk", "", 7)
	d.text("loop/web01.vmx", "displayName = \"../../x\"\nscsi0:0.fileName = \"web01.vmdk\"\n")
	d.text("loop/web01.vmsd", "snapshot0.uid = \"1\"\nsnapshot0.parent = \"2\"\nsnapshot1.uid = \"2\"\nsnapshot1.parent = \"1\"\n")
	d.disk("gone/base.vmdk", "", 8)
	d.disk("gone/web01.vmdk", "base.vmdk", 9)
	d.text("gone/web01.vmx", "displayName = \"Gone\"\nscsi0:0.fileName = \"web01.vmdk\"\n")
	if err := os.Remove(d.path("gone/base.vmdk")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"good/web01.vmdk", "good/web01_1.vmdk", "half/web01.vmdk", "alone/web01.vmdk", "loop/web01.vmdk", "gone/web01.vmdk"} {
		d.touch(n, stamp)
	}
	cat, err := d.open("").List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ machine, layout, problem string }{
		{"Web 01 (größer)", LayoutVMware, ""},
		{"Half (größer)", LayoutVMware, `half/web01.vmx: scsi0:1.fileName: disk "../../../etc/passwd" is not in the source: not found`},
		{"web01", LayoutFolder, ""},
		{"..-..-x", LayoutVMware, ""},
		{"Gone", LayoutVMware, `gone/web01.vmdk: its parent "base.vmdk"`},
	} {
		points := cat.Of(c.machine)
		if len(points) != 1 {
			t.Errorf("%q: %d points", c.machine, len(points))
			continue
		}
		if p := points[0]; p.Layout != c.layout || !strings.HasPrefix(p.Problem, c.problem) || (p.Problem == "") != (c.problem == "") {
			t.Errorf("%q: layout %s, problem %q, want %q", c.machine, p.Layout, p.Problem, c.problem)
		}
	}
	var damaged []string
	for _, i := range cat.Ignored {
		if i.Damaged {
			damaged = append(damaged, i.Reason)
		}
	}
	if want := []string{"alone/web01.vmx: vmx: text: it is not a text file: corrupt", "loop/web01.vmsd: vmsd: parent: the parents of snapshot \"1\" go in a circle: corrupt"}; !slices.Equal(damaged, want) {
		t.Errorf("damaged %q, want %q", damaged, want)
	}
}

// TestVMwareMissingDisks dates a machine none of whose disks are there by its
// configuration, and says what is missing.
func TestVMwareMissingDisks(t *testing.T) {
	for _, c := range []struct{ disk, problem string }{
		{"web01.vmdk", `web01.vmx: scsi0:0.fileName: disk "web01.vmdk" is not in the source: not found`},
		{"../../secret.raw", `web01.vmx: scsi0:0.fileName: disk "../../secret.raw" is not in the source: not found`},
		{"/dev/sda", `web01.vmx: scsi0:0.fileName: disk "/dev/sda" is not in the source: not found`},
	} {
		s := newSource(t)
		s.raw("web01.vmx", 1, fmt.Appendf(nil, "displayName = \"web01\"\nscsi0:0.present = \"TRUE\"\nscsi0:0.fileName = %q\n", c.disk))
		for _, name := range []string{"", "web01.vmx"} {
			cat := s.list(s.open(name))
			if len(cat.Points) != 1 {
				t.Errorf("%s: points %+v, ignored %+v", c.disk, cat.Points, cat.Ignored)
				continue
			}
			if p := cat.Points[0]; p.ID != "2026-11-18T03-30-00Z" || p.TimeFrom != FromMtime || p.Problem != c.problem {
				t.Errorf("%s: %s %s %q, want %q", c.disk, p.ID, p.TimeFrom, p.Problem, c.problem)
			}
		}
	}
}
