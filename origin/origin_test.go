package origin

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// TestChanged writes to a file in ways that keep its size: what is read of it
// afterwards is an error, by bytes and by place.
func TestChanged(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written to": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("x"), 100)
			return err
		},
		"written to, its time set back": func(path string) error {
			fi, err := os.Stat(path)
			if err != nil {
				return err
			}
			if err := os.WriteFile(path, make([]byte, fi.Size()), 0o600); err != nil {
				return err
			}
			return os.Chtimes(path, fi.ModTime(), fi.ModTime())
		},
		"extended":  func(path string) error { return os.Truncate(path, 9000) },
		"shortened": func(path string) error { return os.Truncate(path, 100) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "image")
			if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
				t.Fatal(err)
			}
			d, err := OpenDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			f, err := d.Open(t.Context(), "image")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, 512)
			if _, err := f.ReadAt(buf, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := block.ExtentAt(t.Context(), f, 0, 512); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond) // older kernels count times in ticks
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			for _, off := range []int64{0, 4096} {
				if n, err := f.ReadAt(buf, off); n != 0 || !errors.Is(err, ErrChanged) || !errors.Is(err, ondisk.ErrCorrupt) {
					t.Errorf("read at %d: %d bytes, %v; want %v", off, n, err, ErrChanged)
				}
			}
			if _, err := block.ExtentAt(t.Context(), f, 0, 512); !errors.Is(err, ErrChanged) {
				t.Errorf("extent: %v, want %v", err, ErrChanged)
			}
		})
	}
}

// TestLinksStayInside lists a folder with links: those that lead to files in it
// are files, one that leads out is refused, the others are passed over.
func TestLinksStayInside(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	for _, path := range []string{outside, filepath.Join(dir, "image")} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"in": "image", "out": outside, "dangling": "nonesuch", "folder": "."} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var seen, refused []string
	if err := d.Walk(t.Context(), nil, func(e Entry) { seen = append(seen, e.Name) },
		func(name string, _ error) { refused = append(refused, name) }); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 2 || seen[0] != "image" || seen[1] != "in" || len(refused) != 1 || refused[0] != "out" {
		t.Errorf("seen %q, refused %q", seen, refused)
	}
	if _, err := d.Open(t.Context(), "out"); err == nil {
		t.Error("a link out of the folder was opened")
	}
}
