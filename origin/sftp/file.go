package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/pkg/sftp"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/origin"
)

// file is an opened file. After a lost connection it is opened anew, and must be
// in the same version then.
type file struct {
	folder  *Folder
	name    string
	version origin.Version

	mu     sync.Mutex
	handle *sftp.File // of the last connection
	opened bool       // version is set
	closed bool
}

var (
	_ origin.File         = (*file)(nil)
	_ block.ContextReader = (*file)(nil)
)

// reopen opens the file unless somebody else has done so since old was current.
func (f *file) reopen(ctx context.Context, old *sftp.File) error {
	return f.folder.do(ctx, "open", f.name, func(c *sftp.Client, full string) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.closed {
			return fs.ErrClosed
		}
		if f.handle != old {
			return nil
		}
		fi, err := c.Lstat(full)
		if err == nil && !fi.Mode().IsRegular() && fi.Mode()&fs.ModeSymlink == 0 {
			err = origin.ErrNotRegular // opening a FIFO would wait for ever
		}
		if err == nil {
			err = f.folder.inside(c, full)
		}
		if err != nil {
			return err
		}
		h, err := c.Open(full)
		if err != nil {
			return err
		}
		if fi, err = h.Stat(); err == nil && !fi.Mode().IsRegular() {
			err = origin.ErrNotRegular
		}
		if err != nil {
			h.Close()
			return err
		}
		v := versionOf(fi)
		if f.opened && v != f.version {
			h.Close()
			return f.changed(v)
		}
		f.handle, f.version, f.opened = h, v, true
		return nil
	})
}

func (f *file) changed(now origin.Version) error {
	what := "was written to"
	if now.Size != f.version.Size {
		what = fmt.Sprintf("is %#x bytes long, was %#x", now.Size, f.version.Size)
	}
	return fmt.Errorf("%s: %s: %w: %w", f.name, what, origin.ErrChanged, ondisk.ErrCorrupt)
}

// with calls do with the handle, anew when the connection was lost.
func (f *file) with(ctx context.Context, do func(*sftp.File) error) error {
	for again := false; ; again = true {
		f.mu.Lock()
		h, closed := f.handle, f.closed
		f.mu.Unlock()
		if closed {
			return fs.ErrClosed
		}
		done := make(chan error, 1)
		go func() { done <- do(h) }()
		var err error
		select {
		case err = <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err == nil || again || !isLost(err) {
			return err
		}
		f.folder.conn.lost(h)
		if err := f.reopen(ctx, h); err != nil {
			return err
		}
	}
}

// Name implements origin.File.
func (f *file) Name() string { return f.name }

// Version implements origin.File.
func (f *file) Version() origin.Version { return f.version }

// Size implements block.Reader.
func (f *file) Size() int64 { return f.version.Size }

// Check implements origin.File.
func (f *file) Check(ctx context.Context) error {
	var now origin.Version
	err := f.with(ctx, func(h *sftp.File) error {
		fi, err := h.Stat()
		if err == nil {
			now = versionOf(fi)
		}
		return err
	})
	if err == nil && now != f.version {
		err = f.changed(now)
	}
	return err
}

// ReadAt implements block.Reader.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	return f.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader. The version is checked after the
// read, as a local file's is.
func (f *file) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), f.version.Size)
	if n == 0 {
		return 0, eof
	}
	buf := make([]byte, n) // not p: a read that was abandoned goes on
	got := 0
	var now origin.Version
	err := f.with(ctx, func(h *sftp.File) error {
		var err error
		if got, err = h.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		fi, err := h.Stat()
		if err == nil {
			now = versionOf(fi)
		}
		return err
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s at %#x: %w", f.name, off, err)
	case now != f.version:
		return 0, f.changed(now)
	case got < n:
		return 0, fmt.Errorf("%s: cut off at %#x: %w: %w", f.name, off+int64(got), origin.ErrChanged, ondisk.ErrCorrupt)
	}
	copy(p, buf)
	return n, eof
}

// Close implements origin.File.
func (f *file) Close() error {
	f.mu.Lock()
	h := f.handle
	f.closed = true
	f.mu.Unlock()
	if h != nil {
		go h.Close() // a round trip that nobody needs to wait for
	}
	return nil
}

// versionOf is as much of a version as the protocol tells.
func versionOf(fi os.FileInfo) origin.Version {
	return origin.Version{Size: fi.Size(), Mtime: fi.ModTime().UnixNano()}
}

// infoOf turns what the server says of a file into an Info.
func infoOf(fi os.FileInfo) origin.Info {
	info := origin.Info{Version: versionOf(fi), Nlink: 1, Blocks: (fi.Size() + 511) / 512, Mtime: fi.ModTime(), Ctime: fi.ModTime()}
	if st, ok := fi.Sys().(*sftp.FileStat); ok {
		info.Mode, info.UID, info.GID = st.Mode, st.UID, st.GID
		info.Atime = st.AccessTime()
	}
	return info
}

// ownGroup keeps a Ctrl-C in the terminal from ending ssh before us.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
