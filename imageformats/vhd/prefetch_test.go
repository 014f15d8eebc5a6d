package vhd

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// hinted is a file that takes hints.
type hinted struct {
	readertest.File
	mu    sync.Mutex
	hints []block.Range
}

func (h *hinted) Prefetch(ranges []block.Range) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hints = append(h.hints, ranges...)
	return true
}

// TestPrefetch gives hints for places of the disk, of which some were never
// written: the file gets them for where these lie in it.
func TestPrefetch(t *testing.T) {
	data := make(readertest.Bytes, 12<<20)
	for i := range data {
		if i>>21 != 1 { // the second block stays empty
			data[i] = byte(i>>9) | 1
		}
	}
	path := filepath.Join(t.TempDir(), "img.vhd")
	create(t, path, func(f *os.File) error { return WriteDynamic(t.Context(), f, data, WriteOptions{ID: [16]byte{1}}) })
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := &hinted{File: readertest.File{File: f}}
	img, err := Format.Open(t.Context(), h, imageformats.OpenOptions{Name: "img.vhd"})
	if err != nil {
		t.Fatal(err)
	}
	if !block.Prefetch(img) {
		t.Fatal("hints are of no use")
	}
	block.Prefetch(img, block.Range{Off: 100 << 10, Len: 64 << 10}, block.Range{Off: 3 << 20, Len: 4096},
		block.Range{Off: 10<<20 + 512, Len: 1 << 20}, block.Range{Off: 1 << 40, Len: 1})
	img.(*Image).hints.work.Wait()
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	want := append(bytes.Clone(data[100<<10:164<<10]), data[10<<20+512:11<<20+512]...)
	var got []byte
	for _, g := range h.hints {
		p := make([]byte, g.Len)
		if _, err := f.ReadAt(p, g.Off); err != nil {
			t.Fatal(err)
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("hints %+v are not where the bytes lie", h.hints)
	}
	if block.Prefetch(openImage(t, path, nil)) {
		t.Error("hints are of use for a local file")
	}
}
