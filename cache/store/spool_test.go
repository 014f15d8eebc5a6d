package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"yester/internal/block"
	"yester/internal/readertest"
)

const spoolBytes = 5*blk + 321

// spoolOf writes the truth of a key, in pieces of all lengths.
func spoolOf(key string) func(io.Writer) error {
	return func(w io.Writer) error {
		p := truth(key, 0, spoolBytes)
		for i := 1; len(p) > 0; i = i*3 + 1 {
			n := min(i, len(p))
			if _, err := w.Write(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
		return nil
	}
}

func checkSpool(t testing.TB, sp *Spooled, key string) {
	t.Helper()
	p, err := io.ReadAll(io.NewSectionReader(sp, 0, sp.Size()))
	if err != nil || !bytes.Equal(p, truth(key, 0, spoolBytes)) {
		t.Fatalf("spool %s: wrong bytes, or %v", key, err)
	}
}

func never(io.Writer) error { return errors.New("made again") }

func TestSpool(t *testing.T) {
	for _, dir := range []string{tempDir(t), ""} {
		s := open(t, dir, Options{})
		sp, err := s.Spool(t.Context(), "a", spoolOf("a"))
		if err != nil {
			t.Fatal(err)
		}
		checkSpool(t, sp, "a")
		readertest.Run(t, sp, readertest.Bytes(truth("a", 0, spoolBytes)))
		e, err := block.ExtentAt(t.Context(), sp, 100, spoolBytes)
		if err != nil || e.File == nil || e.Off != 100 || e.Len != spoolBytes-100 {
			t.Errorf("%+v, %v", e, err)
		}
		again, err := s.Spool(t.Context(), "a", never)
		if err != nil {
			t.Fatal(err)
		}
		sp.Close()
		sp.Close()
		checkSpool(t, again, "a")
		again.Close()
		if dir == "" {
			continue
		}
		other := open(t, dir, Options{})
		if sp, err = other.Spool(t.Context(), "a", never); err != nil {
			t.Fatal(err)
		}
		checkSpool(t, sp, "a")
		// Open there, it stays; closed, it goes.
		name := filepath.Join(dir, hashName(spoolPrefix, "a")+dataSuffix)
		if _, err := s.Prune(t.Context(), Pruning{}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(name); err != nil {
			t.Error("an open spool was evicted")
		}
		sp.Close()
		if freed, err := s.Prune(t.Context(), Pruning{}); err != nil || freed < spoolBytes {
			t.Errorf("freed %d: %v", freed, err)
		}
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a spool that nobody has open stays")
		}
	}
}

func TestSpoolOnce(t *testing.T) {
	dir := tempDir(t)
	stores := []*Store{open(t, dir, Options{}), open(t, dir, Options{})}
	var made atomic.Int64
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			sp, err := stores[i%2].Spool(context.Background(), "k", func(w io.Writer) error {
				made.Add(1)
				time.Sleep(20 * time.Millisecond)
				return spoolOf("k")(w)
			})
			if err != nil {
				t.Error(err)
				return
			}
			checkSpool(t, sp, "k")
			sp.Close()
		}()
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("made %d times", made.Load())
	}
}

func TestSpoolFails(t *testing.T) {
	dir := tempDir(t)
	s := open(t, dir, Options{})
	fail := func(w io.Writer) error {
		w.Write([]byte("half"))
		return errFill
	}
	if _, err := s.Spool(t.Context(), "k", fail); !errors.Is(err, errFill) {
		t.Errorf("%v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started, end := make(chan bool), make(chan bool)
	go func() {
		sp, err := s.Spool(context.Background(), "k", func(w io.Writer) error {
			close(started)
			<-end
			return errFill
		})
		if sp != nil || !errors.Is(err, errFill) {
			t.Errorf("%v, %v", sp, err)
		}
		end <- true
	}()
	<-started
	cancel()
	if _, err := s.Spool(ctx, "k", never); !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter whose context ended: %v", err)
	}
	end <- true
	<-end
	sp, err := s.Spool(t.Context(), "k", spoolOf("k"))
	if err != nil {
		t.Fatal(err)
	}
	checkSpool(t, sp, "k")
	sp.Close()
}

func TestSpoolDamaged(t *testing.T) {
	dir := tempDir(t)
	s := open(t, dir, Options{})
	sp, err := s.Spool(t.Context(), "k", spoolOf("k"))
	if err != nil {
		t.Fatal(err)
	}
	sp.Close()
	s.Close()
	base := filepath.Join(dir, hashName(spoolPrefix, "k"))
	for name, damage := range map[string]func(){
		"a bit":     func() { flip(t, base+dataSuffix, blk) },
		"cut off":   func() { os.Truncate(base+dataSuffix, blk) },
		"longer":    func() { os.Truncate(base+dataSuffix, 1<<20) },
		"record":    func() { flip(t, base+recordSuffix, 20) },
		"no record": func() { os.Remove(base + recordSuffix) },
		"no data":   func() { os.Remove(base + dataSuffix) },
		"a link": func() {
			os.Remove(base + dataSuffix)
			os.Symlink("/etc/passwd", base+dataSuffix)
		},
	} {
		damage()
		s := open(t, dir, Options{})
		made := false
		sp, err := s.Spool(t.Context(), "k", func(w io.Writer) error { made = true; return spoolOf("k")(w) })
		if err != nil || !made {
			t.Fatalf("%s: made again: %v, %v", name, made, err)
		}
		checkSpool(t, sp, "k")
		sp.Close()
		if sp, err = s.Spool(t.Context(), "k", never); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sp.Close()
		s.Close()
	}
}

func TestSpoolTooLarge(t *testing.T) {
	s := open(t, "", Options{Memory: 1 << 20})
	for range 3 {
		if _, err := s.Spool(t.Context(), "k", func(w io.Writer) error {
			for range 100 {
				if _, err := w.Write(make([]byte, blk)); err != nil {
					return err
				}
			}
			return nil
		}); !errors.Is(err, ErrFull) {
			t.Errorf("%v", err)
		}
	}
	sp, err := s.Spool(t.Context(), "small", spoolOf("small"))
	if err != nil {
		t.Fatal("what failed still holds memory: ", err)
	}
	sp.Close()
	if n := s.room.spooled.Load(); n != 0 {
		t.Errorf("%d bytes counted", n)
	}
}

func TestBlob(t *testing.T) {
	for _, dir := range []string{tempDir(t), ""} {
		s := open(t, dir, Options{})
		if _, err := s.Blob("k"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		for _, v := range []string{"one", "", "two"} {
			if err := s.SetBlob("k", []byte(v)); err != nil {
				t.Fatal(err)
			}
			if p, err := s.Blob("k"); err != nil || string(p) != v {
				t.Errorf("%q, %v", p, err)
			}
		}
		if dir != "" {
			flip(t, filepath.Join(dir, hashName(blobPrefix, "k")+recordSuffix), 18)
			if _, err := s.Blob("k"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("damaged: %v", err)
			}
		}
		if err := s.SetBlob("k", nil); err != nil {
			t.Error(err)
		}
		if _, err := s.Blob("k"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// flip changes a bit of a file.
func flip(t testing.TB, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var p [1]byte
	if _, err := f.ReadAt(p[:], off); err != nil {
		t.Fatal(err)
	}
	p[0] ^= 0x10
	if _, err := f.WriteAt(p[:], off); err != nil {
		t.Fatal(err)
	}
}
