package ext4

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"yester/internal/treetest"
)

var update = flag.Bool("update", false, "make the seeds in testdata anew")

// seeds are the committed images and how they are made.
var seeds = []struct {
	name, size, args string
	dirty            bool
}{
	{"ext2", "1M", "-t ext2 -b 1024 -I 128", false},
	{"extents", "2M", "-b 1024 -O ^has_journal,^metadata_csum,^64bit,^resize_inode", false},
	{"csum", "2M", "-b 1024 -O ^has_journal,^resize_inode,ea_inode", false},
	{"inline", "2M", "-b 1024 -O ^has_journal,^resize_inode,^metadata_csum,inline_data,bigalloc -C 4096", false},
	{"dirty", "4M", "-b 1024 -O ^resize_inode,^metadata_csum -J size=1", true},
	{"fast", "12M", "-b 1024 -O ^resize_inode,fast_commit -J size=2", true},
}

func seedPath(name string) string { return filepath.Join("testdata", name+".img.gz") }

// readSeed returns a committed image.
func readSeed(t testing.TB, name string) []byte {
	t.Helper()
	z, err := os.Open(seedPath(name))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	r, err := gzip.NewReader(z)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMakeSeeds(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	treetest.Need(t, "mkfs.ext4", "mount", "truncate")
	for _, s := range seeds {
		image := mkfs(t, s.size, append(strings.Fields(s.args), "-N", "64", "-m", "0")...)
		dir, unmount := treetest.Mount(t, image, "ext4", "")
		populateSeed(t, dir)
		if !s.dirty {
			unmount()
		} else {
			unix.Sync()
			for i := range 4 {
				name := fmt.Sprintf("%s/fsync%d", dir, i)
				f, err := os.Create(name)
				if err == nil {
					_, _ = f.WriteString("written late")
					_ = f.Sync()
					f.Close()
				}
				_ = os.RemoveAll(fmt.Sprintf("%s/d%d", dir, i))
			}
		}
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		unmount()
		var z bytes.Buffer
		w, _ := gzip.NewWriterLevel(&z, gzip.BestCompression)
		_, _ = w.Write(b)
		w.Close()
		if err := os.WriteFile(seedPath(s.name), z.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", s.name, z.Len())
	}
}

// populateSeed fills a tiny filesystem; data compress well.
func populateSeed(t *testing.T, dir string) {
	text := func(n int) []byte { return bytes.Repeat([]byte("0123456789abcde\n"), n/16+1)[:n] }
	for i, n := range []int{0, 10, 61, 150, 1024, 20_000} {
		_ = os.WriteFile(fmt.Sprintf("%s/file%d", dir, i), text(n), 0o644)
	}
	f, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(12) {
		_, _ = f.WriteAt([]byte("x"), i*40_000)
	}
	_, _ = f.WriteAt([]byte("x"), 70<<20)
	_ = unix.Fallocate(int(f.Fd()), 0, 71<<20, 8192)
	f.Close()
	_ = os.Symlink("short", dir+"/short")
	_ = os.Symlink(strings.Repeat("long/", 30), dir+"/long")
	_ = unix.Mknod(dir+"/dev", unix.S_IFCHR|0o600, int(unix.Mkdev(300, 7)))
	for i := range 5 {
		_ = os.MkdirAll(fmt.Sprintf("%s/d%d/sub", dir, i), 0o755)
	}
	_ = os.Mkdir(dir+"/hashed", 0o755)
	for i := range 60 {
		_ = os.Link(dir+"/file1", fmt.Sprintf("%s/hashed/%060d", dir, i))
	}
	for i := range 8 {
		_ = unix.Lsetxattr(dir+"/file3", fmt.Sprintf("user.name%d", i), text(i*9), 0)
	}
	_ = unix.Lsetxattr(dir+"/file4", "user.large", text(3000), 0)
	_ = unix.Lsetxattr(dir+"/file2", "system.posix_acl_access", []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"), 0)
}
