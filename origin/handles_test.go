package origin

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"yester/internal/block"
	"yester/internal/readertest"
)

// openFiles counts the process's open files below dir.
func openFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && len(target) > len(dir) && target[:len(dir)] == dir {
			n++
		}
	}
	return n
}

// TestHandles reads more files than a pool keeps open, in parallel, by bytes and
// by place; what was handed out by place stays readable, and nothing leaks.
func TestHandles(t *testing.T) {
	path := t.TempDir()
	dir, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const files, keep = 100, 7
	pool := NewHandles(dir, keep)
	var readers []*Handle
	var contents [][]byte
	for i := range files {
		name := fmt.Sprintf("f%d", i)
		data := bytes.Repeat([]byte(name), 1000+i)
		if err := os.WriteFile(filepath.Join(path, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := dir.Stat(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, pool.Reader(name, e.Version))
		contents = append(contents, data)
	}
	readertest.Run(t, readers[3], readertest.Bytes(contents[3]))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 4 * files {
				i = (i*(w+3) + w) % files
				got := make([]byte, len(contents[i]))
				if i%2 == 0 {
					if err := block.ReadFull(t.Context(), readers[i], got, 0); err != nil || !bytes.Equal(got, contents[i]) {
						t.Errorf("file %d: %v", i, err)
					}
					continue
				}
				e, err := block.ExtentAt(t.Context(), readers[i], 0, readers[i].Size())
				if err != nil {
					t.Error(err)
					continue
				}
				runtime.Gosched()
				if _, err := e.File.ReadAt(got, e.Off); err != nil || !bytes.Equal(got, contents[i]) {
					t.Errorf("file %d by its place: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	for range 50 { // until the collector has closed what was lent
		runtime.GC()
		if openFiles(t, path+"/f") <= keep {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := openFiles(t, path+"/f"); n > keep {
		t.Errorf("%d files are open, want at most %d", n, keep)
	}

	// What a name stands for now is another file.
	if err := os.Rename(filepath.Join(path, "f1"), filepath.Join(path, "f2")); err != nil {
		t.Fatal(err)
	}
	pool = NewHandles(dir, keep)
	defer pool.Close()
	for _, i := range []int{1, 2} {
		r := pool.Reader(readers[i].key.name, readers[i].key.version)
		if _, err := r.ReadAt(make([]byte, 10), 0); !errors.Is(err, ErrChanged) {
			t.Errorf("file %d: %v, want %v", i, err, ErrChanged)
		}
	}
}
