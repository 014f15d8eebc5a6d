package vhdx

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// tool returns the path of a program that a test needs.
func tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is needed", name)
		}
		t.Skipf("%s is needed", name)
	}
	return p
}

func runTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// host is a file as an origin shows it: a Mapper that says where the bytes are.
type host struct{ readertest.File }

func (h host) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	return block.Extent{Len: n, File: h.File.File, Off: off}, nil
}

func openFile(t testing.TB, path string) host {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return host{readertest.File{File: f}}
}

// openImage opens path, over parent unless that is nil.
func openImage(t testing.TB, path string, parent imageformats.Image) *Image {
	t.Helper()
	img, err := Format.Open(t.Context(), openFile(t, path), imageformats.OpenOptions{Parent: parent, Name: filepath.Base(path)})
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	return img.(*Image)
}

// disk makes size bytes with data at random places, the same for one seed.
func disk(size int64, seed uint64, pieces int) readertest.Bytes {
	b := make([]byte, size)
	change(b, seed, pieces)
	return b
}

// change overwrites random pieces of b, most of them in whole sectors.
func change(b []byte, seed uint64, pieces int) {
	if len(b) == 0 {
		return
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	for range pieces {
		off, n := rng.IntN(len(b)), 1+rng.IntN(1<<(1+rng.IntN(18)))
		if rng.IntN(4) > 0 {
			off &^= 511
		}
		for i := off; i < min(off+n, len(b)); i++ {
			b[i] = byte(rng.Uint32())
		}
	}
}

// create makes a file with write.
func create(t testing.TB, path string, write func(*os.File) error) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

const memPage = 4096

// mem is an image in memory that holds only what was written to it: images of
// this format are megabytes of zeros.
type mem struct {
	pages map[int64]*[memPage]byte
	size  int64
}

func (m *mem) WriteAt(p []byte, off int64) (int, error) {
	if m.pages == nil {
		m.pages = make(map[int64]*[memPage]byte)
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		page := m.pages[at/memPage]
		if page == nil {
			page = new([memPage]byte)
			m.pages[at/memPage] = page
		}
		done += copy(page[at%memPage:], p[done:])
	}
	m.size = max(m.size, off+int64(len(p)))
	return len(p), nil
}

func (m *mem) Size() int64 { return m.size }

func (m *mem) ReadAt(p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), m.size)
	for done := 0; done < n; {
		at := off + int64(done)
		dst := p[done:n]
		if rest := int(memPage - at%memPage); len(dst) > rest {
			dst = dst[:rest]
		}
		if page := m.pages[at/memPage]; page != nil {
			copy(dst, page[at%memPage:])
		} else {
			clear(dst)
		}
		done += len(dst)
	}
	return n, eof
}

// clone returns a copy to damage.
func (m *mem) clone() *mem {
	c := &mem{pages: make(map[int64]*[memPage]byte, len(m.pages)), size: m.size}
	for no, p := range m.pages {
		q := *p
		c.pages[no] = &q
	}
	return c
}

// cut returns a copy cut off at size.
func (m *mem) cut(size int64) *mem {
	c := m.clone()
	c.size = size
	for no, p := range c.pages {
		if no*memPage >= size {
			delete(c.pages, no)
		} else if rest := size - no*memPage; rest < memPage {
			clear(p[rest:])
		}
	}
	return c
}

// get returns n bytes at off.
func (m *mem) get(off int64, n int) []byte {
	b := make([]byte, n)
	m.ReadAt(b, off)
	return b
}

// put writes b at off.
func (m *mem) put(off int64, b ...byte) { m.WriteAt(b, off) }

func (m *mem) put32(off int64, v uint32) { m.put(off, le.AppendUint32(nil, v)...) }
func (m *mem) put64(off int64, v uint64) { m.put(off, le.AppendUint64(nil, v)...) }

// flip inverts the bits of the byte at off.
func (m *mem) flip(off int64) { m.put(off, ^m.get(off, 1)[0]) }

// sum makes the checksum of the n bytes at off right again.
func (m *mem) sum(off int64, n, sumOff int) {
	m.put32(off+int64(sumOff), checksum(m.get(off, n), sumOff))
}

// save writes m as a sparse file.
func (m *mem) save(t testing.TB, path string) {
	t.Helper()
	create(t, path, func(f *os.File) error {
		for no, p := range m.pages {
			if _, err := f.WriteAt(p[:min(memPage, m.size-no*memPage)], no*memPage); err != nil {
				return err
			}
		}
		return f.Truncate(m.size)
	})
}

// load reads a file into memory.
func load(t testing.TB, path string) *mem {
	t.Helper()
	f := openFile(t, path)
	m := &mem{}
	b, zero := make([]byte, memPage), make([]byte, memPage)
	for off := int64(0); off < f.Size(); off += memPage {
		n, _ := f.ReadAt(b, off)
		if !slices.Equal(b[:n], zero[:n]) {
			m.put(off, b[:n]...)
		}
	}
	m.size = f.Size()
	return m
}

func dynamicImage(t testing.TB, data readertest.Bytes, opt WriteOptions) *mem {
	t.Helper()
	var w mem
	if opt.BlockSize == 0 {
		opt.BlockSize = mib
	}
	if err := WriteDynamic(t.Context(), &w, data, opt); err != nil {
		t.Fatal(err)
	}
	return &w
}

func diffImage(t testing.TB, data, parent readertest.Bytes, opt DiffOptions) *mem {
	t.Helper()
	var w mem
	if opt.BlockSize == 0 {
		opt.BlockSize = mib
	}
	if err := WriteDiff(t.Context(), &w, data, parent, opt); err != nil {
		t.Fatal(err)
	}
	return &w
}

// fullDisk is a disk without a zero, so that all its blocks are in the file.
func fullDisk(size int) readertest.Bytes {
	b := make(readertest.Bytes, size)
	for i := range b {
		b[i] = byte(i/512)%250 + 1
	}
	return b
}

func openMem(t testing.TB, m block.Reader, opt imageformats.OpenOptions) *Image {
	t.Helper()
	img, err := Format.Open(t.Context(), m, opt)
	if err != nil {
		t.Fatal(err)
	}
	return img.(*Image)
}

// same fails unless r holds want; the suite of readertest is for a few of many
// like images.
func same(t *testing.T, r block.Reader, want readertest.Bytes) {
	t.Helper()
	p := make([]byte, r.Size())
	if err := block.ReadFull(t.Context(), r, p, 0); err != nil || !bytes.Equal(p, want) {
		t.Errorf("%d bytes, %v, or not the %d wanted", len(p), err, len(want))
	}
}
