// Package volume is the contract of what lies between a disk and a filesystem:
// a device goes in, devices come out. Partition schemes live in sub-packages.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// Volume is something a filesystem can lie on.
type Volume struct {
	Name   string // "p1", "p5"; "disk" for a disk without partitions; unique on its disk; "vg0-root"
	Scheme string // "gpt", "mbr", "disk", "lvm2"
	Number int    // as Linux numbers it; 0 for the whole disk, and for a logical volume
	Start  int64  // byte offset on the disk; 0 for a logical volume, which may be in many places
	Type   string // partition type: "0x83", or a GPT type's lower-case UUID; a logical volume's: "linear", "raid1"
	Label  string // GPT partition name; name of a logical volume
	ID     string // PARTUUID as Linux writes it: a lower-case UUID, or "1a2b3c4d-01" for MBR; UUID of a logical volume
	Active bool   // boot flag
	// Devices are the paths by which the guest's Linux knows a logical volume:
	// "/dev/mapper/vg0-root", "/dev/vg0/root", …
	Devices []string
	// Err says why the volume can't be read, where that is known beforehand: every
	// read of Reader is this error.
	Err error
	block.Reader
}

// Table is what a scheme found on a disk.
type Table struct {
	Scheme     string   // "gpt", "mbr", "disk"
	ID         string   // the disk's GUID, or its MBR signature
	SectorSize int      // bytes, as the table's own addresses count
	Volumes    []Volume // in the order of their numbers
	Warnings   []string // damage that a second copy made good, partitions cut off, …
}

// Options go to a scheme's Open.
type Options struct {
	SectorSize int // logical sector size by the container; 0: find out
	Logger     *slog.Logger
}

// SectorSizes returns the logical sector sizes to try, in bytes, likeliest first.
// A size that no disk has is an error, so that multiplying by it is safe.
func (o Options) SectorSizes() ([]int, error) {
	switch o.SectorSize {
	case 0, 512:
		return []int{512, 4096}, nil
	case 4096:
		return []int{4096, 512}, nil
	}
	return nil, fmt.Errorf("sector size of %d bytes: %w", o.SectorSize, ondisk.ErrUnsupported)
}

// Scheme is a partition scheme that Open can choose.
type Scheme struct {
	Name string
	// Open reads the table of dev. An error matching ondisk.ErrFormat says that
	// there is none of this scheme.
	Open func(ctx context.Context, dev block.Reader, opt Options) (*Table, error)
}

// What is asked for ahead of being read, bytes.
const (
	tableHint     = 64 << 10  // a GPT of 128 entries and sectors of 512 bytes ends at 17 KiB
	startHint     = 128 << 10 // Btrfs has its superblock at 64 KiB, LVM its label in the first four sectors
	maxStartHints = 32        // volumes

	// lvmData is where the first extent of a PV begins unless somebody has chosen
	// otherwise (lvm.conf(5), default_data_alignment): mostly that of a volume, whose
	// filesystem says there what it is.
	lvmData = 1 << 20
)

// lvmTypes are the partition types of LVM, MBR's and GPT's.
var lvmTypes = []string{"0x8e", "e6d6d379-f507-44c2-a23c-238f2a3df928"}

// Open finds the volumes of dev with the first of schemes that recognises it. A
// disk that none recognises is one volume, the whole of it.
func Open(ctx context.Context, dev block.Reader, opt Options, schemes ...Scheme) (*Table, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	// Tables lie at the beginning and the end, filesystems say what they are at
	// theirs: from far away, all of it at once.
	block.Prefetch(dev, block.Range{Len: tableHint}, block.Range{Off: max(0, dev.Size()-tableHint), Len: tableHint})
	for _, s := range schemes {
		t, err := s.Open(ctx, dev, opt)
		if err == nil {
			var starts []block.Range
			for _, v := range t.Volumes[:min(len(t.Volumes), maxStartHints)] {
				starts = append(starts, block.Range{Off: v.Start, Len: startHint})
				if slices.Contains(lvmTypes, v.Type) {
					starts = append(starts, block.Range{Off: v.Start + lvmData, Len: startHint})
				}
			}
			block.Prefetch(dev, starts...)
			return t, nil
		}
		if !errors.Is(err, ondisk.ErrFormat) {
			return nil, fmt.Errorf("partition table: %w", err)
		}
	}
	return WholeDisk(dev), nil
}

// WholeDisk returns the table of a disk without partitions.
func WholeDisk(dev block.Reader) *Table {
	return &Table{
		Scheme:  "disk",
		Volumes: []Volume{{Name: "disk", Scheme: "disk", Reader: dev}},
	}
}
