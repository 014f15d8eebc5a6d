package volume_test

import (
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestCorpus compares the partitions of foreign disks with what util-linux says of
// them: YESTER_CORPUS_UNPACKED/<id>/ holds the files, and
// YESTER_CORPUS/manifests/<id>/expect.json the truth.
func TestCorpus(t *testing.T) {
	corpus, images := os.Getenv("YESTER_CORPUS"), os.Getenv("YESTER_CORPUS_UNPACKED")
	if corpus == "" || images == "" {
		t.Skip("needs YESTER_CORPUS and YESTER_CORPUS_UNPACKED")
	}
	manifests := filepath.Join(corpus, "manifests")
	type tools struct {
		Sfdisk json.RawMessage
		Probe  map[string]string // blkid
	}
	type member struct {
		Tools    tools             `json:"partition_tools"`
		Kernel   tools             `json:"kernel"`
		Extended tools             `json:"kernel_on_extended_copy"`
		Blkid    map[string]string `json:"blkid"`

		Container json.RawMessage `json:"container"` // what the container's tools say
	}
	compared := 0
	paths, err := filepath.Glob(filepath.Join(manifests, "*", "expect.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		id := filepath.Base(filepath.Dir(path))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var expect struct{ Members map[string]member }
		if err := json.Unmarshal(b, &expect); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for name, m := range expect.Members {
			file := filepath.Join(images, id, name)
			if st, err := os.Stat(file); err != nil || !st.Mode().IsRegular() || m.Container != nil || m.Blkid == nil {
				continue
			}
			t.Run(id+"/"+name, func(t *testing.T) {
				scheme := "disk"
				kind := m.Blkid["PTTYPE"]
				if k := m.Kernel.Probe["PTTYPE"]; k != "" {
					kind = k
				}
				if k := m.Extended.Probe["PTTYPE"]; k != "" {
					kind = k
				}
				switch {
				case m.Blkid["TYPE"] == "vfat" || m.Blkid["TYPE"] == "exfat" || m.Blkid["TYPE"] == "ntfs":
				case kind == "dos":
					scheme = "mbr"
				case kind == "gpt" || kind == "PMBR":
					scheme = "gpt"
				}
				got := ours(t, openFile(t, file), 0)
				if got.Scheme != scheme {
					t.Fatalf("scheme %s, want %s", got.Scheme, scheme)
				}
				if scheme == "disk" {
					return
				}
				truth := m.Tools.Sfdisk
				for _, better := range []tools{m.Kernel, m.Extended} {
					if better.Sfdisk != nil {
						truth = better.Sfdisk
					}
				}
				want, sector := sfdiskTruth(t, truth)
				have := map[int]part{}
				for n, p := range parts(got) {
					have[n] = part{Start: p.Start, Size: p.Size}
				}
				if got.SectorSize != sector || !maps.Equal(have, want) {
					t.Errorf("sector %d, got %+v\nwant %d %+v", got.SectorSize, have, sector, want)
				}
				compared++
				t.Logf("%s, %d partitions, %q", scheme, len(have), got.Warnings)
			})
		}
	}
	if compared == 0 {
		t.Errorf("no disk compared: %v", fs.ErrNotExist)
	}
}

func sfdiskTruth(t *testing.T, b []byte) (map[int]part, int) {
	t.Helper()
	var v struct {
		PartitionTable struct {
			SectorSize int
			Partitions []sfdiskPart
		}
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if v.PartitionTable.SectorSize == 0 { // sfdisk's own top level or just what is in it
		if err := json.Unmarshal(b, &v.PartitionTable); err != nil {
			t.Fatal(err)
		}
	}
	size := int64(v.PartitionTable.SectorSize)
	m := map[int]part{}
	for _, p := range v.PartitionTable.Partitions {
		switch p.Type {
		case "5", "f", "85":
			continue
		}
		digits := p.Node[len(strings.TrimRight(p.Node, "0123456789")):]
		n, err := strconv.Atoi(digits)
		if err != nil {
			t.Fatalf("node %q", p.Node)
		}
		m[n] = part{Start: p.Start * size, Size: p.Size * size}
	}
	return m, int(size)
}
