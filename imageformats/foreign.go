package imageformats

import (
	"context"
	"fmt"
	"strings"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// foreign lists disk images that are recognised but can't be read, so that
// whoever has some learns that, instead of that there is nothing.
var foreign = []struct {
	name  string
	off   int64
	magic string
}{
	{"VDI", 0x40, "\x7f\x10\xda\xbe"},                                     // VirtualBox, VDICore.h
	{"EWF version 2 (Ex01)", 0, "EVF2\x0d\x0a\x81\x00"},                   // libewf, "Expert Witness Compression Format 2"
	{"EWF version 2, logical evidence (Lx01)", 0, "LEF2\x0d\x0a\x81\x00"}, // the same
	{"EWF logical evidence (L01)", 0, "LVF\x09\x0d\x0a\xff\x00"},          // libewf, "Expert Witness Compression Format"
	{"AD-encrypted EWF", 0, "ADCRYPT\x00"},                                // the same, [AD encryption]
	{"Parallels", 0, "WithouFreSpacExt"},                                  // QEMU, docs/interop/parallels.txt
}

// probeForeign fails with ondisk.ErrUnsupported when file is such an image.
func probeForeign(ctx context.Context, file block.Reader) error {
	var head [0x80]byte
	n := min(int64(len(head)), file.Size())
	if err := block.ReadFull(ctx, file, head[:n], 0); err != nil {
		return err
	}
	for _, f := range foreign {
		if strings.HasPrefix(string(head[min(f.off, n):n]), f.magic) {
			return fmt.Errorf("disk image: %s: %w", f.name, ondisk.ErrUnsupported)
		}
	}
	return nil
}
