package ext4

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// inlineData returns what an inode holds inside itself: i_block, then the value
// of the attribute "system.data" (doc: inlinedata.rst), cut to the file's size.
func (f *FS) inlineData(ctx context.Context, in *inode) ([]byte, error) {
	rest, err := f.inlineRest(ctx, in)
	if err != nil {
		return nil, err
	}
	if in.size > int64(inBlockSize+len(rest)) {
		return nil, ondisk.Corruptf(format, in.name(), -1, "%d bytes of inline data for a size of %d", inBlockSize+len(rest), in.size)
	}
	data := make([]byte, 0, inBlockSize+len(rest))
	data = append(data, in.block[:]...)
	return append(data, rest...)[:in.size], nil
}

// inlineRest returns the value of "system.data"; not to be changed.
func (f *FS) inlineRest(ctx context.Context, in *inode) ([]byte, error) {
	region, err := f.ibodyRegion(ctx, in)
	if err != nil {
		return nil, err
	}
	var value []byte
	err = walkXattrs(region, region, func(e *xattr) (bool, error) {
		if e.index == xaIdxSystem && string(e.name) == "data" && e.inum == 0 {
			value = e.value
			return false, nil
		}
		return true, nil
	})
	if err != nil {
		return nil, ondisk.Corruptf(format, in.name(), -1, "extended attributes: %v", err)
	}
	return value, nil
}

// inlineFile is the content of a file that lies in its inode.
type inlineFile struct{ *bytes.Reader }

func (f *FS) openInline(ctx context.Context, in *inode) (block.Reader, error) {
	data, err := f.inlineData(ctx, in)
	if err != nil {
		return nil, err
	}
	return inlineFile{bytes.NewReader(data)}, nil
}

// ReadAtContext implements block.ContextReader.
func (r inlineFile) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return r.ReadAt(p, off)
}

// Extent implements block.Mapper.
func (r inlineFile) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	n = min(n, r.Size()-off)
	if off < 0 || n < 1 {
		return block.Extent{}, fmt.Errorf("ext4: extent at %#x of %#x: %w", off, r.Size(), io.EOF)
	}
	return block.Extent{Len: n}, nil
}

// inlineDir calls part for the two pieces of an inline directory with the
// position of each, until part returns false. i_block begins with the number of
// the parent directory instead of the entries "." and "..".
func (f *FS) inlineDir(ctx context.Context, in *inode, part func(b []byte, base uint64) bool) error {
	const parent = 4
	if !part(in.block[parent:], parent) {
		return nil
	}
	rest, err := f.inlineRest(ctx, in)
	if err == nil && len(rest) > 0 {
		part(rest, inBlockSize)
	}
	return err
}

func (f *FS) lookupInline(ctx context.Context, in *inode, name string, fold bool) (uint32, error) {
	var ino uint32
	var damage error
	err := f.inlineDir(ctx, in, func(b []byte, _ uint64) bool {
		n, err := f.findName(in, b, name, fold)
		if err != nil {
			damage = err
		}
		ino = n
		return ino == 0
	})
	switch {
	case ino != 0:
		return ino, nil
	case err != nil:
		return 0, err
	case damage != nil:
		return 0, damage
	}
	return 0, guestfs.ErrNotExist
}
