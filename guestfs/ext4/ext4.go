// Package ext4 reads ext2, ext3 and ext4 filesystems.
//
// The reader verifies every checksum that the filesystem has before it believes
// the metadata, decodes what it is asked for and nothing more, and reads file
// contents straight from the device. What is damaged is an error that says
// what and where; the rest stays readable.
//
// Lookups in casefolded directories find the exact name, and names that differ
// only in the case of ASCII letters. Encrypted directories list the names that
// the kernel shows when it has no key; contents and link targets of encrypted
// files are guestfs.ErrEncrypted. Files protected by fs-verity are read without
// checking them against their Merkle trees.
package ext4

import (
	"context"
	"fmt"
	"log/slog"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/ondisk"
)

// Format is the reader of ext2, ext3 and ext4.
var Format = guestfs.Format{Name: "ext4", Probe: probe, Open: open}

// Limits of what a mounted filesystem keeps in memory.
const (
	blockCacheBytes  = 8 << 20 // metadata blocks; the inodes of 30,000 files are 7.5 MiB
	blockCacheMin    = 64      // blocks, however large
	inodeCacheCount  = 4096    // decoded inodes of about 250 bytes
	groupCacheCount  = 4096    // decoded group descriptors of 8 bytes
	metaReadahead    = 4 << 10 // bytes fetched at once where blocks are smaller: what is needed next is seldom far
	maxDamageReports = 4       // errors kept of one directory
)

// FS is an opened filesystem. It implements guestfs.Tree.
type FS struct {
	dev  block.Reader // what the journal's replay makes of the device
	sb   *superblock
	far  bool // dev wants to be told what is read next
	info guestfs.Info
	log  *slog.Logger

	blockCache *cache[*metaBlock]
	inodeCache *cache[*inode]
	groupCache *cache[group]

	fast *fastCommits // nil unless the journal held any
}

var _ guestfs.Tree = (*FS)(nil)

func open(ctx context.Context, dev block.Reader, opt guestfs.Options) (guestfs.Tree, error) {
	f, err := Open(ctx, dev, opt)
	if err != nil {
		return nil, err // not f: a nil *FS in a Tree is not nil
	}
	return f, nil
}

// Open opens the filesystem on dev. dev must stay open as long as the FS.
func Open(ctx context.Context, dev block.Reader, opt guestfs.Options) (*FS, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	sb, err := readSuper(ctx, dev)
	if err != nil {
		return nil, err
	}
	f := newFS(dev, sb, opt.Logger)
	f.hintOpen()
	state := guestfs.JournalNone
	if sb.compat&compatHasJournal != 0 {
		state = guestfs.JournalClean
	}
	if sb.incompat&incompatRecover != 0 {
		state = guestfs.JournalIgnored
		if opt.Replay == guestfs.ReplayOn {
			if f, state, err = f.replay(ctx); err != nil {
				return nil, fmt.Errorf("replaying the journal (hint: --replay=off shows the filesystem without it): %w", err)
			}
		}
	}
	f.info = f.sb.info()
	f.info.Journal = state
	if size := f.info.Size; size > dev.Size() {
		f.log.Warn("ext4: the filesystem is larger than the device; what lies past its end can't be read",
			"filesystem", size, "device", dev.Size())
	}
	root, err := f.inode(ctx, inoRoot)
	if err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	if !root.isDir() {
		return nil, ondisk.Corruptf(format, "root directory", -1, "mode %#o is no directory's", root.mode)
	}
	return f, nil
}

func newFS(dev block.Reader, sb *superblock, log *slog.Logger) *FS {
	return &FS{
		dev: dev, sb: sb, far: block.Prefetch(dev), log: log,
		blockCache: newCache[*metaBlock](max(blockCacheMin, blockCacheBytes>>sb.blockBits)),
		inodeCache: newCache[*inode](inodeCacheCount),
		groupCache: newCache[group](groupCacheCount),
	}
}

// Root implements guestfs.Tree.
func (f *FS) Root() guestfs.ID { return guestfs.ID{Ino: inoRoot} }

// Info implements guestfs.Tree.
func (f *FS) Info() guestfs.Info { return f.info }

// Close implements guestfs.Tree.
func (f *FS) Close() error { return nil }

// Attr implements guestfs.Tree.
func (f *FS) Attr(ctx context.Context, id guestfs.ID) (guestfs.Attr, error) {
	in, err := f.byID(ctx, id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	return in.attr(f.sb), nil
}

// Open implements guestfs.Tree.
func (f *FS) Open(ctx context.Context, id guestfs.ID) (block.Reader, error) {
	in, err := f.byID(ctx, id)
	if err != nil {
		return nil, err
	}
	switch {
	case in.isDir():
		return nil, fmt.Errorf("ext4: inode %d: %w", in.ino, guestfs.ErrIsDir)
	case in.mode&guestfs.ModeType != guestfs.ModeRegular:
		return nil, fmt.Errorf("ext4: open inode %d of mode %#o: %w", in.ino, in.mode, guestfs.ErrInvalid)
	case in.flags&flEncrypt != 0:
		return nil, fmt.Errorf("ext4: content of inode %d: %w", in.ino, guestfs.ErrEncrypted)
	case in.flags&flInline != 0:
		return f.openInline(ctx, in)
	}
	return f.newFile(in), nil
}

// ReadLink implements guestfs.Tree.
func (f *FS) ReadLink(ctx context.Context, id guestfs.ID) (string, error) {
	in, err := f.byID(ctx, id)
	if err != nil {
		return "", err
	}
	if in.mode&guestfs.ModeType != guestfs.ModeSymlink {
		return "", fmt.Errorf("ext4: read link of inode %d: %w", in.ino, guestfs.ErrInvalid)
	}
	if in.flags&flEncrypt != 0 {
		return "", fmt.Errorf("ext4: link target of inode %d: %w", in.ino, guestfs.ErrEncrypted)
	}
	var target []byte
	switch {
	case in.size <= 0 || in.size > int64(f.sb.blockSize()):
		return "", ondisk.Corruptf(format, in.name(), -1, "symbolic link of %d bytes", in.size)
	case in.flags&flInline != 0:
		target, err = f.inlineData(ctx, in)
	case in.fastSymlink(f.sb):
		target = in.block[:in.size]
	default:
		target = make([]byte, in.size)
		err = block.ReadFull(ctx, &file{fs: f, in: in}, target, 0)
	}
	if err != nil {
		return "", fmt.Errorf("link target of inode %d: %w", in.ino, err)
	}
	if s := cString(target); len(s) == len(target) {
		return s, nil
	}
	return "", ondisk.Corruptf(format, in.name(), -1, "NUL in the target of a symbolic link")
}
