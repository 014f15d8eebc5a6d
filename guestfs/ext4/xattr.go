package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// xattr is one attribute as it lies on the disk.
type xattr struct {
	index uint8 // xaIdx*
	name  []byte
	value []byte // nil with inum
	inum  uint32 // inode that holds the value, or 0
	size  uint32
	hash  uint32
}

// xattrPrefixes are the namespaces by e_name_index (fs/ext4/xattr.c). What is
// missing is not shown: "system.data" is inline data, 9 an encryption context.
var xattrPrefixes = [...]string{
	xaIdxUser:    "user.",
	xaIdxACL:     aclAccess,
	xaIdxDefACL:  aclDefault,
	xaIdxTrusted: "trusted.",
	xaIdxSec:     "security.",
	xaIdxHurd:    "gnu.",
}

// fullName returns the attribute's name with its namespace, "" if it isn't shown.
func (e *xattr) fullName() string {
	if int(e.index) >= len(xattrPrefixes) || xattrPrefixes[e.index] == "" {
		return ""
	}
	if e.index == xaIdxACL || e.index == xaIdxDefACL {
		return xattrPrefixes[e.index] // nothing follows
	}
	return xattrPrefixes[e.index] + string(e.name)
}

// walkXattrs calls fn for each entry at the start of entries, until fn returns
// false. Values are at offsets in values.
func walkXattrs(entries, values []byte, fn func(*xattr) (bool, error)) error {
	le := binary.LittleEndian
	for len(entries) >= 4 && le.Uint32(entries) != 0 {
		if len(entries) < xaEntrySize {
			return fmt.Errorf("entry cut off")
		}
		n := int(entries[xaNameLen])
		whole := (xaEntrySize + n + 3) &^ 3
		if whole > len(entries) {
			return fmt.Errorf("name of %d bytes runs out of its space", n)
		}
		e := xattr{
			index: entries[xaNameIndex],
			name:  entries[xaEntrySize : xaEntrySize+n],
			inum:  le.Uint32(entries[xaValueInum:]),
			size:  le.Uint32(entries[xaValueSize:]),
			hash:  le.Uint32(entries[xaHash:]),
		}
		if e.inum == 0 {
			off := uint64(le.Uint16(entries[xaValueOffs:]))
			if off+uint64(e.size) > uint64(len(values)) {
				return fmt.Errorf("value of %q: %d bytes at %d of %d", e.name, e.size, off, len(values))
			}
			e.value = values[off : off+uint64(e.size)]
		}
		more, err := fn(&e)
		if !more || err != nil {
			return err
		}
		entries = entries[whole:]
	}
	return nil
}

// ibodyRegion returns the space behind the inode's fields when it holds
// attributes, without its header; else nothing.
func (f *FS) ibodyRegion(ctx context.Context, in *inode) ([]byte, error) {
	if in.extraISize == 0 {
		return nil, nil
	}
	raw, err := f.raw(ctx, in)
	if err != nil {
		return nil, err
	}
	region := raw[goodOldInodeSize+in.extraISize:]
	if len(region) < xaIHeader+4 || binary.LittleEndian.Uint32(region) != xaMagic {
		return nil, nil
	}
	return region[xaIHeader:], nil
}

// xattrBlock returns the verified block of attributes, or nothing.
func (f *FS) xattrBlock(ctx context.Context, in *inode) ([]byte, error) {
	le := binary.LittleEndian
	if in.fileACL == 0 {
		return nil, nil
	}
	m, err := f.block(ctx, in.fileACL, "extended attributes")
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", in.ino, err)
	}
	key := checkKey(0, checkXattr) // inodes may share the block: nothing in it is theirs
	if m.checked.Load() == key {
		return m.data, nil
	}
	b, pos := m.data, int64(in.fileACL)<<f.sb.blockBits
	if le.Uint32(b) != xaMagic || le.Uint32(b[xaHBlocks:]) != 1 {
		return nil, ondisk.Corruptf(format, in.name()+" attribute block", pos, "magic %#x, %d blocks", le.Uint32(b), le.Uint32(b[xaHBlocks:]))
	}
	if f.sb.metadataCsum() {
		crc := crc32cLE(crc32cLE(f.sb.seed, uint32(in.fileACL)), uint32(in.fileACL>>32))
		crc = crc32c(crc, b[:xaHChecksum])
		crc = crc32c(crc, zeros[:4])
		if crc = crc32c(crc, b[xaHChecksum+4:]); crc != le.Uint32(b[xaHChecksum:]) {
			return nil, ondisk.Corruptf(format, in.name()+" attribute block", pos, "wrong checksum")
		}
	}
	m.checked.Store(key)
	return b, nil
}

// eachXattr calls fn for each attribute of in, those in the inode first.
func (f *FS) eachXattr(ctx context.Context, in *inode, fn func(*xattr) (bool, error)) error {
	stopped := false
	step := func(e *xattr) (bool, error) {
		more, err := fn(e)
		stopped = !more
		return more, err
	}
	region, err := f.ibodyRegion(ctx, in)
	if err != nil {
		return err
	}
	if err := walkXattrs(region, region, step); err != nil || stopped {
		return f.xattrError(in, "in the inode", err)
	}
	b, err := f.xattrBlock(ctx, in)
	if err != nil || b == nil {
		return err
	}
	return f.xattrError(in, "in its block", walkXattrs(b[xaHeaderSize:], b, step))
}

// xattrError turns a finding of walkXattrs into an error that says where; errors
// that already do so pass.
func (f *FS) xattrError(in *inode, where string, err error) error {
	if err == nil {
		return nil
	}
	if fe := (*ondisk.FormatError)(nil); errors.As(err, &fe) {
		return err
	}
	return ondisk.Corruptf(format, in.name(), -1, "extended attributes %s: %v", where, err)
}

// ListXattr implements guestfs.Tree.
func (f *FS) ListXattr(ctx context.Context, id guestfs.ID) ([]string, error) {
	in, err := f.byID(ctx, id)
	if err != nil {
		return nil, err
	}
	var names []string
	err = f.eachXattr(ctx, in, func(e *xattr) (bool, error) {
		if name := e.fullName(); name != "" {
			names = append(names, name)
		}
		return true, nil
	})
	return names, err
}

// Xattr implements guestfs.Tree.
func (f *FS) Xattr(ctx context.Context, id guestfs.ID, name string) ([]byte, error) {
	in, err := f.byID(ctx, id)
	if err != nil {
		return nil, err
	}
	index, rest := splitXattr(name)
	if index == 0 {
		return nil, guestfs.ErrNoXattr
	}
	var found *xattr
	err = f.eachXattr(ctx, in, func(e *xattr) (bool, error) {
		if e.index != index || string(e.name) != rest {
			return true, nil
		}
		found = e
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, guestfs.ErrNoXattr
	}
	value := found.value
	if found.inum != 0 {
		if value, err = f.xattrInode(ctx, in, found); err != nil {
			return nil, err
		}
	}
	if index == xaIdxACL || index == xaIdxDefACL {
		acl, err := convertACL(value)
		if err != nil {
			return nil, ondisk.Corruptf(format, in.name(), -1, "%s: %v", name, err)
		}
		return acl, nil
	}
	return append([]byte(nil), value...), nil // the cache's bytes stay its own
}

// splitXattr returns e_name_index and the rest of an attribute's name; 0 when no
// such namespace is shown.
func splitXattr(name string) (index uint8, rest string) {
	for i, prefix := range xattrPrefixes {
		if prefix == "" {
			continue
		}
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			if (prefix[len(prefix)-1] == '.') == (rest != "") {
				return uint8(i), rest
			}
		}
	}
	return 0, ""
}

// xattrInode returns a value that lies in an inode of its own (ea_inode), which
// keeps the value's hash in its access time. The entry's hash covers its name
// and that hash.
func (f *FS) xattrInode(ctx context.Context, in *inode, e *xattr) ([]byte, error) {
	bad := func(msg string, args ...any) error {
		return ondisk.Corruptf(format, in.name(), -1, "value of attribute %q in inode %d: %s", e.name, e.inum, fmt.Sprintf(msg, args...))
	}
	if f.sb.incompat&incompatEAInode == 0 {
		return nil, bad("the filesystem has no ea_inode")
	}
	ea, err := f.inode(ctx, e.inum)
	if err != nil {
		return nil, fmt.Errorf("inode %d: attribute %q: %w", in.ino, e.name, err)
	}
	switch {
	case ea.flags&flEAInode == 0 || ea.mode&guestfs.ModeType != guestfs.ModeRegular:
		return nil, bad("not the inode of a value")
	case ea.size != int64(e.size) || e.size > xaMaxValue || ea.size > f.dev.Size():
		return nil, bad("size %d, by its entry %d", ea.size, e.size)
	}
	var value []byte
	if ea.flags&flInline != 0 {
		value, err = f.inlineData(ctx, ea)
	} else {
		value = make([]byte, ea.size)
		err = block.ReadFull(ctx, &file{fs: f, in: ea}, value, 0)
	}
	if err != nil {
		return nil, err
	}
	// Lustre's older form has no hash, but refers to the owner.
	if uint32(ea.mtime.Sec) == in.ino && ea.gen == in.gen {
		return value, nil
	}
	hash := crc32c(f.sb.seed, value)
	if stored := uint32(ea.atime.Sec); hash != stored {
		return nil, bad("hash %#08x, stored %#08x", hash, stored)
	}
	if e.hash != xattrEntryHash(e.name, hash, false) && e.hash != xattrEntryHash(e.name, hash, true) {
		return nil, bad("wrong hash of the entry")
	}
	return value, nil
}

// xattrEntryHash is e_hash of an entry whose value has the given hash
// (ext4_xattr_hash_entry in fs/ext4/xattr.c); older kernels took the name's
// bytes as signed.
func xattrEntryHash(name []byte, value uint32, signed bool) uint32 {
	var h uint32
	for _, c := range name {
		h = h<<5 ^ h>>27 ^ char(c, signed)
	}
	return h<<16 ^ h>>16 ^ value
}
