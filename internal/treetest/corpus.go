package treetest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"yester/guestfs"
)

// CorpusImage is an image of a corpus of foreign images with known truth.
type CorpusImage struct {
	ID, Group string
	Verdict   string // "valid", "valid-odd", "must-refuse" or "hostile"
	Path      string // of the unpacked image
	Off, Size int64  // the part of it that holds the filesystem, in bytes; Size 0 is all
	Mounts    []CorpusMount
}

// CorpusMount is what the kernel said to one way of mounting an image.
type CorpusMount struct {
	Options  string // of mount: "ro", "ro,noload"
	Failed   bool   // the kernel refused
	Errors   int    // paths it could not read
	Manifest string // path of the manifest; "" when Failed
}

// Corpus returns the images of some groups of the corpus in the directory that
// the environment variable YESTER_CORPUS names (index.jsonl and manifests), as
// unpacked into the one that YESTER_CORPUS_UNPACKED names. Without these the
// test is skipped: the corpus is no part of the project.
func Corpus(t testing.TB, groups ...string) []CorpusImage {
	t.Helper()
	dir, unpacked := os.Getenv("YESTER_CORPUS"), os.Getenv("YESTER_CORPUS_UNPACKED")
	if dir == "" || unpacked == "" {
		t.Skip("needs YESTER_CORPUS and YESTER_CORPUS_UNPACKED")
	}
	index, err := os.ReadFile(filepath.Join(dir, "index.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var images []CorpusImage
	for line := range bytes.Lines(index) {
		var row struct{ ID, Group, Verdict, Expect string }
		if err := json.Unmarshal(line, &row); err != nil {
			t.Fatal(err)
		}
		for _, g := range groups {
			if g == row.Group {
				images = append(images, corpusMembers(t, dir, unpacked, CorpusImage{ID: row.ID, Group: g, Verdict: row.Verdict}, row.Expect)...)
			}
		}
	}
	return images
}

func corpusMembers(t testing.TB, dir, unpacked string, im CorpusImage, expect string) []CorpusImage {
	var e struct {
		Members map[string]struct {
			Kernel struct {
				Mounts     []corpusMountJSON
				Partitions []struct{ N, Start512, Size512 int64 } `json:"kernel_partitions"`
				Children   map[string]struct{ Mounts []corpusMountJSON }
			}
		}
	}
	b, err := readMaybeGzip(filepath.Join(dir, expect))
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil {
		t.Fatalf("%s: %v", expect, err)
	}
	var images []CorpusImage
	for name, m := range e.Members {
		one := im
		one.Path = filepath.Join(unpacked, im.ID, name)
		one.Mounts = corpusMounts(dir, m.Kernel.Mounts)
		if len(m.Kernel.Partitions) == 0 {
			images = append(images, one)
		}
		for _, p := range m.Kernel.Partitions {
			part := one
			part.Off, part.Size = p.Start512*512, p.Size512*512
			part.Mounts = corpusMounts(dir, m.Kernel.Children[fmt.Sprintf("p%d", p.N)].Mounts)
			images = append(images, part)
		}
	}
	return images
}

type corpusMountJSON struct {
	Opts, Manifest, Variant string
	SameAs                  string `json:"same_as"`
	RC, Errors              int
}

func corpusMounts(dir string, mounts []corpusMountJSON) []CorpusMount {
	var list []CorpusMount
	byVariant := make(map[string]string)
	for _, mt := range mounts {
		if mt.Manifest == "" {
			mt.Manifest = byVariant[mt.SameAs]
		}
		byVariant[mt.Variant] = mt.Manifest
		cm := CorpusMount{Options: mt.Opts, Failed: mt.RC != 0, Errors: mt.Errors}
		if mt.Manifest != "" {
			cm.Manifest = filepath.Join(dir, mt.Manifest)
		}
		list = append(list, cm)
	}
	return list
}

// readMaybeGzip reads path, or path.gz, and decompresses what is gzip.
func readMaybeGzip(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		b, err = os.ReadFile(path + ".gz")
	}
	if err != nil || !bytes.HasPrefix(b, []byte{0x1F, 0x8B}) {
		return b, err
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// corpusLine is one path of a manifest.
type corpusLine struct {
	Path    string
	PathB64 string `json:"path_b64"`
	Type    string
	Mode    string
	UID     *uint32
	GID     *uint32
	Nlink   *uint32
	Ino     *uint64
	Size    *int64
	Mtime   string
	SHA256  string
	Target  *string
	TargetB string `json:"target_b64"`
	Rdev    json.RawMessage
	Xattrs  map[string]string `json:"xattrs_b64"`
	Error   json.RawMessage
}

var corpusTypes = map[string]uint32{"dir": guestfs.ModeDir, "file": guestfs.ModeRegular, "symlink": guestfs.ModeSymlink,
	"chr": guestfs.ModeChar, "blk": guestfs.ModeBlock, "fifo": guestfs.ModeFifo, "sock": guestfs.ModeSocket}

// LoadManifest reads a manifest of the corpus.
func LoadManifest(path string) (Manifest, error) {
	b, err := readMaybeGzip(path)
	if err != nil {
		return nil, err
	}
	m := make(Manifest)
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var l corpusLine
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, sc.Text(), err)
		}
		e, err := l.entry()
		if err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, sc.Text(), err)
		}
		m[e.Path] = e
	}
	return m, sc.Err()
}

func (l *corpusLine) entry() (*Entry, error) {
	e := &Entry{Path: l.Path, SHA256: l.SHA256}
	if l.PathB64 != "" {
		p, err := base64.StdEncoding.DecodeString(l.PathB64)
		if err != nil {
			return nil, err
		}
		e.Path = string(p)
	}
	if l.Error != nil {
		return e, nil // the kernel could not read it: nothing is known
	}
	set := func(f Field, known bool) bool {
		if known {
			e.Fields |= f
		}
		return known
	}
	if set(FieldMode, l.Mode != "") {
		mode, err := strconv.ParseUint(l.Mode, 8, 32)
		if err != nil {
			return nil, err
		}
		e.Attr.Mode = uint32(mode)&^guestfs.ModeType | corpusTypes[l.Type]
	}
	if set(FieldOwner, l.UID != nil && l.GID != nil) {
		e.Attr.UID, e.Attr.GID = *l.UID, *l.GID
	}
	if set(FieldNlink, l.Nlink != nil) {
		e.Attr.Nlink = *l.Nlink
	}
	if set(FieldIno, l.Ino != nil) {
		e.Ino = *l.Ino
	}
	if set(FieldSize, l.Size != nil) {
		e.Attr.Size = *l.Size
	}
	if set(FieldMtime, l.Mtime != "") {
		tm, err := time.Parse(time.RFC3339Nano, l.Mtime)
		if err != nil {
			return nil, err
		}
		e.Attr.Mtime = guestfs.Time{Sec: tm.Unix(), Nsec: uint32(tm.Nanosecond())}
	}
	if set(FieldTarget, l.Target != nil) {
		e.Target = *l.Target
	}
	set(FieldContent, l.SHA256 != "")
	e.Xattrs = make(map[string]string)
	set(FieldXattrs, true)
	for name, v := range l.Xattrs {
		b, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			return nil, err
		}
		e.Xattrs[strings.Clone(name)] = string(b)
	}
	return e, nil
}
