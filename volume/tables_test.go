package volume_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"yester/internal/block"
	"yester/volume"
	"yester/volume/gpt"
	"yester/volume/mbr"
)

// need skips the test when one of the tools is missing or loop devices can't be
// made, and fails it in CI.
func need(t *testing.T, tools ...string) {
	t.Helper()
	skip := t.Skipf
	if os.Getenv("CI") == "true" {
		skip = t.Fatalf
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			skip("%v", err)
		}
	}
	if os.Geteuid() != 0 {
		skip("loop devices need root")
	}
}

func run(t *testing.T, stdin string, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8") // or sfdisk drops names
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, errs.Bytes())
	}
	return out.Bytes()
}

// image makes a file of random bytes: what lies in a partition tells where it is.
func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	b := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(b)
	clear(b[:1<<16]) // no random table
	clear(b[size-1<<16:])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// loop attaches path for the length of the test.
func loop(t *testing.T, path string, sector int, readOnly bool) string {
	t.Helper()
	args := []string{"--find", "--show", "--sector-size", strconv.Itoa(sector)}
	if readOnly {
		args = append(args, "--read-only")
	}
	dev := strings.TrimSpace(string(run(t, "", "losetup", append(args, path)...)))
	once := sync.OnceFunc(func() { run(t, "", "losetup", "--detach", dev) })
	attached.Store(dev, once)
	t.Cleanup(once)
	return dev
}

// attached holds how each loop device is given back: once only, since it may be
// another test's a moment later.
var attached sync.Map // string to func()

func detach(t *testing.T, dev string) {
	t.Helper()
	once, ok := attached.Load(dev)
	if !ok {
		t.Fatalf("%s was not attached", dev)
	}
	once.(func())()
}

func openFile(t *testing.T, path string) block.Reader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return io.NewSectionReader(f, 0, st.Size())
}

// part is what is compared.
type part struct {
	Start, Size int64 // bytes
	ID, Label   string
}

// partxParts reads the partitions that libblkid finds on dev, extended ones left
// out.
func partxParts(t *testing.T, dev string) map[int]part {
	t.Helper()
	cmd := exec.Command("partx", "--pairs", "--bytes", "--output", "NR,START,SECTORS,UUID,NAME,TYPE", dev)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.Output()
	if err != nil {
		return map[int]part{} // no table
	}
	parts := map[int]part{}
	for line := range strings.Lines(string(out)) {
		f := pairs.FindStringSubmatch(line)
		if f == nil {
			t.Fatalf("partx: %q", line)
		}
		switch f[6] {
		case "0x5", "0xf", "0x85":
			continue
		}
		var n [3]int64 // the last two in units of 512 bytes, whatever the sector size
		for i := range n {
			if n[i], err = strconv.ParseInt(f[i+1], 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		label, err := strconv.Unquote(`"` + f[5] + `"`) // other than ASCII is \xNN
		if err != nil {
			t.Fatal(err)
		}
		parts[int(n[0])] = part{512 * n[1], 512 * n[2], f[4], label}
	}
	return parts
}

var pairs = regexp.MustCompile(`NR="(.*)" START="(.*)" SECTORS="(.*)" UUID="(.*)" NAME="(.*)" TYPE="(.*)"`)

type sfdiskPart struct {
	Node, Type, UUID, Name string
	Start, Size            int64
	Bootable               bool
	Attrs                  string
}

func sfdiskParts(t *testing.T, dev string) map[string]sfdiskPart {
	t.Helper()
	out, err := exec.Command("sfdisk", "--json", dev).Output()
	if err != nil {
		return nil // no table
	}
	var v struct {
		PartitionTable struct{ Partitions []sfdiskPart }
	}
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatal(err)
	}
	parts := map[string]sfdiskPart{}
	for _, p := range v.PartitionTable.Partitions {
		parts[p.Node] = p
	}
	return parts
}

// ours opens the table; in both orders of the schemes, which must not matter.
func ours(t *testing.T, dev block.Reader, sector int) *volume.Table {
	t.Helper()
	opt := volume.Options{SectorSize: sector}
	a, err := volume.Open(t.Context(), dev, opt, gpt.Scheme, mbr.Scheme)
	if err != nil {
		t.Fatal(err)
	}
	b, err := volume.Open(t.Context(), dev, opt, mbr.Scheme, gpt.Scheme)
	if err != nil {
		t.Fatal(err)
	}
	if a.Scheme != b.Scheme || len(a.Volumes) != len(b.Volumes) {
		t.Errorf("GPT first: %s, %d volumes; MBR first: %s, %d", a.Scheme, len(a.Volumes), b.Scheme, len(b.Volumes))
	}
	return a
}

func parts(table *volume.Table) map[int]part {
	m := map[int]part{}
	for _, v := range table.Volumes {
		if v.Scheme != "disk" {
			m[v.Number] = part{v.Start, v.Size(), v.ID, v.Label}
		}
	}
	return m
}

// TestTools makes tables with sfdisk and sgdisk and compares with what libblkid
// and sfdisk read.
func TestTools(t *testing.T) {
	need(t, "sfdisk", "sgdisk", "partx", "losetup", "mkfs.vfat", "mkfs.exfat", "mkntfs")
	const mib = 1 << 20
	writeAt := func(off int64, b ...byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
		}
	}
	tool := func(name string, args ...string) func(*testing.T, string) {
		return func(t *testing.T, path string) { run(t, "", name, append(args, path)...) }
	}
	gptScript := `label: gpt
label-id: 8d2a3c2e-7a0f-4b64-9d26-0123456789ab
start=8M, size=1M, name="größe 日本", uuid=11111111-2222-3333-4444-555555555555
4: start=10M, size=1M, type=U, attrs=LegacyBIOSBootable
3: start=12M, size=2M
`
	tests := []struct {
		name   string
		sector int
		script string // of sfdisk
		then   func(t *testing.T, path string)
		scheme string
		n      int // partitions, as a check of the test itself
		warn   string
		// oursAlone: util-linux doesn't look where the backup is.
		oursAlone bool
	}{
		{"mbr primaries with gap", 512, "label: dos\nlabel-id: 0x1a2b3c4d\n1: start=1M,size=1M,bootable\n3: start=4M,size=2M,type=7\n", nil, "mbr", 2, "", false},
		{"mbr 05 and logicals", 512, "label: dos\nstart=1M,size=1M\nstart=2M,size=20M,type=5\n5: start=3M,size=1M\n6: start=5M,size=1M\n7: start=7M,size=2M,type=82\n", nil, "mbr", 4, "", false},
		{"mbr 0f first", 512, "label: dos\n1: start=2M,size=20M,type=f\n2: start=24M,size=1M\n5: start=3M,size=1M\n6: start=5M,size=3M\n", nil, "mbr", 3, "", false},
		{"mbr 85", 512, "label: dos\n4: start=2M,size=20M,type=85\n5: start=3M,size=1M\n6: start=5M,size=3M\n", nil, "mbr", 2, "", false},
		{"mbr empty extended", 512, "label: dos\nstart=1M,size=1M\nstart=2M,size=20M,type=5\n", nil, "mbr", 1, "", false},
		{"mbr logicals out of order", 512, "label: dos\n1: start=1M,size=25M,type=5\n5: start=10M,size=1M\n6: start=3M,size=1M\n7: start=20M,size=1M\n", nil, "mbr", 3, "", false},
		{"mbr twenty logicals", 512, "label: dos\n1: start=1M,size=28M,type=5\n" + strings.Repeat("size=1M\n", 13), nil, "mbr", 13, "", false},
		{"mbr 4096", 4096, "label: dos\nstart=1M,size=1M\nstart=2M,size=20M,type=5\n5: start=3M,size=1M\n6: start=5M,size=1M\n", nil, "mbr", 3, "", false},
		{"mbr cut off", 512, "label: dos\nstart=1M,size=1M\nstart=2M,size=20M\n", func(t *testing.T, path string) {
			if err := os.Truncate(path, 5*mib); err != nil {
				t.Fatal(err)
			}
		}, "mbr", 2, "partition p2 ends at 0x1600000, past the end", false},
		{"mbr stale FAT parameter block", 512, "label: dos\nstart=1M,size=1M\n", writeAt(0, []byte("\xeb\x63\x90mkfs.fat\x00\x02\x04\x04\x00\x02\x00\x02\x00\xf8\x80\x00")...), "mbr", 1, "", false},
		{"gpt", 512, gptScript, nil, "gpt", 3, "", false},
		{"gpt 4096", 4096, gptScript, nil, "gpt", 3, "", false},
		{"gpt short table", 512, "table-length: 8\n" + gptScript, nil, "gpt", 3, "", false},
		{"gpt empty", 512, "label: gpt\n", nil, "gpt", 0, "", false},
		{"gpt long table", 512, "table-length: 1024\n" + gptScript, nil, "gpt", 3, "", false},
		{"gpt primary header damaged", 512, gptScript, writeAt(512+60, 0xff, 0xff), "gpt", 3, "the backup at 0x1fffe00", false},
		{"gpt primary header gone", 512, gptScript, writeAt(512, make([]byte, 512)...), "gpt", 3, "the primary copy can't be used (not there); the backup", false},
		{"gpt primary entries damaged", 512, gptScript, writeAt(1024+7, 0xff), "gpt", 3, "partition entries of the primary header at 0x400: checksum", false},
		{"gpt 4096 primary damaged", 4096, gptScript, writeAt(4096+60, 0xff, 0xff), "gpt", 3, "the backup at 0x1fff000", false},
		{"gpt primary damaged, disk grown", 512, gptScript, func(t *testing.T, path string) {
			writeAt(1024+7, 0xff)(t, path)
			if err := os.Truncate(path, 40*mib); err != nil {
				t.Fatal(err)
			}
		}, "gpt", 3, "the backup at 0x1fffe00", true},
		{"gpt backup damaged", 512, gptScript, writeAt(32*mib-512+60, 0xff), "gpt", 3, "", false},
		{"gpt hybrid", 512, gptScript, tool("sgdisk", "--hybrid=1:3"), "gpt", 3, "", false},
		{"gpt without protective MBR", 512, gptScript, writeAt(510, 0, 0), "disk", 0, "", false},
		{"FAT32", 512, "label: dos\n", tool("mkfs.vfat", "-F32", "-I"), "disk", 0, "", false},
		{"FAT16 with partition table", 512, "label: dos\n", tool("mkfs.vfat", "-F16", "-I", "--mbr=yes"), "disk", 0, "", false},
		{"exFAT", 512, "label: dos\n", tool("mkfs.exfat"), "disk", 0, "", false},
		{"NTFS", 512, "label: dos\n", tool("mkntfs", "-F", "-Q", "-q"), "disk", 0, "", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := image(t, 32*mib)
			dev := loop(t, path, test.sector, false)
			run(t, test.script, "sfdisk", "--quiet", "--no-reread", dev)
			detach(t, dev)
			if test.then != nil {
				test.then(t, path)
			}
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			dev = loop(t, path, test.sector, true)
			want := partxParts(t, dev)
			r := openFile(t, path)
			for _, sector := range []int{test.sector, 0} {
				got := ours(t, r, sector)
				if got.Scheme != test.scheme {
					t.Fatalf("scheme %s, want %s", got.Scheme, test.scheme)
				}
				if !maps.Equal(parts(got), want) && !test.oursAlone {
					t.Errorf("got   %+v\npartx %+v", parts(got), want)
				}
				if len(parts(got)) != test.n {
					t.Errorf("%d partitions, want %d", len(parts(got)), test.n)
				}
				warned := strings.Join(got.Warnings, "\n")
				if test.warn == "" && warned != "" || !strings.Contains(warned, test.warn) {
					t.Errorf("warnings %q, want %q", warned, test.warn)
				}
				if !test.oursAlone {
					compareSfdisk(t, got, sfdiskParts(t, dev), dev)
				}
				for _, v := range got.Volumes {
					checkContent(t, v, before)
				}
			}
		})
	}
}

// compareSfdisk compares what partx doesn't tell: type, name, boot flag.
func compareSfdisk(t *testing.T, got *volume.Table, want map[string]sfdiskPart, dev string) {
	t.Helper()
	for _, v := range got.Volumes {
		w, ok := want[fmt.Sprintf("%sp%d", dev, v.Number)]
		if !ok {
			continue
		}
		kind := strings.ToLower(w.Type)
		if v.Scheme == "mbr" {
			kind = fmt.Sprintf("0x%02s", kind)
		}
		active := w.Bootable || strings.Contains(w.Attrs, "LegacyBIOSBootable")
		if v.Type != kind || v.Label != w.Name || v.Active != active {
			t.Errorf("%s: type %s, label %q, active %v; sfdisk: %s %q %v", v.Name, v.Type, v.Label, v.Active, kind, w.Name, active)
		}
	}
}

// checkContent reads v in pieces and compares with the disk's bytes.
func checkContent(t *testing.T, v volume.Volume, disk []byte) {
	t.Helper()
	want := disk[v.Start:min(v.Start+v.Size(), int64(len(disk)))]
	got := make([]byte, v.Size())
	n, err := v.ReadAt(got, 0)
	if int64(len(want)) == v.Size() {
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
	} else if err == nil || err == io.EOF {
		t.Errorf("%s: reading past the end of the disk: error %v", v.Name, err)
	}
	if !bytes.Equal(got[:n], want) {
		t.Errorf("%s: %d bytes, want %d; or they differ", v.Name, n, len(want))
	}
}
