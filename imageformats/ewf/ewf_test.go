package ewf

import (
	"crypto/md5"
	"crypto/sha1"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// tool runs a program that a test needs and returns what it prints.
func tool(t testing.TB, args ...string) string {
	t.Helper()
	p, err := exec.LookPath(args[0])
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is needed", args[0])
		}
		t.Skipf("%s is needed", args[0])
	}
	out, err := exec.Command(p, args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

func openFile(t testing.TB, path string) readertest.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return readertest.File{File: f}
}

// openSet opens the set whose first segment is at path.
func openSet(t testing.TB, path string) (imageformats.Image, error) {
	t.Helper()
	list, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	segments, err := Segments(filepath.Base(path), names)
	if err != nil {
		return nil, err
	}
	var files []block.Reader
	for _, s := range segments {
		files = append(files, openFile(t, filepath.Join(filepath.Dir(path), s)))
	}
	img, err := Format.Open(t.Context(), files[0], imageformats.OpenOptions{Files: files[1:], Name: segments[0]})
	if err == nil {
		t.Cleanup(func() { img.Close() })
	}
	return img, err
}

// disk makes a disk of size bytes: noise, text and zeros in turn.
func disk(size int) readertest.Bytes {
	b := make(readertest.Bytes, size)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range b {
		switch i / 50_000 % 3 {
		case 0:
			b[i] = byte(rng.Uint32())
		case 1:
			b[i] = "compresses well"[i%15]
		}
	}
	return b
}

// acquire makes a set of data with ewfacquire and returns its first segment.
func acquire(t testing.TB, data []byte, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain.dd")
	if err := os.WriteFile(plain, data, 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, append(append([]string{"ewfacquire", "-u", "-q", "-t", filepath.Join(dir, "set"), "-C", "case", "-D", "description",
		"-e", "examiner", "-E", "evidence", "-N", "notes", "-m", "fixed", "-M", "physical"}, args...), plain)...)
	if err := os.Remove(plain); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"set.E01", "set.e01"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	t.Fatal("ewfacquire wrote no set.E01")
	return ""
}

// TestRead compares what sets of every kind hold with what they were made of, and
// the digests with the disk's own.
func TestRead(t *testing.T) {
	small, large := disk(500<<10+6*512), disk(2<<20+6*512)
	for _, args := range []string{
		"-f encase1 -c none", "-f encase2 -c fast", "-f encase3 -c best", "-f encase4 -c none",
		"-f encase5 -c none", "-f encase5 -c fast", "-f encase5 -c best", "-f encase5 -c fast -S 1048576",
		"-f encase6 -c none -d sha1", "-f encase6 -c fast -d sha1", "-f encase6 -c best -d sha1", "-f encase6 -c none -S 1048576 -d sha1", "-f encase6 -c empty-block -S 1048576",
		"-f encase7 -c none -d sha1 -S 1048576", "-f encase7 -c fast -d sha1", "-f encase7 -c best -d sha1",
		"-f linen5 -c fast", "-f linen6 -c none", "-f linen7 -c best", "-f ftk -c fast", "-f ftk -c none", "-f ewfx -c fast -d sha1",
		"-f encase6 -c fast -b 16", "-f encase6 -c none -b 32768", "-f encase6 -c fast -b 4096", "-f encase6 -c best -P 1024 -b 128",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			data := small
			if strings.Contains(args, "-S") {
				data = large // for several segments
			}
			path := acquire(t, data, strings.Fields(args)...)
			img, err := openSet(t, path)
			if err != nil {
				t.Fatal(err)
			}
			readertest.Run(t, img, data, 32<<10, 64<<10)
			info := img.(*Image).Info()
			if len(info.Warnings) > 0 || info.Format != "ewf" || info.Variant != "fixed" || info.Created.IsZero() {
				t.Errorf("%+v", info)
			}
			m, s := img.(imageformats.Hasher).Hashes()
			if sum := md5.Sum(data); !slices.Equal(m, sum[:]) || info.Digests.MD5 != fmt.Sprintf("%x", sum) {
				t.Errorf("MD5 %x, %+v; want %x", m, info.Digests, sum)
			}
			if sum := sha1.Sum(data); strings.Contains(args, "-d sha1") && !strings.Contains(args, "ewfx") && !slices.Equal(s, sum[:]) {
				t.Errorf("SHA-1 %x, want %x", s, sum)
			}
			first, err := Format.Probe(t.Context(), openFile(t, path))
			if err != nil || first.Size != img.Size() || first.ID != info.ID || !first.Created.Equal(info.Created) {
				t.Errorf("the first segment says %+v, %v", first, err)
			}
			tool(t, "ewfverify", "-q", path)
		})
	}
}

// TestManySegments has more segments than there are numbers of two digits.
func TestManySegments(t *testing.T) {
	data := disk(105 << 20)
	rng := rand.NewChaCha8([32]byte{2})
	rng.Read(data)
	path := acquire(t, data, "-f", "encase6", "-c", "none", "-S", "1048576")
	for _, name := range []string{"set.E99", "set.EAA"} {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), name)); err != nil {
			t.Fatal(err)
		}
	}
	img, err := openSet(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readertest.Hash(img, 1<<20); err != nil {
		t.Error(err)
	} else if want, _ := readertest.Hash(data, 1<<20); got != want {
		t.Error("other bytes")
	}
	dir := filepath.Dir(path)
	for _, c := range []struct{ name, want string }{
		{"set.EAB", "segment 101 is missing"},
		{"set.E50", "segment 50"},
	} {
		away := filepath.Join(dir, "away")
		if err := os.Rename(filepath.Join(dir, c.name), away); err != nil {
			t.Fatal(err)
		}
		if _, err := openSet(t, path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("without %s: %v", c.name, err)
		}
		if err := os.Rename(away, filepath.Join(dir, c.name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Format.Probe(t.Context(), openFile(t, filepath.Join(dir, "set.E02"))); err == nil || !strings.Contains(err.Error(), "segment 2 of a set") {
		t.Errorf("the second by itself: %v", err)
	}
}

// TestStream reads what ewfacquirestream writes, which knows the size at the end
// only.
func TestStream(t *testing.T) {
	data := disk(1<<20 + 512)
	tool(t, "ewfacquirestream", "-h")
	dir := t.TempDir()
	cmd := exec.Command("ewfacquirestream", "-q", "-f", "encase6", "-c", "fast", "-t", filepath.Join(dir, "set"))
	cmd.Stdin = strings.NewReader(string(data))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	img, err := openSet(t, filepath.Join(dir, "set.E01"))
	if err != nil {
		t.Fatal(err)
	}
	readertest.Run(t, img, data)
}

func TestSplitName(t *testing.T) {
	for _, c := range []struct {
		name   string
		number int
	}{
		{"a.E01", 1}, {"a.e99", 99}, {"a.EAA", 100}, {"a.EAZ", 125}, {"a.EBA", 126}, {"a.EZZ", 775}, {"a.FAA", 776}, {"a.ZZZ", maxSegments},
		{"a.E00", 0}, {"a.E1", 0}, {"a.DAA", 0}, {"a.F01", 0}, {"E01", 0}, {"a.E0A", 0}, {"a.E012", 0}, {"a", 0},
	} {
		base, n, ok := SplitName(c.name)
		if n != c.number || ok != (c.number > 0) || ok && base != "a" {
			t.Errorf("%s: %q, %d, %t", c.name, base, n, ok)
		}
	}
	names := []string{"a.E01", "a.E02", "a.exe", "a.txt", "b.E03", "a.log"}
	if got, err := Segments("a.E01", names); err != nil || len(got) != 2 {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Segments("a.E01", append(names, "a.E04")); err == nil || !strings.Contains(err.Error(), "segment 3") {
		t.Errorf("with a gap: %v", err)
	}
	if _, err := Segments("a.E01", append(names, "a.e02")); err == nil || !strings.Contains(err.Error(), "both") {
		t.Errorf("with two of one number: %v", err)
	}
}
