package origin

import (
	"context"
	"fmt"
	"io"
	"os"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// HostFile is an opened file of this host, a block.Reader whose extents are itself.
type HostFile struct {
	f       *os.File
	name    string
	version Version
}

// Name returns the name it was opened by.
func (f *HostFile) Name() string { return f.name }

// Version returns the version the file had when it was opened.
func (f *HostFile) Version() Version { return f.version }

// Size returns the size the file had when it was opened, in bytes.
func (f *HostFile) Size() int64 { return f.version.Size }

// Close closes the file.
func (f *HostFile) Close() error { return f.f.Close() }

// Check implements File. What is read before a check that passes is of that
// version: a file's times change before its content does.
func (f *HostFile) Check(context.Context) error { return f.check() }

func (f *HostFile) check() error {
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

// ReadAt implements block.Reader. A file that has been written to since it was
// opened, or has become shorter, is an error: its bytes no longer belong to those
// that were read before.
func (f *HostFile) ReadAt(p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), f.version.Size)
	if n == 0 {
		return 0, eof
	}
	got, err := f.f.ReadAt(p[:n], off)
	if changed := f.check(); changed != nil {
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
func (f *HostFile) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	if err := f.check(); err != nil {
		return block.Extent{}, err
	}
	return block.Extent{Len: min(n, f.version.Size-off), File: f.f, Off: off}, nil
}
