package rdiff

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"yester/imageformats"
	"yester/imageformats/rdiff/delta"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/origin"
)

// verifyAtOnce is up to what size, in bytes, a content that was put together is
// compared with its SHA-1 before anything of it is shown. It has just been read or
// is in the host's cache, and the sum of a mebibyte takes about a millisecond.
const verifyAtOnce = 1 << 20

// content is what a file held at a point, opened. It is shared by those who read
// the file, and closed when none of them is left.
type content struct {
	r        block.Reader
	check    []origin.File  // whose version is no longer asked for on each read
	digest   *[20]byte      // nil: none recorded
	lent     atomic.Bool    // where it lies in host files was told
	verified atomic.Bool    // the whole content was compared with digest
	mirror   bool           // it is the mirror's own file
	sources  []string       // the files that it is made of, the base first
	pins     []origin.File  // opened for it, to be closed with it
	composed *delta.Content // nil when it is one file
}

func (c *content) size() int64 { return c.r.Size() }

func (c *content) close() {
	if c.composed != nil {
		c.composed.Close()
	}
	for _, f := range c.pins {
		f.Close()
	}
}

// fresh fails when one of the files that the content is made of has been changed
// since.
func (c *content) fresh(ctx context.Context) error {
	for _, f := range c.check {
		if err := f.Check(ctx); err != nil {
			return err
		}
	}
	return nil
}

// wanted is the version of a file that is asked for.
type wanted struct {
	path   []byte
	alt    altNames
	time   int64
	size   int64 // noSize: not known
	mtime  int64
	digest *[20]byte
	lost   bool // there is no metadata to go by
}

// candidate is one way in which the version may be stored.
type candidate struct {
	mirror bool      // from the mirror's file, else from whole
	whole  incFile   // a snapshot
	diffs  []incFile // ascending by time; applied from the last to the first
}

// content opens the version w. It must run within settle.
func (r *Repository) content(ctx context.Context, l *listing, w *wanted) (*content, error) {
	p := r.place(l.quoting, w.path, w.alt)
	// The mirror's file is opened first, and the increments are looked for then: what
	// replaces or removes a file writes the increment first.
	mirror, openErr := r.open(ctx, p.mirror)
	if openErr != nil && !errors.Is(openErr, fs.ErrNotExist) && !errors.Is(openErr, ondisk.ErrCorrupt) {
		return nil, openErr
	}
	d, err := r.increments(ctx, l.quoting, p.dir)
	h := historyOf(d, p.dir, p.base, w.time, l.valid, l.suspended)
	if err == nil && openErr != nil && h.whole == nil && h.broken == nil && len(h.suspects) == 0 {
		err = fmt.Errorf("%s: %s at %s: no increment, and in the mirror: %w",
			format, describe(w.path), stampUTC(w.time), corrupt(openErr))
	}
	if err != nil {
		if mirror != nil {
			mirror.Close()
		}
		return nil, err
	}
	c, err := r.choose(ctx, p, &h, mirror, w)
	if mirror != nil && (err != nil || !slices.Contains(c.pins, mirror)) {
		mirror.Close()
	}
	return c, err
}

// corrupt gives an error about a file of the repository that should be there the
// class it has for whoever asked for the content.
func corrupt(err error) error {
	if errors.Is(err, ondisk.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%s: %w", err.Error(), ondisk.ErrCorrupt)
}

// choose opens the candidate that is right.
func (r *Repository) choose(ctx context.Context, p place, h *history, mirror origin.File, w *wanted) (*content, error) {
	if h.broken != nil {
		return nil, ondisk.Corruptf(format, join(h.dir, h.broken.name), -1,
			"says that there was no file then, the metadata of %s that there is one", stampUTC(w.time))
	}
	if len(h.diffs) > maxIncrements {
		return nil, ondisk.Unsupportedf(format, describe(w.path), -1, "%d increments", len(h.diffs))
	}
	if h.whole != nil {
		return r.compose(ctx, h.dir, candidate{whole: *h.whole, diffs: h.diffs}, nil, w)
	}
	if len(h.suspects) == 0 {
		return r.compose(ctx, p.dir, candidate{mirror: true, diffs: h.diffs}, mirror, w)
	}
	return r.decide(ctx, p, h, mirror, w)
}

// decide is choose when a session that hasn't come to its end has written an
// increment of the file: the mirror's file may still be the one from before, and
// the increment incomplete; or it may have been replaced. The content's SHA-1 says
// which.
func (r *Repository) decide(ctx context.Context, p place, h *history, mirror origin.File, w *wanted) (*content, error) {
	var tries []candidate
	if mirror != nil {
		tries = append(tries, candidate{mirror: true, diffs: h.diffs})
	}
	diffs := slices.Clone(h.diffs)
	for i, s := range h.suspects {
		if s.kind == kindSnapshot {
			tries = append(tries, candidate{whole: s, diffs: diffs})
			break
		}
		if s.kind != kindDiff {
			break
		}
		diffs = append(slices.Clone(diffs), s)
		if mirror != nil {
			tries = append(tries, candidate{mirror: true, diffs: diffs})
		}
		if i > 2 {
			break // two sessions can't both be unfinished
		}
	}
	var errs []error
	for _, c := range tries {
		opened, err := r.compose(ctx, p.dir, c, mirror, w)
		if err == nil {
			err = r.proven(ctx, opened, c, mirror, w)
			if err == nil {
				return opened, nil
			}
			if mirror != nil {
				opened.pins = slices.DeleteFunc(opened.pins, func(f origin.File) bool { return f == mirror })
			}
			opened.close()
		}
		if ctx.Err() != nil || errors.Is(err, origin.ErrChanged) {
			return nil, err
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%s: %s at %s, of which an interrupted session may have replaced the file: %w: %w",
		format, describe(w.path), stampUTC(w.time), errors.Join(errs...), ondisk.ErrCorrupt)
}

// proven fails when nothing shows that the content is the one wanted.
func (r *Repository) proven(ctx context.Context, c *content, how candidate, mirror origin.File, w *wanted) error {
	if w.digest != nil {
		return c.verify(ctx)
	}
	if how.mirror && len(how.diffs) == 0 && !w.lost && sameSecond(mirror, w.mtime) {
		return nil
	}
	return ondisk.Corruptf(format, describe(w.path), -1, "no SHA-1 is recorded that could tell which of two versions is right")
}

func sameSecond(f origin.File, sec int64) bool {
	ns := f.Version().Mtime
	s := ns / 1e9
	if ns%1e9 < 0 {
		s--
	}
	return s == sec
}

// compose opens the candidate how, in the directory dir, and verifies of it what
// can be verified at once.
func (r *Repository) compose(ctx context.Context, dir string, how candidate, mirror origin.File, w *wanted) (*content, error) {
	if how.mirror && len(how.diffs) == 0 {
		return r.whole(ctx, mirror, true, w)
	}
	c := &content{digest: w.digest}
	var base delta.Source
	if how.mirror {
		base = delta.Source{Name: mirror.Name(), Size: -1, Key: r.spoolKey(mirror), Open: func(context.Context) (delta.File, error) {
			return unclosed{mirror}, nil
		}}
		c.pins = append(c.pins, mirror)
		c.check = append(c.check, mirror)
		c.sources = append(c.sources, mirror.Name())
	} else {
		if !how.whole.gzip && len(how.diffs) == 0 {
			f, err := r.open(ctx, join(dir, how.whole.name))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", format, moved(err))
			}
			c, err := r.whole(ctx, f, false, w)
			if err != nil {
				f.Close()
			}
			return c, err
		}
		var err error
		if base, err = r.source(ctx, dir, how.whole); err != nil {
			return nil, err
		}
		c.sources = append(c.sources, base.Name)
	}
	var deltas []delta.Source
	for _, inc := range slices.Backward(how.diffs) {
		s, err := r.source(ctx, dir, inc)
		if err != nil {
			return nil, err
		}
		c.sources = append(c.sources, s.Name)
		deltas = append(deltas, s)
	}
	if len(deltas) > 0 {
		deltas[len(deltas)-1].Size = w.size
	} else {
		base.Size = w.size
	}
	composed, err := delta.Compose(ctx, base, deltas, delta.Options{Spool: r.spooler()})
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", describe(w.path), stampUTC(w.time), err)
	}
	c.r, c.composed = composed, composed
	if c.digest != nil && c.size() <= verifyAtOnce {
		if err := c.verify(ctx); err != nil {
			c.pins = nil // the mirror's file is the caller's, who has another use for it
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// moved marks the error of opening a file that had just been listed.
func moved(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, errMoved)
	}
	return err
}

// whole is the content of one stored file, as it is.
func (r *Repository) whole(ctx context.Context, f origin.File, mirror bool, w *wanted) (*content, error) {
	c := &content{r: f, digest: w.digest, mirror: mirror, sources: []string{f.Name()},
		check: []origin.File{f}, pins: []origin.File{f}}
	if w.size != noSize && f.Size() != w.size {
		return nil, ondisk.Corruptf(format, f.Name(), -1, "is %d bytes long, the metadata of %s record %d", f.Size(), stampUTC(w.time), w.size)
	}
	// A file that has its recorded time and size is taken for what it was. Without
	// its time it is compared: its time alone may have been changed since, which
	// leaves no increment, or increments may have been removed.
	if !mirror && f.Size() <= verifyAtOnce || mirror && !w.lost && !sameSecond(f, w.mtime) {
		if err := c.verify(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// source describes an increment.
func (r *Repository) source(ctx context.Context, dir string, inc incFile) (delta.Source, error) {
	name := join(dir, inc.name)
	s := delta.Source{Name: name, Gzip: inc.gzip, Size: -1}
	if r.opt.Spool != nil {
		info, err := r.folder.Lstat(ctx, name)
		if err != nil {
			return s, fmt.Errorf("%s: %w", format, moved(err))
		}
		s.Key = fmt.Sprintf("%s %+v", name, info.Version)
	}
	s.Open = func(ctx context.Context) (delta.File, error) {
		f, err := r.open(ctx, name)
		if err != nil {
			return nil, moved(err)
		}
		if s.Key != "" && s.Key != versionKey(f) {
			f.Close()
			return nil, fmt.Errorf("%s: %w: %w", name, origin.ErrChanged, ondisk.ErrCorrupt)
		}
		return f, nil
	}
	return s, nil
}

func (r *Repository) spoolKey(f origin.File) string {
	if r.opt.Spool == nil {
		return ""
	}
	return versionKey(f)
}

func (r *Repository) spooler() delta.Spooler {
	if r.opt.Spool == nil {
		return nil
	}
	return spool{r.opt.Spool}
}

// spool is the options' Spooler in the form that package delta wants.
type spool struct {
	imageformats.Spooler
}

func (s spool) Spool(ctx context.Context, key string, fill func(io.Writer) error) (delta.File, error) {
	return s.Spooler.Spool(ctx, key, fill)
}

// unclosed is a file that belongs to someone else.
type unclosed struct{ f origin.File }

func (u unclosed) Size() int64                             { return u.f.Size() }
func (u unclosed) ReadAt(p []byte, off int64) (int, error) { return u.f.ReadAt(p, off) }
func (u unclosed) Close() error                            { return nil }

func (u unclosed) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return block.ReadAt(ctx, u.f, p, off)
}

func (u unclosed) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	return block.ExtentAt(ctx, u.f, off, n)
}

// sums are the buffers of verify.
var sums = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// verify compares the whole content with its SHA-1, where one is recorded.
func (c *content) verify(ctx context.Context) error {
	if c.digest == nil || c.verified.Load() {
		return nil
	}
	got, err := sumOf(ctx, c.r)
	if err != nil {
		return err
	}
	if got != *c.digest {
		return c.mismatch(got)
	}
	c.verified.Store(true)
	return nil
}

// mismatch is the error of a content that isn't what was recorded.
type mismatch struct {
	err error
}

func (m *mismatch) Error() string { return m.err.Error() }
func (m *mismatch) Unwrap() error { return m.err }

func (c *content) mismatch(got [20]byte) error {
	return &mismatch{ondisk.Corruptf(format, c.sources[len(c.sources)-1], -1,
		"the content has SHA-1 %x, recorded is %x", got, *c.digest)}
}

// sumOf returns the SHA-1 of all that r holds.
func sumOf(ctx context.Context, r block.Reader) (sum [20]byte, err error) {
	h := sha1.New()
	bp := sums.Get().(*[]byte)
	defer sums.Put(bp)
	for off := int64(0); off < r.Size(); {
		p := (*bp)[:min(int64(len(*bp)), r.Size()-off)]
		if err := block.ReadFull(ctx, r, p, off); err != nil {
			return sum, err
		}
		h.Write(p)
		off += int64(len(p))
	}
	h.Sum(sum[:0])
	return sum, nil
}

// opened counts the contents that aren't closed yet, of all repositories.
var opened atomic.Int64

// maxOpened is how many contents may be open before those that nobody refers to any
// more are looked for.
const maxOpened = 1024

// lentTime is for how long the files of a content stay open that nobody reads any
// more, but whose places were told: whoever was told reads there at once, without
// holding on to the content.
const lentTime = 5 * time.Second

// own makes the garbage collector close c when nobody reads it any more: a Tree's
// Open gives nothing to be closed.
func own(c *content) *shared {
	s := &shared{content: c}
	runtime.AddCleanup(s, func(c *content) {
		opened.Add(-1)
		switch {
		case !c.lent.Load():
			c.close()
		case c.composed != nil:
			time.AfterFunc(lentTime, c.close)
		default:
			// The host's file closes itself when nobody knows it any more.
		}
	}, c)
	if opened.Add(1)%maxOpened == 0 {
		runtime.GC()
	}
	return s
}

// shared is a content that is in use.
type shared struct {
	*content
}
