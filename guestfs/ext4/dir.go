package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"yester/guestfs"
	"yester/internal/ondisk"
)

// dirCursor fetches the blocks of one directory and remembers the run it is in.
type dirCursor struct {
	f  *FS
	in *inode
	at uint64 // the logical block at which r begins
	r  run
}

// blocks returns how many blocks the directory has by its size. No directory is
// larger than its filesystem, which keeps a forged one from being walked forever.
func (c *dirCursor) blocks() (uint64, error) {
	sb := c.f.sb
	n := (uint64(c.in.size) + uint64(sb.blockSize()) - 1) >> sb.blockBits
	if n > sb.blocks {
		return 0, ondisk.Corruptf(format, c.in.name(), -1, "directory of %d bytes", c.in.size)
	}
	return n, nil
}

// block returns logical block lblk, checksum verified. For a hole it returns nil
// and how many blocks the hole has left.
func (c *dirCursor) block(ctx context.Context, lblk uint64) (*metaBlock, uint64, error) {
	if lblk < c.at || lblk-c.at >= c.r.n {
		r, err := c.f.mapBlock(ctx, c.in, lblk)
		if err != nil {
			return nil, 0, err
		}
		c.at, c.r = lblk, r
	}
	i := lblk - c.at
	if c.r.zero {
		return nil, c.r.n - i, nil
	}
	m, err := c.f.blockAhead(ctx, c.r.phys+i, c.r.phys+c.r.n, "directory")
	if err != nil {
		return nil, 0, fmt.Errorf("inode %d: %w", c.in.ino, err)
	}
	return m, 0, c.f.checkDirBlock(c.in, lblk, c.r.phys+i, m)
}

// checkDirBlock verifies the checksum of a directory's block: that of an index
// block, or that in the tail of a leaf.
func (f *FS) checkDirBlock(in *inode, lblk, blk uint64, m *metaBlock) error {
	if !f.sb.metadataCsum() {
		return nil
	}
	key := checkKey(in.ino, checkDir)
	if m.checked.Load() == key {
		return nil
	}
	le := binary.LittleEndian
	b := m.data
	pos := int64(blk) << f.sb.blockBits
	if in.flags&flIndex != 0 && f.sb.compat&compatDirIndex != 0 &&
		(lblk == 0 || f.recLen(b) == len(b)) && f.isIndexBlock(b, lblk) {
		if !f.indexChecksumOK(in, b, lblk) {
			return ondisk.Corruptf(format, in.name()+" directory index block", pos, "wrong checksum")
		}
	} else {
		t := b[len(b)-deTailSize:]
		if le.Uint32(t[deIno:]) != 0 || le.Uint16(t[deRecLen:]) != deTailSize || t[deNameLen] != 0 || t[deFileType] != deTailType {
			return ondisk.Corruptf(format, in.name()+" directory block", pos, "no checksum")
		}
		if crc32c(in.seed, b[:len(b)-deTailSize]) != le.Uint32(t[deTailCsum:]) {
			return ondisk.Corruptf(format, in.name()+" directory block", pos, "wrong checksum")
		}
	}
	m.checked.Store(key)
	return nil
}

// recLen decodes rec_len of the entry at the start of b. Blocks of 64 KiB need
// two escapes to fit in 16 bits (ext4_rec_len_from_disk in ext4.h).
func (f *FS) recLen(b []byte) int {
	n := int(binary.LittleEndian.Uint16(b[deRecLen:]))
	if f.sb.blockBits < 16 {
		return n
	}
	if n == 0 || n == 65535 {
		return int(f.sb.blockSize())
	}
	return n&^3 | n&3<<16
}

// entry is one directory entry in its block.
type entry struct {
	ino  uint32 // 0: unused space
	name []byte
	typ  uint8
	next int // offset of the following entry
}

// parseEntry decodes and checks the entry at off of b, which is a directory
// block or a part of an inline directory.
func (f *FS) parseEntry(b []byte, off int) (e entry, err error) {
	if len(b)-off < deMinLen {
		return e, fmt.Errorf("entry at %d: only %d bytes left", off, len(b)-off)
	}
	n, nameLen := f.recLen(b[off:]), int(b[off+deNameLen])
	switch {
	case n < deMinLen || n%4 != 0 || n > len(b)-off:
		return e, fmt.Errorf("entry at %d: length %d", off, n)
	case deName+nameLen > n:
		return e, fmt.Errorf("entry at %d: name of %d bytes in an entry of %d", off, nameLen, n)
	}
	e.ino = binary.LittleEndian.Uint32(b[off+deIno:])
	e.name = b[off+deName : off+deName+nameLen]
	e.next = off + n
	if f.sb.incompat&incompatFiletype != 0 {
		e.typ = b[off+deFileType]
	}
	if uint64(e.ino) > f.sb.inodes {
		return e, fmt.Errorf("entry at %d: inode %d of %d", off, e.ino, f.sb.inodes)
	}
	return e, nil
}

// skip reports whether an entry is unused space, "." or "..".
func (e *entry) skip() bool {
	if e.ino == 0 {
		return true
	}
	n := e.name
	return len(n) == 1 && n[0] == '.' || len(n) == 2 && n[0] == '.' && n[1] == '.'
}

// fileTypes maps the file type of an entry to st_mode's bits (EXT4_FT_* in ext4.h).
var fileTypes = [8]uint32{1: guestfs.ModeRegular, 2: guestfs.ModeDir, 3: guestfs.ModeChar,
	4: guestfs.ModeBlock, 5: guestfs.ModeFifo, 6: guestfs.ModeSocket, 7: guestfs.ModeSymlink}

// emitter hands the entries of a directory to ReadDir's caller.
type emitter struct {
	f    *FS
	in   *inode
	from uint64
	emit func(guestfs.Dirent) bool
	code *nameCoder // of an encrypted directory
	errs []error
}

func (w *emitter) damage(err error) {
	if len(w.errs) < maxDamageReports {
		w.errs = append(w.errs, err)
	}
}

// part emits the entries of b, whose first byte is at position base of the
// directory; an entry's cookie is the position behind it. It reports whether the
// caller wants more.
func (w *emitter) part(b []byte, base uint64) bool {
	names := "" // one string for all names of the part
	for off := 0; off < len(b); {
		e, err := w.f.parseEntry(b, off)
		if err != nil {
			w.damage(ondisk.Corruptf(format, w.in.name(), -1, "directory at %#x: %v", base, err))
			return true
		}
		at := off
		off = e.next
		next := base + uint64(off)
		if next <= w.from || e.skip() {
			continue
		}
		d := guestfs.Dirent{ID: guestfs.ID{Ino: uint64(e.ino)}, Next: next}
		if w.code != nil {
			d.Name = w.code.shown(b, at, &e)
		} else {
			if names == "" {
				names = string(b)
			}
			d.Name = names[at+deName : at+deName+len(e.name)]
		}
		if int(e.typ&7) == int(e.typ) {
			d.Type = fileTypes[e.typ]
		}
		if d.Name == "" || strings.IndexByte(d.Name, '/') >= 0 || strings.IndexByte(d.Name, 0) >= 0 {
			w.damage(ondisk.Corruptf(format, w.in.name(), -1, "directory at %#x: impossible name %q", base, d.Name))
			continue
		}
		if !w.emit(d) {
			return false
		}
	}
	return true
}

// ReadDir implements guestfs.Tree. Entries come in the order in which they lie in
// the directory; cookies are byte positions.
func (f *FS) ReadDir(ctx context.Context, dir guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	in, err := f.dirByID(ctx, dir)
	if err != nil {
		return err
	}
	if f.fast != nil {
		if d := f.fast.dirs[in.ino]; d != nil {
			return f.readFastDir(ctx, in, d, from, emit)
		}
	}
	return f.readDirDisk(ctx, in, from, emit)
}

// readFastDir is ReadDir of a directory that fast commits changed.
func (f *FS) readFastDir(ctx context.Context, in *inode, d *fastDir, from uint64, emit func(guestfs.Dirent) bool) error {
	var err error
	if !d.fresh && from < fastCookie {
		more := true
		err = f.readDirDisk(ctx, in, from, func(e guestfs.Dirent) bool {
			if !d.removed[e.Name] {
				more = emit(e)
			}
			return more
		})
		if !more {
			return err
		}
	}
	start := uint64(0)
	if from > fastCookie {
		start = from - fastCookie
	}
	for i := start; i < uint64(len(d.added)); i++ {
		e := d.added[i]
		if e.ino == 0 {
			continue
		}
		if !emit(guestfs.Dirent{Name: e.name, ID: guestfs.ID{Ino: uint64(e.ino)}, Next: fastCookie + i + 1}) {
			break
		}
	}
	return err
}

// readDirDisk is ReadDir of what lies on the disk.
func (f *FS) readDirDisk(ctx context.Context, in *inode, from uint64, emit func(guestfs.Dirent) bool) error {
	code, err := f.nameCoder(ctx, in)
	if err != nil {
		return err
	}
	w := &emitter{f: f, in: in, from: from, emit: emit, code: code}
	if in.flags&flInline != 0 {
		err := f.inlineDir(ctx, in, func(b []byte, base uint64) bool { return w.part(b, base) })
		return errors.Join(append(w.errs, err)...)
	}
	c := dirCursor{f: f, in: in}
	blocks, err := c.blocks()
	if err != nil {
		return err
	}
	for lblk := from >> f.sb.blockBits; lblk < blocks; lblk++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if f.far && lblk%dirAhead == 0 && from <= lblk<<f.sb.blockBits {
			f.hintEntries(ctx, in, lblk, blocks)
		}
		m, hole, err := c.block(ctx, lblk)
		switch {
		case err != nil:
			if ctx.Err() != nil {
				return err
			}
			w.damage(err)
			if m == nil && len(w.errs) >= maxDamageReports {
				return errors.Join(w.errs...) // hardly a directory any more
			}
			continue
		case m == nil:
			w.damage(ondisk.Corruptf(format, in.name(), -1, "hole in a directory at block %d", lblk))
			lblk += hole - 1
			continue
		}
		if !w.part(m.data, lblk<<f.sb.blockBits) {
			return nil
		}
	}
	return errors.Join(w.errs...)
}

func (f *FS) dirByID(ctx context.Context, id guestfs.ID) (*inode, error) {
	in, err := f.byID(ctx, id)
	if err == nil && !in.isDir() {
		err = fmt.Errorf("ext4: inode %d: %w", in.ino, guestfs.ErrNotDir)
	}
	return in, err
}
