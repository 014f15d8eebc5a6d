// Package sftp gives the files of a folder on another host, over SSH's file
// transfer protocol (draft-ietf-secsh-filexfer-02, which OpenSSH speaks). The
// connection is made by the host's own ssh program, so that the user's
// configuration, keys, agent, jump hosts and known hosts are what they are for
// every other use of SSH.
package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/pkg/sftp"

	"yester/internal/ondisk"
	"yester/origin"
)

// Scheme is what the location of such a folder begins with, before "://".
const Scheme = "sftp"

// Folder is a folder on another host. When the connection is lost, the next use
// makes a new one.
type Folder struct {
	base string // absolute, on the other host
	name string // as messages have it
	conn connection
}

var _ origin.Folder = (*Folder)(nil)

// Open opens the folder, or the folder of the file, at location:
// sftp://[user@]host[:port]/path. The path is absolute; "/~/" at its beginning is
// the user's home. command is the ssh program with its options; empty: "ssh". When
// the location is a file, only is its name in the folder.
func Open(ctx context.Context, location string, command []string) (folder *Folder, only string, err error) {
	u, err := parse(location)
	if err != nil {
		return nil, "", err
	}
	f := &Folder{name: u.Redacted(), conn: connection{command: command, host: u.Hostname(), port: u.Port(), user: u.User.Username()}}
	dir := u.Path
	if rest, home := strings.CutPrefix(dir, "/~/"); home {
		dir = rest // relative paths begin there
	}
	if dir == "" {
		dir = "/"
	}
	err = f.conn.do(ctx, func(c *sftp.Client) error {
		real, err := c.RealPath(dir)
		if err != nil {
			return err
		}
		fi, err := c.Stat(real)
		if err != nil {
			return err
		}
		f.base = real
		switch {
		case fi.Mode().IsRegular():
			f.base, only = path.Split(real)
			f.base = path.Clean(f.base)
		case !fi.IsDir():
			return errors.New("neither a regular file nor a folder")
		}
		return nil
	})
	if err != nil {
		f.Close()
		return nil, "", fmt.Errorf("%s: %w", f.name, err)
	}
	return f, only, nil
}

// Check tells what is wrong with a location, without going there.
func Check(location string) error {
	_, err := parse(location)
	return err
}

func parse(location string) (*url.URL, error) {
	u, err := url.Parse(location)
	if err != nil || u.Scheme != Scheme || u.Hostname() == "" {
		return nil, fmt.Errorf("%s: not of the form sftp://[user@]host[:port]/path", redact(location))
	}
	if _, has := u.User.Password(); has {
		return nil, fmt.Errorf("%s: a password in a location would be seen by everyone on this host; use a key or an agent", u.Redacted())
	}
	if strings.HasPrefix(u.Hostname(), "-") || strings.HasPrefix(u.User.Username(), "-") {
		return nil, fmt.Errorf("%s: a host or user can't begin with a dash", u.Redacted())
	}
	return u, nil
}

// redact keeps a password in what can't be parsed out of a message.
func redact(location string) string {
	scheme, rest, _ := strings.Cut(location, "://")
	if i := strings.LastIndex(rest, "@"); i >= 0 {
		rest = rest[i+1:]
	}
	return scheme + "://" + rest
}

// Path implements origin.Folder: the location, as messages have it.
func (f *Folder) Path() string { return f.name }

// Local implements origin.Folder.
func (f *Folder) Local() bool { return false }

// Close implements origin.Folder.
func (f *Folder) Close() error { return f.conn.close() }

// full returns the path of name on the other host.
func (f *Folder) full(name string) (string, error) {
	clean := path.Clean(name) // names are bytes, so fs.ValidPath asks too much
	if clean == ".." || strings.HasPrefix(clean, "../") || strings.HasPrefix(clean, "/") || strings.Contains(name, "\x00") {
		return "", fmt.Errorf("%q: leads out of the folder: %w", name, fs.ErrInvalid)
	}
	return path.Join(f.base, clean), nil
}

// do calls what with the full path of name.
func (f *Folder) do(ctx context.Context, op, name string, what func(c *sftp.Client, full string) error) error {
	full, err := f.full(name)
	if err != nil {
		return err
	}
	err = f.conn.do(ctx, func(c *sftp.Client) error { return what(c, full) })
	if err != nil && ctx.Err() == nil {
		return &fs.PathError{Op: op, Path: f.name + "/" + name, Err: unwrapPath(err)}
	}
	return err
}

// unwrapPath takes off what the library says of the path, which do says again.
func unwrapPath(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// inside fails when full, symbolic links resolved, is not below the folder.
func (f *Folder) inside(c *sftp.Client, full string) error {
	real, err := c.RealPath(full)
	if err != nil {
		return err
	}
	if real != f.base && !strings.HasPrefix(real, strings.TrimSuffix(f.base, "/")+"/") {
		return fmt.Errorf("a symbolic link leads out of the folder: %w", fs.ErrInvalid)
	}
	return nil
}

// Stat implements origin.Folder.
func (f *Folder) Stat(ctx context.Context, name string) (e origin.Entry, err error) {
	err = f.do(ctx, "stat", name, func(c *sftp.Client, full string) error {
		if err := f.inside(c, full); err != nil {
			return err
		}
		fi, err := c.Stat(full)
		if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return origin.ErrNotRegular
		}
		e = origin.Entry{Name: path.Clean(name), ModTime: fi.ModTime(), Version: versionOf(fi)}
		return nil
	})
	return e, err
}

// Lstat implements origin.Folder. The protocol's version 3 tells neither links nor
// device numbers, and times in seconds.
func (f *Folder) Lstat(ctx context.Context, name string) (info origin.Info, err error) {
	err = f.do(ctx, "lstat", name, func(c *sftp.Client, full string) error {
		fi, err := c.Lstat(full)
		if err == nil {
			info = infoOf(fi)
		}
		return err
	})
	return info, err
}

// maxEntries bounds a listing: more than any directory that a backup has, and an
// end to a server that never ends one.
const maxEntries = 16 << 20

// ReadDir implements origin.Folder.
func (f *Folder) ReadDir(ctx context.Context, name string) (entries []origin.DirEntry, err error) {
	err = f.do(ctx, "readdir", name, func(c *sftp.Client, full string) error {
		list, err := c.ReadDirContext(ctx, full)
		if len(list) > maxEntries {
			return fmt.Errorf("more than %d entries: %w", maxEntries, ondisk.ErrUnsupported)
		}
		entries = make([]origin.DirEntry, 0, len(list))
		for _, fi := range list {
			if n := fi.Name(); n != "." && n != ".." && n != "" && !strings.Contains(n, "/") {
				entries = append(entries, origin.DirEntry{Name: n, Type: fi.Mode().Type()})
			}
		}
		return err
	})
	slices.SortFunc(entries, func(a, b origin.DirEntry) int { return strings.Compare(a.Name, b.Name) })
	return entries, err
}

// ReadLink implements origin.Folder.
func (f *Folder) ReadLink(ctx context.Context, name string) (target string, err error) {
	err = f.do(ctx, "readlink", name, func(c *sftp.Client, full string) error {
		target, err = c.ReadLink(full)
		return err
	})
	return target, err
}

// Walk implements origin.Folder.
func (f *Folder) Walk(ctx context.Context, enter func(dir string) bool, visit func(origin.Entry), unreadable func(name string, err error)) error {
	return origin.WalkFolder(ctx, f, enter, visit, unreadable)
}

// Open implements origin.Folder.
func (f *Folder) Open(ctx context.Context, name string) (origin.File, error) {
	file := &file{folder: f, name: name}
	if err := file.reopen(ctx, nil); err != nil {
		return nil, err
	}
	return file, nil
}

// isLost reports whether err means that the connection is gone, and that the same
// on a new one may work.
func isLost(err error) bool {
	return errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, sftp.ErrSSHFxNoConnection) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, errClosed)
}
