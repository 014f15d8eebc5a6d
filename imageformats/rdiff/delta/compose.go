package delta

import (
	"context"
	"errors"
	"math"
	"slices"

	"yester/internal/ondisk"
)

const (
	// maxInPlace bounds how many uncompressed deltas stay open for their literals:
	// a process has some thousand file descriptors, and many files are open in a
	// mount. The literals of further ones are kept as those of compressed ones are.
	maxInPlace = 16
	// minInPlace is the size in bytes from which an uncompressed delta is worth
	// staying open.
	minInPlace = 64 << 10
	// maxSmall is the size up to which a content that was put together is held in
	// memory, and its files are closed: what one read of the kernel asks for. A
	// small file's blocks are 64 bytes, hardly worth a read each.
	maxSmall = 64 << 10
)

// composer composes deltas from the last, the oldest, to the first.
type composer struct {
	ctx    context.Context
	base   Source
	deltas []Source
	opt    Options
	ahead  *ahead
	lits   *sink
	files  []File // by segment.from; nil where not open
	at     int    // the delta being composed
	window []byte // for uncompressed deltas; made when there is one
}

// compose is Compose without a way out: when there are too many segments, it
// returns errManySegments and the index of the delta at which there were.
func compose(ctx context.Context, base Source, deltas []Source, opt Options) (*Content, int, error) {
	c := composer{ctx: ctx, base: base, deltas: deltas, opt: opt}
	content, err := c.run()
	return content, c.at, err
}

// run returns the content. Nothing is left open on failure.
func (c *composer) run() (content *Content, err error) {
	c.ahead = newAhead(c.ctx, c.deltas)
	c.lits = newSink(c.ctx, c.opt.Spool, deriveKey("literals", c.deltas...), "literals of "+c.name())
	c.files = make([]File, fromFiles)
	defer func() {
		c.ahead.close()
		if err == nil {
			return
		}
		c.lits.abort(err)
		for _, f := range c.files {
			if f != nil {
				f.Close()
			}
		}
	}()
	list, r, err := c.trace()
	if err != nil {
		return nil, err
	}
	if c.files[fromLiterals], err = c.lits.finish(); err != nil {
		return nil, err
	}
	if len(c.deltas) == 0 || len(needed(list)) > 0 {
		base, err := c.openBase()
		if err != nil {
			return nil, err
		}
		c.files[fromBelow] = base
		if err := r.check(base.Size(), c.base.Name); err != nil {
			return nil, err
		}
		if len(c.deltas) == 0 && base.Size() > 0 {
			list = []segment{{n: base.Size()}}
		}
	}
	content = &Content{name: c.name(), list: list, files: c.files}
	if len(c.deltas) > 0 && content.Size() <= maxSmall {
		if err := content.hold(c.ctx); err != nil {
			return nil, err
		}
	}
	return content, nil
}

// name is that of the wanted version's source.
func (c *composer) name() string {
	if len(c.deltas) == 0 {
		return c.base.Name
	}
	return c.deltas[len(c.deltas)-1].Name
}

// reach is how far the COPY commands of a delta reach into the version below it.
type reach struct {
	end    int64
	source string
	at     int64 // of the command that reaches there
}

// check fails if a command copies from beyond the size of what it copies from.
func (r reach) check(size int64, from string) error {
	if r.end <= size {
		return nil
	}
	return ondisk.Corruptf(format, r.source+": COPY command", r.at, "copies up to %#x, but %s yields %#x bytes", r.end, from, size)
}

// trace returns the list of the wanted version over the base, and how far that
// is reached into.
func (c *composer) trace() (list []segment, r reach, err error) {
	live := []span{{0, math.MaxInt64}}
	for c.at = len(c.deltas) - 1; c.at >= 0; c.at-- {
		s := &c.deltas[c.at]
		lower, size, lowerReach, err := c.read(s, live)
		if err != nil {
			return nil, r, err
		}
		if err := r.check(size, s.Name); err != nil {
			return nil, r, err
		}
		if err := s.checkSize(size); err != nil {
			return nil, r, err
		}
		r = lowerReach
		if c.at == len(c.deltas)-1 {
			list = lower
		} else if list, err = substitute(list, lower, c.opt.maxSegments); err != nil {
			return nil, r, c.wrap(err)
		}
		if live = needed(list); len(live) == 0 {
			break
		}
	}
	return list, r, nil
}

// wrap names the delta in an error of composing.
func (c *composer) wrap(err error) error {
	if errors.Is(err, errManySegments) {
		return err
	}
	return ondisk.Corruptf(format, c.deltas[c.at].Name, -1, "%v", err)
}

// read returns where the live ranges of the version that s yields lie, the
// version's size, and how far its commands reach.
func (c *composer) read(s *Source, live []span) ([]segment, int64, reach, error) {
	if s.Gzip {
		return c.parse(s, c.ahead.input(c.at), fromLiterals, live)
	}
	f, err := s.open(c.ctx)
	if err != nil {
		return nil, 0, reach{}, err
	}
	if c.window == nil {
		c.window = make([]byte, windowSize)
	}
	in := newPlainInput(c.ctx, s.Name, f, c.window)
	if f.Size() < minInPlace || len(c.files) >= int(fromFiles)+maxInPlace {
		defer f.Close()
		return c.parse(s, in, fromLiterals, live)
	}
	from := int32(len(c.files))
	list, size, r, err := c.parse(s, in, from, live)
	if slices.ContainsFunc(list, func(l segment) bool { return l.from == from }) {
		c.files = append(c.files, f)
	} else {
		f.Close()
	}
	return list, size, r, err
}

// parse is read of the stream in. Literals that are needed are kept, or, when
// from isn't fromLiterals, stay where they are.
func (c *composer) parse(s *Source, in *input, from int32, live []span) ([]segment, int64, reach, error) {
	out := segments{max: c.opt.maxSegments}
	r := reach{source: s.Name}
	next := 0 // the first live range that may lie in a command's output
	size, err := in.commands(s.limit(), func(cmd command) error {
		if !cmd.literal && cmd.start+cmd.n > r.end {
			r.end, r.at = cmd.start+cmd.n, cmd.at
		}
		end := cmd.out + cmd.n
		for next < len(live) && live[next].end <= cmd.out {
			next++
		}
		body := in.off // where a literal's bytes begin
		for i := next; i < len(live) && live[i].off < end; i++ {
			a, b := max(cmd.out, live[i].off), min(end, live[i].end)
			seg := segment{off: a, n: b - a}
			switch skip := a - cmd.out; {
			case !cmd.literal:
				seg.from, seg.at = fromBelow, cmd.start+skip
			case from != fromLiterals:
				seg.from, seg.at = from, body+skip
			default:
				seg.from, seg.at = fromLiterals, c.lits.n
				if err := in.pass(body+skip-in.off, nil); err != nil {
					return err
				}
				if err := in.pass(seg.n, c.lits.write); err != nil {
					return err
				}
			}
			if err := out.add(seg); err != nil {
				return err
			}
		}
		return nil
	})
	return out.list, size, r, err
}

// openBase returns the base as a file that can be read at random.
func (c *composer) openBase() (File, error) {
	f, err := c.base.open(c.ctx)
	if err != nil {
		return nil, err
	}
	if c.base.Gzip {
		z := f
		f, err = expand(c.ctx, &c.base, z, c.opt.Spool)
		z.Close()
		if err != nil {
			return nil, err
		}
	}
	if err := c.base.checkSize(f.Size()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
