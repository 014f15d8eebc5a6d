package restorepoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"yester/internal/treetest"
	"yester/restorepoint/layout"
)

// TestWindowsBackup lists what Windows Server Backup leaves: its folders are called
// by UTC, whatever the zone of this host.
func TestWindowsBackup(t *testing.T) {
	d := newDatastore(t)
	const c, e = "9b9cfbc3-369e-11e9-a17c-806e6f6e6963", "9b9cfbc4-369e-11e9-a17c-806e6f6e6963"
	for i, dir := range []string{"WindowsImageBackup/FILESRV/Backup 2026-11-18 190012", "WindowsImageBackup/FILESRV/Backup 2026-11-19 190007"} {
		d.disk(dir+"/"+c+".vhdx", "", 1+2*i)
		d.disk(dir+"/"+e+".vhdx", "", 2+2*i)
		d.text(dir+"/BackupSpecs.xml", "<BackupSpecs/>")
		d.text(dir+"/cd113385-65ff-4ea2-8ced-5630f6feca8f_Components.xml", "<Components/>")
	}
	d.text("WindowsImageBackup/FILESRV/MediaId", "0123456789abcdef")
	d.text("WindowsImageBackup/FILESRV/Catalog/GlobalCatalog", "binary")
	d.disk("WindowsImageBackup/OLD/Backup 2012-06-01 010203/"+c+".vhd", "", 7)
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"", "WindowsImageBackup"} {
		src, err := Open(filepath.Join(d.dir, at), Options{Location: berlin})
		if err != nil {
			t.Fatal(err)
		}
		cat := d.must(src)
		src.Close()
		if len(cat.Points) != 3 || cat.Points[0].Machine != "FILESRV" || cat.Points[0].ID != "2026-11-18T19-00-12Z" || cat.Points[2].ID != "2012-06-01T01-02-03Z" {
			t.Errorf("points %+v", cat.Points)
		}
	}
	const dir = "WindowsImageBackup/FILESRV/Backup 2026-11-1"
	cat := d.check(d.open(""),
		"FILESRV 2026-11-18T19-00-12Z name windows-server-backup [] quiesced "+c+"="+dir+"8 190012/"+c+".vhdx "+e+"="+dir+"8 190012/"+e+".vhdx",
		"FILESRV 2026-11-19T19-00-07Z name windows-server-backup [] quiesced "+c+"="+dir+"9 190007/"+c+".vhdx "+e+"="+dir+"9 190007/"+e+".vhdx",
		"OLD 2012-06-01T01-02-03Z name windows-server-backup [] quiesced "+c+"=WindowsImageBackup/OLD/Backup 2012-06-01 010203/"+c+".vhd",
	)
	d.quiet(cat)
	if n := cat.Points[0].Notes; len(n) != 1 || !strings.Contains(n[0], "VSS") {
		t.Errorf("notes %q", n)
	}
}

// TestGrouping puts disks that were downloaded one after the other together, and
// never two states of one disk.
func TestGrouping(t *testing.T) {
	d := newDatastore(t)
	for i, n := range []string{
		"web01-osdisk-20261118020000", "web01-datadisk-0-20261118020700", "web01-datadisk-1-20261118021400",
		"web01-osdisk-20261118021000", // within the window, and a state of its own
		"web01-osdisk-20261119020000", "web01-datadisk-1-20261119020100",
		"web01-osdisk-20261120020000", "web01-datadisk-0-20261120021501", "web01-datadisk-1-20261120020000",
		"srv-web-20261118020000", "srv-data-20261118020000", // machines of their own
		"db-os-20261118020000", "db-data-20261118020000",
	} {
		d.disk(n+".vhd", "", 1+i)
	}
	const n = " name folder [] "
	src := d.open("")
	cat := d.check(src,
		"db 2026-11-18T02-00-00Z"+n+" os=db-os-20261118020000.vhd data=db-data-20261118020000.vhd",
		"srv-data 2026-11-18T02-00-00Z"+n+" srv-data=srv-data-20261118020000.vhd",
		"srv-web 2026-11-18T02-00-00Z"+n+" srv-web=srv-web-20261118020000.vhd",
		"web01 2026-11-18T02-07-00Z"+n+" osdisk=web01-osdisk-20261118020000.vhd datadisk-0=web01-datadisk-0-20261118020700.vhd",
		"web01 2026-11-18T02-14-00Z"+n+" osdisk=web01-osdisk-20261118021000.vhd datadisk-1=web01-datadisk-1-20261118021400.vhd",
		"web01 2026-11-19T02-01-00Z"+n+" osdisk=web01-osdisk-20261119020000.vhd datadisk-1=web01-datadisk-1-20261119020100.vhd",
		"web01 2026-11-20T02-00-00Z"+n+" osdisk=web01-osdisk-20261120020000.vhd datadisk-1=web01-datadisk-1-20261120020000.vhd",
		"web01 2026-11-20T02-15-01Z"+n+" datadisk-0=web01-datadisk-0-20261120021501.vhd",
	)
	if p := cat.Points[5]; len(p.Notes) != 1 || p.Notes[0] != "there is no image of disk datadisk-0 of this time" {
		t.Errorf("notes %q", p.Notes)
	}
	src, err := Open(d.dir, Options{Location: time.UTC, GroupWindow: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if got := len(d.must(src).Of("web01")); got != 8 {
		t.Errorf("%d points of web01 without grouping, want 8", got)
	}
}

// TestProxmox names machines by their configuration, and tells archives that can't
// be read.
func TestProxmox(t *testing.T) {
	d := newDatastore(t)
	d.text("qemu-server/100.conf", "boot: order=scsi0\nname: mail\nscsi0: local:100/vm-100-disk-0.qcow2,size=4M\nscsi1: local:100/vm-100-disk-1.qcow2,size=4M\nide2: none,media=cdrom\n\n[before]\nname: other\nsnaptime: 1763432000\n")
	for i := range 2 {
		name := fmt.Sprintf("images/100/vm-100-disk-%d.qcow2", i)
		d.disk(name, "", 1+i)
		treetest.Run(t, "qemu-img", "snapshot", "-c", "before", d.path(name))
		d.sums[name+"@1"] = d.sums[name]
		treetest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 99 1M 4k", d.path(name))
		d.sums[name] = d.sum("-f", "qcow2", d.path(name))
		d.touch(name, stamp)
	}
	d.disk("images/101/vm-101-disk-0.qcow2", "", 5)
	d.touch("images/101/vm-101-disk-0.qcow2", stamp)
	d.disk("images/101/vm-101-cloudinit.qcow2", "", 6)
	d.text("dump/vzdump-qemu-100-2026_11_18-02_30_00.vma.zst", "\x28\xb5\x2f\xfd")
	src := d.open("")
	cat := d.must(src)
	before := cat.Of("mail")
	if len(before) != 2 {
		t.Fatalf("%d points of mail: %+v", len(before), before)
	}
	cat = d.check(src,
		"mail 2026-11-18T02-30-00Z mtime proxmox []  scsi0=images/100/vm-100-disk-0.qcow2 scsi1=images/100/vm-100-disk-1.qcow2",
		"mail "+before[1].ID+" snapshot proxmox [before]  scsi0=images/100/vm-100-disk-0.qcow2@1 scsi1=images/100/vm-100-disk-1.qcow2@1",
		"vm-101 2026-11-18T02-30-00Z mtime proxmox []  disk-0=images/101/vm-101-disk-0.qcow2",
	)
	var said []string
	for _, i := range cat.Ignored {
		if i.Damaged {
			said = append(said, i.Reason)
		}
	}
	if len(said) != 1 || !strings.HasPrefix(said[0], "Proxmox VE archive (vma) of virtual machine 100, 2026_11_18-02_30_00: unsupported") {
		t.Errorf("damaged: %q", said)
	}
}

// TestLibvirt reads a domain with two disks and external snapshots.
func TestLibvirt(t *testing.T) {
	d := newDatastore(t)
	d.text("etc/web01.xml", `<?xml version='1.0' encoding='UTF-8'?>
<domain type='kvm' id='3'>
  <name>web01</name>
  <devices>
    <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='sda' bus='sata'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/libvirt/images/web01.snap1'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><source file='/var/lib/libvirt/images/data.qcow2'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='disk'><source file='/var/lib/libvirt/images/missing.qcow2'/><target dev='vdc' bus='virtio'/></disk>
  </devices>
</domain>
`)
	d.text("etc/bomb.xml", `<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><domain><name>&b;</name></domain>`)
	d.disk("images/web01.qcow2", "", 1)
	d.disk("images/overlay.qcow2", "web01.qcow2", 2)
	if err := os.Rename(d.path("images/overlay.qcow2"), d.path("images/web01.snap1")); err != nil {
		t.Fatal(err)
	}
	d.sums["images/web01.snap1"] = d.sums["images/overlay.qcow2"]
	d.disk("images/data.qcow2", "", 3)
	d.touch("images/web01.qcow2", stamp)
	d.touch("images/web01.snap1", stamp.Add(24*time.Hour))
	d.touch("images/data.qcow2", stamp.Add(24*time.Hour+time.Minute))
	d.touch("etc/web01.xml", stamp.Add(-time.Hour))
	const missing = `!etc/web01.xml: disk/source: disk "/var/lib/libvirt/images/missing.qcow2" is not in the source: not found`
	cat := d.check(d.open(""),
		"web01 2026-11-18T02-30-00Z mtime libvirt []  vda=images/web01.qcow2",
		"web01 2026-11-19T02-31-00Z mtime libvirt []  "+missing+" vda=images/web01.snap1 vdb=images/data.qcow2 vdc=etc/missing.qcow2",
	)
	found := false
	for _, i := range cat.Ignored {
		found = found || i.Name == "etc/bomb.xml" && i.Damaged
	}
	if !found {
		t.Errorf("the entities of etc/bomb.xml went unnoticed: %+v", cat.Ignored)
	}
}

// TestDescribed lists by a layout that the user describes.
func TestDescribed(t *testing.T) {
	d := newDatastore(t)
	for i, n := range []string{"a/web/2026-11-18/os.qcow2", "a/web/2026-11-18/data.qcow2", "a/web/2026-11-19/os.qcow2", "a/db/2026-11-18/os.qcow2", "elsewhere.qcow2"} {
		d.disk(n, "", 1+i)
	}
	tmpl, err := layout.ParseTemplate("*/{machine}/{time:2006-01-02}/{disk}.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	src, err := Open(d.dir, Options{Location: time.UTC, Layout: tmpl})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	cat := d.check(src,
		"db 2026-11-18T00-00-00Z name described []  os=a/db/2026-11-18/os.qcow2",
		"web 2026-11-18T00-00-00Z name described []  data=a/web/2026-11-18/data.qcow2 os=a/web/2026-11-18/os.qcow2",
		"web 2026-11-19T00-00-00Z name described []  os=a/web/2026-11-19/os.qcow2",
	)
	if len(cat.Ignored) != 1 || cat.Ignored[0].Reason != "it doesn't fit the layout */{machine}/{time:2006-01-02}/{disk}.qcow2" {
		t.Errorf("ignored %+v", cat.Ignored)
	}
}
