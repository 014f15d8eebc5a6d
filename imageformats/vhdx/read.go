package vhdx

import (
	"context"
	"fmt"
	"sync"

	"yester/internal/block"
)

// run is a part of a request, bytes of the disk.
type run struct{ off, n int64 }

// job is a run found in a layer's file.
type job struct {
	layer *layer
	at    int64 // in the file
	off   int64 // on the disk
	n     int64
}

// plan is the scratch space in which a request is resolved.
type plan struct {
	missing, below []run // what no layer so far has, and what this one hasn't
	zeros          []run
	jobs           []job
}

const (
	// maxGap is the number of unwanted bytes read along rather than starting
	// another read of the same file: about what a local read costs in copying.
	maxGap = 16 << 10
	// maxSpan bounds the scratch buffer of such a read.
	maxSpan = 1 << 20
	// maxParallel bounds the reads of one request that are under way at once.
	maxParallel = 8
)

// ReadAt implements block.Reader.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	return img.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader. The request is resolved over
// the whole chain first: each layer is asked for what the ones above it lack.
// Then the runs found are read. A failed read returns no bytes, so that nothing
// of it is taken for data.
func (img *Image) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), img.meta.size)
	if n == 0 {
		return 0, eof
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	p = p[:n]
	// Most requests lie whole in one layer.
	s, err := img.next(ctx, 0, off, int64(n))
	if err != nil {
		return 0, err
	}
	if s.n == int64(n) && s.kind != absent {
		if s.kind == zeros {
			clear(p)
		} else if err := (job{img.layers[0], s.at, off, s.n}).read(ctx, p); err != nil {
			return 0, err
		}
		return n, eof
	}
	pl := img.plans.Get().(*plan)
	err = img.resolve(ctx, pl, off, int64(n))
	if err == nil {
		for _, r := range pl.zeros {
			clear(p[r.off-off:][:r.n])
		}
		err = img.fetch(ctx, pl.jobs, p, off)
	}
	pl.missing, pl.below, pl.zeros, pl.jobs = pl.missing[:0], pl.below[:0], pl.zeros[:0], pl.jobs[:0]
	img.plans.Put(pl)
	if err != nil {
		return 0, err
	}
	return n, eof
}

// next describes what layer i contributes to the disk's bytes from off on, n at
// most.
func (img *Image) next(ctx context.Context, i int, off, n int64) (span, error) {
	if off >= img.reach[i] {
		return span{n: n, kind: zeros}, nil
	}
	return img.layers[i].next(ctx, off, min(n, img.reach[i]-off))
}

// resolve fills pl.jobs with the runs found, layer by layer and ascending within
// each, and pl.zeros with the others.
func (img *Image) resolve(ctx context.Context, pl *plan, off, n int64) error {
	pl.jobs, pl.zeros = pl.jobs[:0], pl.zeros[:0]
	pl.missing = append(pl.missing[:0], run{off, n})
	for i, l := range img.layers {
		pl.below = pl.below[:0]
		for _, r := range pl.missing {
			for r.n > 0 {
				s, err := img.next(ctx, i, r.off, r.n)
				if err != nil {
					return err
				}
				switch s.kind {
				case data:
					pl.found(job{l, s.at, r.off, s.n})
				case zeros:
					pl.zeros = append(pl.zeros, run{r.off, s.n})
				default:
					pl.below = appendRun(pl.below, run{r.off, s.n})
				}
				r.off, r.n = r.off+s.n, r.n-s.n
			}
		}
		pl.missing, pl.below = pl.below, pl.missing
	}
	pl.zeros = append(pl.zeros, pl.missing...)
	return nil
}

// appendRun appends r, or lengthens the last run by it.
func appendRun(runs []run, r run) []run {
	if k := len(runs) - 1; k >= 0 && runs[k].off+runs[k].n == r.off {
		runs[k].n += r.n
		return runs
	}
	return append(runs, r)
}

// found appends a job, or lengthens the last one by it.
func (pl *plan) found(j job) {
	if k := len(pl.jobs) - 1; k >= 0 {
		last := &pl.jobs[k]
		if last.layer == j.layer && last.off+last.n == j.off && last.at+last.n == j.at {
			last.n += j.n
			return
		}
	}
	pl.jobs = append(pl.jobs, j)
}

// fetch reads the jobs into p, which begins at off on the disk.
func (img *Image) fetch(ctx context.Context, jobs []job, p []byte, off int64) error {
	if !img.parallel || len(jobs) < 2 {
		for len(jobs) > 0 {
			k := group(jobs)
			if err := readGroup(ctx, jobs[:k], p, off); err != nil {
				return err
			}
			jobs = jobs[k:]
		}
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	free := make(chan struct{}, maxParallel)
	for len(jobs) > 0 && ctx.Err() == nil {
		k := group(jobs)
		g := jobs[:k]
		jobs = jobs[k:]
		free <- struct{}{}
		wg.Go(func() {
			if err := readGroup(ctx, g, p, off); err != nil {
				cancel(err) // the first error is the cause
			}
			<-free
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// group returns how many of the jobs, from the first on, are near enough to each
// other in one file to be read by a single read.
func group(jobs []job) int {
	first := jobs[0]
	k := 1
	for ; k < len(jobs); k++ {
		prev, j := jobs[k-1], jobs[k]
		gap := j.at - (prev.at + prev.n)
		if j.layer != first.layer || gap < 0 || gap > maxGap || j.at+j.n-first.at > maxSpan {
			break
		}
	}
	return k
}

var spans = sync.Pool{New: func() any { return new([maxSpan]byte) }}

// readGroup reads the jobs of one group into p.
func readGroup(ctx context.Context, jobs []job, p []byte, off int64) error {
	first, last := jobs[0], jobs[len(jobs)-1]
	if len(jobs) == 1 {
		return first.read(ctx, p[first.off-off:][:first.n])
	}
	buf := spans.Get().(*[maxSpan]byte)
	defer spans.Put(buf)
	b := buf[:last.at+last.n-first.at]
	whole := job{first.layer, first.at, first.off, int64(len(b))}
	if err := whole.read(ctx, b); err != nil {
		return err
	}
	for _, j := range jobs {
		copy(p[j.off-off:][:j.n], b[j.at-first.at:])
	}
	return nil
}

// read fills b, j.n bytes, from the job's file.
func (j job) read(ctx context.Context, b []byte) error {
	if err := j.layer.read(ctx, b, j.at); err != nil {
		return fmt.Errorf("vhdx: %sdata of disk offset %#x at %#x: %w", j.layer.prefix(), j.off, j.at, err)
	}
	return nil
}

// Extent implements block.Mapper. Data that lie in a host file are reported with
// their place in it.
func (img *Image) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if off < 0 || off >= img.meta.size || n < 1 {
		return block.Extent{}, fmt.Errorf("vhdx: extent of %d bytes at %#x of %#x", n, off, img.meta.size)
	}
	n = min(n, img.meta.size-off)
	for i, l := range img.layers {
		s, err := img.next(ctx, i, off, n)
		if err != nil {
			return block.Extent{}, err
		}
		n = s.n
		switch s.kind {
		case data:
			return block.ExtentAt(ctx, l.file, s.at, n)
		case zeros:
			return block.Extent{Len: n, Zero: true}, nil
		}
	}
	return block.Extent{Len: n, Zero: true}, nil
}
