package ext4

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"yester/guestfs"
)

// Names of encrypted directories, which nothing can decrypt without their key,
// are shown as the kernel shows them then: the hash that finds the entry and the
// encrypted name, in base64url (struct fscrypt_nokey_name in fs/crypto/fname.c).
const (
	noKeyBytes = 149 // of the encrypted name; what is longer goes into a SHA-256
	noKeyMax   = 8 + noKeyBytes + sha256.Size
)

// nameCoder turns the encrypted names of one directory into those shown.
type nameCoder struct {
	f       *FS
	version uint8 // hash function; hashNone when the kernel doesn't hash here
	stored  bool  // hashes lie in the entries
}

const hashNone = 0xFF

// nameCoder returns the coder of an encrypted directory, nil for others.
func (f *FS) nameCoder(ctx context.Context, in *inode) (*nameCoder, error) {
	if in.flags&flEncrypt == 0 || f.sb.incompat&incompatEncrypt == 0 {
		return nil, nil
	}
	c := &nameCoder{f: f, version: hashNone, stored: in.flags&flCasefold != 0 && f.sb.incompat&incompatCasefold != 0}
	indexed := in.flags&flIndex != 0
	// The kernel reads directories through their index, or as if they had one.
	if f.sb.compat&compatDirIndex == 0 || !indexed && in.flags&flInline == 0 && in.size>>f.sb.blockBits != 1 {
		return c, nil
	}
	c.version = f.sb.defHash
	if indexed && in.size > int64(f.sb.blockSize()) {
		cur := dirCursor{f: f, in: in}
		root, err := cur.index(ctx, 0)
		if err != nil {
			return nil, err
		}
		c.version = root[dxRootHash]
	}
	if c.version <= hashTEA && f.sb.hashFlags&sbFlagUnsignedHash != 0 {
		c.version += hashLegacyUnsigned
	}
	return c, nil
}

// shown returns the name shown for the entry at off of b.
func (c *nameCoder) shown(b []byte, off int, e *entry) string {
	le := binary.LittleEndian
	var major, minor uint32
	switch at := (off + deName + len(e.name) + 3) &^ 3; {
	case c.version == hashNone:
	case c.stored && at+deHashSize <= e.next:
		major, minor = le.Uint32(b[at:]), le.Uint32(b[at+4:])
	case c.version < hashSiphash:
		major, minor = nameHash(string(e.name), c.version, &c.f.sb.hashSeed, false)
	}
	buf := make([]byte, 0, noKeyMax)
	buf = le.AppendUint32(buf, major)
	buf = le.AppendUint32(buf, minor)
	if len(e.name) <= noKeyBytes {
		buf = append(buf, e.name...)
	} else {
		buf = append(buf, e.name[:noKeyBytes]...)
		sum := sha256.Sum256(e.name[noKeyBytes:])
		buf = append(buf, sum[:]...)
	}
	return base64.RawURLEncoding.EncodeToString(buf)
}

// lookupEncrypted finds a name as shown by going through the directory.
func (f *FS) lookupEncrypted(ctx context.Context, in *inode, name string) (uint32, error) {
	var ino uint32
	err := f.readDirDisk(ctx, in, 0, func(e guestfs.Dirent) bool {
		if e.Name == name {
			ino = uint32(e.ID.Ino)
		}
		return ino == 0
	})
	if ino == 0 && err == nil {
		err = guestfs.ErrNotExist
	}
	return ino, err
}
