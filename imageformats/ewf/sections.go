package ewf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/adler32"
	"io"

	"yester/internal/block"
	"yester/internal/ondisk"
)

// section is a section of a segment: its bytes [at, end), the descriptor first.
type section struct {
	kind    string
	at, end int64
}

func (s section) data() int64 { return s.at + descSize0 }

// segment is one file of a set.
type segment struct {
	file   block.Reader
	name   string // for messages
	number int    // from 1 on
}

func (s *segment) prefix() string {
	if s.name == "" {
		return fmt.Sprintf("segment %d: ", s.number)
	}
	return s.name + ": "
}

func (s *segment) corrupt(field string, off int64, msg string, args ...any) error {
	return ondisk.Corruptf("ewf", s.prefix()+field, off, msg, args...)
}

// read fills b from the segment's file.
func (s *segment) read(ctx context.Context, b []byte, at int64, field string) error {
	err := block.ReadFull(ctx, s.file, b, at)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", ondisk.ErrCorrupt, err) // it ends early, or shrank
	}
	if err != nil {
		return fmt.Errorf("ewf: %s%s at %#x: %w", s.prefix(), field, at, err)
	}
	return nil
}

// readSummed is read of a structure whose checksum stands at b[sum:].
func (s *segment) readSummed(ctx context.Context, b []byte, at int64, sum int, field string) error {
	if err := s.read(ctx, b, at, field); err != nil {
		return err
	}
	if got, want := adler32.Checksum(b[:sum]), le.Uint32(b[sum:]); got != want {
		return s.corrupt(field, at, "checksum %#x, by its content %#x", want, got)
	}
	return nil
}

// readHeader checks the file header.
func (s *segment) readHeader(ctx context.Context) error {
	var b [fileHeaderSize]byte
	if n := min(int64(len(b)), s.file.Size()); n < fileHeaderSize {
		return &ondisk.FormatError{Format: "ewf", Field: "file header", Off: -1, Msg: "too short", Err: ondisk.ErrFormat}
	}
	if err := s.read(ctx, b[:], 0, "file header"); err != nil {
		return err
	}
	if !bytes.HasPrefix(b[:], []byte(magic)) {
		return &ondisk.FormatError{Format: "ewf", Field: "file header", Off: -1, Msg: "no signature", Err: ondisk.ErrFormat}
	}
	n := int(le.Uint16(b[offSegment:]))
	switch {
	case n == s.number:
		return nil
	case s.number == 1:
		return ondisk.Unsupportedf("ewf", "segment number", offSegment, "segment %d of a set, without the segments before it", n)
	}
	return s.corrupt("segment number", offSegment, "%d, where segment %d should be", n, s.number)
}

// walk calls visit for the sections of the segment, in order, and returns whether
// another segment follows.
func (s *segment) walk(ctx context.Context, visit func(section) error) (more bool, err error) {
	size := uint64(s.file.Size())
	at := uint64(fileHeaderSize)
	for range maxSections {
		var b [descSize0]byte
		if err := s.readSummed(ctx, b[:], int64(at), descSum, "section descriptor"); err != nil {
			return false, err
		}
		kind := string(bytes.TrimRight(b[descType:descType+descTypeLen], "\x00"))
		next, length := le.Uint64(b[descNext:]), le.Uint64(b[descSize:])
		switch kind {
		case "next", "done":
			return kind == "next", nil
		}
		switch {
		case next < at+descSize0 || next > size:
			return false, s.corrupt("section descriptor", int64(at), "%q: the next section is at %#x, in a file of %#x bytes", kind, next, size)
		case length != 0 && length != next-at:
			// One of the two leads elsewhere: the file may be two images in one.
			return false, s.corrupt("section descriptor", int64(at), "%q is %#x bytes long, but the next section begins after %#x", kind, length, next-at)
		}
		if err := visit(section{kind, int64(at), int64(next)}); err != nil {
			return false, err
		}
		at = next
	}
	return false, s.corrupt("sections", -1, "more than %d", maxSections)
}
