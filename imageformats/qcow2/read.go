package qcow2

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"yester/internal/block"
)

// run is a part of a request, bytes of the disk.
type run struct{ off, n int64 }

// job is a run found in a layer.
type job struct {
	layer *layer
	kind  kind  // present or packed
	at    int64 // in the layer's data, when present
	off   int64 // on the disk
	n     int64
}

// plan is the scratch space in which a request is resolved.
type plan struct {
	missing, below []run
	zero           []run
	jobs           []job
}

// maxParallel bounds the reads of one request that are under way at once.
const maxParallel = 8

// ahead is how many compressed clusters are decoded beyond the one that is being
// waited for: one for each processor, and one more that is being begun.
var ahead = runtime.GOMAXPROCS(0) + 1

// ReadAt implements block.Reader.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	return img.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader. The request is resolved over
// the whole chain first: each layer is asked for what the ones above it lack.
// Then the runs found are read. A failed read returns no bytes, so that nothing
// of it is taken for data.
func (img *Image) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), img.Size())
	if n == 0 {
		return 0, eof
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	p = p[:n]
	// Most requests lie whole in one run.
	s, err := img.next(ctx, 0, off, int64(n))
	if err != nil {
		return 0, err
	}
	if s.n == int64(n) && s.kind != absent {
		switch s.kind {
		case zeros:
			clear(p)
		case present:
			err = (job{layer: img.layers[0], at: s.at, off: off, n: s.n}).read(ctx, p)
		default:
			img.layers[0].readAhead(ctx, off)
			err = (job{layer: img.layers[0], kind: packed, off: off, n: s.n}).unpack(ctx, p)
		}
		if err != nil {
			return 0, err
		}
		return n, eof
	}
	pl := img.plans.Get().(*plan)
	err = img.resolve(ctx, pl, off, int64(n))
	if err == nil {
		for _, r := range pl.zero {
			clear(p[r.off-off:][:r.n])
		}
		for _, r := range pl.missing {
			clear(p[r.off-off:][:r.n])
		}
		err = img.fetch(ctx, pl.jobs, p, off)
	}
	clear(pl.jobs) // a pooled plan keeps no layer alive
	pl.missing, pl.below, pl.zero, pl.jobs = pl.missing[:0], pl.below[:0], pl.zero[:0], pl.jobs[:0]
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
		return span{n: n}, nil
	}
	return img.layers[i].next(ctx, off, min(n, img.reach[i]-off))
}

// resolve fills pl.jobs with the runs found, layer by layer and ascending within
// each, pl.zero with those that are zeros, and pl.missing with those that no
// layer has.
func (img *Image) resolve(ctx context.Context, pl *plan, off, n int64) error {
	pl.jobs, pl.zero = pl.jobs[:0], pl.zero[:0]
	pl.missing = append(pl.missing[:0], run{off, n})
	for i, l := range img.layers {
		if len(pl.missing) == 0 {
			break
		}
		pl.below = pl.below[:0]
		for _, r := range pl.missing {
			for r.n > 0 {
				s, err := img.next(ctx, i, r.off, r.n)
				if err != nil {
					return err
				}
				switch k := len(pl.below) - 1; {
				case s.kind == zeros:
					pl.zero = append(pl.zero, run{r.off, s.n})
				case s.kind != absent:
					pl.found(job{l, s.kind, s.at, r.off, s.n})
				case k >= 0 && pl.below[k].off+pl.below[k].n == r.off:
					pl.below[k].n += s.n
				default:
					pl.below = append(pl.below, run{r.off, s.n})
				}
				r.off, r.n = r.off+s.n, r.n-s.n
			}
		}
		pl.missing, pl.below = pl.below, pl.missing
	}
	return nil
}

// found appends a job, or lengthens the last one by it.
func (pl *plan) found(j job) {
	if k := len(pl.jobs) - 1; k >= 0 && j.kind == present {
		last := &pl.jobs[k]
		if last.layer == j.layer && last.kind == present && last.off+last.n == j.off && last.at+last.n == j.at {
			last.n += j.n
			return
		}
	}
	pl.jobs = append(pl.jobs, j)
}

// fetch carries the jobs out into p, which begins at off on the disk.
func (img *Image) fetch(ctx context.Context, jobs []job, p []byte, off int64) error {
	if img.parallel && len(jobs) > 1 {
		return fetchParallel(ctx, jobs, p, off)
	}
	for i, j := range jobs {
		b := p[j.off-off:][:j.n]
		var err error
		if j.kind == packed {
			for _, next := range jobs[i+1 : min(i+1+ahead, len(jobs))] {
				if next.kind == packed {
					next.layer.units.Ahead(next.cluster())
				}
			}
			if i+1 == len(jobs) {
				j.layer.readAhead(ctx, j.off)
			}
			err = j.unpack(ctx, b)
		} else {
			err = j.read(ctx, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func fetchParallel(ctx context.Context, jobs []job, p []byte, off int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	free := make(chan struct{}, maxParallel)
	for _, j := range jobs {
		if ctx.Err() != nil {
			break
		}
		free <- struct{}{}
		wg.Go(func() {
			do := j.read
			if j.kind == packed {
				do = j.unpack
			}
			if err := do(ctx, p[j.off-off:][:j.n]); err != nil {
				cancel(err) // the first error is the cause
			}
			<-free
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// readAhead begins to decode what comes after the compressed cluster at off, when
// the disk is being read in order.
func (l *layer) readAhead(ctx context.Context, off int64) {
	size := int64(1) << l.bits
	off &^= size - 1
	if !l.units.Sequential(off >> l.bits) {
		return
	}
	for range ahead {
		if off += size; off >= l.limit {
			return
		}
		s, err := l.next(ctx, off, 1)
		if err != nil || s.kind != packed {
			return // whoever reads there learns why
		}
		l.units.Ahead(off >> l.bits)
	}
}

func (j job) cluster() int64 { return j.off >> j.layer.bits }

// read fills b, j.n bytes, from the layer's data.
func (j job) read(ctx context.Context, b []byte) error {
	if err := readFull(ctx, j.layer.data, b, j.at); err != nil {
		return fmt.Errorf("qcow2: %sdata of disk offset %#x at %#x: %w", j.layer.prefix(), j.off, j.at, err)
	}
	return nil
}

// unpack fills b, j.n bytes, from a compressed cluster.
func (j job) unpack(ctx context.Context, b []byte) error {
	data, err := j.layer.units.Get(ctx, j.cluster())
	if err != nil {
		return err
	}
	copy(b, data[j.off&(1<<j.layer.bits-1):])
	return nil
}

// Extent implements block.Mapper. Data that lie in a host file are reported with
// their place in it.
func (img *Image) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if off < 0 || off >= img.Size() || n < 1 {
		return block.Extent{}, fmt.Errorf("qcow2: extent of %d bytes at %#x of %#x", n, off, img.Size())
	}
	n = min(n, img.Size()-off)
	for i, l := range img.layers {
		s, err := img.next(ctx, i, off, n)
		if err != nil {
			return block.Extent{}, err
		}
		n = s.n
		switch s.kind {
		case zeros:
			return block.Extent{Len: n, Zero: true}, nil
		case packed:
			return block.Extent{Len: n}, nil
		case present:
			return block.ExtentAt(ctx, l.data, s.at, n)
		}
	}
	return block.Extent{Len: n, Zero: true}, nil
}
