package restorepoint

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unicode/utf16"

	"yester/imageformats"
)

// hyperVXML is a configuration as Windows Server 2008 R2 to 2012 R2 write it, less
// what is not about names and disks.
const hyperVXML = `<?xml version="1.0" encoding="UTF-16" standalone="yes"?>
<configuration>
  <_83f8638b-8dca-4152-9eda-2ca8b33039b4_>
    <controller0>
      <drive0>
        <pathname type="string">%s</pathname>
        <type type="string">VHD</type>
      </drive0>
      <drive1>
        <type type="string">NONE</type>
      </drive1>
    </controller0>
    <controller1>
      <drive0>
        <pathname type="string">D:\iso\setup.iso</pathname>
        <type type="string">ISO</type>
      </drive0>
    </controller1>
  </_83f8638b-8dca-4152-9eda-2ca8b33039b4_>
  <properties>
    <creation_time type="bytes">%s</creation_time>
    <name type="string">%s</name>
  </properties>
</configuration>
`

func wide(s string) string {
	b := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return string(b)
}

// fileTime counts 100 ns since 1601.
func fileTime(t time.Time) string {
	ticks := uint64(t.Unix()+11644473600)*1e7 + uint64(t.Nanosecond()/100)
	return base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, ticks))
}

// TestHyperVMachines lists a machine with two checkpoints, one configured in each
// form.
func TestHyperVMachines(t *testing.T) {
	s := newSource(t)
	const disks, machine = "exch/Virtual Hard Disks/", "exch/Virtual Machines/"
	s.base(disks+"exch.vhd", 1)
	s.child(disks+"exch_AAAA.avhd", 2, 1, "exch.vhd", imageformats.Locator{Platform: "W2ru", Path: `.\exch.vhd`, Relative: true})
	s.child(disks+"exch_BBBB.avhd", 3, 2, "exch_AAAA.avhd", imageformats.Locator{Platform: "W2ru", Path: `.\exch_AAAA.avhd`, Relative: true})
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(s.path(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		at := stamp.Add(72 * time.Hour)
		if err := os.Chtimes(filepath.Join(s.dir, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	store, err := os.ReadFile("layout/testdata/checkpoint.vmcx") // made by the tests there
	if err != nil {
		t.Fatal(err)
	}
	put("exch/Snapshots/1.xml", wide(fmt.Sprintf(hyperVXML, `C:\VMs\exch\Virtual Hard Disks\exch.vhd`, fileTime(stamp.Add(30*time.Minute)), "exch - before SP3")))
	put("exch/Snapshots/2.vmcx", string(store))
	put(machine+"0.xml", wide(fmt.Sprintf(hyperVXML, `C:\VMs\exch\Virtual Hard Disks\exch_BBBB.avhd`, "", "Exchange")))
	put(machine+"damaged.vmcx", "\x14\x20\x28\x01 cut short")
	for _, n := range []string{"exch.vhd", "exch_AAAA.avhd", "exch_BBBB.avhd"} {
		at := stamp.Add(96 * time.Hour)
		if err := os.Chtimes(filepath.Join(s.dir, disks+n), at, at); err != nil {
			t.Fatal(err)
		}
	}
	d := &datastore{s, nil}
	const dir = "exch=exch/Virtual Hard Disks/"
	cat := d.check(s.open(""),
		"Exchange 2026-11-18T03-00-00Z snapshot hyper-v [exch - before SP3] crash-consistent "+dir+"exch.vhd",
		"Exchange 2026-11-21T02-30-00Z snapshot hyper-v [exch - after SP3] crash-consistent "+dir+"exch_AAAA.avhd",
		"Exchange 2026-11-22T02-30-00Z mtime hyper-v [] running "+dir+"exch_BBBB.avhd",
	)
	for i, p := range cat.Points {
		s.holds(s.open(""), p, byte(i+1))
	}
	damaged := 0
	for _, i := range cat.Ignored {
		if i.Damaged {
			damaged++
			if i.Name != machine+"damaged.vmcx" {
				t.Errorf("%s is ignored as damaged: %s", i.Name, i.Reason)
			}
		}
	}
	if damaged != 1 {
		t.Errorf("%d files are damaged, want 1", damaged)
	}
}
