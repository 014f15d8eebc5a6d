package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"yester/guestfs"
)

var le = binary.LittleEndian

// ErrTooLarge means that something doesn't fit into an image.
var ErrTooLarge = errors.New("too large for an EROFS image")

// Xattr is an extended attribute.
type Xattr struct {
	Name  string // with its namespace
	Value []byte
}

// Super returns the beginning of an image: its superblock and the table of the
// devices that hold the files' contents. Which these are is said when it is mounted,
// by one option "device" for each. root is the root directory's number, which must
// be below 65,536.
func Super(root uint64, devices int) ([]byte, error) {
	table := superOffset + sbSize
	out := make([]byte, roundUp(table+devices*deviceSlot, BlockSize))
	if root >= 1<<16 || devices >= 1<<16 {
		return nil, fmt.Errorf("root %d, %d devices: %w", root, devices, ErrTooLarge)
	}
	sb := out[superOffset:]
	le.PutUint32(sb[sbMagic:], superMagic)
	sb[sbBlockBits] = BlockBits
	le.PutUint16(sb[sbRootNID:], uint16(root))
	le.PutUint64(sb[sbInodes:], 1)
	le.PutUint32(sb[sbBlocks:], 1)
	le.PutUint32(sb[sbFeatureIncompat:], incompatChunkedFile|incompatDeviceTable)
	le.PutUint16(sb[sbExtraDevices:], uint16(devices))
	le.PutUint16(sb[sbDeviceTable:], uint16(table/deviceSlot))
	for i := range devices {
		le.PutUint32(out[table+i*deviceSlot+deviceBlocks:], 1)
	}
	return out, nil
}

// putInode writes the inode of a; dataLayout, size and where tell its data. The
// extended attributes, as packXattrs made them, follow it.
func putInode(to []byte, a *guestfs.Attr, dataLayout uint16, size int64, where uint32, xattrs []byte) {
	le.PutUint16(to[inFormat:], formatExtends|dataLayout)
	if len(xattrs) > 0 {
		le.PutUint16(to[inXattrs:], uint16((len(xattrs)-xattrHeader)/xattrAlign+1))
	}
	le.PutUint16(to[inMode:], uint16(a.Mode))
	le.PutUint64(to[inFileSize:], uint64(size))
	le.PutUint32(to[inWhere:], where)
	le.PutUint32(to[inUID:], a.UID)
	le.PutUint32(to[inGID:], a.GID)
	le.PutUint64(to[inMtime:], uint64(a.Mtime.Sec))
	le.PutUint32(to[inMtimeNsec:], a.Mtime.Nsec)
	le.PutUint32(to[inLinks:], a.Nlink)
	copy(to[inodeSize:], xattrs)
}

// packXattrs returns what follows an inode for its extended attributes: nothing
// when there are none. Names outside the format's name spaces are returned.
func packXattrs(attrs []Xattr) (out []byte, left []string, err error) {
	for _, x := range attrs {
		index, name, ok := splitXattr(x.Name)
		if !ok {
			left = append(left, x.Name)
			continue
		}
		if out == nil {
			out = make([]byte, xattrHeader)
		}
		if len(name) > maxName || len(x.Value) >= 1<<16 {
			return nil, nil, fmt.Errorf("extended attribute %q of %d bytes: %w", x.Name, len(x.Value), ErrTooLarge)
		}
		out = append(out, byte(len(name)), index)
		out = le.AppendUint16(out, uint16(len(x.Value)))
		out = append(append(out, name...), x.Value...)
		out = append(out, make([]byte, roundUp(len(out), xattrAlign)-len(out))...)
	}
	if len(out) > maxXattrBytes {
		return nil, nil, fmt.Errorf("%d bytes of extended attributes: %w", len(out), ErrTooLarge)
	}
	return out, left, nil
}

func splitXattr(full string) (index byte, name string, ok bool) {
	for _, p := range xattrPrefixes {
		rest, has := strings.CutPrefix(full, p.prefix)
		if has && (rest == "") != strings.HasSuffix(p.prefix, ".") {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// dirEntry is an entry of a directory that is being written.
type dirEntry struct {
	name string
	typ  uint32 // guestfs.ModeType bits
	id   guestfs.ID
	nid  uint64
}

// sortEntries puts entries into the order by which the kernel looks names up.
func sortEntries(entries []dirEntry) {
	slices.SortFunc(entries, func(a, b dirEntry) int { return strings.Compare(a.name, b.name) })
}

// dirBlocks says which entries go into which block: the index of each block's
// first. Every block has at least one, and there are at least atLeast of them, as
// long as there are so many entries. The second result is the length of the last
// block's part that is used.
func dirBlocks(entries []dirEntry, atLeast int) (first []int, tail int) {
	used := 0
	for i, e := range entries {
		need := direntSize + len(e.name)
		if i == 0 || used+need > BlockSize || len(entries)-i <= atLeast-len(first) {
			first = append(first, i)
			used = 0
		}
		used += need
	}
	return first, used
}

// putDirBlock writes the entries of one block of a directory.
func putDirBlock(to []byte, entries []dirEntry) {
	at := len(entries) * direntSize
	for i, e := range entries {
		d := to[i*direntSize:]
		le.PutUint64(d, e.nid)
		le.PutUint16(d[direntName:], uint16(at))
		d[direntType] = fileType(e.typ)
		at += copy(to[at:], e.name)
	}
}

// fileType returns EROFS_FT_* (the same as ext4's) of guestfs.ModeType bits.
func fileType(mode uint32) byte {
	types := []uint32{guestfs.ModeRegular, guestfs.ModeDir, guestfs.ModeChar, guestfs.ModeBlock, guestfs.ModeFifo, guestfs.ModeSocket, guestfs.ModeSymlink}
	return byte(slices.Index(types, mode&guestfs.ModeType) + 1)
}

// Rdev encodes a device number as the kernel's new_encode_dev does
// (include/linux/kdev_t.h), for EROFS as for FUSE.
func Rdev(major, minor uint32) uint32 { return minor&0xff | major&0xfff<<8 | minor&^0xff<<12 }

// validName reports whether a name can be in a directory.
func validName(name string) bool {
	return name != "" && len(name) <= maxName && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }

// Entry is an entry of a directory that Listing writes.
type Entry struct {
	Name string
	NID  uint64 // of a directory
}

// Listing returns a directory of directories, to lie at base, a multiple of
// BlockSize; its inode comes first. parent is what its ".." shows.
func Listing(base int64, a *guestfs.Attr, parent uint64, entries []Entry) (nid uint64, blocks []byte) {
	nid = NID(base)
	list := []dirEntry{{name: ".", typ: guestfs.ModeDir, nid: nid}, {name: "..", typ: guestfs.ModeDir, nid: parent}}
	for _, e := range entries {
		list = append(list, dirEntry{name: e.Name, typ: guestfs.ModeDir, nid: e.NID})
	}
	sortEntries(list)
	first, _ := dirBlocks(list, 1)
	blocks = make([]byte, (1+len(first))*BlockSize)
	putInode(blocks, a, layoutPlain, int64(len(first))*BlockSize, uint32(base>>BlockBits)+1, nil)
	for k, from := range first {
		to := len(list)
		if k+1 < len(first) {
			to = first[k+1]
		}
		putDirBlock(blocks[(k+1)*BlockSize:], list[from:to])
	}
	return nid, blocks
}
