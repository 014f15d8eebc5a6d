package imageformats

import (
	"errors"
	"strings"
	"testing"

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
