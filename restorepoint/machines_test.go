package restorepoint

import (
	"fmt"
	"strings"
	"testing"
)

// TestChainsInOneFolder keeps machines apart whose images lie in one folder, and
// whose chains have no name of their own.
func TestChainsInOneFolder(t *testing.T) {
	for _, dir := range []string{"", "vms/"} {
		s := newSource(t)
		s.base(dir+"web.vhd", 1)
		s.child(dir+"monday.avhd", 2, 1, "web.vhd")
		s.base(dir+"db.vhd", 3)
		s.child(dir+"tuesday.avhd", 4, 3, "db.vhd")
		src := s.open("")
		c := s.expect(src,
			"db 2026-11-18T05-30-00Z header "+dir+"db.vhd",
			"db 2026-11-18T06-30-00Z header "+dir+"tuesday.avhd<"+dir+"db.vhd",
			"web 2026-11-18T03-30-00Z header "+dir+"web.vhd",
			"web 2026-11-18T04-30-00Z header "+dir+"monday.avhd<"+dir+"web.vhd")
		for i, n := range []byte{3, 4, 1, 2} {
			s.holds(src, c.Points[i], n)
		}
	}
	t.Run("called like the folder", func(t *testing.T) {
		s := newSource(t)
		s.base("web/web.vhd", 1)
		s.base("web/db.vhd", 2)
		s.child("web/monday.avhd", 3, 2, "db.vhd")
		s.expect(s.open(""),
			"db 2026-11-18T04-30-00Z header web/db.vhd",
			"db 2026-11-18T05-30-00Z header web/monday.avhd<web/db.vhd",
			"web 2026-11-18T03-30-00Z header web/web.vhd")
	})
	t.Run("chains of one machine", func(t *testing.T) {
		s := newSource(t)
		s.base("web/full-2026-11-01.vhd", 1)
		s.child("web/incr-2026-11-02.avhd", 2, 1, "full-2026-11-01.vhd")
		s.base("web/full-2026-11-08.vhd", 3)
		s.child("web/incr-2026-11-09.avhd", 4, 3, "full-2026-11-08.vhd")
		c := s.expect(s.open(""),
			"web 2026-11-01T00-00-00Z name web/full-2026-11-01.vhd",
			"web 2026-11-02T00-00-00Z name web/incr-2026-11-02.avhd<web/full-2026-11-01.vhd",
			"web 2026-11-08T00-00-00Z name web/full-2026-11-08.vhd",
			"web 2026-11-09T00-00-00Z name web/incr-2026-11-09.avhd<web/full-2026-11-08.vhd")
		if len(c.Machines()) != 1 {
			t.Errorf("machines: %q", c.Machines())
		}
	})
}

// TestConfigurationsInOneFolder keeps machines apart that are called the same.
func TestConfigurationsInOneFolder(t *testing.T) {
	vmx := func(disk string) []byte {
		return fmt.Appendf(nil, "displayName = \"same\"\nscsi0:0.present = \"TRUE\"\nscsi0:0.deviceType = \"scsi-hardDisk\"\nscsi0:0.fileName = %q\n", disk)
	}
	xml := func(disk string) []byte {
		return fmt.Appendf(nil, "<domain type='kvm'><name>same</name><devices><disk type='file' device='disk'><source file='/images/%s'/><target dev='vda'/></disk></devices></domain>", disk)
	}
	for _, kind := range []struct {
		ext  string
		text func(string) []byte
	}{{".vmx", vmx}, {".xml", xml}} {
		for _, dir := range []string{"", "vms/"} {
			for _, test := range []struct {
				name  string
				disks map[string]string // by configuration
				want  string
			}{
				{"two machines", map[string]string{"m1": "a.vhd", "m2": "b.vhd"}, "same-m1 same-m2"},
				{"missing disks", map[string]string{"m1": "gone1.vhd", "m2": "gone2.vhd"}, "same-m1 same-m2"},
				{"one disk", map[string]string{"m1": "a.vhd", "m2": "a.vhd"}, "same"},
				{"dated copies", map[string]string{"m-2026-11-01": "a.vhd", "m-2026-11-02": "b.vhd"}, "same"},
			} {
				t.Run(kind.ext+" "+dir+test.name, func(t *testing.T) {
					s := newSource(t)
					s.base(dir+"a.vhd", 1)
					s.base(dir+"b.vhd", 2)
					for config, disk := range test.disks {
						s.raw(dir+config+kind.ext, 1, kind.text(disk))
					}
					src := s.open("")
					var described []string
					for _, m := range s.list(src).Machines() {
						if strings.HasPrefix(m, "same") || strings.HasSuffix(m, "same") {
							described = append(described, strings.TrimPrefix(m, strings.ReplaceAll(dir, "/", "-")))
						}
					}
					if got := strings.Join(described, " "); got != test.want {
						t.Errorf("machines: %s; want %s", got, test.want)
					}
				})
			}
		}
	}
}
