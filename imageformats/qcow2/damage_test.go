package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// imageBytes makes an image of 64 KiB in clusters of 512 bytes, all of it data,
// after which change may run qemu-img on it.
func imageBytes(t testing.TB, options string, change func(path string)) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "img")
	create(t, path, 64<<10, options)
	tool(t, "qemu-io", "-t", "unsafe", "-f", "qcow2", "-c", "write -P 7 0 64k", path)
	if change != nil {
		change(path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func u32(v uint32) []byte { return be.AppendUint32(nil, v) }
func u64(v uint64) []byte { return be.AppendUint64(nil, v) }

// TestHeader writes into the header what can't be read, or what is worth a word.
func TestHeader(t *testing.T) {
	sound := imageBytes(t, "cluster_size=512", func(path string) {
		tool(t, "qemu-img", "snapshot", "-c", "one", path)
	})
	for _, c := range []struct {
		name string
		off  int
		v    []byte
		err  error  // nil: a warning
		msg  string // part of the error or the warning
	}{
		{"magic", 0, []byte{'q'}, ondisk.ErrFormat, "no magic"},
		{"version 1", offVersion, u32(1), ondisk.ErrUnsupported, "version at 0x4: 1"},
		{"version 4", offVersion, u32(4), ondisk.ErrUnsupported, "4"},
		{"small clusters", offClusterBits, u32(8), ondisk.ErrCorrupt, "cluster bits"},
		{"large clusters", offClusterBits, u32(22), ondisk.ErrCorrupt, "cluster bits"},
		{"huge clusters", offClusterBits, u32(0xffffffff), ondisk.ErrCorrupt, "cluster bits"},
		{"AES", offCrypt, u32(cryptAES), ondisk.ErrUnsupported, "AES"},
		{"LUKS", offCrypt, u32(cryptLUKS), ondisk.ErrUnsupported, "LUKS"},
		{"other cipher", offCrypt, u32(9), ondisk.ErrUnsupported, "method 9"},
		{"unknown bit", offIncompatible, u64(1 << 33), ondisk.ErrUnsupported, "bit 33"},
		{"dirty", offIncompatible, u64(uint64(dirty)), nil, "dirty bit"},
		{"corrupt", offIncompatible, u64(uint64(corrupt)), nil, "marked as corrupt"},
		{"data file", offIncompatible, u64(uint64(dataFile)), ondisk.ErrUnsupported, "external data file"},
		{"zstd without its bit", offCompression, []byte{1}, ondisk.ErrCorrupt, "compression type"},
		{"bit without zstd", offIncompatible, u64(uint64(compressionType)), ondisk.ErrCorrupt, "compression type"},
		{"small subclusters", offIncompatible, u64(uint64(extendedL2)), ondisk.ErrCorrupt, "extended"},
		{"header length", offHeaderLength, u32(96), ondisk.ErrCorrupt, "header length"},
		{"odd header length", offHeaderLength, u32(105), ondisk.ErrCorrupt, "header length"},
		{"long header", offHeaderLength, u32(1 << 20), ondisk.ErrCorrupt, "header length"},
		{"size", offSize, u64(1 << 63), ondisk.ErrCorrupt, "size"},
		{"size beyond L1", offSize, u64(1 << 40), ondisk.ErrCorrupt, "entries"},
		{"L1 size", offL1Size, u32(0xffffffff), ondisk.ErrCorrupt, "more than 32 MiB"},
		{"no L1", offL1Size, u32(0), ondisk.ErrCorrupt, "needs 2"},
		{"L1 unaligned", offL1Table, u64(0x208), ondisk.ErrCorrupt, "L1 table"},
		{"L1 at 0", offL1Table, u64(0), ondisk.ErrCorrupt, "L1 table"},
		{"L1 far", offL1Table, u64(1 << 62), ondisk.ErrCorrupt, "outside the file"},
		{"backing name", offBackingOffset, append(u64(500), u32(100)...), ondisk.ErrCorrupt, "beyond the first cluster"},
		{"long backing name", offBackingOffset, append(u64(104), u32(1024)...), ondisk.ErrCorrupt, "1024 bytes"},
		{"far backing name", offBackingOffset, append(u64(1<<63), u32(4)...), ondisk.ErrCorrupt, "beyond the first cluster"},
		{"extension", headerLength + 8, append(u32(0x12345678), u32(0xfffffff0)...), ondisk.ErrCorrupt, "header extension"},
		{"snapshots", offSnapshots, u32(1 << 20), nil, "0 of 1048576 snapshots"},
		{"two snapshots", offSnapshots, u32(2), nil, "1 of 2 snapshots"},
		{"snapshot table", offSnapshotTable, u64(1 << 50), nil, "0 of 1 snapshots"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(sound)
			copy(b[c.off:], c.v)
			info, err := Format.Probe(t.Context(), readertest.Bytes(b))
			if c.err == nil {
				if err != nil || len(info.Warnings) != 1 || !strings.Contains(info.Warnings[0], c.msg) {
					t.Errorf("%v, warnings %q; want %q", err, info.Warnings, c.msg)
				}
				return
			}
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.msg) {
				t.Errorf("%v, want %v with %q", err, c.err, c.msg)
			}
			if _, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{}); !errors.Is(err, c.err) {
				t.Errorf("opens: %v", err)
			}
		})
	}
	// The image's own table names bits that aren't known here.
	b := imageBytes(t, "", nil)
	b[bytes.Index(b, u32(extFeatureNames))+extHeaderSize+1] = 40
	b[offIncompatible+2] = 1 // bit 40
	if _, err := Format.Probe(t.Context(), readertest.Bytes(b)); !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), "bit 40 (dirty bit)") {
		t.Errorf("a named bit: %v", err)
	}
	for n := range 600 {
		if _, err := Format.Probe(t.Context(), readertest.Bytes(sound[:n])); err == nil {
			t.Fatalf("the first %d bytes pass for an image", n)
		}
	}
}

// TestEntries damages table entries: what they map can't be read, all else can.
func TestEntries(t *testing.T) {
	for _, options := range []string{"cluster_size=512", "cluster_size=512,compat=0.10"} {
		sound := imageBytes(t, options, nil)
		l1 := be.Uint64(sound[offL1Table:])
		l2 := be.Uint64(sound[l1:]) & offsetMask
		host := be.Uint64(sound[l2:])
		v2 := strings.Contains(options, "0.10")
		for _, c := range []struct {
			name string
			at   uint64
			v    uint64
			msg  string
		}{
			{"L1 reserved", l1, l2 | 1<<60, "L1 entry 0"},
			{"L1 unaligned", l1, l2 + 0x200 | 2, "reserved"},
			{"L1 over header", l1, 0x1ff << 1 &^ 0x3ff, ""},
			{"L1 at itself", l1, l1, "over the L1 table"},
			{"L1 past the end", l1, 1 << 40, "L2 table 0"},
			{"reserved", l2, host | 2, "reserved"},
			{"high reserved", l2, host | 1<<58, "reserved"},
			{"over L1", l2, l1, "over the L1 table"},
			{"over refcounts", l2, be.Uint64(sound[offRefcountTable:]), "reference count"},
			{"bit 63 alone", l2, copied, "over the header"},
			{"past the end", l2, 1 << 40, "past the end"},
			{"far past the end", l2, offsetMask, "past the end"},
			{"zero cluster", l2, zeroCluster, map[bool]string{true: "zero cluster"}[v2]},
			{"compressed nothing", l2, compressed | host&^copied, "compressed cluster"},
			{"compressed past the end", l2, compressed | 1<<50, "outside the file"},
			{"compressed over header", l2, compressed | 8, "over its header"},
			{"compressed and bit 63", l2, compressed | host | copied, "bit 63"},
		} {
			t.Run(options+" "+c.name, func(t *testing.T) {
				b := bytes.Clone(sound)
				copy(b[c.at:], u64(c.v))
				img, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{Name: "img"})
				if err != nil {
					t.Fatal(err)
				}
				defer img.Close()
				p := make([]byte, 512)
				n, err := img.ReadAt(p, 0)
				if c.msg == "" {
					return // told above, or no damage
				}
				if n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), c.msg) || !strings.Contains(err.Error(), "img") {
					t.Errorf("%d, %v; want %q", n, err, c.msg)
				}
				if n, err := img.ReadAt(make([]byte, 64<<10), 0); n != 0 || err == nil {
					t.Errorf("the whole reads: %d, %v", n, err)
				}
				if n, err := img.ReadAt(p, 63<<10); n != 512 || err != nil || p[0] != 7 {
					t.Errorf("the rest: %d, %v", n, err)
				}
			})
		}
	}
}

// TestSubclusters damages extended entries.
func TestSubclusters(t *testing.T) {
	sound := imageBytes(t, "extended_l2=on,cluster_size=16k", nil)
	l2 := be.Uint64(sound[be.Uint64(sound[offL1Table:]):]) & offsetMask
	host := be.Uint64(sound[l2:])
	for _, c := range []struct {
		name          string
		entry, bitmap uint64
		msg           string
	}{
		{"data and zeros", host, 1<<32 | 1, "both data and zeros"},
		{"zero bit", host | zeroCluster, 1, "reserved"},
		{"nowhere", 0, 1, "over the header"},
		{"unaligned", host + 512, 1, "boundary"},
	} {
		b := bytes.Clone(sound)
		copy(b[l2:], append(u64(c.entry), u64(c.bitmap)...))
		img, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := img.ReadAt(make([]byte, 512), 0); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), c.msg) {
			t.Errorf("%s: %d, %v; want %q", c.name, n, err, c.msg)
		}
	}
}

// TestPacked damages compressed data.
func TestPacked(t *testing.T) {
	for _, kind := range []string{"zlib", "zstd"} {
		dir := t.TempDir()
		plain, path := filepath.Join(dir, "plain"), filepath.Join(dir, "img")
		text := bytes.Repeat([]byte("squeezed\n"), 20_000)[:128<<10]
		if err := os.WriteFile(plain, text, 0o644); err != nil {
			t.Fatal(err)
		}
		tool(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type="+kind, plain, path)
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		l2 := be.Uint64(sound[be.Uint64(sound[offL1Table:]):]) & offsetMask
		e := be.Uint64(sound[l2:])
		at := e & (1<<(packedShift-16) - 1)
		for name, damage := range map[string]func(b []byte) []byte{
			"noise":   func(b []byte) []byte { copy(b[at:], bytes.Repeat([]byte{0xff}, 64)); return b },
			"zeros":   func(b []byte) []byte { clear(b[at:][:64]); return b },
			"cut off": func(b []byte) []byte { return b[:at+20] },
		} {
			b := damage(bytes.Clone(sound))
			img, err := Format.Open(t.Context(), readertest.Bytes(b), imageformats.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if n, err := img.ReadAt(make([]byte, 512), 0); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) {
					t.Errorf("%s, %s: %d, %v", kind, name, n, err)
				}
			}
			img.Close()
		}
	}
}

// TestTruncated cuts an image off: what lies before the cut is read, the rest is
// an error.
func TestTruncated(t *testing.T) {
	sound := imageBytes(t, "cluster_size=512", nil)
	for cut := len(sound) - 512; cut > len(sound)/2; cut -= 1000 {
		img, err := Format.Open(t.Context(), readertest.Bytes(sound[:cut]), imageformats.OpenOptions{})
		if err != nil {
			continue
		}
		good, bad := 0, 0
		for off := int64(0); off < img.Size(); off += 512 {
			p := make([]byte, 512)
			switch n, err := img.ReadAt(p, off); {
			case err == nil && bytes.Equal(p, bytes.Repeat([]byte{7}, 512)):
				good++
			case n == 0 && errors.Is(err, ondisk.ErrCorrupt):
				bad++
			default:
				t.Fatalf("cut at %#x: %d bytes at %#x, %v", cut, n, off, err)
			}
		}
		if good == 0 || bad == 0 {
			t.Errorf("cut at %#x: %d clusters read, %d fail", cut, good, bad)
		}
	}
}

// TestOpenOptions opens images with the wrong things.
func TestOpenOptions(t *testing.T) {
	dir := t.TempDir()
	base, path, data := filepath.Join(dir, "base"), filepath.Join(dir, "img"), filepath.Join(dir, "data")
	create(t, base, 1<<20, "")
	create(t, path, 1<<20, "", "-b", base, "-F", "qcow2")
	create(t, filepath.Join(dir, "ext"), 1<<20, "data_file="+data)
	parent := openImage(t, base, "")
	for _, c := range []struct {
		file string
		opt  imageformats.OpenOptions
		msg  string
	}{
		{path, imageformats.OpenOptions{}, "without its backing file"},
		{path, imageformats.OpenOptions{Parent: parent, ParentInfo: &imageformats.Info{Format: "raw"}}, "stated to be"},
		{base, imageformats.OpenOptions{Parent: parent}, "and has none"},
		{filepath.Join(dir, "ext"), imageformats.OpenOptions{}, "external data file"},
	} {
		if _, err := Format.Open(t.Context(), openFile(t, c.file), c.opt); err == nil || !strings.Contains(err.Error(), c.msg) {
			t.Errorf("%s: %v, want %q", c.file, err, c.msg)
		}
	}
	secret := filepath.Join(dir, "luks")
	tool(t, "qemu-img", "create", "-q", "--object", "secret,id=s,data=abc", "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", secret, "1M")
	if _, err := Format.Probe(t.Context(), openFile(t, secret)); !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), "LUKS") {
		t.Errorf("an encrypted image: %v", err)
	}
}

// TestRunning has QEMU save a running machine.
func TestRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "img")
	create(t, path, 1<<20, "")
	writes(t, path, 1, 5, false)
	tool(t, "qemu-system-x86_64", "--version")
	cmd := exec.Command("qemu-system-x86_64", "-S", "-display", "none", "-monitor", "stdio", "-m", "8", "-net", "none", "-drive", "if=virtio,format=qcow2,file="+path)
	cmd.Stdin = strings.NewReader("savevm live\nquit\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info := openImage(t, path, "").Info()
	if len(info.Snapshots) != 1 || !info.Snapshots[0].Running || info.Snapshots[0].Name != "live" || info.Snapshots[0].Size != 1<<20 {
		t.Errorf("%+v", info.Snapshots)
	}
	readertest.Run(t, openImage(t, path, info.Snapshots[0].ID), asQEMU(t, path, info.Snapshots[0].ID))
}

func TestBackingName(t *testing.T) {
	for _, c := range []struct{ stored, name, format, err string }{
		{"base.qcow2", "base.qcow2", "", ""},
		{"../a/b c.raw", "../a/b c.raw", "", ""},
		{"/images/base", "/images/base", "", ""},
		{"file:/images/base", "/images/base", "", ""},
		{"file:nbd:x", "nbd:x", "", ""},
		{`C:\images\base.vhdx`, `C:\images\base.vhdx`, "", ""},
		{"dir/a:b", "dir/a:b", "", ""},
		{"nbd:unix:/s", "", "", `"nbd"`},
		{"rbd:pool/image", "", "", `"rbd"`},
		{"https://host/x.qcow2", "", "", `"https"`},
		{`json:{"driver":"qcow2","file":{"driver":"file","filename":"b.qcow2"}}`, "b.qcow2", "qcow2", ""},
		{`json:{"driver":"raw","file.driver":"file","file.filename":"b"}`, "b", "raw", ""},
		{`json:{"driver":"file","filename":"b"}`, "b", "", ""},
		{`json:{"file":{"filename":"b"}}`, "b", "", ""},
		{`json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"b"}}`, "", "", `"offset"`},
		{`json:{"driver":"nbd","host":"x"}`, "", "", `"host"`},
		{`json:{"driver":"qcow2","file":{"driver":"https","url":"x"}}`, "", "", "option"},
		{`json:{"driver":"qcow2"}`, "", "", "no file name"},
		{`json:{`, "", "", "json"},
	} {
		name, format, err := backingName(c.stored)
		if name != c.name || format != c.format || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %q, %v", c.stored, name, format, err)
		}
	}
}

// FuzzQcow2 opens hostile images. Nothing may panic; a map must tile the disk; a
// read in pieces must give what a whole read gives.
func FuzzQcow2(f *testing.F) {
	for i, options := range []string{"cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=512,compression_type=zstd", "extended_l2=on,cluster_size=16k"} {
		path := filepath.Join(f.TempDir(), "img")
		create(f, path, 4<<10, options)
		writes(f, path, uint64(i), 4, true)
		tool(f, "qemu-img", "snapshot", "-c", fmt.Sprint(i), path)
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	parent := readertest.Bytes(bytes.Repeat([]byte("parent"), 1000))
	f.Fuzz(func(t *testing.T, b []byte) {
		file := readertest.Bytes(b)
		info, err := Format.Probe(t.Context(), file)
		if err != nil {
			return
		}
		opt := imageformats.OpenOptions{}
		if info.Parent != nil {
			opt.Parent = flat{parent}
		}
		for range info.Files {
			opt.Files = append(opt.Files, parent)
		}
		states := []string{""}
		for _, s := range info.Snapshots[:min(2, len(info.Snapshots))] {
			states = append(states, s.ID)
		}
		for _, opt.Snapshot = range states {
			img, err := Format.Open(t.Context(), file, opt)
			if err != nil {
				continue
			}
			if img.Size() < 0 || opt.Snapshot == "" && img.Size() != info.Size {
				t.Fatalf("Open sees %d bytes, Probe %d", img.Size(), info.Size)
			}
			readertest.Walk(t, img, 200)
			img.Close()
		}
	})
}

// flat is a Reader as an Image.
type flat struct{ readertest.Bytes }

func (flat) Close() error { return nil }
