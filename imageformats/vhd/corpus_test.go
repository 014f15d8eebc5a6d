package vhd

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"yester/imageformats"
	"yester/internal/readertest"
)

// TestCorpus reads images of other makers that YESTER_CORPUS_UNPACKED/<id>/ holds
// and compares with YESTER_CORPUS/manifests/<id>/expect.json.
func TestCorpus(t *testing.T) {
	corpus, images := os.Getenv("YESTER_CORPUS"), os.Getenv("YESTER_CORPUS_UNPACKED")
	if corpus == "" || images == "" {
		t.Skip("needs YESTER_CORPUS and YESTER_CORPUS_UNPACKED")
	}
	manifests := filepath.Join(corpus, "manifests")
	for _, id := range []string{"dfvfs-ext2-vhd", "dfvfs-image-vhd-b", "dfvfs-image-diff-vhd", "dissect-vhd-fixed",
		"qemu-afl5", "qemu-d2v-zerofilled", "qemu-virtualpc-dynamic"} {
		t.Run(id, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(manifests, id, "expect.json"))
			if err != nil {
				t.Fatal(err)
			}
			var expect struct {
				Members map[string]struct {
					Container struct {
						Size  int64  `json:"virtual_size"`
						Error string `json:"qemu_err"`
						SHA   string `json:"logical_sha256"`
					}
				}
			}
			if err := json.Unmarshal(b, &expect); err != nil {
				t.Fatal(err)
			}
			for name, m := range expect.Members {
				img, err := Format.Open(t.Context(), openFile(t, filepath.Join(images, id, name)), imageformats.OpenOptions{Name: name})
				if m.Container.Error != "" {
					if err == nil {
						t.Errorf("%s opens; QEMU says %s", name, m.Container.Error)
					}
					t.Log(err)
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if img.Size() != m.Container.Size {
					t.Errorf("%s: %d bytes, want %d", name, img.Size(), m.Container.Size)
				}
				if m.Container.SHA != "" {
					if sum, err := readertest.Hash(img, 1<<20); err != nil || sum != m.Container.SHA {
						t.Errorf("%s: hash %s, %v; want %s", name, sum, err, m.Container.SHA)
					}
				}
			}
		})
	}
}
