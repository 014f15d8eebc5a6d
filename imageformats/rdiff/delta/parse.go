package delta

import (
	"io"

	"yester/internal/ondisk"
)

// input is the uncompressed stream of a delta, read once from its start on.
type input struct {
	name  string
	win   []byte // what has been fetched and not yet been taken; valid until fetch
	off   int64  // of win[0] in the stream
	carry [maxParameters]byte

	// fetch returns the bytes that follow the last ones it returned, at least one,
	// or io.EOF once the stream has ended and its checksum is right.
	fetch func() ([]byte, error)
	// seek makes fetch go on at an offset. It is nil where all must be read.
	seek func(off int64) error
}

func (in *input) corrupt(field string, at int64, msg string, args ...any) error {
	return ondisk.Corruptf(format, in.name+": "+field, at, msg, args...)
}

// more replaces the window, which must be used up. The stream's end is an error
// here, about the field that was being read.
func (in *input) more(field string) error {
	w, err := in.fetch()
	if err == io.EOF {
		return in.corrupt(field, in.off, "the delta is cut off")
	}
	in.win = w
	return err
}

// take returns the next n bytes, at most maxParameters, valid until the next call.
func (in *input) take(n int, field string) ([]byte, error) {
	if len(in.win) >= n {
		b := in.win[:n]
		in.win, in.off = in.win[n:], in.off+int64(n)
		return b, nil
	}
	k := 0
	for {
		m := copy(in.carry[k:n], in.win)
		in.win, in.off, k = in.win[m:], in.off+int64(m), k+m
		if k == n {
			return in.carry[:n], nil
		}
		if err := in.more(field); err != nil {
			return nil, err
		}
	}
}

// pass moves n bytes on, which keep gets piece by piece unless it is nil.
func (in *input) pass(n int64, keep func([]byte) error) error {
	for n > 0 {
		if len(in.win) == 0 {
			if keep == nil && in.seek != nil {
				if err := in.seek(in.off + n); err != nil {
					return err
				}
				in.off += n
				return nil
			}
			if err := in.more("literal"); err != nil {
				return err
			}
		}
		m := min(n, int64(len(in.win)))
		if keep != nil {
			if err := keep(in.win[:m]); err != nil {
				return err
			}
		}
		in.win, in.off, n = in.win[m:], in.off+m, n-m
	}
	return nil
}

// command is a COPY or a LITERAL.
type command struct {
	at      int64 // of the command in the stream, for messages
	out     int64 // offset in the delta's output of what it yields
	n       int64 // bytes that it yields, at least 1
	literal bool
	start   int64 // of a COPY: where its bytes begin in the next-newer version
}

// commands reads the whole delta and calls visit for each COPY and LITERAL in
// turn. Of a literal's bytes visit may take what it wants from in, up to c.n. It
// returns the size of the output; one beyond limit is an error as soon as a
// command exceeds it.
func (in *input) commands(limit int64, visit func(c command) error) (size int64, err error) {
	b, err := in.take(magicSize, "magic")
	if err != nil {
		return 0, err
	}
	if m := be.Uint32(b); m != magic {
		return 0, in.corrupt("magic", 0, "%#08x is not a librsync delta's %#08x", m, magic)
	}
	for {
		c := command{at: in.off, out: size}
		b, err := in.take(1, "command")
		if err != nil {
			return 0, err
		}
		op := b[0]
		if op == opEnd {
			break
		}
		if err := in.parameters(op, &c); err != nil {
			return 0, err
		}
		if c.n > limit-size {
			return 0, in.corrupt("command", c.at, "the output grows to %d bytes, beyond the %d it may have", size+c.n, limit)
		}
		size += c.n
		body := in.off
		if err := visit(c); err != nil {
			return 0, err
		}
		if c.literal {
			if err := in.pass(body+c.n-in.off, nil); err != nil {
				return 0, err
			}
		}
	}
	at := in.off
	if len(in.win) == 0 {
		if in.win, err = in.fetch(); err == io.EOF {
			return size, nil
		} else if err != nil {
			return 0, err
		}
	}
	return 0, in.corrupt("END command", at-1, "more bytes follow it")
}

// parameters decodes what follows the code op.
func (in *input) parameters(op byte, c *command) error {
	var start, n uint64
	switch {
	case op <= opLiteral64:
		n, c.literal = uint64(op), true
	case op <= opLiteralN8:
		b, err := in.take(literalWidth(op), "LITERAL command")
		if err != nil {
			return err
		}
		n, c.literal = number(b), true
	case op <= opCopyN8N8:
		ws, wn := copyWidths(op)
		b, err := in.take(ws+wn, "COPY command")
		if err != nil {
			return err
		}
		start, n = number(b[:ws]), number(b[ws:])
	default:
		return in.corrupt("command", c.at, "code %#02x is reserved", op)
	}
	if n == 0 || n > maxSize || start > maxSize {
		return in.corrupt("command", c.at, "start %#x and length %#x are outside 0..%#x and 1..%#x", start, n, uint64(maxSize), uint64(maxSize))
	}
	c.start, c.n = int64(start), int64(n)
	return nil
}
