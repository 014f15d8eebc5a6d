package raw

import (
	"context"
	"fmt"

	"yester/internal/block"
)

// Sniff names the partition table, filesystem or volume that r begins with, by
// its magic: "gpt", "mbr", "ext", …; the empty string when none is known. It
// proves nothing: the packages of volume and guestfs do.
func Sniff(ctx context.Context, r block.Reader) (string, error) {
	var have [3][]byte
	for i, w := range windows {
		n := min(w.n, r.Size()-w.off)
		if n <= 0 {
			break
		}
		have[i] = make([]byte, n)
		if err := block.ReadFull(ctx, r, have[i], w.off); err != nil {
			return "", fmt.Errorf("raw: %w", err)
		}
	}
	at := func(m magic) bool {
		for i, w := range windows {
			if rel := m.off - w.off; rel >= 0 && rel+int64(len(m.bytes)) <= int64(len(have[i])) {
				return string(have[i][rel:rel+int64(len(m.bytes))]) == m.bytes
			}
		}
		return false
	}
	for _, list := range [][]magic{partitioned, volumes} {
		for _, m := range list {
			if at(m) {
				return m.name, nil
			}
		}
	}
	// Last: most boot sectors of filesystems end in it as well.
	if at(bootSignature) {
		return bootSignature.name, nil
	}
	return "", nil
}
