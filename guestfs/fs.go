package guestfs

import (
	"context"
	"io"
	"io/fs"
	"math"
	"path"
	"time"
)

// FS presents tree as an fs.FS, which is an fs.ReadDirFS, fs.StatFS and
// fs.ReadLinkFS as well; its files are io.ReaderAt and io.Seeker. Symbolic links
// are followed within the tree. ctx ends all reading, now and later.
//
// The owner, the link count and other things that fs.FileInfo has no method for
// are in its Sys: a *Attr. Names that aren't UTF-8 are listed, and what their
// entries' Info says is right, but package fs has no valid path to open them by.
func FS(ctx context.Context, tree Tree) fs.FS { return &ioFS{ctx, tree} }

type ioFS struct {
	ctx  context.Context
	tree Tree
}

var (
	_ fs.ReadDirFS  = (*ioFS)(nil)
	_ fs.StatFS     = (*ioFS)(nil)
	_ fs.ReadLinkFS = (*ioFS)(nil)
)

func (f *ioFS) find(op, name string, follow bool) (*fileInfo, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	w, err := walk(f.ctx, f.tree, name, follow)
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	attr, err := f.tree.Attr(f.ctx, w.at())
	if err != nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return &fileInfo{path.Base(name), w.at(), attr}, nil
}

// Open implements fs.FS.
func (f *ioFS) Open(name string) (fs.File, error) {
	info, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return &dirFile{fs: f, path: name, info: info}, nil
	}
	r, err := f.tree.Open(f.ctx, info.id)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &regFile{io.NewSectionReader(r, 0, r.Size()), info}, nil
}

// Stat implements fs.StatFS.
func (f *ioFS) Stat(name string) (fs.FileInfo, error) { return orNil(f.find("stat", name, true)) }

// Lstat implements fs.ReadLinkFS.
func (f *ioFS) Lstat(name string) (fs.FileInfo, error) { return orNil(f.find("lstat", name, false)) }

func orNil(info *fileInfo, err error) (fs.FileInfo, error) {
	if err != nil {
		return nil, err
	}
	return info, nil
}

// ReadLink implements fs.ReadLinkFS.
func (f *ioFS) ReadLink(name string) (string, error) {
	info, err := f.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	target, err := f.tree.ReadLink(f.ctx, info.id)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return target, nil
}

// ReadDir implements fs.ReadDirFS.
func (f *ioFS) ReadDir(name string) ([]fs.DirEntry, error) {
	info, err := f.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: ErrNotDir}
	}
	return f.list(name, info.id)
}

func (f *ioFS) list(name string, dir ID) ([]fs.DirEntry, error) {
	entries, err := ReadDir(f.ctx, f.tree, dir, math.MaxInt)
	list := make([]fs.DirEntry, 0, len(entries))
	for _, e := range entries {
		if e.Type == 0 {
			attr, aerr := f.tree.Attr(f.ctx, e.ID)
			if aerr != nil {
				if err == nil {
					err = aerr
				}
				continue
			}
			e.Type = attr.Mode & ModeType
		}
		list = append(list, &dirEntry{f, e})
	}
	if err != nil {
		err = &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return list, err
}

// FileMode translates POSIX mode bits, as in Attr.Mode, to those of package fs.
func FileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & ModeType {
	case ModeRegular:
	case ModeDir:
		m |= fs.ModeDir
	case ModeSymlink:
		m |= fs.ModeSymlink
	case ModeFifo:
		m |= fs.ModeNamedPipe
	case ModeSocket:
		m |= fs.ModeSocket
	case ModeBlock:
		m |= fs.ModeDevice
	case ModeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	default:
		m |= fs.ModeIrregular
	}
	for posix, bit := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&posix != 0 {
			m |= bit
		}
	}
	return m
}

type fileInfo struct {
	name string
	id   ID
	attr Attr
}

func (i *fileInfo) Name() string       { return i.name }
func (i *fileInfo) Size() int64        { return i.attr.Size }
func (i *fileInfo) Mode() fs.FileMode  { return FileMode(i.attr.Mode) }
func (i *fileInfo) ModTime() time.Time { return i.attr.Mtime.Time() }
func (i *fileInfo) IsDir() bool        { return i.attr.IsDir() }
func (i *fileInfo) Sys() any           { return &i.attr }

type dirEntry struct {
	fs *ioFS
	e  Dirent
}

func (d *dirEntry) Name() string      { return d.e.Name }
func (d *dirEntry) IsDir() bool       { return d.e.Type&ModeType == ModeDir }
func (d *dirEntry) Type() fs.FileMode { return FileMode(d.e.Type & ModeType) }
func (d *dirEntry) String() string    { return fs.FormatDirEntry(d) }

// Info asks by ID, so it works for names that no path of package fs can hold.
func (d *dirEntry) Info() (fs.FileInfo, error) {
	attr, err := d.fs.tree.Attr(d.fs.ctx, d.e.ID)
	if err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: d.e.Name, Err: err}
	}
	return &fileInfo{d.e.Name, d.e.ID, attr}, nil
}

// regFile is an opened file that isn't a directory.
type regFile struct {
	*io.SectionReader
	info *fileInfo
}

func (f *regFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *regFile) Close() error               { return nil }

// dirFile is an opened directory.
type dirFile struct {
	fs     *ioFS
	path   string
	info   *fileInfo
	loaded bool
	rest   []fs.DirEntry // not yet returned
	err    error         // to return after rest
}

func (f *dirFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *dirFile) Close() error               { return nil }

func (f *dirFile) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: f.path, Err: ErrIsDir}
}

// ReadDir implements fs.ReadDirFile.
func (f *dirFile) ReadDir(n int) ([]fs.DirEntry, error) {
	if !f.loaded {
		f.loaded = true
		f.rest, f.err = f.fs.list(f.path, f.info.id)
	}
	if n <= 0 {
		list, err := f.rest, f.err
		f.rest, f.err = nil, nil
		return list, err
	}
	if len(f.rest) == 0 {
		if f.err != nil {
			return nil, f.err
		}
		return nil, io.EOF
	}
	n = min(n, len(f.rest))
	list := f.rest[:n:n]
	f.rest = f.rest[n:]
	return list, nil
}
