package volumetest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"yester/internal/readertest"
	"yester/internal/treetest"
	"yester/volume"
)

// LVM is a set of disks that lvm2's own tools work on, through loop devices. There
// need be no device-mapper: nothing is activated.
type LVM struct {
	t     testing.TB
	Files []string
	Loops []string // devices of Files
	env   []string
	conf  string
}

// NewLVM makes empty disks of size bytes each.
func NewLVM(t testing.TB, disks int, size int64) *LVM {
	t.Helper()
	treetest.Need(t, "lvm", "losetup")
	dir := t.TempDir()
	l := &LVM{t: t, env: append(os.Environ(), "LVM_SYSTEM_DIR="+dir, "LVM_SUPPRESS_FD_WARNINGS=1", "LC_ALL=C")}
	filter := ""
	for i := range disks {
		file := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		loop := strings.TrimSpace(treetest.Run(t, "losetup", "--find", "--show", file))
		t.Cleanup(func() { treetest.Run(t, "losetup", "--detach", loop) })
		l.Files, l.Loops = append(l.Files, file), append(l.Loops, loop)
		filter += fmt.Sprintf(`"a|^%s$|",`, loop)
	}
	l.conf = `devices { global_filter=[` + filter + `"r|.*|"] use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source="none" }
		activation { udev_sync=0 udev_rules=0 monitoring=0 }
		global { activation=0 use_lvmpolld=0 use_lvmlockd=0 event_activation=0 locking_dir="` + dir + `/lock" }
		backup { backup=0 archive=0 }`
	return l
}

// Run runs one of lvm2's tools, which must succeed.
func (l *LVM) Run(tool string, args ...string) string {
	l.t.Helper()
	cmd := exec.Command("lvm", append([]string{tool, "--config", l.conf}, args...)...)
	cmd.Env = l.env
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("%s %s: %v\n%s%s", tool, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// Devices returns the disks, read through their files.
func (l *LVM) Devices() []volume.Device {
	l.t.Helper()
	var devs []volume.Device
	for i, file := range l.Files {
		f, err := os.Open(file)
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { f.Close() })
		devs = append(devs, volume.Device{Name: fmt.Sprintf("disk%d", i), Reader: readertest.File{File: f}})
	}
	return devs
}

// Piece is where some bytes of a logical volume are, by lvm2's own report.
type Piece struct {
	Disk   int
	Off, N int64 // bytes
}

var pvRange = regexp.MustCompile(`^(.+):(\d+)-(\d+)$`)

// Pieces returns where the bytes of a linear or striped volume are, in their order.
func (l *LVM) Pieces(vg, lv string) []Piece {
	l.t.Helper()
	var pvs struct {
		Report []struct {
			PV []struct {
				Name  string `json:"pv_name"`
				Start string `json:"pe_start"`
			}
		}
	}
	l.Report(&pvs, "pvs", "-o", "pv_name,pe_start")
	start := make(map[string]int64)
	for _, p := range pvs.Report[0].PV {
		start[p.Name], _ = strconv.ParseInt(p.Start, 10, 64)
	}
	var segs struct {
		Report []struct {
			Seg []struct {
				Extent     string `json:"vg_extent_size"`
				Stripes    string
				StripeSize string `json:"stripe_size"`
				SegStart   string `json:"seg_start_pe"`
				Size       string `json:"seg_size_pe"`
				Ranges     string `json:"seg_pe_ranges"`
			}
		}
	}
	l.Report(&segs, "lvs", "-a", "--segments", "--sort", "seg_start_pe", "-o", "vg_extent_size,stripes,stripe_size,seg_start_pe,seg_size_pe,seg_pe_ranges", vg+"/"+lv)
	var list []Piece
	for _, s := range segs.Report[0].Seg {
		extent, _ := strconv.ParseInt(s.Extent, 10, 64)
		stripe, _ := strconv.ParseInt(s.StripeSize, 10, 64)
		var areas []Piece
		for _, r := range strings.Fields(s.Ranges) {
			m := pvRange.FindStringSubmatch(r)
			first, _ := strconv.ParseInt(m[2], 10, 64)
			last, _ := strconv.ParseInt(m[3], 10, 64)
			disk := -1
			for i, loop := range l.Loops {
				if loop == m[1] {
					disk = i
				}
			}
			areas = append(areas, Piece{disk, start[m[1]] + first*extent, (last - first + 1) * extent})
		}
		if len(areas) == 1 {
			list = append(list, areas...)
			continue
		}
		for done := int64(0); done < areas[0].N; done += stripe {
			for _, a := range areas {
				list = append(list, Piece{a.Disk, a.Off + done, stripe})
			}
		}
	}
	return list
}

// Report reads into to what a tool reports as JSON, sizes in bytes.
func (l *LVM) Report(to any, tool string, args ...string) {
	l.t.Helper()
	out := l.Run(tool, append([]string{"--reportformat", "json", "--units", "b", "--nosuffix"}, args...)...)
	if err := json.Unmarshal([]byte(out), to); err != nil {
		l.t.Fatalf("%v\n%s", err, out)
	}
}

// Write puts b at pieces.
func (l *LVM) Write(pieces []Piece, b []byte) {
	l.t.Helper()
	for _, p := range pieces {
		f, err := os.OpenFile(l.Files[p.Disk], os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(b[:p.N], p.Off)
		}
		if err != nil {
			l.t.Fatal(err)
		}
		f.Close()
		b = b[p.N:]
	}
	if len(b) > 0 {
		l.t.Fatalf("%d bytes too many", len(b))
	}
}

// Restore makes text the metadata of vg.
func (l *LVM) Restore(vg, text string) {
	l.t.Helper()
	file := filepath.Join(l.t.TempDir(), "vg")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.Run("vgcfgrestore", "--force", "-f", file, vg)
}

// Read returns what is at pieces.
func (l *LVM) Read(pieces []Piece) []byte {
	l.t.Helper()
	var all []byte
	for _, p := range pieces {
		b := make([]byte, p.N)
		f, err := os.Open(l.Files[p.Disk])
		if err == nil {
			_, err = f.ReadAt(b, p.Off)
		}
		if err != nil {
			l.t.Fatal(err)
		}
		f.Close()
		all = append(all, b...)
	}
	return all
}
