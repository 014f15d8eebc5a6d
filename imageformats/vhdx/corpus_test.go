package vhdx

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
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
	for _, c := range []struct {
		id     string
		parent string // of differencing members
		warn   string // part of the only warning
	}{
		{id: "qemu-vhdx-dynamic1g"}, {id: "qemu-vhdx-disk2vhd"}, {id: "dissect-vhdx-dynamic"}, {id: "dissect-vhdx-diff"},
		{id: "docker-explorer-vhdx", parent: "vhdx_files/base.vhdx"}, {id: "discutils-vhdx-logreplay", warn: "replayed in memory"}, {id: "discutils-btrfs"},
	} {
		t.Run(c.id, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(corpus, "manifests", c.id, "expect.json"))
			if err != nil {
				t.Fatal(err)
			}
			var expect struct {
				Members map[string]struct {
					Container struct {
						Size int64          `json:"logical_size"`
						SHA  string         `json:"logical_sha256"`
						VHDI map[string]any `json:"vhdimount"`
					}
				}
			}
			if err := json.Unmarshal(b, &expect); err != nil {
				t.Fatal(err)
			}
			for name, m := range expect.Members {
				file := openFile(t, filepath.Join(images, c.id, name))
				info, err := Format.Probe(t.Context(), file)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				opt := imageformats.OpenOptions{Name: name}
				if info.Parent != nil && c.parent != "" {
					opt.Parent = openImage(t, filepath.Join(images, c.id, c.parent), nil)
				}
				img, err := Format.Open(t.Context(), file, opt)
				if info.Parent != nil && c.parent == "" {
					if err == nil {
						t.Errorf("%s opens without its parent", name)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if w := strings.Join(info.Warnings, "; "); (c.warn == "") != (w == "") || !strings.Contains(w, c.warn) {
					t.Errorf("%s: warnings %q", name, w)
				}
				size, sum := m.Container.Size, m.Container.SHA
				if info.Parent != nil { // QEMU knows none; libvhdi shows the youngest disk as the last
					top := m.Container.VHDI["vhdi2"].(map[string]any)
					size, sum = int64(top["size"].(float64)), top["sha256"].(string)
				}
				if got, err := readertest.Hash(img, 1<<20); err != nil || got != sum || img.Size() != size {
					t.Errorf("%s: %d bytes, hash %s, %v; want %d, %s", name, img.Size(), got, err, size, sum)
				}
			}
		})
	}
}
