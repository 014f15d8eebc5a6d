package rdiff

import (
	"context"
	"slices"

	"yester/internal/ondisk"
	"yester/origin"
)

// findFault looks for the file that makes the version w wrong, and returns an error
// that names it; nil when no single one is found.
func (r *Repository) findFault(ctx context.Context, l *listing, w *wanted) error {
	p := r.place(l.quoting, w.path, w.alt)
	d, err := r.increments(ctx, l.quoting, p.dir)
	if err != nil {
		return nil
	}
	h := historyOf(d, p.dir, p.base, w.time, l.valid, l.suspended)
	if h.broken != nil || len(h.suspects) > 0 {
		return nil
	}
	how := candidate{mirror: h.whole == nil}
	at, name := l.valid, p.mirror
	if h.whole != nil {
		how.whole = *h.whole
		at, name = h.whole.time, join(p.dir, h.whole.name)
	}
	// The base first, then one delta more each time.
	for k := len(h.diffs); ; k-- {
		bad, known := r.wrong(ctx, l, p, how, at, w)
		if known && bad {
			return &mismatch{ondisk.Corruptf(format, name, -1, "the version of %s that comes of it isn't what was recorded (SHA-1)", stampUTC(at))}
		}
		if k == 0 || ctx.Err() != nil {
			return nil
		}
		inc := h.diffs[k-1]
		how.diffs = slices.Insert(slices.Clone(how.diffs), 0, inc)
		at, name = inc.time, join(p.dir, inc.name)
	}
}

// wrong reports whether a version of w's path differs from what the metadata of the
// time at record, and whether that is known.
func (r *Repository) wrong(ctx context.Context, l *listing, p place, how candidate, at int64, w *wanted) (bad, known bool) {
	digest := w.digest
	if at != w.time {
		i, ok := l.find(at)
		if !ok {
			return false, false
		}
		s, err := r.state(ctx, l, i)
		if err != nil {
			return false, false
		}
		rf, ok := s.find(w.path)
		if !ok {
			return false, false
		}
		rec, t := s.rec(rf)
		if rec.digest == 0 {
			return false, false
		}
		digest = t.digests.at(rec.digest - 1)
	}
	if digest == nil {
		return false, false
	}
	var mirror origin.File
	if how.mirror {
		f, err := r.open(ctx, p.mirror)
		if err != nil {
			return false, false
		}
		defer f.Close()
		mirror = f
	}
	c, err := r.compose(ctx, p.dir, how, mirror, &wanted{path: w.path, time: at, size: noSize, lost: true})
	if err != nil {
		return true, ctx.Err() == nil
	}
	got, err := sumOf(ctx, c.r)
	c.pins = slices.DeleteFunc(c.pins, func(f origin.File) bool { return f == mirror })
	c.close()
	if err != nil {
		return true, ctx.Err() == nil
	}
	return got != *digest, true
}
