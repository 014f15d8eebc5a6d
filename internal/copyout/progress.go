package copyout

import (
	"context"
	"sync/atomic"

	"yester/guestfs"
)

// Progress is how far a run has come. It may be read at any time while the run
// goes on.
type Progress struct {
	// WantTotals makes the run count what there is to copy, beside the copying.
	WantTotals bool

	files, bytes           atomic.Int64
	totalFiles, totalBytes atomic.Int64
	known                  atomic.Bool
}

// Snapshot is a Progress at one time.
type Snapshot struct {
	Files, Bytes int64 // dealt with
	// TotalFiles and TotalBytes are what there is to copy; TotalsKnown tells
	// whether all of it has been counted yet.
	TotalFiles, TotalBytes int64
	TotalsKnown            bool
}

// Snapshot returns how far the run has come.
func (p *Progress) Snapshot() Snapshot {
	return Snapshot{
		Files: p.files.Load(), Bytes: p.bytes.Load(),
		TotalFiles: p.totalFiles.Load(), TotalBytes: p.totalBytes.Load(),
		TotalsKnown: p.known.Load(),
	}
}

func (p *Progress) fileDone() {
	if p != nil {
		p.files.Add(1)
	}
}

func (p *Progress) bytesDone(n int64) {
	if p != nil {
		p.bytes.Add(n)
	}
}

// scan counts what is in items. What can't be read is not counted: the copying
// will say so.
func (p *Progress) scan(ctx context.Context, tree guestfs.Tree, items []Item) {
	seen := make(map[guestfs.ID]bool) // directories, and files with several names
	var stack []guestfs.ID
	add := func(id guestfs.ID, kind uint32) {
		if kind == guestfs.ModeDir {
			stack = append(stack, id)
			return
		}
		if kind != guestfs.ModeRegular && kind != 0 {
			return
		}
		a, err := tree.Attr(ctx, id)
		switch {
		case err != nil:
		case a.IsDir():
			stack = append(stack, id)
		case a.IsRegular():
			p.totalFiles.Add(1)
			if a.Nlink > 1 {
				if seen[id] {
					return
				}
				seen[id] = true
			}
			p.totalBytes.Add(a.Size)
		}
	}
	for _, it := range items {
		add(it.ID, 0)
	}
	for len(stack) > 0 && ctx.Err() == nil {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[dir] {
			continue
		}
		seen[dir] = true
		_ = tree.ReadDir(ctx, dir, 0, func(e guestfs.Dirent) bool {
			add(e.ID, e.Type)
			return ctx.Err() == nil
		})
	}
	p.known.Store(ctx.Err() == nil)
}
