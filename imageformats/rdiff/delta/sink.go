package delta

import (
	"context"
	"errors"
	"fmt"
	"io"

	"yester/internal/ondisk"
)

// maxHeld is how many derived bytes of one content are kept in memory, rather
// than in a file: a mount has many contents open.
const maxHeld = 1 << 20

// pieceSize is how many bytes at a time go to a spooled file.
const pieceSize = 256 << 10

// sink takes derived bytes in order: into memory up to maxHeld, all of them into a
// spooled file beyond that. Writing to the file goes on beside what makes the bytes.
type sink struct {
	ctx   context.Context
	spool Spooler
	key   string
	what  string // for messages
	n     int64  // bytes written
	mem   []byte // those that aren't in pieces yet

	pieces chan []byte   // to the spooled file; nil while all is in memory
	free   chan []byte   // written ones, to be filled again
	done   chan struct{} // closed once Spool has returned file and err
	file   File
	err    error
	abrt   error // why the file must not be kept; set before pieces is closed
	closed bool  // pieces is
}

func newSink(ctx context.Context, spool Spooler, key, what string) *sink {
	if spool == nil || key == "" {
		spool = unlinked{}
	}
	return &sink{ctx: ctx, spool: spool, key: key, what: what}
}

// write takes a copy of p.
func (s *sink) write(p []byte) error {
	s.n += int64(len(p))
	for {
		room := maxHeld
		if s.pieces != nil {
			room = pieceSize
		}
		k := min(len(p), room-len(s.mem))
		s.mem = append(s.mem, p[:k]...)
		if p = p[k:]; len(p) == 0 {
			return nil
		}
		if s.pieces == nil {
			s.spill()
		}
		if err := s.flush(); err != nil {
			return err
		}
	}
}

// spill begins the spooled file.
func (s *sink) spill() {
	s.pieces, s.free, s.done = make(chan []byte, 2), make(chan []byte, 4), make(chan struct{})
	go func() {
		defer close(s.done)
		s.file, s.err = s.spool.Spool(s.ctx, s.key, s.fill)
		if s.err == nil && s.file == nil {
			s.err = errors.New("the spooler returned no file")
		}
		if s.err != nil {
			s.err = fmt.Errorf("%s: %s: %w", format, s.what, s.err)
		}
	}()
}

// fill writes the spooled file.
func (s *sink) fill(w io.Writer) error {
	for {
		select {
		case b, ok := <-s.pieces:
			if !ok {
				return s.abrt
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
			select {
			case s.free <- b[:0]:
			default:
			}
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// flush hands over what is in memory. A file that was found in the spool needs it
// no more.
func (s *sink) flush() error {
	select {
	case s.pieces <- s.mem:
	case <-s.done:
		s.mem = s.mem[:0]
		return s.err
	}
	select {
	case s.mem = <-s.free:
	default:
		s.mem = make([]byte, 0, pieceSize)
	}
	return nil
}

// found returns the file that the spool had already, or nil; the rest need not be
// written then.
func (s *sink) found() File {
	if s.done == nil {
		return nil
	}
	select {
	case <-s.done: // before pieces is closed: fill wasn't called, or failed
		f := s.file
		s.file = nil
		return f
	default:
		return nil
	}
}

// finish returns all bytes as a file. Only abort may be called afterwards.
func (s *sink) finish() (File, error) {
	if s.pieces == nil {
		return held(s.mem), nil
	}
	if err := s.flush(); err != nil {
		return nil, err
	}
	close(s.pieces)
	s.closed = true
	<-s.done
	if s.err != nil {
		return nil, s.err
	}
	f := s.file
	s.file = nil
	if f.Size() != s.n {
		f.Close()
		return nil, ondisk.Corruptf(format, s.what, -1, "the spooled file is %d bytes long, not %d", f.Size(), s.n)
	}
	return f, nil
}

// abort drops what was written because of err.
func (s *sink) abort(err error) {
	if s.pieces == nil {
		return
	}
	if !s.closed {
		s.abrt = err
		close(s.pieces)
		s.closed = true
	}
	<-s.done
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}
