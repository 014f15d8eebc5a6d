package guestfs

import (
	"context"
	"fmt"
	"log/slog"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// Open opens the filesystem that lies on dev with the first of formats whose
// probe recognises it; an error matching ondisk.ErrFormat when none does.
func Open(ctx context.Context, dev block.Reader, opt Options, formats ...Format) (Tree, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	for _, f := range formats {
		ok, err := f.Probe(ctx, dev)
		if err != nil {
			return nil, fmt.Errorf("probing for %s: %w", f.Name, err)
		}
		if ok {
			return f.Open(ctx, dev, opt)
		}
	}
	return nil, fmt.Errorf("filesystem: %w", ondisk.ErrFormat)
}
