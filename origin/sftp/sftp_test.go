package sftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"yester/internal/block"
	"yester/internal/readertest"
	"yester/internal/sshtest"
	"yester/origin"
)

// fixture is a folder with what is hard about folders, and a file of random bytes.
func fixture(t *testing.T) (dir string, data []byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "back ups")
	data = make([]byte, 3<<20+777)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	outside := filepath.Join(filepath.Dir(dir), "secret")
	for name, content := range map[string][]byte{
		dir + "/disk.raw": data, dir + "/sub/empty": nil, dir + "/sub/odd\n\xff name": []byte("odd"), outside: []byte("secret"),
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"in": "disk.raw", "out": outside, "dangling": "nonesuch", "folder": "sub", "up": ".."} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, data
}

func openFolder(t *testing.T, s *sshtest.Server, path string) (*Folder, string) {
	t.Helper()
	f, only, err := Open(t.Context(), "sftp://root@"+s.Host+strings.ReplaceAll(path, " ", "%20"), s.Command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, only
}

// TestAsLocal compares a folder over SFTP with the same one opened locally.
func TestAsLocal(t *testing.T) {
	s := sshtest.Start(t)
	dir, data := fixture(t)
	far, _ := openFolder(t, s, dir)
	near, err := origin.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	list := func(f origin.Folder) string {
		var out strings.Builder
		err := f.Walk(t.Context(), func(dir string) bool { fmt.Fprintf(&out, "enter %q\n", dir); return true }, func(e origin.Entry) {
			fmt.Fprintf(&out, "%q %d %d\n", e.Name, e.Version.Size, e.ModTime.Unix())
			info, err := f.Lstat(t.Context(), e.Name)
			fmt.Fprintf(&out, "  %o %d %d %d %v\n", info.Mode, info.UID, info.GID, info.Mtime.Unix(), err)
		}, func(name string, _ error) { fmt.Fprintf(&out, "unreadable %q\n", name) })
		entries, derr := f.ReadDir(t.Context(), ".")
		target, lerr := f.ReadLink(t.Context(), "in")
		fmt.Fprintln(&out, err, entries, derr, target, lerr)
		return out.String()
	}
	if got, want := list(far), list(near); got != want || !strings.Contains(want, "unreadable \"out\"") {
		t.Errorf("over SFTP:\n%s\nlocally:\n%s", got, want)
	}
	for _, name := range []string{"disk.raw", "in"} {
		file, err := far.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		readertest.Run(t, file, readertest.Bytes(data))
		file.Close()
		if _, err := file.ReadAt(make([]byte, 10), 0); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("read of a closed file: %v", err)
		}
	}
	for name, want := range map[string]error{"nonesuch": fs.ErrNotExist, "sub": origin.ErrNotRegular, "out": fs.ErrInvalid, "up/secret": fs.ErrInvalid, "../secret": fs.ErrInvalid} {
		if _, err := far.Open(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if _, only := openFolder(t, s, dir+"/disk.raw"); only != "disk.raw" {
		t.Errorf("a file is opened as %q of its folder", only)
	}
}

// TestLostConnection breaks the connection again and again while files are read:
// nobody sees more than a pause.
func TestLostConnection(t *testing.T) {
	s := sshtest.Start(t)
	dir, data := fixture(t)
	f, _ := openFolder(t, s, dir)
	file, err := f.Open(t.Context(), "disk.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				off := rand.Int64N(int64(len(data)) - 70000)
				p := make([]byte, 1+rand.IntN(70000))
				if err := block.ReadFull(t.Context(), file, p, off); err != nil {
					if errors.Is(err, ErrConnection) {
						continue // broken twice within one read
					}
					t.Errorf("read: %v", err)
					return
				}
				if !bytes.Equal(p, data[off:off+int64(len(p))]) {
					t.Error("wrong bytes")
					return
				}
			}
		})
	}
	for range 3 {
		time.Sleep(400 * time.Millisecond)
		s.Disconnect()
	}
	time.Sleep(time.Second)
	close(stop)
	wg.Wait()
	got := make([]byte, len(data))
	if err := block.ReadFull(t.Context(), file, got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("in the end: %v", err)
	}
	// What changes while the connection is away is noticed.
	s.Disconnect()
	at := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "disk.raw"), at, at); err != nil {
		t.Fatal(err)
	}
	if _, err := file.ReadAt(got[:10], 0); !errors.Is(err, origin.ErrChanged) {
		t.Errorf("read of a changed file: %v, want %v", err, origin.ErrChanged)
	}
}

// TestRefused tells why there is no connection, and never asks.
func TestRefused(t *testing.T) {
	s := sshtest.Start(t)
	s.Forget()
	_, _, err := Open(t.Context(), "sftp://root@"+s.Host+"/", s.Command)
	if !errors.Is(err, ErrConnection) || !strings.Contains(err.Error(), "Host key verification failed") {
		t.Errorf("a host whose key isn't known: %v", err)
	}
	s.Trust()
	_, _, err = Open(t.Context(), "sftp://nobody@"+s.Host+"/", s.Command)
	if !errors.Is(err, ErrConnection) || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("a user without a key: %v", err)
	}
	if _, _, err = Open(t.Context(), "sftp://root@"+s.Host+"/nonesuch", s.Command); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that isn't there: %v", err)
	}
	for _, location := range []string{"sftp://", "sftp:///x", "sftp://-oProxyCommand=x/y", "sftp://-l@host/", "sftp://a:pass@host/x", "sftp://a:se%cret@host/"} {
		_, _, err := Open(t.Context(), location, []string{"false"})
		if err == nil || strings.Contains(err.Error(), "pass@") || strings.Contains(err.Error(), "cret") {
			t.Errorf("%s: %v", location, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Open(ctx, "sftp://root@"+s.Host+"/", s.Command); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
