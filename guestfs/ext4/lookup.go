package ext4

import (
	"context"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// Lookup implements guestfs.Tree.
func (f *FS) Lookup(ctx context.Context, dir guestfs.ID, name string) (guestfs.ID, error) {
	in, err := f.dirByID(ctx, dir)
	if err != nil {
		return guestfs.ID{}, err
	}
	if name == "" || len(name) > maxName || name == "." || name == ".." {
		return guestfs.ID{}, guestfs.ErrNotExist
	}
	ino, err := f.lookup(ctx, in, name)
	if err != nil {
		return guestfs.ID{}, err
	}
	return guestfs.ID{Ino: uint64(ino)}, nil
}

// lookup finds name among what fast commits changed, then on the disk.
func (f *FS) lookup(ctx context.Context, in *inode, name string) (uint32, error) {
	if f.fast == nil {
		return f.lookupDisk(ctx, in, name)
	}
	d := f.fast.dirs[in.ino]
	if d == nil {
		return f.lookupDisk(ctx, in, name)
	}
	if i := d.find(name); i >= 0 {
		return d.added[i].ino, nil
	}
	if d.fresh || d.removed[name] {
		return 0, guestfs.ErrNotExist
	}
	return f.lookupDisk(ctx, in, name)
}

// lookupDisk finds name by its hash where the directory is hashed, else block by block.
func (f *FS) lookupDisk(ctx context.Context, in *inode, name string) (uint32, error) {
	if in.flags&flEncrypt != 0 && f.sb.incompat&incompatEncrypt != 0 {
		return f.lookupEncrypted(ctx, in, name)
	}
	fold := in.flags&flCasefold != 0 && f.sb.incompat&incompatCasefold != 0
	if in.flags&flInline != 0 {
		return f.lookupInline(ctx, in, name, fold)
	}
	if f.canHash(in, name, fold) {
		ino, err := f.lookupHashed(ctx, in, name, fold)
		if err == nil && ino == 0 {
			return 0, guestfs.ErrNotExist
		}
		if err == nil || ctx.Err() != nil {
			return ino, err
		}
		// The index is damaged or of an unknown kind; the names are still there.
		ino, err2 := f.lookupLinear(ctx, in, name, fold)
		if err2 == guestfs.ErrNotExist {
			err2 = err
		}
		return ino, err2
	}
	return f.lookupLinear(ctx, in, name, fold)
}

// lookupLinear searches all blocks. When damage hides a part of the directory a
// name that isn't found is that damage, not ErrNotExist.
func (f *FS) lookupLinear(ctx context.Context, in *inode, name string, fold bool) (uint32, error) {
	c := dirCursor{f: f, in: in}
	blocks, err := c.blocks()
	if err != nil {
		return 0, err
	}
	if f.far {
		f.hintDir(ctx, in, 0)
	}
	var damage error
	for lblk := uint64(0); lblk < blocks; lblk++ {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		m, hole, err := c.block(ctx, lblk)
		if err == nil && m == nil {
			err = ondisk.Corruptf(format, in.name(), -1, "hole in a directory at block %d", lblk)
			lblk += hole - 1
		} else if err == nil {
			var ino uint32
			if ino, err = f.findName(in, m.data, name, fold); ino != 0 {
				return ino, nil
			}
		}
		if err != nil && damage == nil {
			damage = err
		}
	}
	if damage != nil {
		return 0, damage
	}
	return 0, guestfs.ErrNotExist
}

// findName returns the inode of name in a block of entries, or 0.
func (f *FS) findName(in *inode, b []byte, name string, fold bool) (uint32, error) {
	for off := 0; off < len(b); {
		e, err := f.parseEntry(b, off)
		if err != nil {
			return 0, ondisk.Corruptf(format, in.name(), -1, "directory: %v", err)
		}
		off = e.next
		if e.ino != 0 && (string(e.name) == name || fold && equalFoldASCII(e.name, name)) {
			return e.ino, nil
		}
	}
	return 0, nil
}

func equalFoldASCII(a []byte, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lowerASCII(a[i]) != lowerASCII(b[i]) {
			return false
		}
	}
	return true
}

func lowerASCII(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
