package layout

import (
	"strings"
	"testing"
	"time"
)

// FuzzConfig gives any bytes to every reader of configuration files: they end, and
// what they return can be used as names.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(".encoding = \"windows-1252\"\nscsi0:0.fileName = \"a|22.vmdk\"\ndisplayName = \"\xfc\"\n"))
	f.Add([]byte("snapshot.current = \"1\"\nsnapshot0.uid = \"1\"\nsnapshot0.createTimeHigh = \"388745\"\nsnapshot0.createTimeLow = \"-1\"\nsnapshot0.disk0.fileName = \"a.vmdk\"\n"))
	f.Add([]byte("<domain><name>a</name><devices><disk device='disk'><source file='/a'/><target dev='vda'/></disk></devices></domain>"))
	f.Add([]byte("<configuration><properties><name>a</name></properties><x><controller0><drive0><pathname>a</pathname></drive0></controller0></x></configuration>"))
	f.Add([]byte("name: a\nscsi0: local:100/vm-100-disk-0.qcow2,size=4M\n[snap]\n"))
	f.Add(checkpoint())
	f.Fuzz(func(t *testing.T, data []byte) {
		var disks []Disk
		if v, err := ParseVMX(data); err == nil {
			disks = append(disks, v.Disks...)
			checkName(t, v.Name)
		}
		if v, err := ParseVMSD(data); err == nil {
			for _, s := range v.Snapshots {
				disks = append(disks, s.Disks...)
				if y := s.Time.Year(); !s.Time.IsZero() && (y < 1970 || y > 400000) {
					t.Errorf("a snapshot of the year %d", y)
				}
			}
		}
		if d, _, err := ParseDomain(data); err == nil {
			disks = append(disks, d.Disks...)
		}
		if h, _, err := ParseHyperV(data); err == nil {
			disks = append(disks, h.Disks...)
			checkName(t, h.Name)
		}
		if c, err := ParseProxmoxConfig(data); err == nil {
			disks = append(disks, c.Disks...)
		}
		for _, d := range disks {
			checkName(t, d.Node)
		}
	})
}

func checkName(t *testing.T, name string) {
	if s := SafeName(name); strings.ContainsAny(s, "/\x00\n") || s == "." || s == ".." || len(s) > maxName {
		t.Errorf("SafeName(%q) = %q", name, s)
	}
}

// FuzzTemplate gives any template any path.
func FuzzTemplate(f *testing.F) {
	f.Add("{machine}/{time:2006-01-02}/{disk}.vmdk", "web/2026-11-20/os.vmdk")
	f.Add("{machine}/{machine}-{disk}-{time:2006-01-02T15:04:05Z07:00}.raw", "a-b/a-b-c-2026-11-20T02:30:00+05:30.raw")
	f.Add("**/{machine}_{time:Jan-_2-2006.000}.raw", "x/y/w_Nov- 9-2026.123.raw")
	f.Add("*/{time}*", "a/2026-11-20 b")
	f.Fuzz(func(t *testing.T, template, name string) {
		tmpl, err := ParseTemplate(template)
		if err != nil {
			return
		}
		if m, ok := tmpl.Match(name, time.UTC); ok {
			checkName(t, m.Machine)
			checkName(t, m.Disk)
		}
	})
}

// FuzzNames gives any name to the readers of names.
func FuzzNames(f *testing.F) {
	for _, n := range []string{"images/100/vm-100-disk-0.qcow2", "vzdump-qemu-100-2026_11_18-02_30_00.vma.zst", "WindowsImageBackup/H/Backup 2026-11-18 190012/a.vhdx", "web01_OsDisk_1_0f1e2d3c", "smvi__a_20261118023000"} {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, name string) {
		ParseProxmox(name)
		Vzdump(name)
		ParseWindowsBackup(name, "root")
		ParseStorageSnapshot(".snapshot", name, time.UTC)
		if m, d, _, ok := SplitDisk(name); ok && (m == "" || d == "") {
			t.Errorf("SplitDisk(%q) = %q, %q", name, m, d)
		}
	})
}
