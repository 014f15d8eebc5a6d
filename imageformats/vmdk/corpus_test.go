package vmdk

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
	for id, descriptor := range map[string]string{
		"qemu-vmdk-version3": "", "qemu-afl9": "",
		"dissect-vmdk-sesparse": "descriptor-made-by-us.vmdk", // of an extent without one
	} {
		t.Run(id, func(t *testing.T) {
			dir := filepath.Join(corpus, "manifests", id)
			b, err := os.ReadFile(filepath.Join(dir, "expect.json"))
			if err != nil {
				t.Fatal(err)
			}
			type truth struct {
				Size  int64  `json:"logical_size"`
				SHA   string `json:"logical_sha256"`
				Error string `json:"qemu_err"`
			}
			var expect struct {
				truth
				Members map[string]struct{ Container truth }
			}
			if err := json.Unmarshal(b, &expect); err != nil {
				t.Fatal(err)
			}
			for name, m := range expect.Members {
				want := m.Container
				file := openFile(t, filepath.Join(images, id, name))
				opt := imageformats.OpenOptions{Name: name}
				if descriptor != "" {
					want = expect.truth
					opt.Files = append(opt.Files, file)
					file = openFile(t, filepath.Join(dir, descriptor))
				}
				img, err := Format.Open(t.Context(), file, opt)
				if want.Error != "" {
					if err == nil {
						t.Errorf("%s opens; QEMU says %s", name, want.Error)
					}
					t.Log(err)
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				defer img.Close()
				if img.Size() != want.Size {
					t.Errorf("%s: %d bytes, want %d", name, img.Size(), want.Size)
				}
				if sum, err := readertest.Hash(img, 1<<20); err != nil || sum != want.SHA {
					t.Errorf("%s: hash %s, %v; want %s", name, sum, err, want.SHA)
				}
			}
		})
	}
}
