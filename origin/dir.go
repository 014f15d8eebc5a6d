package origin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Dir is a Folder on this host.
type Dir struct {
	root *os.Root
	path string
	fast *beneathFD // nil: root alone finds files
}

// OpenDir opens the folder at path, which may itself be a symbolic link.
func OpenDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, err
	}
	return &Dir{root: root, path: abs, fast: newBeneathFD(root)}, nil
}

// Path implements Folder: the folder's absolute path.
func (d *Dir) Path() string { return d.path }

// Local implements Folder.
func (d *Dir) Local() bool { return true }

// Close closes the folder; files opened from it stay open.
func (d *Dir) Close() error {
	d.fast.close()
	return d.root.Close()
}

// Walk implements Folder. Symbolic links to files are visited as files where they
// stay inside; links to folders are not followed.
func (d *Dir) Walk(ctx context.Context, enter func(dir string) bool, visit func(Entry), unreadable func(name string, err error)) error {
	return WalkFolder(ctx, d, enter, visit, unreadable)
}

// Stat implements Folder.
func (d *Dir) Stat(_ context.Context, name string) (Entry, error) {
	fi, err := d.root.Stat(filepath.FromSlash(name))
	if err != nil {
		return Entry{}, err
	}
	if !fi.Mode().IsRegular() {
		return Entry{}, fmt.Errorf("%s: %w", name, ErrNotRegular)
	}
	return Entry{Name: path.Clean(name), ModTime: fi.ModTime(), Version: versionOf(fi), Allocated: allocatedOf(fi)}, nil
}

// Lstat implements Folder.
func (d *Dir) Lstat(_ context.Context, name string) (Info, error) {
	if info, ok, err := d.fast.lstat(name); ok {
		return info, err
	}
	fi, err := d.root.Lstat(filepath.FromSlash(name))
	if errors.Is(err, syscall.ENAMETOOLONG) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return Info{}, err
	}
	return infoOf(fi)
}

// ReadDir implements Folder.
func (d *Dir) ReadDir(_ context.Context, name string) ([]DirEntry, error) {
	f, err := d.root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|openDirFlags, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.ReadDir(-1)
	entries := make([]DirEntry, len(list))
	for i, de := range list {
		entries[i] = DirEntry{Name: de.Name(), Type: de.Type()}
	}
	slices.SortFunc(entries, func(a, b DirEntry) int { return strings.Compare(a.Name, b.Name) })
	return entries, err
}

// ReadLink implements Folder.
func (d *Dir) ReadLink(_ context.Context, name string) (string, error) {
	return d.root.Readlink(filepath.FromSlash(name))
}

// Open implements Folder.
func (d *Dir) Open(_ context.Context, name string) (File, error) {
	if f, ok, err := d.fast.open(name); ok {
		return f, err
	}
	f, err := d.root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", name, ErrNotRegular)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &HostFile{f: f, name: name, version: versionOf(fi)}, nil
}
