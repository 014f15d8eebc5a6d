package readertest

import (
	"os"
	"path/filepath"
	"testing"

	"yester/internal/block"
)

// TestRun runs the suite over what must pass it.
func TestRun(t *testing.T) {
	b := make(Bytes, 3<<20+17)
	for i := range b {
		b[i] = byte(i * i >> 7)
	}
	Run(t, b, b)
	Run(t, Bytes{}, Bytes{})
	sec, err := block.NewSection(b, 1001, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	Run(t, sec, b[1001:1001+1<<20], 99_999)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	Run(t, File{f}, b)
}
