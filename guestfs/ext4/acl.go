package ext4

import (
	"encoding/binary"
	"fmt"
)

// POSIX ACLs as ext4 stores them (fs/ext4/acl.h) and as getxattr shows them
// (include/uapi/linux/posix_acl_xattr.h).
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclHeader      = 4 // a version, in both forms
	aclDiskVersion = 1 // EXT4_ACL_VERSION
	aclDiskShort   = 4 // e_tag, e_perm
	aclDiskLong    = 8 // and e_id

	aclXattrVersion = 2 // POSIX_ACL_XATTR_VERSION
	aclXattrEntry   = 8
	aclUndefinedID  = 0xFFFFFFFF // ACL_UNDEFINED_ID

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// convertACL turns ext4's compact form into that of getxattr, in which every
// entry has an id.
func convertACL(disk []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(disk) < aclHeader || le.Uint32(disk) != aclDiskVersion {
		return nil, fmt.Errorf("no ACL of version %d", aclDiskVersion)
	}
	out := make([]byte, aclHeader, aclHeader+(len(disk)-aclHeader)/aclDiskShort*aclXattrEntry)
	le.PutUint32(out, aclXattrVersion)
	for p := disk[aclHeader:]; len(p) > 0; {
		if len(p) < aclDiskShort {
			return nil, fmt.Errorf("%d bytes left over", len(p))
		}
		tag, id, n := le.Uint16(p), uint32(aclUndefinedID), aclDiskShort
		switch tag {
		case aclUser, aclGroup:
			if n = aclDiskLong; len(p) < n {
				return nil, fmt.Errorf("entry cut off")
			}
			id = le.Uint32(p[aclDiskShort:])
		case aclUserObj, aclGroupObj, aclMask, aclOther:
		default:
			return nil, fmt.Errorf("unknown tag %#x", tag)
		}
		out = append(out, p[:4]...)
		out = le.AppendUint32(out, id)
		p = p[n:]
	}
	return out, nil
}
