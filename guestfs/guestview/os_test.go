package guestview

import (
	"errors"
	"os"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/internal/memtree"
)

func TestDetectOS(t *testing.T) {
	x86 := "\x7fELF\x02\x01\x01\x00" + strings.Repeat("\x00", 8) + "\x03\x00\x3e\x00"
	be := "\x7fELF\x02\x02\x01\x00" + strings.Repeat("\x00", 8) + "\x00\x03\x00\x16"
	tests := []struct {
		name  string
		files map[string]string // "->x" is a link
		want  OS
	}{
		{"debian", map[string]string{
			"usr/lib/os-release": "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nVERSION=\"12 (bookworm)\"\nID=debian\n",
			"etc/os-release":     "->../usr/lib/os-release", "etc/hostname": "web01\n", "usr/bin/dash": x86, "usr/bin/sh": "->dash", "bin": "->usr/bin",
		}, OS{"debian", "Debian GNU/Linux 12 (bookworm)", "12", "web01", "x86_64"}},
		{"only in usr", map[string]string{"usr/lib/os-release": "ID='arch'\nNAME='Arch Linux'\n# VERSION=1\n", "etc/hostname": "# comment\n\n a \n"}, OS{"arch", "Arch Linux", "", "a", ""}},
		{"link out of the guest", map[string]string{"etc/os-release": "->/../../../../../../../../../../etc/os-release"}, OS{}},
		{"escapes", map[string]string{"etc/os-release": "ID=x\nNAME=\"a \\\"b\\\" \\$c\x1b[31m\"\nVERSION=\"7\"\n"}, OS{"x", `a "b" $c[31m 7`, "7", "", ""}},
		{"centos 6", map[string]string{"etc/redhat-release": "CentOS release 6.10 (Final)\n", "etc/sysconfig/network": "NETWORKING=yes\nHOSTNAME=db1.example.com\n", "bin/sh": be},
			OS{"centos", "CentOS release 6.10 (Final)", "6.10", "db1.example.com", "s390x"}},
		{"rhel 5", map[string]string{"etc/redhat-release": "Red Hat Enterprise Linux Server release 5.11 (Tikanga)\n"}, OS{"rhel", "Red Hat Enterprise Linux Server release 5.11 (Tikanga)", "5.11", "", ""}},
		{"old debian", map[string]string{"etc/debian_version": "4.0\n"}, OS{"debian", "debian 4.0", "4.0", "", ""}},
		{"sles 11", map[string]string{"etc/SuSE-release": "SUSE Linux Enterprise Server 11 (x86_64)\nVERSION = 11\n", "etc/HOSTNAME": "s.example.com\n"}, OS{"suse", "SUSE Linux Enterprise Server 11 (x86_64)", "11", "s.example.com", ""}},
		{"script as shell", map[string]string{"etc/os-release": "ID=y\n", "bin/sh": "#!/bin/busybox sh of some length\n"}, OS{ID: "y"}},
		{"too long", map[string]string{"etc/os-release": strings.Repeat("#", maxRelease+1)}, OS{}},
		{"nothing", map[string]string{"etc/passwd": ""}, OS{}},
	}
	for _, test := range tests {
		tree := memtree.New(guestfs.Info{})
		for name, text := range test.files {
			if target, ok := strings.CutPrefix(text, "->"); ok {
				tree.Symlink(name, target)
			} else {
				tree.File(name, text)
			}
		}
		got, err := DetectOS(t.Context(), tree)
		if (err != nil) != (test.want == OS{}) || err != nil && !errors.Is(err, guestfs.ErrNotExist) {
			t.Errorf("%s: %v", test.name, err)
		}
		if got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

// TestDetectOSDamage: what can't be read isn't taken for absent.
func TestDetectOSDamage(t *testing.T) {
	tree := memtree.New(guestfs.Info{})
	damage := errors.New("bad block")
	tree.File("etc/os-release", "").Err = damage
	tree.File("etc/debian_version", "12.1")
	if _, err := DetectOS(t.Context(), tree); !errors.Is(err, damage) {
		t.Error(err)
	}
	tree = memtree.New(guestfs.Info{})
	tree.File("etc/os-release", "ID=x")
	tree.File("bin/sh", "").Err = damage
	if o, err := DetectOS(t.Context(), tree); !errors.Is(err, damage) || o.ID != "x" {
		t.Errorf("%+v, %v", o, err)
	}
}

// TestArch compares with the header that a real program has.
func TestArch(t *testing.T) {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Skip(err)
	}
	tree := memtree.New(guestfs.Info{})
	tree.File("bin/sh", string(b))
	if name, err := arch(t.Context(), tree); err != nil || name == "" {
		t.Errorf("%q, %v", name, err)
	}
}
