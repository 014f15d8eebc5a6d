package imageformats

import (
	"context"
	"errors"
	"strings"
	"testing"

	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// TestForeign tells images that can't be read from files that are none.
func TestForeign(t *testing.T) {
	pad := strings.Repeat("\x00", 512)
	for data, want := range map[string]string{
		strings.Repeat("\x00", 0x40) + "\x7f\x10\xda\xbe" + pad: "VDI",
		"EVF2\x0d\x0a\x81\x00" + pad:                            "EWF version 2",
		"LVF\x09\x0d\x0a\xff\x00" + pad:                         "L01",
		pad:                                                     "", "QFI": "", "": "", "hello\n": "",
	} {
		_, _, err := Probe(t.Context(), readertest.Bytes(data))
		switch {
		case want == "" && !errors.Is(err, ondisk.ErrFormat):
			t.Errorf("%.12q: %v", data, err)
		case want != "" && (!errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), want)):
			t.Errorf("%.12q: %v, want %s", data, err, want)
		}
	}
}

// TestPart has a format recognise a part of a disk: no other format is asked, and
// the file is neither an image nor damaged.
func TestPart(t *testing.T) {
	probe := func(err error) Format {
		return Format{Probe: func(context.Context, block.Reader) (Info, error) { return Info{}, err }}
	}
	part := &ondisk.FormatError{Format: "x", Field: "segment 2", Off: -1, Err: ErrPart}
	_, _, err := Probe(t.Context(), readertest.Bytes("x"), probe(ondisk.ErrFormat), probe(part), probe(nil))
	if !errors.Is(err, ErrPart) || !errors.Is(err, ondisk.ErrFormat) || errors.Is(err, ondisk.ErrCorrupt) || err.Error() != "x: segment 2: part of a disk" {
		t.Errorf("%v", err)
	}
}
