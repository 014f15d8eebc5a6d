package ext4

import (
	"context"
	"fmt"

	"yester/guestfs"
	"yester/guestfs/ext4/jbd2"
	"yester/internal/ondisk"
)

// replay returns the filesystem as the kernel would leave it after recovery: on
// an overlay of the device that has the blocks of the journal's complete
// transactions in their places, with the fast commits after them applied.
//
// Orphans, files that were deleted while open or truncated when the machine
// stopped, need no work: the former have no name, the latter already have their
// new size. Only the blocks past it, which the kernel frees, still count in
// guestfs.Attr.Blocks.
func (f *FS) replay(ctx context.Context) (*FS, guestfs.Journal, error) {
	sb := f.sb
	if sb.compat&compatHasJournal == 0 {
		return nil, "", ondisk.Corruptf(format, "superblock features", superOffset+sbFeatureIncompat, "needs_recovery without has_journal")
	}
	if sb.journalInum == 0 {
		return nil, "", ondisk.Unsupportedf(format, "feature has_journal", superOffset+sbJournalDev,
			"the journal lies on another device, and holds changes that are not in the filesystem yet")
	}
	in, err := f.inode(ctx, sb.journalInum)
	if err != nil {
		return nil, "", fmt.Errorf("journal: %w", err)
	}
	if in.mode&guestfs.ModeType != guestfs.ModeRegular || in.nlink == 0 || in.flags&(flEncrypt|flInline) != 0 {
		return nil, "", ondisk.Corruptf(format, "journal "+in.name(), -1, "mode %#o, %d links, flags %#x", in.mode, in.nlink, in.flags)
	}
	j, err := jbd2.Recover(ctx, f.newFile(in), jbd2.Options{BlockSize: sb.blockSize(), Blocks: sb.blocks})
	if err != nil {
		return nil, "", err
	}
	if j.Empty {
		return f, guestfs.JournalClean, nil
	}
	dev := j.Overlay(f.dev)
	after, err := readSuper(ctx, dev)
	if err != nil {
		return nil, "", fmt.Errorf("after the replay: %w", err)
	}
	if after.blockBits != sb.blockBits {
		return nil, "", ondisk.Corruptf(format, "superblock", superOffset, "the journal changes the block size")
	}
	g := newFS(dev, after, f.log)
	tags, err := g.scanFast(ctx, j)
	if err != nil {
		return nil, "", err
	}
	if len(tags) > 0 {
		if err := g.applyFast(ctx, tags); err != nil {
			return nil, "", err
		}
	}
	f.log.Info("ext4: journal replayed in memory", "journal", j.String(), "fast commit tags", len(tags))
	return g, guestfs.JournalReplayed, nil
}
