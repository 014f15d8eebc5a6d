package raw

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

func tool(t testing.TB, stdin string, args ...string) {
	t.Helper()
	p, err := exec.LookPath(args[0])
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is needed", args[0])
		}
		t.Skipf("%s is needed", args[0])
	}
	cmd := exec.Command(p, args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// TestSniff recognises what the field's tools make.
func TestSniff(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want, stdin string
		args        []string // without the file's name, which goes last
		size        int64
	}{
		{"gpt", "label: gpt\n,\n", []string{"sfdisk", "-q"}, 8 << 20},
		{"mbr", "label: dos\n,\n", []string{"sfdisk", "-q"}, 8 << 20},
		{"ext", "", []string{"mkfs.ext4", "-q", "-F"}, 8 << 20},
		{"ext", "", []string{"mkfs.ext2", "-q", "-F", "-b", "1024"}, 1 << 20},
		{"xfs", "", []string{"mkfs.xfs", "-q"}, 320 << 20},
		{"btrfs", "", []string{"mkfs.btrfs", "-q"}, 128 << 20},
		{"fat", "", []string{"mkfs.vfat", "-F", "32"}, 64 << 20},
		{"fat", "", []string{"mkfs.vfat", "-F", "12"}, 1 << 20},
		{"exfat", "", []string{"mkfs.exfat"}, 8 << 20},
		{"ntfs", "", []string{"mkntfs", "-q", "-F", "-f"}, 8 << 20},
		{"swap", "", []string{"mkswap"}, 1 << 20},
		{"luks", "", []string{"cryptsetup", "luksFormat", "-q", "--pbkdf-force-iterations=4", "--pbkdf-memory=32", "--key-file=/dev/zero", "--keyfile-size=8"}, 32 << 20},
	} {
		t.Run(c.want, func(t *testing.T) {
			path := filepath.Join(dir, "img")
			os.Remove(path)
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(c.size); err != nil {
				t.Fatal(err)
			}
			tool(t, c.stdin, append(c.args, path)...)
			info, err := Format.Probe(t.Context(), readertest.File{File: f})
			if err != nil || info.Variant != c.want || info.Format != "raw" || info.Size != c.size {
				t.Errorf("%q: %+v, %v", c.args, info, err)
			}
		})
	}
	for name, b := range map[string]readertest.Bytes{
		"empty":  nil,
		"zeros":  make(readertest.Bytes, 1<<20),
		"text":   readertest.Bytes(strings.Repeat("Lorem ipsum dolor sit amet. ", 4000)),
		"short":  readertest.Bytes("EFI PART"),
		"cut":    append(make(readertest.Bytes, 510), 0x55),
		"magics": append(make(readertest.Bytes, 3), "NTFS   "...),
	} {
		if info, err := Format.Probe(t.Context(), b); !errors.Is(err, ondisk.ErrFormat) {
			t.Errorf("%s: %+v, %v; want ErrFormat", name, info, err)
		}
	}
	if _, err := Format.Probe(t.Context(), broken{}); !errors.Is(err, syscall.EIO) || errors.Is(err, ondisk.ErrFormat) {
		t.Errorf("a disk that can't be read: %v", err)
	}
}

// broken fails all reads.
type broken struct{}

func (broken) Size() int64                       { return 1 << 20 }
func (broken) ReadAt([]byte, int64) (int, error) { return 0, syscall.EIO }

// TestMagics checks the table against itself: each magic lies in a window, and
// is found.
func TestMagics(t *testing.T) {
	for _, m := range slices.Concat(partitioned, volumes, []magic{bootSignature}) {
		b := make(readertest.Bytes, 0x20000)
		copy(b[m.off:], m.bytes)
		if got, err := Sniff(t.Context(), b); err != nil || got != m.name {
			t.Errorf("%q at %#x: %q, %v; want %q", m.bytes, m.off, got, err, m.name)
		}
	}
}

func TestImage(t *testing.T) {
	data := make(readertest.Bytes, 300_001)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	sec, err := block.NewSection(append(make(readertest.Bytes, 99), data...), 99, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	img, err := Format.Open(t.Context(), sec, imageformats.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	readertest.Run(t, img, data)
	if _, err := Format.Open(t.Context(), sec, imageformats.OpenOptions{Parent: img}); err == nil {
		t.Error("opens with a parent")
	}
}

// sparseFile shows holes of zeroed 4 KiB pages, as an origin's file does.
type sparseFile struct{ readertest.File }

func (f sparseFile) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	p := make([]byte, 4096)
	m, err := f.ReadAt(p[:min(4096-off%4096, n)], off)
	if err != nil && err != io.EOF {
		return block.Extent{}, err
	}
	if strings.Trim(string(p[:m]), "\x00") == "" {
		return block.Extent{Len: int64(m), Zero: true}, nil
	}
	return block.Extent{Len: int64(m), File: f.File.File, Off: off}, nil
}

// TestJoin reads a disk that split(1) took apart.
func TestJoin(t *testing.T) {
	dir := t.TempDir()
	data := make(readertest.Bytes, 250_000)
	for i := range data {
		if i>>13%2 == 0 {
			data[i] = byte(rand.Uint32())
		}
	}
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "", "split", "-b", "40000", "-d", "-a", "3", "--numeric-suffixes=1", path, path+".")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range slices.Backward(entries) {
		names = append(names, e.Name())
	}
	got, err := Parts("disk.raw.001", names)
	if err != nil || len(got) != 7 || got[0] != "disk.raw.001" || got[6] != "disk.raw.007" {
		t.Fatalf("Parts = %q, %v", got, err)
	}
	var parts []block.Reader
	var edges []int64
	for i, name := range got {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		parts = append(parts, sparseFile{readertest.File{File: f}})
		edges = append(edges, int64(i)*40000)
		if i == 3 {
			parts = append(parts, readertest.Bytes{}) // an empty part is none
		}
	}
	j, err := Join(parts)
	if err != nil {
		t.Fatal(err)
	}
	readertest.Run(t, j, data, edges...)
	none, err := Join(nil)
	if err != nil {
		t.Fatal(err)
	}
	readertest.Run(t, none, readertest.Bytes{})
	// A part that ends early is an error, not the end of the disk.
	bad, err := Join([]block.Reader{lying{readertest.Bytes("abc")}, readertest.Bytes("def")})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := bad.ReadAt(make([]byte, 8), 0); n != 3 || !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		t.Errorf("read over a short part: %d, %v", n, err)
	}
}

// lying promises a byte more than it has.
type lying struct{ readertest.Bytes }

func (l lying) Size() int64 { return l.Bytes.Size() + 1 }

func TestParts(t *testing.T) {
	for _, c := range []struct {
		first string
		names string
		want  string // empty when it fails
	}{
		{"d.001", "d.001 d.002 d.003 e.004 d.txt d", "d.001 d.002 d.003"},
		{"d.000", "d.002 d.001 d.000", "d.000 d.001 d.002"},
		{"d.01", "d.01 d.02", "d.01 d.02"},
		{"d.001", "", "d.001"},
		{"d.001", "d.000 d.001", "d.001"}, // told where to begin
		{"d.001", "d.001 d.003", ""},
		{"d.001", "d.001 d.2 d.02 d.002", ""},
		{"d.002", "d.001 d.002", ""},
		{"d.raw", "d.raw d.001", ""},
		{"d.aa", "d.aa d.ab", ""},
	} {
		got, err := Parts(c.first, strings.Fields(c.names))
		if strings.Join(got, " ") != c.want || (err == nil) != (c.want != "") {
			t.Errorf("Parts(%q, %q) = %q, %v; want %q", c.first, c.names, got, err, c.want)
		}
	}
}

// TestWrite checks bytes and holes of a written file.
func TestWrite(t *testing.T) {
	data := make(readertest.Bytes, 20<<20+777)
	for i := 5 << 20; i < 6<<20; i++ {
		data[i] = byte(rand.Uint32())
	}
	data[4096*100] = 1
	data[len(data)-1] = 9
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 30<<20)); err != nil { // what was there goes
		t.Fatal(err)
	}
	var last int64
	if err := Write(t.Context(), f, data, WriteOptions{Progress: func(n int64) { last = n }}); err != nil {
		t.Fatal(err)
	}
	if last != data.Size() {
		t.Errorf("last progress %d", last)
	}
	readertest.Run(t, readertest.File{File: f}, data)
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; used > 2<<20 {
		t.Errorf("the file takes %d bytes for one megabyte and two bytes of data", used)
	}
	ro, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if err := Write(t.Context(), ro, data, WriteOptions{}); err == nil {
		t.Error("writes to a file opened for reading")
	}
}
