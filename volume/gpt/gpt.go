// Package gpt reads GUID partition tables. Header and entries are taken from one
// copy, whose checksums are both right: the primary, or else the backup, which is
// looked for where the primary header, the protective MBR, and the end of the
// disk say it is.
//
// As for Linux, a protective MBR is what makes a disk a GPT disk: headers without
// one are what is left of a former table. A hybrid MBR, which has partitions of
// its own beside the protective one, is a protective MBR.
package gpt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/volume"
)

// Scheme reads GUID partition tables. Its Open answers ondisk.ErrFormat for a disk
// without a protective MBR, and ondisk.ErrCorrupt for one that has it while no
// copy of the table is sound.
var Scheme = volume.Scheme{Name: "gpt", Open: open}

func open(ctx context.Context, dev block.Reader, opt volume.Options) (*volume.Table, error) {
	if dev.Size() < mbrSize {
		return nil, fmt.Errorf("gpt: %w", ondisk.ErrFormat)
	}
	sizes, err := opt.SectorSizes()
	if err != nil {
		return nil, fmt.Errorf("gpt: %w", err)
	}
	var mbr [mbrSize]byte
	if err := block.ReadFull(ctx, dev, mbr[:], 0); err != nil {
		return nil, fmt.Errorf("gpt: protective MBR: %w", err)
	}
	protective, last := protectiveMBR(&mbr)
	if !protective {
		warnStale(ctx, dev, opt.Logger, sizes)
		return nil, fmt.Errorf("gpt: %w", ondisk.ErrFormat)
	}

	var failed failures
	for _, size := range sizes {
		c, err := find(ctx, dev, int64(size), last, &failed)
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		t := &volume.Table{Scheme: "gpt", ID: c.disk.String(), SectorSize: size}
		if opt.SectorSize != 0 && size != opt.SectorSize {
			t.Warnf("the table counts in sectors of %d bytes, though the container says %d", size, opt.SectorSize)
		}
		if c.lba != primaryLBA {
			t.Warnf("the primary copy can't be used (%s); the backup at %#x was", failed.first(), int64(c.lba)*int64(size))
		} else if c.alternate > lastLBA(dev, int64(size)) {
			t.Warnf("the backup copy should be at LBA %d, past the end of the disk (%#x): the image is cut off", c.alternate, dev.Size())
		}
		c.addTo(t, dev)
		return t, nil
	}
	return nil, failed.err()
}

// protectiveMBR reports whether b is a protective or hybrid MBR, and the LBA that
// the protective entry ends at: the backup header's, unless the disk has more
// sectors than the field can count (0 then).
func protectiveMBR(b *[mbrSize]byte) (ok bool, last uint64) {
	le := binary.LittleEndian
	if le.Uint16(b[mbrSigOff:]) != mbrSignature {
		return false, 0
	}
	for i := range mbrEntryCount {
		e := b[mbrEntriesOff+i*mbrEntrySize:][:mbrEntrySize]
		if e[4] != mbrTypeGPT {
			continue
		}
		ok = true
		if start, n := le.Uint32(e[8:]), le.Uint32(e[12:]); n != math.MaxUint32 {
			last = max(last, uint64(start)+uint64(n)-min(1, uint64(n)))
		}
	}
	return ok, last
}

// warnStale logs that a header was found that doesn't count. What can't be read
// is left for the scheme that takes the disk to report.
func warnStale(ctx context.Context, dev block.Reader, log *slog.Logger, sizes []int) {
	if log == nil {
		return
	}
	for _, size := range sizes {
		var b [len(magic)]byte
		if block.ReadFull(ctx, dev, b[:], int64(size)) == nil && string(b[:]) == magic {
			log.Warn("GPT header without a protective MBR: ignored", "offset", size)
		}
	}
}

func lastLBA(dev block.Reader, sector int64) uint64 {
	return uint64(max(0, dev.Size()/sector-1))
}

// failures collects why copies of the table couldn't be used.
type failures []error

func (f failures) first() string {
	if len(f) == 0 {
		return "not there"
	}
	return f[0].Error()
}

// err returns the error for a disk none of whose copies can be used. One that
// couldn't be read at all may be sound, so that is what counts then.
func (f failures) err() error {
	var texts []string
	for _, err := range f {
		if !errors.Is(err, ondisk.ErrCorrupt) && !errors.Is(err, ondisk.ErrUnsupported) {
			return fmt.Errorf("gpt: no copy of the table can be used: %w", err)
		}
		texts = append(texts, err.Error())
	}
	msg := "there is a protective MBR, but no GUID partition table"
	if len(texts) > 0 {
		msg = "there is a protective MBR, but no copy of the table can be used: " + strings.Join(texts, "; ")
	}
	return ondisk.Corruptf("gpt", "table", -1, "%s", msg)
}
