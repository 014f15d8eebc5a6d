package vmdk

import (
	"errors"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// TestDescriptor reads descriptors as they are met, and refuses others.
func TestDescriptor(t *testing.T) {
	const head = "# Disk DescriptorFile\nversion=1\nCID=1f\nparentCID=ffffffff\ncreateType=\"vmfs\"\n"
	const ext = "RW 8 VMFS \"a-flat.vmdk\"\n"
	for _, c := range []struct {
		name, text string
		err        error
		msg        string
		files      string
	}{
		{"plain", head + ext, nil, "", "a-flat.vmdk"},
		{"Windows", strings.ReplaceAll(head+ext, "\n", "\r\n"), nil, "", "a-flat.vmdk"},
		{"byte order mark", "\xef\xbb\xbf" + head + ext, nil, "", "a-flat.vmdk"},
		{"spaces", strings.ReplaceAll(head, "=", " = ") + "RW  8   VMFS   \"a b.vmdk\"  \n", nil, "", "a b.vmdk"},
		{"VirtualBox", strings.Replace(head, "DescriptorFile", "Descriptor File", 1) + ext, nil, "", "a-flat.vmdk"},
		{"lower case", strings.ToLower(head) + ext, nil, "", "a-flat.vmdk"},
		{"no signature", head[22:] + ext, nil, "", "a-flat.vmdk"},
		{"NULs behind", head + ext + "\x00\x00RW 8 FLAT \"x\" 0\n", nil, "", "a-flat.vmdk"},
		{"code page", head + "encoding=\"windows-1252\"\nRW 8 VMFS \"Ger\xe4t.vmdk\"\n", nil, "", "Gerät.vmdk"},
		{"code page, but UTF-8", head + "encoding=\"windows-1252\"\nRW 8 VMFS \"Gerät.vmdk\"\n", nil, "", "Gerät.vmdk"},
		{"Chinese", head + "encoding=\"GBK\"\nRW 8 VMFS \"\xb4\xc5\xc5\xcc.vmdk\"\n", nil, "", "磁盘.vmdk"},
		{"unknown code page, of no account", head + "encoding=\"cp-klingon\"\n" + ext, nil, "", "a-flat.vmdk"},
		{"unknown code page", head + "encoding=\"cp-klingon\"\nRW 8 VMFS \"Ger\xe4t.vmdk\"\n", ondisk.ErrUnsupported, `encoding at 0x4c: "cp-klingon"`, ""},
		{"traversal, as stored", head + "RW 8 VMFS \"../../etc/passwd\"\n", nil, "", "../../etc/passwd"},
		{"one file twice", head + ext + "RW 8 VMFS \"b\"\n" + ext, nil, "", "a-flat.vmdk b"},
		{"zeros", head + "RW 8 ZERO\n", nil, "", ""},
		{"read-only", head + "RDONLY 8 FLAT \"x\" 0\n", nil, "", "x"},
		{"no access", head + "NOACCESS 8 FLAT \"x\" 0\nRW 8 ZERO\n", nil, "", ""},

		{"some text", "version is a word\n", ondisk.ErrFormat, "", ""},
		{"another's settings", "version=1\nname=x\n", ondisk.ErrFormat, "", ""},
		{"a script", "#!/bin/sh\necho\n", ondisk.ErrFormat, "", ""},
		{"nothing", "", ondisk.ErrFormat, "", ""},
		{"no type", "# Disk DescriptorFile\nversion=1\n" + ext, ondisk.ErrCorrupt, "no createType", ""},
		{"no extents", head, ondisk.ErrCorrupt, "no extents", ""},
		{"version 4", strings.Replace(head, "version=1", "version=4", 1) + ext, ondisk.ErrUnsupported, "version \"4\"", ""},
		{"CID", strings.Replace(head, "1f", "xyz", 1) + ext, ondisk.ErrCorrupt, "cid at 0x20", ""},
		{"CID of 33 bits", strings.Replace(head, "1f", "1ffffffff", 1) + ext, ondisk.ErrCorrupt, "cid", ""},
		{"size 0", head + "RW 0 VMFS \"a\"\n", ondisk.ErrCorrupt, "extent line at 0x4c: size", ""},
		{"size 2^63", head + "RW 9223372036854775808 VMFS \"a\"\n", ondisk.ErrCorrupt, "size", ""},
		{"size 2^64", head + "RW 18446744073709551616 VMFS \"a\"\n", ondisk.ErrCorrupt, "size", ""},
		{"sizes that add up", head + strings.Repeat("RW 1125899906842000 ZERO\n", 3), ondisk.ErrCorrupt, "too large", ""},
		{"negative size", head + "RW -8 VMFS \"a\"\n", ondisk.ErrCorrupt, "size", ""},
		{"offset", head + "RW 8 FLAT \"a\" x\n", ondisk.ErrCorrupt, "offset", ""},
		{"offset 2^63", head + "RW 8 FLAT \"a\" 9223372036854775808\n", ondisk.ErrCorrupt, "offset", ""},
		{"no name", head + "RW 8 VMFS\n", ondisk.ErrCorrupt, "no file name", ""},
		{"empty name", head + "RW 8 VMFS \"\"\n", ondisk.ErrCorrupt, "no file name", ""},
		{"half a name", head + "RW 8 VMFS \"abc\n", ondisk.ErrCorrupt, "no file name", ""},
		{"type", head + "RW 8 MAGIC \"a\"\n", ondisk.ErrUnsupported, "type \"MAGIC\"", ""},
		{"RDM", head + "RW 8 VMFSRDM \"a-rdm.vmdk\"\n", ondisk.ErrUnsupported, "raw device", ""},
		{"Windows device", head + "RW 8 FLAT \"\\\\.\\PhysicalDrive0\" 0\n", ondisk.ErrUnsupported, "is a device", ""},
		{"Unix device", head + "RW 8 FLAT \"/dev/sda\" 0\n", ondisk.ErrUnsupported, "is a device", ""},
		{"fullDevice", strings.Replace(head, "vmfs", "fullDevice", 1) + ext, ondisk.ErrUnsupported, "a physical disk", ""},
		{"partitionedDevice", strings.Replace(head, "vmfs", "partitionedDevice", 1) + ext, ondisk.ErrUnsupported, "partitions", ""},
		{"encrypted", head + "encryption.keySafe=\"vmware:key\"\n" + ext, ondisk.ErrUnsupported, "encryption", ""},
		{"encrypted by vSphere", head + ext + "ddb.iofilters = \"vmwarevmcrypt\"\n", ondisk.ErrUnsupported, "encryption", ""},
		{"native snapshot", head + "isNativeSnapshot=\"yes\"\n" + ext, ondisk.ErrUnsupported, "storage array", ""},
		{"no native snapshot", head + "isNativeSnapshot=\"no\"\n" + ext, nil, "", "a-flat.vmdk"},
		{"many extents", head + strings.Repeat("RW 1 ZERO\n", maxExtents+1), ondisk.ErrUnsupported, "more than 4096", ""},
		{"too long", head + ext + strings.Repeat("#\n", maxDescriptor/2), ondisk.ErrCorrupt, "more than", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			info, err := Format.Probe(t.Context(), readertest.Bytes(c.text))
			if c.err != nil {
				if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.msg) {
					t.Errorf("%+v, %v; want %v with %q", info, err, c.err, c.msg)
				}
				return
			}
			if got := strings.Join(info.Files, " "); err != nil || got != c.files || info.Parent != nil || info.ID != "0000001f" {
				t.Errorf("%+v, %v; want files %q", info, err, c.files)
			}
		})
	}
}

// TestParentHint reads where a snapshot's parent is.
func TestParentHint(t *testing.T) {
	for hint, want := range map[string]imageformats.Parent{
		"base.vmdk":                               {Name: "base.vmdk", Locators: []imageformats.Locator{{Platform: "hint", Path: "base.vmdk", Relative: true}}},
		"../x/base.vmdk":                          {Name: "base.vmdk", Locators: []imageformats.Locator{{Platform: "hint", Path: "../x/base.vmdk", Relative: true}}},
		"/vmfs/volumes/5c-a/web/web.vmdk":         {Name: "web.vmdk", Locators: []imageformats.Locator{{Platform: "hint", Path: "/vmfs/volumes/5c-a/web/web.vmdk"}}},
		`C:\Virtual Machines\web\web-000001.vmdk`: {Name: "web-000001.vmdk", Locators: []imageformats.Locator{{Platform: "hint", Path: `C:\Virtual Machines\web\web-000001.vmdk`}}},
		"": {},
	} {
		info, err := Format.Probe(t.Context(), readertest.Bytes(lines("vmfsSparse", "0abc", hint, "RW 8 ZERO")))
		p := info.Parent
		if err != nil || p == nil || p.ID != "00000abc" || !p.IDShared || p.Name != want.Name || len(p.Locators) != len(want.Locators) ||
			len(p.Locators) > 0 && p.Locators[0] != want.Locators[0] {
			t.Errorf("%q: %+v, %v", hint, p, err)
		}
	}
}

// TestNoAccess reads around an extent that is out of bounds.
func TestNoAccess(t *testing.T) {
	img, err := openBytes(t, []byte(lines("custom", "", "", "RW 8 ZERO", "NOACCESS 8 FLAT \"secret\" 0", "RW 8 ZERO")))
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for off, want := range map[int64]error{0: nil, 4096: ondisk.ErrUnsupported, 8192: nil} {
		if _, err := img.ReadAt(buf, off); !errors.Is(err, want) {
			t.Errorf("at %d: %v", off, err)
		}
	}
}
