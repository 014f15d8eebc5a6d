package restorepoint

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"yester/cache"
	"yester/guestfs"
	"yester/imageformats/ebs"
	"yester/internal/ebsfake"
	"yester/internal/sshtest"
	"yester/origin/sftp"
)

// openCache opens a cache in dir for the length of the test.
func openCache(t *testing.T, dir string) func() (*cache.Cache, error) {
	t.Helper()
	c, err := cache.Open(cache.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return func() (*cache.Cache, error) { return c, nil }
}

func wholeDisk(t *testing.T, src *Source, p Point, disk int) ([]byte, error) {
	t.Helper()
	o, err := src.OpenPoint(t.Context(), p)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return io.ReadAll(io.NewSectionReader(o.Disks[disk].Image, 0, o.Disks[disk].Image.Size()))
}

// TestSFTP opens a chain of images and a row of dated folders over SFTP; what was
// read once is there when the server is not.
func TestSFTP(t *testing.T) {
	server := sshtest.Start(t)
	s := newSource(t)
	s.base("web01-2026-11-18.vhd", 1)
	s.child("web01-2026-11-19.avhd", 2, 1, "web01-2026-11-18.vhd")
	old := time.Now().Add(-time.Hour)
	for day, text := range map[string]string{"2026-11-10": "first", "2026-11-11": "second"} {
		if err := os.WriteFile(s.path("home/"+day+"/notes.txt"), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	filepath.Walk(s.dir, func(path string, _ os.FileInfo, err error) error { //nolint:errcheck
		os.Chtimes(path, old, old)
		return err
	})
	src, err := Open("sftp://root@"+server.Host+s.dir, Options{Location: time.UTC, Cache: openCache(t, t.TempDir()), SSH: server.Command})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	c, err := src.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	read := func() error {
		for i, p := range c.Of("web01") {
			got, err := wholeDisk(t, src, p, 0)
			if err != nil {
				return err
			}
			if !bytes.Equal(got, state(byte(i+1))) {
				t.Errorf("%s: wrong bytes", p.ID)
			}
		}
		for i, p := range c.Of("home") {
			o, err := src.OpenPoint(t.Context(), p)
			if err != nil {
				return err
			}
			id, err := guestfs.Resolve(t.Context(), o.Tree, "/notes.txt", false)
			if err == nil {
				var got []byte
				if got, err = guestfs.ReadFile(t.Context(), o.Tree, id, 100); string(got) != []string{"first", "second"}[i] && err == nil {
					t.Errorf("%s: %q", p.ID, got)
				}
			}
			o.Close()
			if err != nil {
				return err
			}
		}
		return nil
	}
	if n := len(c.Of("web01")); n != 2 || len(c.Of("home")) != 2 {
		t.Fatalf("points %q", lines(c))
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	server.Disconnect()
	if err := read(); err != nil {
		t.Errorf("after a lost connection: %v", err)
	}
	server.Stop()
	if _, err := wholeDisk(t, src, c.Of("web01")[0], 0); !errors.Is(err, sftp.ErrConnection) {
		t.Errorf("without the server: %v, want %v", err, sftp.ErrConnection)
	}
}

// fakeEBS serves snapshots and points the SDK there.
func fakeEBS(t *testing.T) *ebsfake.Server {
	t.Helper()
	fake := ebsfake.New(ebsfake.Options{})
	url, err := fake.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fake.Close() })
	for k, v := range map[string]string{
		"AWS_ENDPOINT_URL_EBS": url, "AWS_ENDPOINT_URL_EC2": url, "AWS_REGION": "us-east-1",
		"AWS_ACCESS_KEY_ID": ebsfake.TestCredentials.AccessKey, "AWS_SECRET_ACCESS_KEY": ebsfake.TestCredentials.Secret,
		"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(k, v)
	}
	return fake
}

// TestEBS opens the snapshots of an instance with two volumes, and counts what is
// fetched: each block once, whichever point it belongs to, and whichever process
// asks.
func TestEBS(t *testing.T) {
	fake := fakeEBS(t)
	const size, blocks = 1 << 30, 40
	dir := t.TempDir()
	truth := map[string][]byte{} // the first blocks of each snapshot
	data := make([]byte, blocks*ebs.BlockSize)
	for i := range data {
		data[i] = byte(rand.Uint32() | 1)
	}
	start := time.Date(2026, 11, 1, 3, 0, 0, 0, time.UTC)
	volumes := map[string]string{"/dev/xvda": "vol-0a", "/dev/xvdb": "vol-0b"}
	fake.AddInstance(ebsfake.Instance{ID: "i-01", Devices: volumes, Root: "/dev/xvda"})
	for day := range 2 {
		for device, volume := range volumes {
			if day == 1 && device == "/dev/xvda" {
				copy(data[7*ebs.BlockSize:], "changed on the second day")
			}
			id := "snap-0" + device[len(device)-1:] + string(rune('1'+day))
			path := filepath.Join(dir, id)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
			img, err := ebsfake.OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			truth[id] = bytes.Clone(data)
			if err := fake.Add(ebsfake.Snapshot{
				ID: id, VolumeID: volume, Image: img, StartTime: start.AddDate(0, 0, day).Add(time.Duration(len(device)) * time.Second),
				Tags: map[string]string{"Name": "web01"},
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	cacheDir := t.TempDir()
	look := func(maxCost float64) (fetched int64, err error) {
		fake.ResetCounts()
		c, err := cache.Open(cache.Config{Dir: cacheDir})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		src, err := Open("ebs://i-01", Options{Cache: func() (*cache.Cache, error) { return c, nil }, EBS: EBSOptions{MaxCost: maxCost}})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		cat, err := src.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(cat.Points) != 2 {
			t.Fatalf("points %q", lines(cat))
		}
		for _, p := range cat.Points {
			if p.Machine != "web01" || len(p.Disks) != 2 || p.Disks[0].Name != "xvda" || p.Disks[1].Name != "xvdb" {
				t.Fatalf("point %+v", p)
			}
			for i, d := range p.Disks {
				got, rerr := wholeHead(t.Context(), src, p, i, blocks*ebs.BlockSize)
				if rerr != nil {
					err = errors.Join(err, rerr)
				} else if !bytes.Equal(got, truth[d.Files[0]]) {
					t.Errorf("%s %s: wrong bytes", p.ID, d.Name)
				}
			}
		}
		return fake.Counts()["GetSnapshotBlock"], err
	}
	if n, err := look(0.00002); !errors.Is(err, ebs.ErrMaxCost) || n > 10 {
		t.Errorf("with $0.00002 for blocks of $0.000003: %d blocks, %v", n, err)
	}
	first, err := look(0)
	if err != nil {
		t.Fatal(err)
	}
	if first > 2*blocks+1 {
		t.Errorf("%d blocks fetched for 2 disks of %d blocks, of which one changed", first, blocks)
	}
	if again, err := look(0); err != nil || again != 0 {
		t.Errorf("%d blocks fetched once more (%v)", again, err)
	}
}

// wholeHead returns the first n bytes of a disk, and makes sure that zeros follow.
func wholeHead(ctx context.Context, src *Source, p Point, disk int, n int64) ([]byte, error) {
	o, err := src.OpenPoint(ctx, p)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	img := o.Disks[disk].Image
	buf := make([]byte, n+4096)
	if _, err := img.ReadAt(buf, 0); err != nil {
		return nil, err
	}
	if strings.Trim(string(buf[n:]), "\x00") != "" {
		return nil, errors.New("no zeros behind the data")
	}
	return buf[:n], nil
}

// TestFarSourcesRefused tells what is wrong with a location at once.
func TestFarSourcesRefused(t *testing.T) {
	for _, location := range []string{"ftp://host/x", "ebs://", "ebs://nonsense", "sftp://", "sftp://u:p@h/x"} {
		if src, err := Open(location, Options{Cache: openCache(t, t.TempDir())}); err == nil {
			src.Close()
			t.Errorf("%s was opened", location)
		}
	}
	if _, err := Open("ebs://snap-01", Options{}); err == nil {
		t.Error("opened without a cache")
	}
}
