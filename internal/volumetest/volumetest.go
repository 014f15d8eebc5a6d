// Package volumetest holds what the tests of partition schemes share: small disks
// made by the field's tools, disks that fail, and a check of the volumes found.
package volumetest

import (
	"bytes"
	"compress/gzip"
	"io"
	"math"
	"os"
	"testing"

	"yester/volume"
)

// Disk unpacks a disk that volume/testdata.sh made.
func Disk(t testing.TB, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Broken is a disk on which reads that touch the bytes [From, To) fail with Err.
type Broken struct {
	*bytes.Reader
	From, To int64
	Err      error
}

// ReadAt implements block.Reader.
func (b Broken) ReadAt(p []byte, off int64) (int, error) {
	if off < b.To && off+int64(len(p)) > b.From {
		return 0, b.Err
	}
	return b.Reader.ReadAt(p, off)
}

// Check checks the volumes of table, at most max of them: their numbers rise,
// they lie where they say on disk, and what they claim beyond its end is an error
// to read, neither zeros nor the end of the volume.
func Check(t testing.TB, table *volume.Table, disk []byte, max int) {
	t.Helper()
	if len(table.Warnings) > 64 {
		t.Errorf("%d warnings", len(table.Warnings))
	}
	p := make([]byte, 1000)
	last := 0
	for _, v := range table.Volumes[:min(max, len(table.Volumes))] {
		if v.Number <= last || v.Start < 0 || v.Size() < 1 || v.Start > math.MaxInt64-v.Size() {
			t.Fatalf("%s: start %d, size %d, after p%d", v.Name, v.Start, v.Size(), last)
		}
		last = v.Number
		for _, off := range []int64{0, v.Size() - 1, int64(len(disk)) - v.Start - 5} {
			if off < 0 || off >= v.Size() {
				continue
			}
			n, err := v.ReadAt(p, off)
			left := min(v.Size()-off, int64(len(disk))-v.Start-off)
			if there := min(int64(len(p)), left); int64(n) != there && (there > 0 || n != 0) {
				t.Fatalf("%s: read %d bytes at %d, want %d", v.Name, n, off, there)
			}
			if n > 0 && !bytes.Equal(p[:n], disk[v.Start+off:][:n]) {
				t.Fatalf("%s: wrong bytes at %d", v.Name, off)
			}
			if (err == nil) != (n == len(p)) || err == io.EOF && off+int64(n) != v.Size() {
				t.Fatalf("%s: read %d bytes at %d: %v", v.Name, n, off, err)
			}
		}
	}
}
