package ewf

import (
	"bytes"
	"errors"
	"hash/adler32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/readertest"
)

// found is a section of a set in memory.
type found struct {
	section
	file int
}

// load reads a set into memory, and tells its sections.
func load(t testing.TB, path string) (files [][]byte, secs []found) {
	t.Helper()
	names, err := filepath.Glob(strings.TrimSuffix(path, "01") + "*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for i, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
		if _, err := newSegment(readertest.Bytes(b), "", i+1).walk(t.Context(), func(s section) error {
			secs = append(secs, found{s, i})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return files, secs
}

func openBytes(t testing.TB, files [][]byte, log *slog.Logger) (imageformats.Image, error) {
	t.Helper()
	var rest []block.Reader
	for _, f := range files[1:] {
		rest = append(rest, readertest.Bytes(f))
	}
	img, err := Format.Open(t.Context(), readertest.Bytes(files[0]), imageformats.OpenOptions{Files: rest, Logger: log})
	if err == nil {
		t.Cleanup(func() { img.Close() })
	}
	return img, err
}

// small makes a disk of few chunks, both compressed and not.
func small(t testing.TB, level string) (readertest.Bytes, string) {
	d := disk(160 << 10)
	data := slices.Concat(d[60<<10:][:10<<10], make([]byte, 6<<10), d[:2<<10]) // text, zeros, noise
	if level == "none" {
		data = data[15<<10:]
	}
	return data, acquire(t, data, "-f", "encase6", "-c", level, "-b", "16", "-d", "sha1")
}

// TestEveryByte damages each byte of a set's chunks, and every third of the rest,
// one after the other: whatever is read then is what was there, or an error.
func TestEveryByte(t *testing.T) {
	for _, level := range []string{"none", "fast"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			everyByte(t, level)
		})
	}
}

func everyByte(t *testing.T, level string) {
	data, path := small(t, level)
	files, secs := load(t, path)
	b := files[0]
	i := slices.IndexFunc(secs, func(s found) bool { return s.kind == "sectors" })
	chunks := secs[i]
	got := make([]byte, len(data))
	unnoticed := 0
	for i := range b {
		inChunk := int64(i) >= chunks.data() && int64(i) < chunks.end
		if !inChunk && i%3 > 0 {
			continue
		}
		flip := byte(1) << (i % 8)
		b[i] ^= flip
		img, err := openBytes(t, files, nil)
		if err == nil {
			var n int
			n, err = img.ReadAt(got, 0)
			switch {
			case err == nil && !bytes.Equal(got, data):
				t.Fatalf("byte %#x: other bytes, and no error", i)
			case err != nil && n != 0:
				t.Fatalf("byte %#x: %d bytes with %v", i, n, err)
			case err == nil && inChunk:
				unnoticed++
			}
			img.Close()
		}
		if err != nil && !errors.Is(err, ondisk.ErrCorrupt) && !errors.Is(err, ondisk.ErrFormat) && !errors.Is(err, ondisk.ErrUnsupported) {
			t.Fatalf("byte %#x: %v", i, err)
		}
		b[i] ^= flip
	}
	// Of what is compressed some bits don't matter: the level in zlib's header, the
	// lengths of codes that nothing uses.
	if level == "none" && unnoticed > 0 {
		t.Errorf("damage at %d bytes of the chunks goes unnoticed", unnoticed)
	}
}

// TestCutOff reads a set that ends early, at every section and within.
func TestCutOff(t *testing.T) {
	_, path := small(t, "fast")
	files, secs := load(t, path)
	for _, s := range secs {
		for _, n := range []int64{s.at, s.at + 40, s.data(), (s.data() + s.end) / 2, s.end - 1} {
			if img, err := openBytes(t, [][]byte{files[0][:n]}, nil); err == nil {
				t.Errorf("cut at %#x (%s): opens with %d bytes", n, s.kind, img.Size())
			} else if !errors.Is(err, ondisk.ErrCorrupt) {
				t.Errorf("cut at %#x (%s): %v", n, s.kind, err)
			}
		}
	}
}

// TestSecondCopies damages what there are two of: the disk is read, and the
// damage told.
func TestSecondCopies(t *testing.T) {
	data, path := small(t, "fast")
	for _, c := range []struct {
		kind string
		off  int64 // from the end of the descriptor; from the section's end when negative
		open bool  // told when the set is opened, not when it is read
	}{
		{"table", 0, true}, {"table", tableBase, true}, {"table", tableHeader + 5, false}, {"table", -1, false},
		{"table2", 0, true}, {"volume", volSector, true}, {"data", 900, true}, {"hash", 3, true}, {"digest", 30, true}, {"header2", 20, true},
	} {
		files, secs := load(t, path)
		i := slices.IndexFunc(secs, func(s found) bool { return s.kind == c.kind })
		if i < 0 {
			t.Fatalf("no section %s", c.kind)
		}
		at := secs[i].data() + c.off
		if c.off < 0 {
			at = secs[i].end + c.off
		}
		files[0][at] ^= 0x10
		var log bytes.Buffer
		img, err := openBytes(t, files, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Errorf("%s+%d: %v", c.kind, c.off, err)
			continue
		}
		if told := len(img.(*Image).Info().Warnings) == 1; told != c.open {
			t.Errorf("%s+%d: warnings %q", c.kind, c.off, img.(*Image).Info().Warnings)
		}
		got := make([]byte, len(data))
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s+%d: %v, or other bytes", c.kind, c.off, err)
		}
		if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), c.kind) {
			t.Errorf("%s+%d: log %q", c.kind, c.off, log.String())
		}
	}
	files, secs := load(t, path)
	for _, s := range secs {
		if strings.HasPrefix(s.kind, "table") {
			files[0][s.data()+tableHeader+5] ^= 1
		}
	}
	img, err := openBytes(t, files, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := img.ReadAt(make([]byte, 512), 0); n != 0 || !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), "table at 0x") {
		t.Errorf("both tables damaged: %d, %v", n, err)
	}
}

// fixSums makes the checksums right again of what isn't a chunk.
func fixSums(b []byte) {
	set := func(at, sum int) {
		if at >= 0 && sum >= 0 && at+sum+4 <= len(b) {
			le.PutUint32(b[at+sum:], adler32.Checksum(b[at:at+sum]))
		}
	}
	at := fileHeaderSize
	for range 64 {
		if at+descSize0 > len(b) {
			return
		}
		set(at, descSum)
		data := at + descSize0
		switch strings.TrimRight(string(b[at:at+descTypeLen]), "\x00") {
		case "volume", "disk", "data":
			set(data, volSum)
		case "hash":
			set(data, hashSum)
		case "digest":
			set(data, digestSum)
		case "error2":
			set(data, errorSum)
			if data+errorHeader < len(b) {
				set(data+errorHeader, int(le.Uint32(b[data:])%maxErrors)*errorEntry)
			}
		case "table", "table2":
			set(data, tableSum)
			if data+tableHeader < len(b) {
				set(data+tableHeader, int(le.Uint32(b[data:])%maxEntries)*4)
			}
		}
		next := le.Uint64(b[at+descNext:])
		if next <= uint64(at) || next > uint64(len(b)) {
			return
		}
		at = int(next)
	}
}

// TestFields writes impossible values, with right checksums.
func TestFields(t *testing.T) {
	_, path := small(t, "fast")
	for _, c := range []struct {
		kind string
		off  int64
		v    []byte
		want string
	}{
		{"volume", volPerChunk, []byte{0, 0, 0, 0}, "sectors per chunk"},
		{"volume", volPerChunk, []byte{0xff, 0xff, 0xff, 0x7f}, "sectors per chunk"},
		{"volume", volSector, []byte{1, 2, 0, 0}, "bytes per sector"},
		{"volume", volSectors, bytes.Repeat([]byte{0xff}, 8), "sectors"},
		{"volume", volSectors, []byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0}, "needs"},
		{"volume", volGUID, []byte{7}, "another set"},
		{"table", tableCount, []byte{0xff, 0xff, 0xff, 0xff}, ""}, // the second table is used
		{"table", tableBase, bytes.Repeat([]byte{0xff}, 8), "base offset"},
		{"table", tableHeader, []byte{0, 0, 0, 0}, "chunk 0 at"},
		{"table", tableHeader, []byte{0xff, 0xff, 0xff, 0xff}, "chunk 0 at"},
		{"table", tableHeader + 4, []byte{0, 0, 0, 0}, "chunk 0 at"},
	} {
		files, secs := load(t, path)
		i := slices.IndexFunc(secs, func(s found) bool { return s.kind == c.kind })
		copy(files[0][secs[i].data()+c.off:], c.v)
		fixSums(files[0])
		img, err := openBytes(t, files, nil)
		if err == nil {
			_, err = img.ReadAt(make([]byte, 512), 0)
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s+%d: %v, want %q", c.kind, c.off, err, c.want)
		}
	}
	// A descriptor that leads to two next sections.
	files, secs := load(t, path)
	le.PutUint64(files[0][secs[2].at+descSize:], uint64(secs[2].end-secs[2].at+76))
	fixSums(files[0])
	if _, err := openBytes(t, files, nil); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("two ways on: %v", err)
	}
}

// TestErrors tells of what could not be acquired.
func TestErrors(t *testing.T) {
	_, path := small(t, "fast")
	files, secs := load(t, path)
	i := slices.IndexFunc(secs, func(s found) bool { return s.kind == "hash" })
	at := secs[i].at
	sec := make([]byte, descSize0+errorHeader+2*errorEntry+4)
	copy(sec, "error2")
	le.PutUint64(sec[descNext:], uint64(at)+uint64(len(sec)))
	le.PutUint64(sec[descSize:], uint64(len(sec)))
	body := sec[descSize0:]
	le.PutUint32(body, 2)
	le.PutUint32(body[errorHeader:], 10)
	le.PutUint32(body[errorHeader+4:], 6)
	le.PutUint32(body[errorHeader+8:], 100)
	le.PutUint32(body[errorHeader+12:], 1)
	b := slices.Concat(files[0][:at], sec, files[0][at:])
	for j := at + int64(len(sec)); ; { // what follows has moved
		next := le.Uint64(b[j+descNext:]) + uint64(len(sec))
		le.PutUint64(b[j+descNext:], next)
		if next <= uint64(j) {
			break
		}
		j = int64(next)
	}
	fixSums(b)
	img, err := openBytes(t, [][]byte{b}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := img.(*Image).Info().Warnings
	if len(w) != 1 || !strings.Contains(w[0], "10+6, 100+1") || !strings.Contains(w[0], "7 sectors") {
		t.Errorf("warnings %q", w)
	}
}

// FuzzEWF opens hostile sets. With sums set, checksums are made right first, so
// that what they guard is reached.
func FuzzEWF(f *testing.F) {
	for _, args := range []string{"-f encase6 -c fast -b 16 -d sha1", "-f encase5 -c none -b 16", "-f encase1 -c fast -b 16"} {
		path := acquire(f, disk(20 << 10)[5<<10:], strings.Fields(args)...)
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, sums bool) {
		if sums {
			b = bytes.Clone(b)
			fixSums(b)
		}
		file := readertest.Bytes(b)
		info, err := Format.Probe(t.Context(), file)
		if err != nil {
			return
		}
		img, err := Format.Open(t.Context(), file, imageformats.OpenOptions{})
		if err != nil {
			return
		}
		defer img.Close()
		if img.Size() != info.Size || img.Size() < 0 {
			t.Fatalf("Open sees %d bytes, Probe %d", img.Size(), info.Size)
		}
		readertest.Walk(t, img, 10)
	})
}
