package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"yester/guestfs"
	"yester/guestfs/ext4"
	"yester/guestfs/guestview"
	"yester/internal/block"
	"yester/internal/treetest"
	"yester/volume"
	"yester/volume/gpt"
	"yester/volume/mbr"
)

// guestDisk makes a disk of 8 GiB with one ext4 partition: directories of small
// files, and files of 10 MiB, one in pieces.
func guestDisk(t testing.TB) string {
	t.Helper()
	treetest.Need(t, "mkfs.ext4", "mount", "sfdisk")
	image := filepath.Join(t.TempDir(), "disk.raw")
	const start = 1 << 20
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 8<<30); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "-q", image)
	cmd.Stdin = strings.NewReader("label: gpt\nstart=2048, type=linux\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", fmt.Sprintf("offset=%d,lazy_itable_init=1", start), image, "8386543k").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	mnt, unmount := treetest.Mount(t, image, "ext4", fmt.Sprintf("offset=%d", start))
	rng := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, 10<<20)
	for i := range data {
		data[i] = byte(rng.Uint32() | 1)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// What makes it a system's root.
	for _, dir := range []string{"etc", "usr/lib", "usr/bin", "var/log", "home", "proc", "sys", "dev"} {
		must(os.MkdirAll(mnt+"/"+dir, 0o755))
	}
	must(os.WriteFile(mnt+"/etc/fstab", []byte("/dev/sda1 / ext4 defaults 0 1\n"), 0o644))
	must(os.WriteFile(mnt+"/etc/hostname", []byte("web01\n"), 0o644))
	must(os.WriteFile(mnt+"/usr/lib/os-release", []byte("ID=debian\nPRETTY_NAME=Debian\n"), 0o644))
	must(os.Symlink("../usr/lib/os-release", mnt+"/etc/os-release"))
	for _, link := range []string{"bin", "lib"} {
		must(os.Symlink("usr/"+link, mnt+"/"+link))
	}
	for d := range 30 {
		dir := fmt.Sprintf("%s/srv/data/dir%02d", mnt, d)
		must(os.MkdirAll(dir, 0o755))
		for i := range 200 {
			must(os.WriteFile(fmt.Sprintf("%s/document %03d.txt", dir, i), data[:1000+i*40], 0o644))
		}
		must(os.Symlink("document 001.txt", dir+"/first"))
	}
	must(os.WriteFile(mnt+"/srv/data/dir07/large.bin", data, 0o644))
	// Written in turn with another, so that it lies in many pieces.
	var pair [2]*os.File
	for i := range pair {
		f, err := os.Create(fmt.Sprintf("%s/srv/data/pieces%d.bin", mnt, i))
		must(err)
		defer f.Close()
		pair[i] = f
	}
	for off := 0; off < len(data); off += 1 << 20 {
		for _, f := range pair {
			_, err := f.Write(data[off:][:1<<20])
			must(err)
			must(f.Sync())
		}
	}
	for _, f := range pair {
		must(f.Close())
	}
	unmount()
	return image
}

// imageOrigin is an origin over an image whose holes are known to be zeros.
func imageOrigin(t testing.TB, image string, blockSize int64) (*fakeOrigin, Object) {
	t.Helper()
	file, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	st, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeOrigin{size: st.Size(), blockSize: blockSize, latency: 25 * time.Millisecond}
	f.content = func(n int64, p []byte) {
		if _, err := file.ReadAt(p, n*blockSize); err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
	o := f.object("snap-1")
	next := func(from int64) (int64, bool) {
		at, err := unix.Seek(int(file.Fd()), from*blockSize, unix.SEEK_DATA)
		return max(from, at/blockSize), err == nil
	}
	o.Next = func(_ context.Context, from int64) (int64, bool, error) { n, ok := next(from); return n, ok, nil }
	o.Zero = func(_ context.Context, n int64) (bool, error) { m, ok := next(n); return !ok || m > n, nil }
	return f, o
}

// openGuest opens the filesystem of the only partition.
func openGuest(t testing.TB, r block.Reader) *ext4.FS {
	t.Helper()
	ctx := context.Background()
	table, err := volume.Open(ctx, r, volume.Options{}, gpt.Scheme, mbr.Scheme)
	if err != nil || len(table.Volumes) != 1 {
		t.Fatal(table, err)
	}
	fs, err := ext4.Open(ctx, table.Volumes[0].Reader, guestfs.Options{Replay: guestfs.ReplayOn})
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func walkTo(t testing.TB, fs guestfs.Tree, path string) guestfs.ID {
	t.Helper()
	id := fs.Root()
	for _, name := range strings.Split(path, "/") {
		var err error
		if id, err = fs.Lookup(context.Background(), id, name); err != nil {
			t.Fatal(path, err)
		}
	}
	return id
}

// listLong does what `ls -l` asks for, and returns how many entries there are.
func listLong(t testing.TB, fs guestfs.Tree, dir guestfs.ID) int {
	t.Helper()
	ctx := context.Background()
	var list []guestfs.Dirent
	if err := fs.ReadDir(ctx, dir, 0, func(e guestfs.Dirent) bool { list = append(list, e); return true }); err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		a, err := fs.Attr(ctx, e.ID)
		if err != nil {
			t.Fatal(err)
		}
		if a.IsSymlink() {
			if _, err := fs.ReadLink(ctx, e.ID); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := fs.ListXattr(ctx, e.ID); err != nil {
			t.Fatal(err)
		}
	}
	return len(list)
}

// copyFile reads a file as cp does, and returns its size.
func copyFile(t testing.TB, fs *ext4.FS, id guestfs.ID) int64 {
	t.Helper()
	f, err := fs.Open(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.NewSectionReader(f, 0, f.Size()), make([]byte, 128<<10))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFirstMount does what a mount does for the first `ls -l` of a directory of the
// machine's own tree, which it has to put together first.
func TestFirstMount(t *testing.T) {
	image := guestDisk(t)
	synctest.Test(t, func(t *testing.T) {
		f, o := imageOrigin(t, image, 512<<10)
		c := openCache(t, t.TempDir(), 0)
		r := openReader(t, c, o, NewScheduler(Limits{}, nil))
		began := time.Now()
		fs := openGuest(t, r)
		view, err := guestview.New(t.Context(), []guestview.Member{{Name: "p1", Tree: fs, Number: 1}}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		entries := listLong(t, view, walkTo(t, view, "srv/data/dir07"))
		trips := float64(time.Since(began)) / float64(f.latency)
		time.Sleep(time.Second)
		blocks, _ := f.fetches()
		t.Logf("ls -l in the guest view: %d entries, %.1f round trips, %d blocks", entries, trips, blocks)
		if trips > 12.5 || blocks > 40 {
			t.Errorf("%.1f dependent round trips and %d blocks, want 12 and 40 at most", trips, blocks)
		}
		mustClose(t, fs, r, c)
	})
}

// TestFirstLook lists a directory of a cold disk and then copies a file out of it.
// Time is simulated, so that it counts the requests that waited for one another.
func TestFirstLook(t *testing.T) {
	image := guestDisk(t)
	for _, path := range []string{"srv/data/dir07", "srv/data"} {
		synctest.Test(t, func(t *testing.T) {
			f, o := imageOrigin(t, image, 512<<10)
			dir := t.TempDir()
			c := openCache(t, dir, 0)
			r := openReader(t, c, o, NewScheduler(Limits{}, nil))
			began := time.Now()
			fs := openGuest(t, r)
			entries := listLong(t, fs, walkTo(t, fs, path))
			trips := float64(time.Since(began)) / float64(f.latency)
			time.Sleep(time.Second)
			blocks, again := f.fetches()
			t.Logf("ls -l %s: %d entries, %.1f round trips, %d blocks", path, entries, trips, blocks)
			if trips > 12.5 || blocks > 40 || again > 0 {
				t.Errorf("%.1f dependent round trips and %d blocks (%d again), want 12 and 40 at most", trips, blocks, again)
			}
			for _, name := range []string{"srv/data/dir07/large.bin", "srv/data/pieces0.bin"} {
				f.forget()
				began := time.Now()
				size := copyFile(t, fs, walkTo(t, fs, name))
				took := time.Since(began)
				time.Sleep(time.Second)
				blocks, _ := f.fetches()
				t.Logf("copy %s: %d blocks, %.2f times its size, %.1f round trips", name, blocks, float64(blocks)*512/1024*(1<<20)/float64(size), float64(took)/float64(f.latency))
				if int64(blocks)*f.blockSize > size*13/10 {
					t.Errorf("copy of %s: %d blocks for %d bytes", name, blocks, size)
				}
			}
			mustClose(t, fs, r, c)

			// The same again.
			f.forget()
			c = openCache(t, dir, 0)
			r = openReader(t, c, o, NewScheduler(Limits{}, nil))
			fs = openGuest(t, r)
			listLong(t, fs, walkTo(t, fs, path))
			copyFile(t, fs, walkTo(t, fs, "srv/data/dir07/large.bin"))
			if n, _ := f.fetches(); n != 0 {
				t.Errorf("%d blocks fetched by a second look", n)
			}
			mustClose(t, fs, r, c)
		})
	}
}
