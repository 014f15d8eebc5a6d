// Package origin gives bytes by name: the files that a source is made of. Every
// one is opened read-only and pinned to the version it had when it was opened.
package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// Version identifies the content of a local file as far as stat can: it changes
// when the file is replaced, written to, truncated or extended.
type Version struct {
	Dev, Ino uint64
	Size     int64 // bytes
	Mtime    int64 // nanoseconds since 1970
	Ctime    int64 // nanoseconds since 1970
}

// Entry is a regular file inside a Dir.
type Entry struct {
	Name    string // slash-separated, relative to the Dir's root
	ModTime time.Time
	Version Version
}

// Dir is a folder on the host. Names are slash-separated and relative to it;
// neither ".." nor a symbolic link leads out of it.
type Dir struct {
	root *os.Root
	path string
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
	return &Dir{root: root, path: abs}, nil
}

// Path returns the folder's absolute path on the host.
func (d *Dir) Path() string { return d.path }

// Close closes the folder; files opened from it stay open.
func (d *Dir) Close() error { return d.root.Close() }

// maxDepth bounds how deep Walk descends: deeper than any backup product nests
// its folders, and an end to a maze of directories.
const maxDepth = 12

// Walk calls visit for every regular file below the folder, in lexical order of
// the paths. Symbolic links to files are visited as files where they stay inside;
// links to folders are not followed. Folders that can't be read are reported to
// visit's second argument by name, and the walk goes on.
func (d *Dir) Walk(ctx context.Context, visit func(Entry), unreadable func(name string, err error)) error {
	fsys := d.root.FS()
	return fs.WalkDir(fsys, ".", func(name string, de fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if name == "." {
				return err
			}
			unreadable(name, err)
			return nil
		}
		if de.IsDir() {
			if name != "." && strings.Count(name, "/") >= maxDepth {
				unreadable(name, fmt.Errorf("nested deeper than %d folders", maxDepth))
				return fs.SkipDir
			}
			return nil
		}
		if t := de.Type(); !t.IsRegular() && t&fs.ModeSymlink == 0 {
			return nil
		}
		e, err := d.Stat(name)
		switch {
		case err == nil:
			visit(e)
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, errNotRegular):
			// A dangling link, a link to a folder, or gone since it was listed.
		default:
			unreadable(name, err)
		}
		return nil
	})
}

var errNotRegular = errors.New("not a regular file")

// Stat returns the entry of one regular file. A name that leads out of the
// folder is an error.
func (d *Dir) Stat(name string) (Entry, error) {
	fi, err := d.root.Stat(filepath.FromSlash(name))
	if err != nil {
		return Entry{}, err
	}
	if !fi.Mode().IsRegular() {
		return Entry{}, fmt.Errorf("%s: %w", name, errNotRegular)
	}
	return Entry{Name: path.Clean(name), ModTime: fi.ModTime(), Version: versionOf(fi)}, nil
}

// Open opens one regular file read-only.
func (d *Dir) Open(name string) (*File, error) {
	f, err := d.root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", name, errNotRegular)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &File{f: f, name: name, version: versionOf(fi)}, nil
}

// File is an opened host file, a block.Reader whose extents are itself.
type File struct {
	f       *os.File
	name    string
	version Version
}

// Name returns the name it was opened by.
func (f *File) Name() string { return f.name }

// Version returns the version the file had when it was opened.
func (f *File) Version() Version { return f.version }

// Size returns the size the file had when it was opened, in bytes.
func (f *File) Size() int64 { return f.version.Size }

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// Check fails with ErrChanged when the file is no longer in its version. What
// is read before a check that passes is of that version: a file's times change
// before its content does.
func (f *File) Check() error {
	now, err := versionOfFile(f.f)
	if err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	if now == f.version {
		return nil
	}
	what := "was written to or renamed"
	if now.Size != f.version.Size {
		what = fmt.Sprintf("is %#x bytes long, was %#x", now.Size, f.version.Size)
	}
	return fmt.Errorf("%s: %s: %w: %w", f.name, what, ErrChanged, ondisk.ErrCorrupt)
}

// ErrChanged means that a file is no longer what it was when it was opened.
var ErrChanged = errors.New("changed since it was opened")

// ReadAt implements block.Reader. A file that has been written to since it was
// opened, or has become shorter, is an error: its bytes no longer belong to those
// that were read before.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), f.version.Size)
	if n == 0 {
		return 0, eof
	}
	got, err := f.f.ReadAt(p[:n], off)
	if changed := f.Check(); changed != nil {
		return 0, changed
	}
	if got == n {
		return n, eof
	}
	if err == nil || err == io.EOF {
		err = fmt.Errorf("%s: cut off at %#x, was %#x bytes long: %w: %w",
			f.name, off+int64(got), f.version.Size, ErrChanged, ondisk.ErrCorrupt) // a filesystem that doesn't say so
	}
	return got, err
}

// Extent implements block.Mapper: the whole file is data in itself. Holes are not
// looked for, which would cost two system calls each time; block.DataAt does.
// Whoever reads there reads past ReadAt, so the version is checked here.
func (f *File) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	if err := f.Check(); err != nil {
		return block.Extent{}, err
	}
	return block.Extent{Len: min(n, f.version.Size-off), File: f.f, Off: off}, nil
}
