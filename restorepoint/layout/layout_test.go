package layout

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"yester/internal/ondisk"
)

func TestVMX(t *testing.T) {
	for _, c := range []struct {
		name, text, want string
	}{
		{"order and kinds", `
			nvme0:0.fileName = "n.vmdk"
			SCSI1:0.FileName = "c.vmdk"
			scsi0:10.fileName = "b.vmdk"
			scsi0:2.fileName = "a.vmdk"
			sata0:0.fileName = "s.vmdk"
			sata0:1.fileName = "x.iso"
			ide0:0.fileName = "i.vmdk"
			ide1:0.fileName = "auto detect"
			ide1:0.deviceType = "atapi-cdrom"
			scsi0:3.fileName = "off.vmdk"
			scsi0:3.present = "FALSE"
			scsi0:4.fileName = "raw-rdmp.vmdk"
			scsi0:4.deviceType = "rawDisk"
			floppy0.fileName = "f.flp"
			scsi0:999.fileName = "z.vmdk"
			displayName = "m"`,
			"m: scsi0:2=a.vmdk scsi0:4=raw-rdmp.vmdk scsi0:10=b.vmdk scsi1:0=c.vmdk sata0:0=s.vmdk ide0:0=i.vmdk nvme0:0=n.vmdk"},
		{"escapes and comments", "# scsi0:0.fileName = \"no.vmdk\"\r\n#!/usr/bin/vmware\r\ndisplayName = \"a|22b|7Cc |zz\"\r\nscsi0:0.fileName = \"d.vmdk\"\r\n", `a"b|c |zz: scsi0:0=d.vmdk`},
		{"windows-1252", ".encoding = \"windows-1252\"\ndisplayName = \"gr\xfcn\"\n", "grün:"},
		{"windows-1252, unsaid", "displayName = \"gr\xfcn\"\n", "grün:"},
		{"shift_jis", ".encoding = \"Shift_JIS\"\ndisplayName = \"\x83T\x81[\x83o\"\n", "サーバ:"},
		{"byte order mark", "\xef\xbb\xbf.encoding = \"UTF-8\"\ndisplayName = \"ü\"\n", "ü:"},
		{"twice", "displayName = \"a\"\ndisplayName = \"b\"\n", "b:"},
	} {
		v, err := ParseVMX([]byte(c.text))
		got := v.Name + ":"
		for _, d := range v.Disks {
			got += fmt.Sprintf(" %s=%s", d.Node, d.File)
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	for what, text := range map[string]string{
		"there are no settings": "just text\n", "not a text file": "a = \"b\"\x00", "unknown encoding": ".encoding = \"klingon\"\na = \"b\"",
		"more than": strings.Repeat("a", MaxText+1),
	} {
		if _, err := ParseVMX([]byte(text)); !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}

func TestVMSD(t *testing.T) {
	// Numbers that machines have really had, beside what they mean: the upper half
	// counts 2^32 microseconds, the lower one is signed.
	v, err := ParseVMSD([]byte(`.encoding = "UTF-8"
snapshot.lastUID = "4"
snapshot.current = "2"
snapshot0.uid = "1"
snapshot0.filename = "test-Snapshot1.vmsn"
snapshot0.displayName = "SNAPSHOT POST INSTALL"
snapshot0.createTimeHigh = "388745"
snapshot0.createTimeLow = "1991180826"
snapshot0.numDisks = "1"
snapshot0.disk0.fileName = "test_0.vmdk"
snapshot0.disk0.node = "scsi0:0"
snapshot.numSnapshots = "2"
snapshot3.uid = "2"
snapshot3.parent = "1"
snapshot3.displayName = "SECOND"
snapshot3.createTimeHigh = "388801"
snapshot3.createTimeLow = "-814770620"
snapshot3.disk0.fileName = "b.vmdk"
snapshot3.disk0.node = "scsi0:1"
snapshot3.disk1.fileName = "a.vmdk"
snapshot3.disk1.node = "scsi0:0"
`))
	if err != nil || len(v.Snapshots) != 2 || v.Current != "2" {
		t.Fatalf("%+v, %v", v, err)
	}
	for i, want := range []string{"2022-11-28T15:24:12Z", "2022-12-01T10:37:39Z"} {
		if got := v.Snapshots[i].Time.Format(time.RFC3339); !strings.HasPrefix(got, want) {
			t.Errorf("snapshot %d is of %s, want %s", i, got, want)
		}
	}
	const high, low = int64(388801) << 32, int64(1<<32 - 814770620)
	if got := v.Snapshots[1].Time.UnixMicro(); got != high+low {
		t.Errorf("%d µs, want %d", got, high+low)
	}
	if d := v.Snapshots[1].Disks; d[0].File != "a.vmdk" || d[1].Field != "snapshot3.disk0.fileName" {
		t.Errorf("disks %+v", d)
	}
	if v, err := ParseVMSD([]byte(`.encoding = "UTF-8"` + "\n")); err != nil || len(v.Snapshots) != 0 {
		t.Errorf("without snapshots: %+v, %v", v, err)
	}
	for what, text := range map[string]string{
		"snapshot0.createTimeHigh": "snapshot0.uid = \"1\"\nsnapshot0.createTimeHigh = \"x\"\nsnapshot0.createTimeLow = \"1\"",
		"snapshot0.createTimeLow":  "snapshot0.uid = \"1\"\nsnapshot0.createTimeHigh = \"1\"\nsnapshot0.createTimeLow = \"99999999999\"",
		"lies before 1970":         "snapshot0.uid = \"1\"\nsnapshot0.createTimeHigh = \"-5\"\nsnapshot0.createTimeLow = \"1\"",
		"go in a circle":           "snapshot0.uid = \"1\"\nsnapshot0.parent = \"1\"",
		"two snapshots have \"1\"": "snapshot0.uid = \"1\"\nsnapshot1.uid = \"1\"",
	} {
		if _, err := ParseVMSD([]byte(text)); !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}

func TestTemplate(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ template, name, want string }{
		{"{machine}/{time:2006-01-02}/{disk}.vmdk", "web/2026-11-20/os.vmdk", "web os 2026-11-19T23:00:00Z"},
		{"{machine}/{time:2006-01-02}/{disk}.vmdk", "web/2026-11-20/x/os.vmdk", ""},
		{"{machine}/{time:2006-01-02}/{disk}.vmdk", "web/2026-13-20/os.vmdk", ""},
		{"{machine}-{time:20060102}.vhd", "web-01-20261120.vhd", "web-01  2026-11-19T23:00:00Z"},
		{"{machine}-{time:2006-01-02}.vhd", "web-01-2026-11-20.vhd", "web-01  2026-11-19T23:00:00Z"},
		{"{time:2006/01/02}/{machine}.raw", "2026/11/20/web.raw", "web  2026-11-19T23:00:00Z"},
		{"{time:2006-01-02}/{time:150405}_{disk}.raw", "2026-11-20/023000_a.raw", " a 2026-11-20T01:30:00Z"},
		{"{machine}/{machine}-{disk}-{time:2006-01-02T15:04:05Z07:00}.raw", "a-b/a-b-c-d-2026-11-20T02:30:00+05:30.raw", "a-b c-d 2026-11-19T21:00:00Z"},
		{"{machine}/{machine}.raw", "a/b.raw", ""},
		{"**/{machine}_{time:Jan-2-2006_3PM}.raw", "x/y/w_Nov-9-2026_4AM.raw", "w  2026-11-09T03:00:00Z"},
		{"**/{machine}.raw", "w.raw", "w  -"},
		{"{machine}/backup {time}/*.vhdx", "w/backup 2026-11-20 023000/any.vhdx", "w  2026-11-20T01:30:00Z"},
		{"*/{disk}.vhdx", "w/a+b(c).vhdx", " a+b(c) -"},
		{"a.b/{disk}.vhdx", "axb/d.vhdx", ""},
	} {
		tmpl, err := ParseTemplate(c.template)
		if err != nil {
			t.Errorf("%s: %v", c.template, err)
			continue
		}
		got := ""
		if m, ok := tmpl.Match(c.name, berlin); ok {
			when := "-"
			if m.HasTime {
				when = m.Time.Format(time.RFC3339)
			}
			got = fmt.Sprintf("%s %s %s", m.Machine, m.Disk, when)
		}
		if got != c.want {
			t.Errorf("%s of %s: %q, want %q", c.template, c.name, got, c.want)
		}
	}
	for template, want := range map[string]string{
		"": "0 characters", "a/b.vhd": "there is no", "/{machine}": "begins or ends", "{machine}/": "begins or ends", "{machine": "{ without }",
		"a}{disk}": "at character 2: } without {", "{disk}{disk}": "twice", "{time}{time}": "one of several", "{time:x}": "no element of a time",
		"{machine}**": "a slash follows", "{machine:x}": "unknown placeholder",
	} {
		if _, err := ParseTemplate(template); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", template, err, want)
		}
	}
}

func TestStorageSnapshot(t *testing.T) {
	for _, c := range []struct{ holder, name, want string }{
		{".snapshot", "smvi__nightly_job_20261118023000", "NetApp VSC job nightly_job, storage snapshot smvi__nightly_job_20261118023000 2026-11-18T02:30:00Z"},
		{".snapshot", "smvi__a_recent", "NetApp VSC job a, storage snapshot smvi__a_recent -"},
		{".snapshot", "hourly.2026-11-19_0005", "NetApp, storage snapshot hourly.2026-11-19_0005 2026-11-19T00:05:00Z"},
		{".snapshot", "weekly.0", "NetApp, storage snapshot weekly.0 -"},
		{".snapshot", "snapmirror.0f1e2d3c-4b5a-11ee-9f2a-00a098f7a5b1_2147484677.2026-11-20_020500", "NetApp, storage snapshot snapmirror.0f1e2d3c-4b5a-11ee-9f2a-00a098f7a5b1_2147484677.2026-11-20_020500 2026-11-20T02:05:00Z"},
		{"pool/.zfs/snapshot", "zfs-auto-snap_daily-2026-11-20-0425", "ZFS, storage snapshot zfs-auto-snap_daily-2026-11-20-0425 2026-11-20T04:25:00Z"},
	} {
		s := ParseStorageSnapshot(c.holder, c.name, time.UTC)
		got := s.String(c.name) + " "
		if s.Time.IsZero() {
			got += "-"
		} else {
			got += s.Time.Format(time.RFC3339)
		}
		if got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for stem, want := range map[string]string{
		"web01-osdisk": "web01 osdisk true", "web01_OsDisk_1_0f1e2d3c4b5a49f2": "web01 osdisk_1 true", "web-01-datadisk-0": "web-01 datadisk-0 true",
		"web01-data": "web01 data false", "web01-disk2": "web01 disk2 true", "web01": "", "srv-web": "", "osdisk": "", "web01-os": "web01 os false",
		"vm-lun3": "vm lun3 true", "a-database": "",
	} {
		got := ""
		if m, d, certain, ok := SplitDisk(stem); ok {
			got = fmt.Sprintf("%s %s %t", m, d, certain)
		}
		if got != want {
			t.Errorf("SplitDisk(%q) = %q, want %q", stem, got, want)
		}
	}
	for name, want := range map[string]string{
		"dump/vzdump-qemu-100-2026_11_18-02_30_00.vma.zst": "Proxmox VE archive (vma) of virtual machine 100, 2026_11_18-02_30_00",
		"vzdump-lxc-7-2026_11_18-02_30_00.tar.gz":          "Proxmox VE archive (tar) of container 7, 2026_11_18-02_30_00",
		"vzdump-qemu-100-2026_11_18-02_30_00.log":          "", "vzdump.vma": "",
	} {
		if got, _ := Vzdump(name); got != want {
			t.Errorf("Vzdump(%q) = %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"a/b": "a-b", "..": "", ".": "", " x ": "x", "a\nb\x00": "a-b-", "\xff": "\uFFFD", strings.Repeat("ü", 200): strings.Repeat("ü", 127)} {
		if got := SafeName(name); got != want {
			t.Errorf("SafeName(%q) = %q, want %q", name, got, want)
		}
	}
}
