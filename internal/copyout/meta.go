package copyout

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"yester/guestfs"
)

// target is a file of the destination that gets its attributes.
type target struct {
	fd     int      // of the file itself; -1 when it has none, as a symbolic link
	dir    *hostDir // where it lies, under name; nil for a directory, which has fd
	name   string
	source string // in the tree
	id     guestfs.ID
	attr   *guestfs.Attr
}

// Names of what may be lost, as Loss.Kind shows them.
const (
	lossOwner  = "owner"
	lossSetID  = "set-user-ID and set-group-ID bits"
	lossACL    = "POSIX ACLs"
	lossTimes  = "times"
	lossXattrs = "extended attributes"
)

// The extended attributes that hold POSIX ACLs.
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// preserve gives t its owner, extended attributes, times and mode. What the host
// refuses is noted as a loss; an error says that t must not be kept.
//
// The order matters: a change of owner clears capabilities and set-ID bits, and a
// file that its mode makes read-only takes no attributes from its owner any more.
func (c *copier) preserve(ctx context.Context, t target) error {
	if c.opt.Discard {
		if t.attr.IsSymlink() {
			return nil
		}
		return c.chmod(t, t.attr.Mode&0o777&^c.umask)
	}
	keepUID, keepGID := c.owner(t)
	mode := c.xattrs(ctx, t)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ts := []unix.Timespec{timespec(t.attr.Atime), timespec(t.attr.Mtime)}
	var err error
	if t.dir == nil {
		err = unix.UtimesNanoAt(t.fd, ".", ts, 0)
	} else {
		err = unix.UtimesNanoAt(int(t.dir.fd.Fd()), t.name, ts, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		c.lost(lossTimes, t.source, err)
	}
	if t.attr.IsSymlink() {
		return nil
	}
	drop := uint32(0)
	if !keepUID {
		drop |= mode & unix.S_ISUID
	}
	if !keepGID && !t.attr.IsDir() {
		drop |= mode & unix.S_ISGID
	}
	if drop != 0 { // they would lend the rights of somebody else
		mode &^= drop
		c.lost(lossSetID, t.source, fs.ErrPermission)
	}
	return c.chmod(t, mode)
}

func (c *copier) chmod(t target, mode uint32) (err error) {
	if t.fd >= 0 {
		err = unix.Fchmod(t.fd, mode&0o7777)
	} else {
		err = t.dir.root.Chmod(t.name, guestfs.FileMode(mode))
	}
	if err != nil {
		return fmt.Errorf("set mode %#o: %w", mode&0o7777, err)
	}
	return nil
}

// timespec translates t, whose nanoseconds must not take the values that mean
// "now" and "leave it".
func timespec(t guestfs.Time) unix.Timespec {
	if t.Nsec > 999_999_999 {
		t.Nsec = 0
	}
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

// owner sets owner and group as far as that is allowed, and reports which of them
// are as in the tree.
func (c *copier) owner(t target) (uid, gid bool) {
	const keep = 1<<32 - 1 // chown's "leave it"
	a := t.attr
	chown := func(uid, gid int) error {
		if t.dir == nil {
			return unix.Fchown(t.fd, uid, gid)
		}
		return unix.Fchownat(int(t.dir.fd.Fd()), t.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	err := error(unix.EINVAL)
	switch {
	case a.UID == keep || a.GID == keep:
	case c.euid == 0:
		err = chown(int(a.UID), int(a.GID))
	default:
		gid = a.GID == uint32(c.egid) || chown(-1, int(a.GID)) == nil
		uid = a.UID == uint32(c.euid)
		if uid && gid {
			return true, true
		}
		err = unix.EPERM
	}
	if err != nil {
		c.lost(lossOwner, t.source, err)
		return uid, gid
	}
	return true, true
}

// xattrs copies extended attributes, ACLs among them. It returns the mode to set:
// where an ACL can't be, the group must not get what the ACL's mask stands for.
func (c *copier) xattrs(ctx context.Context, t target) (mode uint32) {
	mode = t.attr.Mode
	names, err := c.tree.ListXattr(ctx, t.id)
	if err != nil {
		c.damaged(ctx, t.source, err)
	}
	// What the host's directory passes on to new files isn't the guest's.
	inherited := t.inherited()
	// An ACL that makes the file read-only comes after what it would forbid.
	slices.SortStableFunc(names, func(a, b string) int { return isACL(a) - isACL(b) })
	for _, name := range names {
		value, err := c.tree.Xattr(ctx, t.id, name)
		if err != nil {
			c.damaged(ctx, t.source, err)
			continue
		}
		inherited = slices.DeleteFunc(inherited, func(s string) bool { return s == name })
		if err := t.setXattr(name, value); err != nil {
			c.lost(xattrKind(name), t.source, err)
			if name == accessACL {
				mode = withoutMask(mode, value)
			}
		}
	}
	for _, name := range inherited {
		if err := unix.Fremovexattr(t.fd, name); err != nil && !errors.Is(err, unix.ENODATA) {
			c.lost(lossACL, t.source, err)
		}
	}
	return mode
}

// inherited returns the names of the ACLs that t may have got from the directory
// it was made in.
func (t *target) inherited() []string {
	switch {
	case t.fd < 0:
	case t.dir == nil && inheritsACL(t.fd):
		return []string{accessACL, defaultACL}
	case t.dir != nil && t.dir.inherits:
		return []string{accessACL}
	}
	return nil
}

// isACL returns 1 for the names of ACLs, else 0.
func isACL(name string) int {
	if name == accessACL || name == defaultACL {
		return 1
	}
	return 0
}

// damaged notes that attributes can't be read from the source.
func (c *copier) damaged(ctx context.Context, source string, err error) {
	if ctx.Err() != nil {
		return
	}
	c.lost(lossXattrs+" that can't be read", source, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.res.Losses[c.losses[lossXattrs+" that can't be read"]].Damaged = true
}

func (t *target) setXattr(name string, value []byte) error {
	if t.fd >= 0 {
		return unix.Fsetxattr(t.fd, name, value, 0)
	}
	return unix.Lsetxattr("/proc/self/fd/"+strconv.Itoa(int(t.dir.fd.Fd()))+"/"+t.name, name, value, 0)
}

// xattrKind is the Loss.Kind of an extended attribute.
func xattrKind(name string) string {
	if isACL(name) == 1 {
		return lossACL
	}
	space, _, _ := strings.Cut(name, ".")
	return space + ".* " + lossXattrs
}

// withoutMask returns mode with the group's own permissions out of the ACL, in
// the form of include/uapi/linux/posix_acl_xattr.h. A mode's group bits are the
// ACL's mask where there is one: what any named user or group may have at most.
func withoutMask(mode uint32, acl []byte) uint32 {
	const (
		header, entry = 4, 8
		tagGroup      = 0x04 // ACL_GROUP_OBJ
	)
	for i := header; i+entry <= len(acl); i += entry {
		if binary.LittleEndian.Uint16(acl[i:]) == tagGroup {
			perm := uint32(binary.LittleEndian.Uint16(acl[i+2:]) & 7)
			return mode&^0o070 | mode&(perm<<3)
		}
	}
	return mode &^ 0o070
}

// inheritsACL reports whether new files in the directory get an ACL from it.
func inheritsACL(fd int) bool {
	_, err := unix.Fgetxattr(fd, defaultACL, nil)
	return err == nil || errors.Is(err, unix.ERANGE)
}
