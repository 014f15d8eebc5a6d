package restorepoint

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/ondisk"
)

// TestSegments opens a set of Expert Witness files as one point, and tells which
// file is missing.
func TestSegments(t *testing.T) {
	s := newSource(t)
	data := make([]byte, 5<<19)
	for i := range data {
		data[i] = byte(i*i>>9 ^ i>>3)
	}
	s.raw("disk.dd", 1, data)
	s.qemu("ewfacquire", "-u", "-q", "-f", "encase6", "-c", "none", "-S", "1048576", "-t", s.path("web01-2026-11-20"), s.path("disk.dd"))
	if err := os.Remove(s.path("disk.dd")); err != nil {
		t.Fatal(err)
	}
	s.raw("web01-2026-11-20.txt", 1, []byte("the acquisition's log\n"))
	src := s.open("")
	c := s.expect(src, "web01 2026-11-20T00-00-00Z name web01-2026-11-20.E01")
	o, err := src.OpenPoint(context.Background(), c.Points[0])
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	got, err := io.ReadAll(io.NewSectionReader(o.Disks[0].Image, 0, o.Disks[0].Image.Size()))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v, or other bytes", len(got), err)
	}
	if h, ok := o.Disks[0].Image.(imageformats.Hasher); !ok {
		t.Error("the disk tells no digests")
	} else if sum := md5.Sum(data); true {
		if m, _ := h.Hashes(); !bytes.Equal(m, sum[:]) {
			t.Errorf("MD5 %x, want %x", m, sum)
		}
	}
	res, err := src.Verify(context.Background(), c.Points, VerifyOptions{Report: func(f Fault) { t.Error(f.Path, f.Err) }})
	if err != nil || res.Disks != 1 || res.DiskBytes != int64(len(data)) {
		t.Errorf("verified: %+v, %v", res, err)
	}
	// The last one gone: nothing but the segment before it can tell.
	third, err := os.ReadFile(s.path("web01-2026-11-20.E03"))
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(s.path("web01-2026-11-20.E03"))
	if c, err = src.List(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := src.OpenPoint(context.Background(), c.Points[0]); !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), "segment 3 is missing") {
		t.Errorf("without the last: %v", err)
	}
	// One in the middle, and then the first.
	s.raw("web01-2026-11-20.E03", 1, third)
	for _, gone := range []string{"web01-2026-11-20.E02", "web01-2026-11-20.E01"} {
		os.Remove(s.path(gone))
		c, err := src.List(context.Background())
		if err != nil || len(c.Points) != 0 || len(c.Ignored) == 0 || !strings.Contains(c.Ignored[0].Reason+c.Ignored[len(c.Ignored)-1].Reason, "segment") {
			t.Errorf("without %s: %+v, %v", gone, c, err)
		}
	}
}
