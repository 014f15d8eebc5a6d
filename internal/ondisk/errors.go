// Package ondisk holds what every reader of an on-disk format needs: the shared
// error vocabulary and bounds-checked decoding of fixed-size structures.
package ondisk

import (
	"errors"
	"fmt"
)

// The three ways in which data on a disk can disappoint a reader. Every error a
// format or filesystem reader returns because of what it read matches exactly
// one of them with errors.Is; errors of the layer below pass through unchanged.
var (
	// ErrFormat means "this is not that format at all": probing goes on.
	ErrFormat = errors.New("not this format")
	// ErrCorrupt means that the format was recognised and its data contradict
	// the specification, a checksum, or the size of what they lie on.
	ErrCorrupt = errors.New("corrupt")
	// ErrUnsupported means that the data use a feature that the reader does not
	// implement; the error's text names the feature.
	ErrUnsupported = errors.New("unsupported")
)

// FormatError says what was wrong with an on-disk structure and where.
//
// Its text reads "vhd: BAT entry 17 at 0x644: block lies past the end: corrupt".
type FormatError struct {
	Format string // short name of the format: "vhd", "ext4", "gpt"
	Field  string // the structure or field, with its index where it has one
	Off    int64  // byte offset within the device or file; negative when it has none
	Msg    string // what is wrong, with the offending values
	Err    error  // ErrFormat, ErrCorrupt, ErrUnsupported, or the cause
}

func (e *FormatError) Error() string {
	s := e.Format + ": " + e.Field
	if e.Off >= 0 {
		s += fmt.Sprintf(" at %#x", e.Off)
	}
	if e.Msg != "" {
		s += ": " + e.Msg
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *FormatError) Unwrap() error { return e.Err }

// Corruptf returns a FormatError that matches ErrCorrupt. off is negative when
// the field has no single place.
func Corruptf(format, field string, off int64, msg string, args ...any) error {
	return &FormatError{Format: format, Field: field, Off: off, Msg: fmt.Sprintf(msg, args...), Err: ErrCorrupt}
}

// Unsupportedf returns a FormatError that matches ErrUnsupported.
func Unsupportedf(format, field string, off int64, msg string, args ...any) error {
	return &FormatError{Format: format, Field: field, Off: off, Msg: fmt.Sprintf(msg, args...), Err: ErrUnsupported}
}
