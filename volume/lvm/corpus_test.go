package lvm

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"yester/imageformats"
	"yester/imageformats/qcow2"
	"yester/internal/block"
	"yester/internal/readertest"
	"yester/volume"
)

// TestCorpus compares the volumes of foreign disks with what lvm2 and the kernel
// made of them.
func TestCorpus(t *testing.T) {
	corpus, unpacked := os.Getenv("YESTER_CORPUS"), os.Getenv("YESTER_CORPUS_UNPACKED")
	if corpus == "" || unpacked == "" {
		t.Skip("needs YESTER_CORPUS and YESTER_CORPUS_UNPACKED")
	}
	type report struct {
		LVM struct {
			LVs []struct {
				VG   string `json:"vg_name"`
				LV   string `json:"lv_name"`
				UUID string `json:"lv_uuid"`
				Type string `json:"segtype"`
			}
			Children map[string]struct {
				Size   int64
				SHA256 string
			}
		}
	}
	paths, err := filepath.Glob(filepath.Join(corpus, "manifests", "*", "expect.json"))
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var expect struct {
			Members map[string]struct {
				Kernel report
				Blkid  map[string]string
			}
		}
		if err := json.Unmarshal(b, &expect); err != nil {
			continue // of another shape, hence about something else
		}
		id := filepath.Base(filepath.Dir(path))
		for name, m := range expect.Members {
			if m.Blkid["TYPE"] != "LVM2_member" {
				continue
			}
			t.Run(id, func(t *testing.T) {
				a, err := Open(context.Background(), []volume.Device{{Name: name, Reader: corpusDisk(t, filepath.Join(unpacked, id, name))}}, volume.Options{})
				if err != nil {
					t.Fatal(err)
				}
				compared++
				if len(a.Members) != 1 || a.Members[0].ID != m.Blkid["UUID"] {
					t.Errorf("members %+v, want %s", a.Members, m.Blkid["UUID"])
				}
				for _, lv := range m.Kernel.LVM.LVs {
					child, shown := m.Kernel.LVM.Children[lv.LV]
					if !shown {
						continue
					}
					v := find(t, a, mapperName(lv.VG, lv.LV))
					all := make([]byte, v.Size())
					if err := block.ReadFull(context.Background(), v.Reader, all, 0); err != nil {
						t.Fatal(err)
					}
					if sum := fmt.Sprintf("%x", sha256.Sum256(all)); v.ID != lv.UUID || v.Type != lv.Type || v.Size() != child.Size || sum != child.SHA256 {
						t.Errorf("%s: id %s, type %s, %d bytes, hash %s; want %+v, %+v", v.Name, v.ID, v.Type, v.Size(), sum, lv, child)
					}
				}
				t.Logf("groups %+v, warnings %q, damage %v", a.Groups, a.Warnings, a.Damage)
			})
		}
	}
	if compared == 0 {
		t.Error("no disk compared")
	}
}

// corpusDisk opens a raw image, or the disk in a qcow2 image.
func corpusDisk(t *testing.T, path string) block.Reader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if filepath.Ext(path) != ".qcow2" {
		return readertest.File{File: f}
	}
	img, err := qcow2.Format.Open(context.Background(), readertest.File{File: f}, imageformats.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}
