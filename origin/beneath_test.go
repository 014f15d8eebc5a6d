package origin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"yester/internal/block"
)

// TestBeneath finds the same with openat2 as without it: what lies inside, by links
// too, and nothing that doesn't.
func TestBeneath(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	long := strings.Repeat("long-"+strings.Repeat("x", 200)+"/", 30)
	for _, p := range []string{filepath.Join(outside, "secret"), filepath.Join(dir, "a/b/file")} {
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("content of "+filepath.Base(p)), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"in": "a/b/file", "indir": "a/b", "a/up": "../a/b/file", "out": outside + "/secret", "outdir": outside,
		"a/out": "../../" + filepath.Base(outside) + "/secret", "absolute": dir + "/a/b/file", "self": "self", "gone": "nothing",
		"proc": "/proc/self/cwd",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	fast, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fast.Close()
	slow, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	slow.fast.close()
	slow.fast = nil
	names := []string{".", "a", "a/b", "a/b/file", "a/b/../b/file", "in", "indir", "indir/file", "a/up", "out", "outdir", "outdir/secret",
		"a/out", "absolute", "self", "gone", "proc", "proc/x", "none", "a/b/file/x", "..", "../x", "/etc/passwd", "", "a/../../x",
		strings.Repeat("n", 300), long + "x"}
	for _, name := range names {
		for _, op := range []string{"lstat", "open"} {
			get := func(d *Dir) (any, error) {
				if op == "lstat" {
					return d.Lstat(t.Context(), name)
				}
				f, err := d.Open(t.Context(), name)
				if err != nil {
					return nil, err
				}
				defer f.Close()
				b := make([]byte, f.Size())
				if err := block.ReadFull(t.Context(), f, b, 0); err != nil {
					return nil, err
				}
				return string(b), nil
			}
			got, err := get(fast)
			want, wantErr := get(slow)
			if (err == nil) != (wantErr == nil) || got != want {
				t.Errorf("%s %q: %v, %v; os.Root: %v, %v", op, name, got, err, want, wantErr)
			}
			for _, class := range []error{fs.ErrNotExist, fs.ErrPermission, ErrNotRegular} {
				if errors.Is(err, class) != errors.Is(wantErr, class) {
					t.Errorf("%s %q: %v, os.Root: %v", op, name, err, wantErr)
				}
			}
		}
	}
}

// TestBeneathClosed finds nothing in a folder that was closed.
func TestBeneathClosed(t *testing.T) {
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if _, err := d.Lstat(t.Context(), "."); err == nil {
		t.Error("no error")
	}
}
