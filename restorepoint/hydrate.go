package restorepoint

import (
	"context"
	"errors"
	"sync"

	"yester/cache"
	"yester/imageformats/ebs"
)

// HydrateOptions tune Opened.Hydrate.
type HydrateOptions struct {
	// Bandwidth bounds it, in bytes a second; 0: no limit.
	Bandwidth int64
	// Progress, if not nil, is told how far it is, about once a second for each
	// object; it may be called by several goroutines at a time.
	Progress func(Hydration)
}

// Hydration is how far the fetching of a point is.
type Hydration struct {
	Bytes   int64  `json:"bytes"`   // fetched by it so far
	Blocks  int64  `json:"blocks"`  // looked at: present, fetched, or known to be zeros
	Total   int64  `json:"total"`   // blocks in all
	Objects int    `json:"objects"` // disks, or files of the source
	Paused  bool   `json:"paused,omitempty"`
	Done    bool   `json:"done,omitempty"`
	Error   string `json:"error,omitempty"` // why it has ended, unless Done
}

// Far reports whether the point lies far away, so that there is something to
// hydrate.
func (o *Opened) Far() bool { return len(o.farReaders()) > 0 }

// farReaders returns what of the point is seen through the cache.
func (o *Opened) farReaders() (readers []*cache.Reader) {
	for _, s := range o.snapshots {
		readers = append(readers, s.Reader)
	}
	seen := make(map[*pooledImage]bool)
	for _, img := range o.images {
		for ; img != nil && !seen[img]; img = img.parent {
			seen[img] = true
			for _, part := range img.file.parts {
				if f, ok := part.(*farFile); ok {
					readers = append(readers, f.r)
				}
			}
		}
	}
	return readers
}

// Hydrate fetches all of the point's disks that isn't on this host, in the
// background of whatever is read meanwhile: what was hot in the last looks first,
// and only what holds data. Done again, it goes on where it was. It returns once
// all is here, or with an error: ctx ended, the cache is too small
// (cache.ErrBudget), or the source refuses for good.
func (o *Opened) Hydrate(ctx context.Context, opt HydrateOptions) error {
	readers := o.farReaders()
	var mu sync.Mutex
	all := make([]cache.Progress, len(readers))
	for i, r := range readers {
		err := r.Hydrate(ctx, cache.HydrateOptions{
			Bandwidth: opt.Bandwidth, Permanent: permanent,
			Progress: func(p cache.Progress) {
				mu.Lock()
				defer mu.Unlock()
				all[i] = p
				h := Hydration{Objects: len(readers)}
				for j, p := range all {
					h.Bytes += p.Bytes
					h.Blocks += p.Blocks
					h.Total += p.Total
					h.Paused = h.Paused || p.Paused
					if p.Total == 0 && j != i { // not begun
						h.Total += readers[j].Blocks()
					}
				}
				if opt.Progress != nil {
					opt.Progress(h)
				}
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// PauseHydration holds Hydrate, or lets it go on.
func (o *Opened) PauseHydration(on bool) {
	for _, r := range o.farReaders() {
		r.PauseHydration(on)
	}
}

// permanent tells errors that trying again doesn't mend.
func permanent(err error) bool {
	for _, e := range []error{
		ErrChanged, ebs.ErrMaxCost, ebs.ErrDenied, ebs.ErrKMS, ebs.ErrNotOwner, ebs.ErrNotFound, ebs.ErrArchived,
		ebs.ErrRecycleBin, ebs.ErrFailed, ebs.ErrCredentials,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
