package qcow2

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
	for _, id := range []string{"dissect-qcow2-zstd", "keramics-qcow-fat32", "diskfs-qcow2", "dfvfs-lvm-qcow2", "dfvfs-windows-volume-qcow2", "binwalk-qcow"} {
		t.Run(id, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(corpus, "manifests", id, "expect.json"))
			if err != nil {
				t.Fatal(err)
			}
			var expect struct {
				Hostile bool
				Members map[string]struct {
					Container struct {
						Size int64  `json:"virtual_size"`
						SHA  string `json:"logical_sha256"`
					}
				}
			}
			if err := json.Unmarshal(b, &expect); err != nil {
				t.Fatal(err)
			}
			for name, m := range expect.Members {
				img, err := Format.Open(t.Context(), openFile(t, filepath.Join(images, id, name)), imageformats.OpenOptions{Name: name})
				if err != nil && expect.Hostile {
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
				img.Close()
			}
		})
	}
}
