package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const blk = 64 << 10

// children are what this test binary does when it is started as another process.
var children = map[string]func(dir string, args []string) error{}

func TestMain(m *testing.M) {
	if what := os.Getenv("STORE_CHILD"); what != "" {
		if err := children[what](os.Args[1], os.Args[2:]); err != nil {
			os.Stderr.WriteString(what + ": " + err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// truth returns the bytes that block n of a key has everywhere and always.
func truth(key string, n int64, length int) []byte {
	type name struct {
		key    string
		n      int64
		length int
	}
	at := name{key, n, length}
	if p, ok := truths.Load(at); ok {
		return p.([]byte)
	}
	h := fnv.New64a()
	h.Write([]byte(key))
	r := rand.New(rand.NewPCG(h.Sum64(), uint64(n)))
	p := make([]byte, length+8)
	for i := 0; i < length; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	truths.Store(at, p[:length:length])
	return p[:length:length]
}

// truths holds what was made: making it takes longer than comparing.
var truths sync.Map

func tempDir(t testing.TB) string { return filepath.Join(t.TempDir(), "cache") }

func open(t testing.TB, dir string, opt Options) *Store {
	t.Helper()
	s, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func object(t testing.TB, s *Store, key string, size int64, bs int) *Object {
	t.Helper()
	o, err := s.Object(key, size, bs)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func put(t testing.TB, o *Object, blocks ...int64) {
	t.Helper()
	for _, n := range blocks {
		if err := o.Put(n, truth(o.Key(), n, int(min(int64(o.blockSize), o.size-n*int64(o.blockSize))))); err != nil {
			t.Fatal(err)
		}
	}
}

// check reads a block through File, and reports whether it was there. Bytes that
// are there and wrong end the test.
func check(t testing.TB, o *Object, n int64) bool {
	t.Helper()
	b, ok := o.Get(n)
	if !ok {
		return false
	}
	defer b.Release()
	p := make([]byte, b.Len)
	if _, err := b.File.ReadAt(p, b.Off); err != nil {
		t.Fatalf("block %d: %v", n, err)
	}
	if !bytes.Equal(p, truth(o.Key(), n, len(p))) {
		t.Fatalf("block %d of %s: wrong bytes", n, o.Key())
	}
	return true
}

// logs collects what a Store says.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logs) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text.Bytes(), []byte(s))
}

func TestPutGet(t *testing.T) {
	for _, dir := range []string{tempDir(t), ""} {
		s := open(t, dir, Options{})
		const size = 5*blk + 1234
		o := object(t, s, "ebs:snap-1", size, blk)
		for n := range int64(6) {
			if check(t, o, n) {
				t.Fatalf("block %d before it was put", n)
			}
		}
		put(t, o, 0, 2, 5)
		var got []int64
		for n := range o.All() {
			got = append(got, n)
		}
		if len(got) != 3 || got[0] != 0 || got[1] != 2 || got[2] != 5 || o.Complete() {
			t.Errorf("present: %v", got)
		}
		for n := range int64(6) {
			if check(t, o, n) != (n == 0 || n == 2 || n == 5) {
				t.Errorf("block %d", n)
			}
		}
		if _, err := o.File(t.Context()); !errors.Is(err, ErrAbsent) {
			t.Errorf("file of a part: %v", err)
		}
		p := make([]byte, blk)
		if n, err := o.ReadAt(p, blk-100); n != 100 || !errors.Is(err, ErrAbsent) {
			t.Errorf("read into a block that isn't there: %d, %v", n, err)
		}
		put(t, o, 1, 3, 4)
		blocks, bytesPresent := o.Present()
		if blocks != 6 || bytesPresent != size || !o.Complete() {
			t.Errorf("%d blocks, %d bytes", blocks, bytesPresent)
		}
		whole := make([]byte, size)
		if n, err := o.ReadAt(whole, 0); n != size || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		w, err := o.File(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		inFile, err := os.ReadFile("/proc/self/fd/" + itoa(int(w.File.Fd())))
		if err != nil || !bytes.Equal(inFile, whole) {
			t.Errorf("the file isn't the object: %v", err)
		}
		w.Release()
		for _, n := range []int64{-1, 6, 1 << 60} {
			if _, ok := o.Get(n); ok || o.Put(n, p) == nil {
				t.Errorf("block %d of 6", n)
			}
		}
		if o.Put(5, p) == nil {
			t.Error("a last block that is too long")
		}
		o.Close()
		if dir == "" {
			continue
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, Options{boot: "after a reboot"})
		o = object(t, s, "ebs:snap-1", size, blk)
		for n := range int64(6) {
			if !check(t, o, n) {
				t.Errorf("block %d is gone", n)
			}
		}
		// The same key of another size is another object.
		if other := object(t, s, "ebs:snap-1", size+1, blk); check(t, other, 0) {
			t.Error("bytes of another object")
		}
	}
}

func TestArguments(t *testing.T) {
	s := open(t, tempDir(t), Options{})
	long := string(make([]byte, maxKey+1))
	for _, c := range []struct {
		key  string
		size int64
		bs   int
	}{{"", 1, blk}, {long, 1, blk}, {"k", -1, blk}, {"k", maxSize + 1, blk}, {"k", 1, blk - 1}, {"k", 1, 3 * blk}, {"k", 1, 2 * maxBlock}} {
		if _, err := s.Object(c.key, c.size, c.bs); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("%d-byte key, size %d, block %d: %v", len(c.key), c.size, c.bs, err)
		}
	}
	empty := object(t, s, "empty", 0, blk)
	if !empty.Complete() || check(t, empty, 0) {
		t.Error("an empty object has no blocks, and all of them")
	}
}

func TestModes(t *testing.T) {
	dir := tempDir(t)
	s := open(t, dir, Options{})
	o := object(t, s, "k", blk, blk)
	put(t, o, 0)
	if err := s.SetBlob("b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	all, _ := os.ReadDir(dir)
	for _, e := range all {
		if st, err := e.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", e.Name(), st.Mode())
		}
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", st.Mode())
	}
	for _, mode := range []os.FileMode{0o770, 0o702} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrUnsafe) {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if os.Geteuid() == 0 {
		if err := errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, 12345, 12345)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrUnsafe) {
			t.Errorf("another's directory: %v", err)
		}
	}
}

// TestLargest opens an object of 16 TiB (and one of 64), uses blocks all over it,
// and looks at the memory and the disk that costs.
func TestLargest(t *testing.T) {
	dir := tempDir(t)
	s := open(t, dir, Options{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var objects []*Object
	for _, size := range []int64{16 << 40, 64 << 40} {
		o := object(t, s, "large", size, 512<<10)
		objects = append(objects, o)
		last := o.Blocks() - 1
		put(t, o, 0, 1, last/3, last/2, last)
		if blocks, _ := o.Present(); blocks != 5 {
			t.Errorf("%d blocks", blocks)
		}
		for _, n := range []int64{0, 1, last / 3, last / 2, last} {
			if !check(t, o, n) {
				t.Errorf("block %d of %d is gone", n, last)
			}
		}
		// Looks at blocks that aren't there cost memory, too, but not for long.
		for n := int64(0); n < last; n += last / 20_000 {
			o.Get(n)
		}
		o.disk.release(0)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > 120<<20 {
		t.Errorf("80 TiB of objects hold %d MiB of memory", used>>20)
	} else {
		t.Logf("memory %d KiB", used>>10)
	}
	runtime.KeepAlive(objects)
	if used, _, err := s.Usage(); err != nil || used > 10*(512<<10)+(1<<20) {
		t.Errorf("ten blocks take up %d KiB: %v", used>>10, err)
	}
}

func TestParallel(t *testing.T) {
	s := open(t, tempDir(t), Options{Budget: 24 * blk, lease: time.Nanosecond})
	const count = 64
	o := object(t, s, "k", count*blk, blk)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for range 300 {
				n := r.Int64N(count)
				switch c, err := o.Claim(context.Background(), n); {
				case err != nil:
					t.Error(err)
				case c != nil:
					put(t, o, n)
					c.Release()
				}
				check(t, o, n)
				if r.IntN(50) == 0 {
					s.releaseIdle(0)
				}
			}
		}()
	}
	wg.Wait()
}

func TestClose(t *testing.T) {
	s := open(t, tempDir(t), Options{})
	a, b := object(t, s, "k", blk, blk), object(t, s, "k", blk, blk)
	put(t, a, 0)
	a.Close()
	if !check(t, b, 0) {
		t.Error("the other handle is closed, too")
	}
	b.Close()
	if len(s.objects) != 0 {
		t.Error("an object stays open")
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if _, err := s.Object("k", blk, blk); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Spool(t.Context(), "k", nil); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// held asks the kernel whether anyone has the range locked.
func held(t *testing.T, path string, off, n int64) bool {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: off, Len: n}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		t.Fatal(err)
	}
	return lk.Type != unix.F_UNLCK
}

func TestLeasesEnd(t *testing.T) {
	dir := tempDir(t)
	s := open(t, dir, Options{})
	o := object(t, s, "k", 40*blk, blk)
	index := filepath.Join(dir, o.name+indexSuffix)
	put(t, o, 3, 4, 20)
	s.Sync()
	b, _ := o.Get(4)
	s.releaseIdle(0)
	if held(t, index, leaseBase+3, 1) || held(t, index, leaseBase+20, 1) || !held(t, index, leaseBase+4, 1) {
		t.Error("leases aren't those of the blocks in use")
	}
	b.Release()
	s.releaseIdle(0)
	if held(t, index, leaseBase, 40) || len(o.disk.active) != 0 {
		t.Error("a lease stays")
	}
	if !check(t, o, 3) || !check(t, o, 4) {
		t.Error("a block is gone")
	}
}

func BenchmarkGet(b *testing.B) {
	s := open(b, tempDir(b), Options{})
	o := object(b, s, "k", 64*blk, blk)
	for n := range int64(64) {
		put(b, o, n)
	}
	b.RunParallel(func(pb *testing.PB) {
		for n := int64(0); pb.Next(); n++ {
			blk, ok := o.Get(n & 63)
			if !ok {
				b.Error("absent")
				return
			}
			blk.Release()
		}
	})
}

func BenchmarkPut(b *testing.B) {
	const bs = 512 << 10
	s := open(b, tempDir(b), Options{})
	o := object(b, s, "k", 1<<40, bs)
	data := truth("k", 0, bs)
	b.SetBytes(bs)
	for n := int64(0); b.Loop(); n++ {
		if err := o.Put(n&4095, data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFirstGet(b *testing.B) {
	const bs = 512 << 10
	s := open(b, tempDir(b), Options{})
	o := object(b, s, "k", 64*bs, bs)
	for n := range int64(64) {
		put(b, o, n)
	}
	s.Sync()
	b.SetBytes(bs)
	for n := int64(0); b.Loop(); n++ {
		g := o.disk.find(n & 63)
		g.mu.Lock()
		g.slots[n%groupBlocks].seen.Store(0)
		o.disk.idle(g, n&63)
		g.mu.Unlock()
		blk, _ := o.Get(n & 63)
		blk.Release()
	}
}
