package rdiff

// Facts of the format, from rdiff-backup 2.2.2: its documentation (docs/format of
// the project: "rdiff-backup file format"), and repositories that it wrote.
// docs/formats/rdiff.md tells more.

// What lies in the repository's root beside the mirror.
const (
	dataDir       = "rdiff-backup-data"
	incrementsDir = "increments"         // in dataDir; the tree of increments
	longNamesDir  = "long_filename_data" // in dataDir; mirror files and increments whose names were too long
	nextFreeFile  = "next_free"          // in longNamesDir; the next number to use
	charsFile     = "chars_to_quote"     // in dataDir; a class of characters as in a regular expression
	escapesFile   = "special_escapes"    // in dataDir; one word a line
	tempPrefix    = "rdiff-backup.tmp."  // names of files that a session hasn't finished
	escapeDevices = "escape_dos_devices"
	escapeTrails  = "escape_trailing_spaces"
)

// A file goes to longNamesDir by its increments when its name, as it is on disk, has
// no room for this many bytes more (rdiff_backup/longname.py of 2.2.2), and all of it
// when the name itself is too long: Linux's NAME_MAX (include/uapi/linux/limits.h).
const (
	longSuffix = 50
	longName   = 255
)

// Prefixes of the files in dataDir that are one session's.
const (
	markerPrefix = "current_mirror"
	metaPrefix   = "mirror_metadata"
	eaPrefix     = "extended_attributes"
	aclPrefix    = "access_control_lists"
)

// kind is the type of an increment: what its file says of the path at its time.
type kind uint8

const (
	kindNone     kind = iota
	kindMissing       // there was nothing
	kindDir           // there was a directory
	kindSnapshot      // the whole file, of any type but a directory
	kindDiff          // a librsync delta that makes this version of the next newer one
	kindData          // statistics and the like; no increment of a path
)

var kindNames = map[string]kind{
	"missing": kindMissing, "dir": kindDir, "snapshot": kindSnapshot, "diff": kindDiff, "data": kindData,
}

func (k kind) String() string {
	for name, v := range kindNames {
		if v == k {
			return name
		}
	}
	return "none"
}

// quotingChar begins a quoted character in a file name: ";058" is a colon.
const quotingChar = ';'

// Limits on what data may ask for. All are far above what rdiff-backup writes.
const (
	// maxSmallFile bounds charsFile and escapesFile, which hold a line or two.
	maxSmallFile = 4096
	// maxLine bounds a line of metadata in bytes. The longest ones are a resource
	// fork's, which holds at most 16 MiB and is written in hexadecimal.
	maxLine = 33 << 20
	// maxPath bounds a path in bytes: twice Linux's PATH_MAX, as rdiff-backup reads
	// and writes by whole paths.
	maxPath = 8192
	// maxName bounds one component: what FUSE passes on (FUSE_NAME_MAX of the Linux
	// kernel, fs/fuse/fuse_i.h).
	maxName = 1024
	// maxTarget bounds a symbolic link's target: Linux's PATH_MAX.
	maxTarget = 4096
	// maxRecords bounds the records of one metadata file, and the paths of a point:
	// they are held in memory, at some hundred bytes each.
	maxRecords = 1 << 25
	// maxText bounds the names, paths and link targets of one metadata file in
	// bytes; offsets into them have 32 bits.
	maxText = 1<<32 - 1<<20
	// maxChain bounds the metadata files that one point is put together from.
	// rdiff-backup writes a whole one at least every ten sessions.
	maxChain = 1024
	// maxIncrements bounds the increments of one file that its content at one time
	// needs: a session an hour for a decade.
	maxIncrements = 100_000
	// maxXattrs bounds what one point's attributes and ACLs take in memory, in bytes.
	maxXattrs = 1 << 30
	// maxXattrValue is the largest value that Linux passes on (XATTR_SIZE_MAX,
	// include/uapi/linux/limits.h); a resource fork alone may be larger.
	maxXattrValue = 64 << 10
)

// The layout of the attribute that holds a POSIX ACL (include/uapi/linux/posix_acl_xattr.h
// and posix_acl.h of the Linux kernel): a header, then an entry of tag, permissions
// and id each, all little-endian.
const (
	aclVersion     = 2
	aclHeaderSize  = 4
	aclEntrySize   = 8
	aclUserObj     = 0x01
	aclUser        = 0x02
	aclGroupObj    = 0x04
	aclGroup       = 0x08
	aclMask        = 0x10
	aclOther       = 0x20
	aclUndefinedID = 1<<32 - 1

	xattrACLAccess  = "system.posix_acl_access"
	xattrACLDefault = "system.posix_acl_default"
)

// What macOS keeps beside a file's data, by the names it has for them there
// (sys/xattr.h of Darwin), in the one namespace that Linux leaves to users.
const (
	xattrResourceFork = "user.com.apple.ResourceFork"
	xattrFinderInfo   = "user.com.apple.FinderInfo"
	// finderInfoSize is the length of the latter: type, creator, flags, location
	// (vertical, horizontal), and 18 bytes that rdiff-backup doesn't record
	// (struct FileInfo of CarbonCore, big-endian).
	finderInfoSize = 32
)
