package restorepoint

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"yester/internal/ondisk"
	"yester/internal/treetest"
)

// TestDamagedSignatures damages the signature of one container of each format,
// beside a good one: it is warned of. What never has one isn't.
func TestDamagedSignatures(t *testing.T) {
	treetest.Need(t, "qemu-img", "qemu-io")
	d := newDatastore(t)
	var want []string
	for _, ext := range []string{".vhd", ".vhdx", ".vmdk", ".qcow2"} {
		good := "img" + ext
		if ext == ".vhdx" {
			treetest.Run(t, "qemu-img", "create", "-q", "-f", "vhdx", d.path(good), "4M")
		} else {
			d.disk(good, "", 1)
		}
		data, err := os.ReadFile(d.path(good))
		if err != nil {
			t.Fatal(err)
		}
		data[0] ^= 0xff
		if ext == ".vhd" {
			data[len(data)-512] ^= 0xff
		}
		bad := "bad" + ext
		want = append(want, bad)
		d.raw(bad, 1, data)
	}
	d.raw("bad.E01", 1, append([]byte("EVF\x09\x0e\x0a\xff\x00\x01\x01\x00\x00\x00"), make([]byte, 4096)...))
	want = append(want, "bad.E01")
	d.raw("empty.qcow2", 1, nil)
	d.raw("._img.qcow2", 1, []byte("\x00\x05\x16\x07"))
	d.raw("img.img", 1, []byte("no disk"))
	d.raw("old-flat.vmdk", 1, bytes.Repeat([]byte{7}, 4096))
	d.raw("old-ctk.vmdk", 1, bytes.Repeat([]byte{7}, 4096))
	// A descriptor with a plain extent of any name, and an extent of a lost one.
	treetest.Run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", d.path("flat.vmdk"), "1M")
	text, err := os.ReadFile(d.path("flat.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	d.raw("flat.vmdk", 1, bytes.Replace(text, []byte("flat-flat.vmdk"), []byte("other.vmdk"), 1))
	if err := os.Rename(d.path("flat-flat.vmdk"), d.path("other.vmdk")); err != nil {
		t.Fatal(err)
	}
	d.raw("lost.vmdk", 1, append([]byte("COWD\x01\x00\x00\x00"), make([]byte, 4096)...))

	var damaged []string
	for _, i := range d.list(d.open("")).Ignored {
		if i.Damaged {
			damaged = append(damaged, i.Name)
			if !strings.Contains(i.Reason, "named like a") {
				t.Errorf("%s: %s", i.Name, i.Reason)
			}
		}
	}
	slices.Sort(damaged)
	slices.Sort(want)
	if !slices.Equal(damaged, want) {
		t.Errorf("warned of %q, want %q", damaged, want)
	}
	for _, name := range want {
		_, err := d.open(name).List(t.Context())
		if !errors.Is(err, ondisk.ErrFormat) || !strings.Contains(err.Error(), "named like a") {
			t.Errorf("%s alone: %v", name, err)
		}
	}
}
