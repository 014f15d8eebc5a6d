package fusefs_test

import (
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"yester/fusefs"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestDamagedBlockIsEIO points a block of the image past its end: what lies in
// it gives EIO with the cause in the log, everything else its own bytes.
func TestDamagedBlockIsEIO(t *testing.T) {
	source, states := chain(t)
	f, err := os.OpenFile(states[0].vhd, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Header at 512, its Table Offset at 16 (VHD 1.0, "Dynamic Disk Header Format").
	var off [8]byte
	if _, err := f.ReadAt(off[:], 512+16); err != nil {
		t.Fatal(err)
	}
	bat := int64(binary.BigEndian.Uint64(off[:]))
	const bad = 12 // block of 2 MiB in the middle of the disk
	if _, err := f.WriteAt([]byte{0x7f, 0xff, 0xff, 0xff}, bat+4*bad); err != nil {
		t.Fatal(err)
	}
	f.Close()

	log, text := newLog(t)
	dir, m := mount(t, source, fusefs.Options{Logger: log})
	want, err := os.ReadFile(states[0].raw)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.Open(filepath.Join(dir, states[0].id, "disks", "web01.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	const block = 2 << 20
	for i := 0; i*block < len(want); i++ {
		got := make([]byte, block)
		n, err := disk.ReadAt(got, int64(i)*block)
		if i == bad {
			if n > 0 || !errors.Is(err, syscall.EIO) {
				t.Errorf("the damaged block gives %d bytes and %v, want EIO", n, err)
			}
		} else if n != block || string(got) != string(want[i*block:(i+1)*block]) {
			t.Errorf("block %d: %d bytes, %v, or other bytes than the disk's", i, n, err)
		}
	}
	if got := text.text(); !strings.Contains(got, "BAT entry 12") {
		t.Errorf("the log doesn't name the cause:\n%s", got)
	}
	if m.Stats().Errors == 0 {
		t.Error("the failure isn't counted")
	}
}

// TestTruncatedUnderneath cuts the image off while it is mounted: EIO, never
// zeros.
func TestTruncatedUnderneath(t *testing.T) {
	source, states := chain(t)
	dir, _ := mountChanging(t, source, fusefs.Options{Logger: discard()})
	big := filepath.Join(dir, states[0].id, "files", "var", "big.bin")
	f, err := os.Open(big)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 4096)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(states[0].vhd, 2<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(8<<20, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, f)
	if err == nil || n > 0 {
		t.Errorf("read %d bytes behind the cut, error %v", n, err)
	}
	if !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ESTALE) {
		t.Errorf("error %v, want EIO or ESTALE", err)
	}
}

// TestWrittenUnderneath writes to the image in place while somebody is inside
// the point: ESTALE at the next read, not the new bytes under the old names.
func TestWrittenUnderneath(t *testing.T) {
	source, states := chain(t)
	dir, _ := mountChanging(t, source, fusefs.Options{Logger: discard()})
	disk, err := os.Open(filepath.Join(dir, states[0].id, "disks", "web01.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	big, err := os.Open(filepath.Join(dir, states[0].id, "files", "var", "big.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	buf := make([]byte, 4096)
	if _, err := big.ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	vhd, err := os.OpenFile(states[0].vhd, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer vhd.Close()
	// The last byte before the footer: nothing that the formats would notice.
	fi, err := vhd.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vhd.WriteAt([]byte{0x55}, fi.Size()-513); err != nil {
		t.Fatal(err)
	}
	large := make([]byte, 1<<20) // spliced
	for name, read := range map[string]func() (int, error){
		"file":        func() (int, error) { return big.ReadAt(buf, 12<<20) },
		"file, large": func() (int, error) { return big.ReadAt(large, 8<<20) },
		"disk":        func() (int, error) { return disk.ReadAt(buf, 8<<20) },
	} {
		if n, err := read(); n > 0 || !errors.Is(err, syscall.ESTALE) {
			t.Errorf("%s: read %d bytes, error %v; want ESTALE", name, n, err)
		}
	}
}

// TestVanishedUnderneath removes the images of a mounted source. Whoever is inside
// a point gets errors; that the guest's files aren't there, or that a directory
// has ended, would be a lie that makes rsync delete.
func TestVanishedUnderneath(t *testing.T) {
	source, states := chain(t)
	dir, _ := mountChanging(t, source, fusefs.Options{Logger: discard()})
	point := filepath.Join(dir, states[0].id)
	inside, err := os.Open(point)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	for _, s := range states {
		if err := os.Remove(s.vhd); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 4096)
	if n, err := unix.Getdents(int(inside.Fd()), buf); n > 0 || err != unix.ESTALE {
		t.Errorf("listing the point: %d bytes, %v; want ESTALE", n, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(inside.Fd()), "files", &st, 0); err != unix.ESTALE {
		t.Errorf("looking into the point: %v, want ESTALE", err)
	}
}

// TestMissingParent shows a chain whose base is gone: its points are listed, and
// looking into one fails with the reason in the log.
func TestMissingParent(t *testing.T) {
	source, states := chain(t)
	if err := os.Remove(states[0].vhd); err != nil {
		t.Fatal(err)
	}
	log, text := newLog(t)
	dir, _ := mount(t, source, fusefs.Options{Logger: log})
	if _, err := os.ReadDir(filepath.Join(dir, states[2].id)); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading the point's directory: %v, want EIO", err)
	}
	if got := text.text(); !strings.Contains(got, filepath.Base(states[0].vhd)) {
		t.Errorf("the log doesn't name the missing parent %s:\n%s", filepath.Base(states[0].vhd), got)
	}
}

func TestMountpointRefused(t *testing.T) {
	source, _ := chain(t)
	inside := filepath.Join(source, "inside")
	if err := os.Mkdir(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		source:                            "hide the source",
		filepath.Dir(source):              "hide the source",
		inside:                            "inside the source",
		filepath.Join(source, "nonesuch"): "no such directory",
	} {
		err := startErr(t, source, dir)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("mounting on %s: %v, want %q", dir, err, want)
		}
	}
}
