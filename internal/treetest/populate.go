package treetest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Populate fills dir, the root of a fresh and writable filesystem that the kernel
// has mounted, with what filesystems find hard: names of all kinds and lengths,
// holes, unwritten space, links, devices, times, owners, attributes, ACLs and
// large directories. What a filesystem can't hold (a time, an attribute) is left
// out. It takes about 30 MiB.
func Populate(t testing.TB, dir string) {
	t.Helper()
	p := &populator{t: t, dir: dir, rng: rand.New(rand.NewPCG(1, 2))}
	p.files()
	p.sparse()
	p.names()
	p.links()
	p.nodes()
	p.times()
	p.xattrs()
	p.directories()
}

type populator struct {
	t   testing.TB
	dir string
	rng *rand.Rand
}

func (p *populator) path(name string) string { return p.dir + "/" + name }

func (p *populator) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal("populate: ", err)
	}
}

func (p *populator) mkdir(name string) { p.t.Helper(); p.must(os.MkdirAll(p.path(name), 0o755)) }

// data returns n bytes without runs of zeros.
func (p *populator) data(n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], p.rng.Uint64()|0x0101010101010101)
	}
	return b[:n]
}

func (p *populator) write(name string, n int) {
	p.t.Helper()
	p.must(os.WriteFile(p.path(name), p.data(n), 0o644))
}

func (p *populator) files() {
	p.mkdir("files")
	for _, n := range []int{0, 1, 59, 60, 61, 100, 128, 156, 159, 160, 161, 200, 1000, 1023, 1024, 1025,
		4095, 4096, 4097, 12 << 10, 50_000, 65536, 300_001, 3 << 20} {
		p.write(fmt.Sprintf("files/%d", n), n)
	}
	for _, mode := range []uint32{0o4755, 0o2711, 0o1777, 0, 0o6444} {
		name := fmt.Sprintf("files/mode%o", mode)
		p.write(name, 10)
		p.must(unix.Chmod(p.path(name), mode))
	}
	p.write("files/owner", 5)
	p.must(os.Lchown(p.path("files/owner"), 4_000_000_000, 70_000))
	for i := range 5 {
		p.must(os.Link(p.path("files/4097"), p.path(fmt.Sprintf("files/hard%d", i))))
	}
	// Appends in turn interleave the extents of two files.
	var pair [2]*os.File
	for i := range pair {
		f, err := os.Create(p.path(fmt.Sprintf("files/interleaved%d", i)))
		p.must(err)
		defer f.Close()
		pair[i] = f
	}
	for range 25 {
		for _, f := range pair {
			_, err := f.Write(p.data(9000))
			p.must(err)
			p.must(f.Sync())
		}
	}
}

func (p *populator) sparse() {
	p.mkdir("sparse")
	file := func(name string, size int64, at ...int64) *os.File {
		f, err := os.Create(p.path("sparse/" + name))
		p.must(err)
		for _, off := range at {
			_, err := f.WriteAt(p.data(3000), off)
			p.must(err)
		}
		if size > 0 {
			p.must(f.Truncate(size))
		}
		p.t.Cleanup(func() { f.Close() })
		return f
	}
	closeAll := func(files ...*os.File) {
		for _, f := range files {
			p.must(f.Close())
		}
	}
	closeAll(file("all", 1<<20), file("tail", 1<<20+7, 0), file("head", 0, 1<<20), file("middle", 0, 0, 5<<20),
		file("far", 0, 0, 13<<10, 300<<10, 1<<20, 70<<20)) // reaches three levels of a block map of 1 KiB blocks
	f := file("comb", 0) // every other 8 KiB: more extents than fit in an inode or a block
	for i := range int64(900) {
		_, err := f.WriteAt(p.data(700), i*16<<10)
		p.must(err)
	}
	closeAll(f)

	f = file("fallocated", 0, 0)
	if unix.Fallocate(int(f.Fd()), 0, 8<<10, 1<<20) == nil {
		_, err := f.WriteAt(p.data(5000), 500<<10)
		p.must(err)
	}
	closeAll(f)
	f = file("keepsize", 0, 0)
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20)
	closeAll(f)
	f = file("punched", 0)
	_, err := f.WriteAt(p.data(400<<10), 0)
	p.must(err)
	for i := range int64(20) {
		_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, i*17000, 9000)
	}
	closeAll(f)
	f = file("unwritten", 0)
	_ = unix.Fallocate(int(f.Fd()), 0, 0, 300<<10)
	closeAll(f)
}

func (p *populator) names() {
	p.mkdir("names")
	for i, name := range []string{
		"a", "with space", "new\nline", "tab\t", "\x01\x7f", "\xff\xfe\x80 not utf-8", "Ünïcödé", "日本語",
		"-dash", "...", ". dot", "back\\slash", "quote'\"", "*?[", strings.Repeat("n", 255), strings.Repeat("é", 127),
		strings.Repeat("\xff", 255), "UPPER", "upper2", "trailing ", "\xc3", "CON", "a:b",
	} {
		if err := os.WriteFile(p.path("names/"+name), []byte{byte(i)}, 0o600); err != nil {
			p.t.Logf("populate: name %q: %v", name, err)
		}
	}
}

func (p *populator) links() {
	p.mkdir("links")
	for _, n := range []int{1, 20, 58, 59, 60, 61, 100, 159, 200, 1000, 1023} {
		target := strings.Repeat("t/", n)[:n]
		_ = os.Symlink(target, p.path(fmt.Sprintf("links/%d", n))) // some are too long for some
	}
	p.must(os.Symlink("../files/1", p.path("links/real")))
	p.must(os.Symlink("\xff\x01binary", p.path("links/binary")))
	p.must(os.Symlink("/etc/passwd", p.path("links/absolute")))
}

func (p *populator) nodes() {
	p.mkdir("nodes")
	mknod := func(name string, mode uint32, major, minor uint32) {
		p.must(unix.Mknod(p.path("nodes/"+name), mode, int(unix.Mkdev(major, minor))))
	}
	mknod("null", unix.S_IFCHR|0o666, 1, 3)
	mknod("sda1", unix.S_IFBLK|0o660, 8, 1)
	mknod("nvme", unix.S_IFBLK|0o660, 259, 70_000)
	mknod("major", unix.S_IFCHR|0o600, 300, 5)
	mknod("zero", unix.S_IFCHR, 0, 0)
	mknod("largest", unix.S_IFCHR, 4095, 1<<20-1)
	mknod("fifo", unix.S_IFIFO|0o644, 0, 0)
	mknod("socket", unix.S_IFSOCK|0o755, 0, 0)
}

func (p *populator) times() {
	p.mkdir("times")
	for i, sec := range []int64{-1, 0, 1, -2147483648, 2147483647, 2147483648, 4294967295, 4294967296, 10_000_000_000, 15_032_385_535, -1_000_000} {
		name := fmt.Sprintf("times/%d", i)
		p.write(name, 3)
		ts := []unix.Timespec{{Sec: sec, Nsec: 987_654_321}, {Sec: sec, Nsec: int64(i)}}
		p.must(unix.UtimesNanoAt(unix.AT_FDCWD, p.path(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	ts := []unix.Timespec{{Sec: 1_000_000_000, Nsec: 1}, {Sec: 1_100_000_000, Nsec: 999_999_999}}
	p.must(unix.UtimesNanoAt(unix.AT_FDCWD, p.path("links/real"), ts, unix.AT_SYMLINK_NOFOLLOW))
}

func (p *populator) xattrs() {
	p.mkdir("xattrs")
	set := func(name, attr, value string) {
		// Not every filesystem has room for all, nor all namespaces.
		_ = unix.Lsetxattr(p.path(name), attr, []byte(value), 0)
	}
	for i, n := range []int{0, 1, 4, 30, 60, 100, 500, 900, 3000, 3900, 20_000, 60_000} {
		name := fmt.Sprintf("xattrs/value%d", n)
		p.write(name, i*30)
		set(name, "user.value", string(p.data(n)))
	}
	p.write("xattrs/many", 100)
	for i := range 30 {
		set("xattrs/many", fmt.Sprintf("user.number%d", i), strings.Repeat("v", i))
	}
	p.write("xattrs/spaces", 100)
	set("xattrs/spaces", "user.u", "1")
	set("xattrs/spaces", "trusted.t", "\x00\xff")
	set("xattrs/spaces", "security.capability", "\x01\x00\x00\x02\x00\x04\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	set("xattrs/spaces", "user."+strings.Repeat("n", 200), "long name")
	set("xattrs/spaces", "user.\xff\xfe", "bytes")
	p.mkdir("xattrs/dir")
	set("xattrs/dir", "user.on.dir", "d")
	p.must(os.Symlink("x", p.path("xattrs/link")))
	set("xattrs/link", "trusted.on.link", "l")
	p.must(os.Symlink(strings.Repeat("y", 100), p.path("xattrs/longlink")))
	set("xattrs/longlink", "trusted.on.link", strings.Repeat("l", 300))

	const undefined = 1<<32 - 1
	acl := func(entries ...[3]uint32) string {
		b := []byte{2, 0, 0, 0}
		for _, e := range entries {
			b = append(b, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
		}
		return string(b)
	}
	full := acl([3]uint32{1, 7, undefined}, [3]uint32{2, 6, 1000}, [3]uint32{2, 4, 3_000_000_000}, [3]uint32{4, 5, undefined},
		[3]uint32{8, 1, 50}, [3]uint32{16, 7, undefined}, [3]uint32{32, 0, undefined})
	p.write("xattrs/acl", 10)
	set("xattrs/acl", "system.posix_acl_access", full)
	set("xattrs/dir", "system.posix_acl_access", full)
	set("xattrs/dir", "system.posix_acl_default", full)
	p.write("xattrs/dir/inherits", 10)
	p.mkdir("xattrs/dir/sub")
}

func (p *populator) directories() {
	p.mkdir("dirs/empty")
	deep := "dirs"
	for i := range 40 {
		deep = filepath.Join(deep, fmt.Sprintf("level%d", i))
	}
	p.mkdir(deep)
	p.write(deep+"/bottom", 1)
	for i := range 120 {
		p.mkdir(fmt.Sprintf("dirs/subs/%d", i))
	}
	for _, n := range []int{1, 2, 3, 5, 8, 13, 40} { // around what fits in an inode
		p.mkdir(fmt.Sprintf("dirs/n%d", n))
		for i := range n {
			p.write(fmt.Sprintf("dirs/n%d/f%d", n, i), 0)
		}
	}
	p.mkdir("dirs/thinned")
	for i := range 500 {
		p.write(fmt.Sprintf("dirs/thinned/some longer name %d", i), 0)
	}
	for i := 0; i < 500; i += 3 {
		p.must(os.Remove(p.path(fmt.Sprintf("dirs/thinned/some longer name %d", i))))
	}
	p.mkdir("dirs/large")
	for i := range 3000 {
		p.must(os.Link(p.path("files/1"), p.path(fmt.Sprintf("dirs/large/%d-%s", i*7919, strings.Repeat("é", i%20)))))
	}
	p.mkdir("dirs/longnames")
	for i := range 300 {
		p.must(os.Link(p.path("files/1"), p.path(fmt.Sprintf("dirs/longnames/%0250d", i))))
	}
}
