package delta

import (
	"context"

	"yester/internal/block"
)

// apply writes out the version that s yields over the newer ones: the way out when
// segments are too many.
func apply(ctx context.Context, base Source, newer []Source, s Source, opt Options) (File, error) {
	under, err := Compose(ctx, base, newer, opt)
	if err != nil {
		return nil, err
	}
	defer under.Close()
	limit := s.limit()
	if s.Size < 0 {
		limit = opt.maxUnknown
	}
	inputs := append([]Source{base, s}, newer...)
	out := newSink(ctx, opt.Spool, deriveKey("applied", inputs...), s.Name+", applied")
	a := newAhead(ctx, []Source{s})
	defer a.close()
	if err := applyInto(ctx, out, under, &s, a, limit); err != nil {
		out.abort(err)
		return nil, err
	}
	return out.finish()
}

func applyInto(ctx context.Context, out *sink, under *Content, s *Source, a *ahead, limit int64) error {
	var in *input
	if s.Gzip {
		in = a.input(0)
	} else {
		f, err := s.open(ctx)
		if err != nil {
			return err
		}
		defer f.Close()
		in = newPlainInput(ctx, s.Name, f, make([]byte, windowSize))
	}
	buf := make([]byte, windowSize)
	size, err := in.commands(limit, func(c command) error {
		if c.literal {
			return in.pass(c.n, out.write)
		}
		if err := (reach{c.start + c.n, s.Name, c.at}).check(under.Size(), under.name); err != nil {
			return err
		}
		for done := int64(0); done < c.n; {
			b := buf[:min(int64(len(buf)), c.n-done)]
			if err := block.ReadFull(ctx, under, b, c.start+done); err != nil {
				return err
			}
			if err := out.write(b); err != nil {
				return err
			}
			done += int64(len(b))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.checkSize(size)
}
