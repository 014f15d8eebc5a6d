package iscsi

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// need returns the path of a program. A missing one skips the test here and fails
// it in CI.
func need(t *testing.T, names ...string) string {
	t.Helper()
	for _, n := range names {
		p, err := exec.LookPath(n)
		if err == nil {
			if len(names) == 1 {
				return p
			}
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", n)
		}
		t.Skipf("%s is missing", n)
	}
	return ""
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// vmFiles makes a directory of files and returns their hashes by path.
func vmFiles(t *testing.T, dir string, deep bool) map[string]string {
	t.Helper()
	sums := map[string]string{}
	rng := rand.NewChaCha8([32]byte{7})
	sizes := []int{0, 1, 511, 4096, 70000, 1 << 20, 3<<20 + 17}
	for i, n := range sizes {
		name := fmt.Sprintf("file%d", i)
		if deep && i%2 == 1 {
			name = fmt.Sprintf("a/b%d/file%d", i, i)
		}
		b := make([]byte, n)
		rng.Read(b)
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		h := sha256.Sum256(b)
		sums[name] = hex.EncodeToString(h[:])
	}
	return sums
}

func sparse(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// xfsProto writes a prototype file for mkfs.xfs -p: a directory tree without a
// mount.
func xfsProto(w io.Writer, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		if e.IsDir() {
			fmt.Fprintf(w, "%s d--755 0 0\n", e.Name())
			if err := xfsProto(w, p); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%s ---644 0 0 %s\n", e.Name(), p)
	}
	_, err = fmt.Fprintln(w, "$")
	return err
}

// vmImages makes three file systems and returns their paths and their files' hashes.
func vmImages(t *testing.T) (paths []string, sums map[string]string) {
	t.Helper()
	need(t, "mkfs.ext4", "mkfs.xfs", "mkntfs", "ntfscp")
	dir := t.TempDir()
	sums = map[string]string{}
	add := func(fs string, m map[string]string) {
		for k, v := range m {
			sums[fs+" "+k] = v
		}
	}
	deep, flat := filepath.Join(dir, "deep"), filepath.Join(dir, "flat")
	add("ext4", vmFiles(t, deep, true))
	add("xfs", vmFiles(t, deep, true))
	add("ntfs", vmFiles(t, flat, false))
	ext4, xfs, ntfs := filepath.Join(dir, "ext4.img"), filepath.Join(dir, "xfs.img"), filepath.Join(dir, "ntfs.img")
	sparse(t, ext4, 48<<20)
	command(t, "mkfs.ext4", "-q", "-F", "-d", deep, ext4)
	sparse(t, xfs, 320<<20)
	proto := filepath.Join(dir, "proto")
	f, err := os.Create(proto)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "boot\n0 0\nd--755 0 0\n")
	if err := xfsProto(f, deep); err != nil {
		t.Fatal(err)
	}
	f.Close()
	command(t, "mkfs.xfs", "-q", "-p", proto, xfs)
	sparse(t, ntfs, 32<<20)
	command(t, "mkntfs", "-q", "-F", ntfs)
	entries, _ := os.ReadDir(flat)
	for _, e := range entries {
		command(t, "ntfscp", "-q", ntfs, filepath.Join(flat, e.Name()), e.Name())
	}
	return []string{ext4, xfs, ntfs}, sums
}

func hashFile(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestLinuxInitiator lets Debian's kernel and open-iscsi, in a VM, use the target:
// see testdata/vm.
func TestLinuxInitiator(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a VM")
	}
	qemu := need(t, "qemu-system-x86_64")
	need(t, "apt-get", "apt-cache", "dpkg-deb")
	cache := os.Getenv("YESTER_VM_CACHE")
	if cache == "" {
		cache = filepath.Join(os.TempDir(), "yester-vm")
	}
	if out, err := exec.Command("../testdata/vm/build.sh", cache).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("build.sh: %v\n%s", err, out)
		}
		t.Skipf("the guest can't be built: %v\n%s", err, out)
	}
	paths, sums := vmImages(t)
	before := map[string]string{}
	mtimes := map[string]time.Time{}
	for _, p := range paths {
		before[p] = hashFile(t, p)
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		mtimes[p] = st.ModTime()
	}

	const ro, rw = "iqn.2026-11.yester:vm:ro", "iqn.2026-11.yester:vm:rw"
	user := User{Name: "guest", Secret: "a-secret-of-guest", MutualName: "yester", MutualSecret: "another-of-target"}
	start := func(addr string) (*Server, net.Listener) {
		s := New(Options{Auth: Auth{Users: []User{user}}, Logger: testLogger(t)})
		var plain, scratch []LUN
		for i, p := range paths {
			r := openFile(t, p)
			plain = append(plain, LUN{ID: uint16(i + 1), Reader: r})
			scratch = append(scratch, LUN{ID: uint16(i + 1), Reader: r, Overlay: &Overlay{Dir: t.TempDir(), Size: 64 << 20}})
		}
		for n, l := range map[string][]LUN{ro: plain, rw: scratch} {
			if err := s.AddTarget(n, l...); err != nil {
				t.Fatal(err)
			}
		}
		var l net.Listener
		var err error
		for range 100 { // the old connections may still hold the port
			if l, err = net.Listen("tcp", addr); err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve(l)
		return s, l
	}
	srv, l := start("127.0.0.1:0")
	addr := l.Addr().String()
	defer func() { srv.Shutdown(context.Background()) }()

	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	line := fmt.Sprintf("console=ttyS0 quiet panic=-1 port=%d ro=%s rw=%s user=%s secret=%s muser=%s msecret=%s",
		l.Addr().(*net.TCPAddr).Port, ro, rw, user.Name, user.Secret, user.MutualName, user.MutualSecret)
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "max", "-m", "640", "-nographic", "-no-reboot", "-monitor", "none", "-serial", "stdio",
		"-kernel", filepath.Join(cache, "vmlinuz"), "-initrd", filepath.Join(cache, "initramfs.gz"),
		"-nic", "user,model=virtio-net-pci", "-append", line)
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	facts := map[string]bool{}
	values := map[string]string{}
	in := bufio.NewScanner(console)
	for in.Scan() {
		s := strings.TrimSpace(in.Text())
		i := strings.Index(s, "## ")
		if i < 0 {
			t.Log("console: ", s)
			continue
		}
		s = s[i+3:]
		t.Log(s)
		f := strings.SplitN(s, " ", 4)
		switch {
		case f[0] == "sha" && len(f) == 4:
			got[f[1]+" "+f[3]] = f[2]
		case f[0] == "fail" || f[0] == "log":
			t.Error(s)
		case s == "midread":
			// The target goes away under the read and comes back a second later.
			time.Sleep(500 * time.Millisecond)
			bye, stop := context.WithCancel(context.Background())
			stop() // drop the sessions at once, as a crash would
			srv.Shutdown(bye)
			time.Sleep(time.Second)
			srv, _ = start(addr)
		default:
			facts[s] = true
			k, v, _ := strings.Cut(s, " ")
			values[k] = v
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("qemu: %v", err)
	}
	if !facts["end"] {
		t.Fatal("the guest did not come to its end")
	}
	for k, v := range sums {
		if got[k] != v {
			t.Errorf("%s: guest read %q, it is %s", k, got[k], v)
		}
	}
	if len(got) != len(sums) {
		t.Errorf("guest saw %d files, there are %d", len(got), len(sums))
	}
	port := l.Addr().(*net.TCPAddr).Port
	for _, want := range []string{
		fmt.Sprintf("discovered 127.0.0.1:%d,1 %s", port, ro),
		"digests 1 1", "login ok " + ro, "login ok " + rw,
		"mount ok ext4", "mount ok xfs", "mount ok ntfs",
		"mountrw ok ext4", "mountrw ok xfs", "mountrw ok ntfs",
		"rewritten ok ext4", "rewritten ok xfs", "rewritten ok ntfs", "logout ok",
	} {
		if !facts[want] {
			t.Errorf("missing: %s", want)
		}
	}
	if !strings.Contains(values["touch"], "Read-only file system") {
		t.Errorf("touch on a read-only mount: %q", values["touch"])
	}
	if w := values["write"]; !strings.Contains(w, "Read-only") && !strings.Contains(w, "Input/output error") && !strings.Contains(w, "not permitted") && !strings.Contains(w, "Permission denied") {
		t.Errorf("write to a read-only disk: %q", w)
	}
	if w := values["whole"]; !strings.HasPrefix(w, before[paths[0]]) {
		t.Errorf("read through a restart: %q, the image has %s", w, before[paths[0]])
	}
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if hashFile(t, p) != before[p] || !st.ModTime().Equal(mtimes[p]) {
			t.Errorf("%s was changed", filepath.Base(p))
		}
	}
}
