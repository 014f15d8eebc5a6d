package raw

import (
	"context"
	"fmt"
	"os"

	"yester/internal/block"
	"yester/internal/sparse"
)

// WriteOptions tune Write.
type WriteOptions struct {
	Progress func(done int64) // bytes of the source dealt with; may be nil
}

// grain is the least run of zeros that becomes a hole, bytes: the block of most
// filesystems.
const grain = 4 << 10

// Write writes src to f, which is emptied first, and leaves holes where src has
// holes or zeros. When it returns without an error all bytes were written and f
// is as long as src; they may still be in the page cache (os.File.Sync).
func Write(ctx context.Context, f *os.File, src block.Reader, opt WriteOptions) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("raw: %w", err)
	}
	if err := f.Truncate(src.Size()); err != nil {
		return fmt.Errorf("raw: %w", err)
	}
	err := sparse.Scan(ctx, src, sparse.Options{Chunk: 1 << 20, Progress: opt.Progress}, func(off int64, data []byte) error {
		return sparse.WriteData(f, data, off, grain)
	})
	if err != nil {
		return fmt.Errorf("raw: %w", err)
	}
	return nil
}
