package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// made returns a directory with a bit of everything in it, as file contents.
func made(t testing.TB) map[string][]byte {
	t.Helper()
	dir := tempDir(t)
	s := open(t, dir, Options{})
	o := object(t, s, "k", 8*blk-5, blk)
	put(t, o, 0, 1, 3, 7)
	o.Close()
	sp, err := s.Spool(t.Context(), "s", spoolOf("s"))
	if err != nil {
		t.Fatal(err)
	}
	sp.Close()
	if err := s.SetBlob("b", truth("b", 3, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	all, _ := os.ReadDir(dir)
	for _, e := range all {
		p, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = p
	}
	return files
}

func restore(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, p := range files {
		_ = os.RemoveAll(filepath.Join(dir, name))
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// useDamaged uses a directory of which nothing is certain: what it gives is
// right, and it works as a cache.
func useDamaged(t testing.TB, dir string) {
	t.Helper()
	s := open(t, dir, Options{boot: "another"})
	defer s.Close()
	if s.InMemory() {
		t.Fatal("not on disk")
	}
	o := object(t, s, "k", 8*blk-5, blk)
	for n := range o.All() {
		check(t, o, n)
	}
	for n := range int64(8) {
		check(t, o, n)
		put(t, o, n)
		if !check(t, o, n) {
			t.Fatalf("block %d isn't there", n)
		}
	}
	if w, err := o.File(t.Context()); err != nil {
		t.Fatal(err)
	} else {
		w.Release()
	}
	sp, err := s.Spool(t.Context(), "s", spoolOf("s"))
	if err != nil {
		t.Fatal(err)
	}
	checkSpool(t, sp, "s")
	sp.Close()
	if p, err := s.Blob("b"); err == nil && !bytes.Equal(p, truth("b", 3, 1000)) {
		t.Fatal("wrong record")
	}
	if _, err := s.Objects(); err != nil {
		t.Fatal(err)
	}
	o.Close()
	if p, err := s.Verify(t.Context(), nil); err != nil || p.Bad > 0 || p.Blocks != 9 {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := s.Prune(t.Context(), Pruning{}); err != nil {
		t.Fatal(err)
	}
}

// TestDamage changes each file at each kind of place, in each kind of way.
func TestDamage(t *testing.T) {
	files := made(t)
	dir := quickDir(t)
	r := rand.New(rand.NewPCG(3, 3))
	for name, whole := range files {
		if name == lockName {
			continue
		}
		var damages [][]byte
		for _, n := range []int{0, 1, 7, 100, headerSize, headerSize + 20, len(whole) / 2, len(whole) - 1} {
			damages = append(damages, whole[:min(n, len(whole))])
		}
		damages = append(damages, append(bytes.Clone(whole), 1, 2, 3), make([]byte, len(whole)))
		for i := range 16 {
			p := bytes.Clone(whole)
			at := r.IntN(len(p))
			if i%2 == 0 {
				at = r.IntN(min(len(p), 64)) // where the fields are
			}
			if i%4 == 3 && len(p) > headerSize { // and the entries
				at = headerSize + r.IntN(min(len(p)-headerSize, 8*entrySize))
			}
			if i%5 == 0 {
				for j := at; j < min(at+4, len(p)); j++ {
					p[j] = 0xff
				}
			}
			p[at] ^= 1 << r.IntN(8)
			damages = append(damages, p)
		}
		garbage := make([]byte, len(whole))
		for i := range garbage {
			garbage[i] = byte(r.Uint32())
		}
		damages = append(damages, garbage)
		for _, p := range damages {
			restore(t, dir, files)
			restore(t, dir, map[string][]byte{name: p})
			useDamaged(t, dir)
		}
	}
	for name := range files { // files of others' in their place
		for _, p := range files {
			restore(t, dir, files)
			restore(t, dir, map[string][]byte{name: p})
			useDamaged(t, dir)
		}
	}
}

// TestForeignFiles puts what isn't a file of the cache in its place.
func TestForeignFiles(t *testing.T) {
	files := made(t)
	outside := filepath.Join(t.TempDir(), "outside")
	secret := []byte("not to be touched")
	if err := os.WriteFile(outside, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, place := range map[string]func(string) error{
		"symlink":     func(name string) error { return os.Symlink(outside, name) },
		"hard link":   func(name string) error { return os.Link(outside, name) },
		"fifo":        func(name string) error { return unix.Mkfifo(name, 0o600) },
		"open to all": func(name string) error { return errors.Join(os.WriteFile(name, secret, 0o600), os.Chmod(name, 0o666)) },
	} {
		for name := range files {
			dir := filepath.Dir(outside) + "/" + strings.ReplaceAll(what, " ", "-")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			restore(t, dir, files)
			_ = os.Remove(filepath.Join(dir, name))
			if err := place(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			useDamaged(t, dir)
			if p, err := os.ReadFile(outside); err != nil || !bytes.Equal(p, secret) {
				t.Fatalf("%s for %s: the file outside was changed", what, name)
			}
		}
	}
	// A folder in the way is left alone, and costs the disk for that object only.
	dir := tempDir(t)
	s := open(t, dir, Options{})
	h := header{key: "k", size: 8 * blk, blockSize: blk}
	if err := os.Mkdir(filepath.Join(dir, h.fileName()+indexSuffix), 0o700); err != nil {
		t.Fatal(err)
	}
	o := object(t, s, "k", 8*blk, blk)
	put(t, o, 1)
	if !check(t, o, 1) || o.disk != nil {
		t.Error("no block in memory")
	}
}

func TestVerify(t *testing.T) {
	dir := tempDir(t)
	s := open(t, dir, Options{})
	o := object(t, s, "k", 8*blk, blk)
	put(t, o, 0, 1, 2, 3)
	s.Sync()
	flip(t, filepath.Join(dir, o.name+partSuffix+"0"), 2*blk+17)
	calls := 0
	p, err := s.Verify(t.Context(), func(Progress) { calls++ })
	if err != nil || p.Blocks != 4 || p.Bad != 1 || p.Bytes != 4*blk || calls != 4 {
		t.Errorf("%+v, %v", p, err)
	}
	if check(t, o, 2) || !check(t, o, 1) {
		t.Error("the bad one isn't dropped, or a good one is")
	}
}

// seal gives a header's page its checksum.
func seal(page []byte) []byte {
	page = bytes.Clone(page)
	binary.LittleEndian.PutUint32(page[hdrSum:], crc32.Checksum(page[:hdrSum], castagnoli))
	return page
}

func FuzzHeader(f *testing.F) {
	h := header{key: "ebs:snap-0abc", size: 16 << 40, blockSize: 512 << 10}
	f.Add(h.encode()[:64])
	f.Add([]byte(indexMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		// With a right checksum, as nobody but an attacker would have it.
		page := make([]byte, headerSize)
		copy(page[:hdrSum], p)
		if h, ok := parseHeader(page); ok {
			t.Fatalf("without a checksum: %+v", h)
		}
		page = seal(page)
		h, ok := parseHeader(page)
		if !ok {
			return
		}
		if h.blocks() < 0 || h.indexSize() < headerSize || h.size > maxSize || h.key == "" {
			t.Errorf("%+v", h)
		}
		if again, ok := parseHeader(h.encode()); !ok || again != h {
			t.Errorf("%+v isn't %+v", again, h)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(encodeRecord("key", []byte("data")))
	f.Add([]byte(recordMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		key, data, ok := parseRecord(p)
		if ok && !bytes.Equal(encodeRecord(key, data), p) {
			t.Errorf("%q, %q from %x", key, data, p)
		}
	})
}

// FuzzDirectory damages the files of a cache at places that the fuzzer chooses.
func FuzzDirectory(f *testing.F) {
	files := made(f)
	var names []string
	for _, suffix := range []string{indexSuffix, partSuffix + "0", dataSuffix, recordSuffix} {
		for name := range files {
			if strings.HasSuffix(name, suffix) && len(names) < 4 {
				names = append(names, name)
			}
		}
	}
	f.Add(byte(0), uint32(headerSize), []byte{1, 2, 3, 4})
	f.Add(byte(0), uint32(headerSize+stateOff), []byte{stateDurable, 0, 0, 0})
	f.Add(byte(0), uint32(hdrSize), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(byte(1), uint32(5), []byte{9})
	f.Add(byte(3), uint32(recKeyLen), []byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, which byte, at uint32, p []byte) {
		name := names[int(which)%len(names)]
		damaged := bytes.Clone(files[name])
		copy(damaged[int(at)%len(damaged):], p)
		if strings.HasSuffix(name, indexSuffix) && which&0x80 != 0 {
			copy(damaged, seal(damaged[:headerSize]))
		}
		dir := quickDir(t)
		restore(t, dir, files)
		restore(t, dir, map[string][]byte{name: damaged})
		useDamaged(t, dir)
	})
}
