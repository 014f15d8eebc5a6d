package fusefs_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"yester/fusefs"
	"yester/imageformats/vhd"
	"yester/internal/treetest"
	"yester/origin"
	"yester/restorepoint"
)

// needRoot skips a test that has to mount filesystems; in CI, where everything
// is to be had, it fails it instead.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// state is one state of the test's machine, with what the kernel shows of it.
type state struct {
	raw   string // image of the whole disk
	at    time.Time
	id    string // of the restore point
	truth treetest.Manifest
	vhd   string
}

// made is the chain that all tests begin with; each gets a copy of its images.
var made struct {
	once   sync.Once
	work   string
	states []state
}

func TestMain(m *testing.M) {
	code := m.Run()
	if made.work != "" {
		os.RemoveAll(made.work)
	}
	os.Exit(code)
}

// chain returns a source folder with a machine's disk in three dated states, as a
// chain of a dynamic and two differencing VHDs.
func chain(t *testing.T) (source string, states []state) {
	t.Helper()
	needRoot(t)
	made.once.Do(func() { makeChain(t) })
	if len(made.states) == 0 {
		t.Fatal("the chain of images could not be made")
	}
	source = filepath.Join(t.TempDir(), "backups")
	run(t, made.work, "cp -a --sparse=always source "+source)
	for _, s := range made.states {
		s.vhd = filepath.Join(source, filepath.Base(s.vhd))
		states = append(states, s)
	}
	return source, states
}

// makeChain makes the disk and its images.
func makeChain(t *testing.T) {
	t.Helper()
	work, err := os.MkdirTemp("", "yester-fusefs-test")
	if err != nil {
		t.Fatal(err)
	}
	made.work = work
	source := filepath.Join(work, "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	var states []state
	steps := []string{`
		mkdir -p etc var/log home/ann bin usr
		echo '/dev/sda / ext4 defaults 0 1' > etc/fstab
		echo first > etc/hostname
		ln etc/hostname home/ann/hard
		ln -s ../../etc/hostname home/ann/soft
		ln -s /etc/shadow home/ann/absolute
		mknod home/ann/null c 1 3
		mkfifo home/ann/fifo
		chown 1000:1001 home/ann; chmod 2750 home/ann
		setfattr -n user.note -v yesterday home/ann/hard
		setfacl -m u:1234:r-- etc/hostname
		head -c 3000000 /dev/urandom > home/ann/deleted-later.bin
		head -c 20000000 /dev/urandom > var/big.bin
		truncate -s 9000000 var/sparse.bin
		printf data | dd of=var/sparse.bin bs=1 seek=5000000 conv=notrunc status=none
		touch -d 1969-05-04T03:02:01.123456789Z var/old
		touch -d 2100-01-01T00:00:00Z var/new
		for i in $(seq 500); do echo $i > var/log/entry-$i; done
		printf x > "home/ann/$(printf 'name\nwith\377odd bytes')"
	`, `
		rm home/ann/deleted-later.bin
		echo second > etc/hostname
		printf changed | dd of=var/big.bin bs=1 seek=7654321 conv=notrunc status=none
		rm var/log/entry-7
		echo more >> var/log/entry-8
	`, `
		echo third > etc/hostname
		mkdir home/ann/fresh; echo hello > home/ann/fresh/file
	`}
	raw := filepath.Join(work, "disk.raw")
	run(t, work, `truncate -s 96M disk.raw && mkfs.ext4 -q -F disk.raw && mkdir m`)
	for i, step := range steps {
		run(t, work, "mount -o loop disk.raw m\ncd m\n"+step+"\ncd ..\numount m")
		at := time.Date(2026, 11, 18+i, 2, 30, 0, 0, time.UTC)
		s := state{raw: fmt.Sprintf("%s.%d", raw, i), at: at, id: at.Format("2006-01-02T15-04-05Z")}
		run(t, work, fmt.Sprintf("cp --sparse=always disk.raw disk.raw.%d && mount -o loop,ro disk.raw.%d m", i, i))
		var err error
		s.truth, err = treetest.Host(filepath.Join(work, "m"), nil)
		run(t, work, "umount m")
		if err != nil {
			t.Fatal(err)
		}
		s.vhd = filepath.Join(source, "web01-"+at.Format("20060102T150405Z")+".vhd")
		var parent *state
		if i > 0 {
			parent = &states[i-1]
		}
		writeVHD(t, s, parent)
		states = append(states, s)
	}
	made.states = states
}

func run(t *testing.T, dir, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-e", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s\n%v: %s", script, err, out)
	}
}

// vhdID makes an image's unique id of its time.
func vhdID(at time.Time) [16]byte {
	return [16]byte(fmt.Appendf(nil, "%016d", at.Unix()))
}

func writeVHD(t *testing.T, s state, parent *state) {
	t.Helper()
	src := openRaw(t, s.raw)
	out, err := os.Create(s.vhd)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	opt := vhd.WriteOptions{ID: vhdID(s.at), Created: s.at}
	if parent == nil {
		err = vhd.WriteDynamic(context.Background(), out, src, opt)
	} else {
		err = vhd.WriteDiff(context.Background(), out, src, openRaw(t, parent.raw), vhd.DiffOptions{
			WriteOptions: opt, ParentID: vhdID(parent.at), ParentModified: parent.at, ParentName: filepath.Base(parent.vhd),
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func openRaw(t *testing.T, path string) origin.File {
	t.Helper()
	dir, err := origin.OpenDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	f, err := dir.Open(t.Context(), filepath.Base(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(); dir.Close() })
	return f
}

// logBuffer keeps what a mount logs.
type logBuffer struct {
	lines chan string
}

func newLog(t *testing.T) (*slog.Logger, *logBuffer) {
	b := &logBuffer{lines: make(chan string, 1000)}
	return slog.New(slog.NewTextHandler(b, nil)), b
}

func (b *logBuffer) Write(p []byte) (int, error) {
	select {
	case b.lines <- string(p):
	default:
	}
	return len(p), nil
}

// text returns what has been logged so far.
func (b *logBuffer) text() string {
	var all strings.Builder
	for {
		select {
		case l := <-b.lines:
			all.WriteString(l)
		default:
			return all.String()
		}
	}
}

// mount mounts source; the test's end unmounts it and checks that nothing of the
// source was changed.
func mount(t *testing.T, source string, opt fusefs.Options) (dir string, m *fusefs.Mount) {
	t.Helper()
	before := fingerprint(t, source)
	t.Cleanup(func() {
		after := fingerprint(t, source)
		for name, was := range before {
			if is, ok := after[name]; ok && is != was {
				t.Errorf("source changed: %s: %s, was %s", name, is, was)
			}
		}
	})
	return mountChanging(t, source, opt)
}

// mountChanging is mount for a test that damages its source by itself.
func mountChanging(t *testing.T, source string, opt fusefs.Options) (dir string, m *fusefs.Mount) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "mnt")
	return dir, mountOn(t, source, dir, opt)
}

// mountOn is mountChanging on the directory dir, which is made.
func mountOn(t *testing.T, source, dir string, opt fusefs.Options) *fusefs.Mount {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	src, err := restorepoint.Open(source, restorepoint.Options{Replay: true, Logger: opt.Logger, Location: time.UTC})
	if err != nil {
		t.Fatal(err)
	}
	m, err := fusefs.Start(context.Background(), src, dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(false); err != nil && !(errors.Is(err, fusefs.ErrNotMounted) && mountsAt(t, dir) == 0) {
			t.Errorf("unmount: %v", err)
			m.Unmount(true)
		}
		m.Wait()
		src.Close()
		if mounted, _, _ := fusefs.Mounted(dir); mounted {
			t.Errorf("%s is still mounted", dir)
		}
	})
	return m
}

// fingerprint returns hash, size and times of every file below dir, as far as a
// reader must not change them.
func fingerprint(t *testing.T, dir string) map[string]string {
	t.Helper()
	prints := map[string]string{}
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			prints[path] = fmt.Sprint(fi.Size(), fi.ModTime().UnixNano(), " ", hash(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return prints
}

func hash(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// quiet is a logger that fails the test for anything it is told.
func quiet(t *testing.T) *slog.Logger {
	l, b := newLog(t)
	t.Cleanup(func() {
		if text := b.text(); text != "" {
			t.Errorf("logged:\n%s", text)
		}
	})
	return l
}

// startErr tries to mount and returns why that failed.
func startErr(t *testing.T, source, dir string) error {
	t.Helper()
	src, err := restorepoint.Open(source, restorepoint.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	m, err := fusefs.Start(context.Background(), src, dir, fusefs.Options{Logger: discard()})
	if err == nil {
		m.Unmount(true)
		m.Wait()
	}
	return err
}
