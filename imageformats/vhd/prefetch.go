package vhd

import (
	"context"
	"sync"

	"yester/internal/block"
)

const (
	// maxHints bounds the ranges that wait to be looked up; hints beyond come too early.
	maxHints = 4096
	// maxHint bounds one of them, in bytes.
	maxHint = 128 << 20
)

// hints are ranges of the disk that will be read soon, for the goroutine that
// finds out where they lie: block tables and bitmaps may have to be fetched, and
// whoever gives a hint doesn't wait.
type hints struct {
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	pending []block.Range
	running bool
	closed  bool
}

// Prefetch implements block.Prefetcher: hints go to the files in which the bytes
// lie.
func (img *Image) Prefetch(ranges []block.Range) bool {
	if !img.far || len(ranges) == 0 {
		return img.far
	}
	h := &img.hints
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.pending)+len(ranges) > maxHints {
		return true
	}
	h.pending = append(h.pending, ranges...)
	if !h.running {
		h.running = true
		h.work.Go(func() { img.passHints() })
	}
	return true
}

// passHints looks up what is pending until nothing is. What goes wrong is met
// again, and said, by whoever reads there.
func (img *Image) passHints() {
	h := &img.hints
	for {
		h.mu.Lock()
		ranges := h.pending
		h.pending = nil
		if len(ranges) == 0 || h.closed {
			h.running = false
			h.mu.Unlock()
			return
		}
		h.mu.Unlock()
		var pl plan
		for _, g := range ranges {
			g, ok := g.Clip(img.meta.size)
			g.Len = min(g.Len, maxHint)
			if !ok || img.resolve(h.ctx, &pl, g.Off, g.Len) != nil {
				continue
			}
			for jobs := pl.jobs; len(jobs) > 0; {
				l := jobs[0].layer
				var of []block.Range
				for len(jobs) > 0 && jobs[0].layer == l {
					of = append(of, block.Range{Off: jobs[0].at, Len: jobs[0].n})
					jobs = jobs[1:]
				}
				block.Prefetch(l.file, of...)
			}
		}
	}
}

// close ends what is under way.
func (h *hints) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	h.work.Wait()
}
