package origin

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"sync"

	"yester/internal/block"
)

// Handles keeps files of a Folder open for readers that have nothing to close:
// as many as were used last. It is safe for parallel use.
type Handles struct {
	folder Folder
	max    int

	mu    sync.Mutex
	files map[handleKey]*handle
	lru   list.List // of *handle; front: used last
	lent  int       // files left to the garbage collector since it last ran
}

type handleKey struct {
	name    string
	version Version
}

// handle is a file that is open, or being opened.
type handle struct {
	key  handleKey
	elem *list.Element // nil once it has left the pool

	opened chan struct{} // closed once file and err are set
	file   File
	err    error

	refs int  // guarded by Handles.mu: reads under way
	lent bool // guarded by Handles.mu: its place in a host file is known outside
}

// maxLent is how many files may wait for the garbage collector before it is asked
// to run: far below what a process may have open.
const maxLent = 2048

// NewHandles returns a pool that keeps up to max files open.
func NewHandles(folder Folder, max int) *Handles {
	return &Handles{folder: folder, max: max, files: make(map[handleKey]*handle)}
}

// Reader returns a regular file in the version v without opening it yet: a read
// fails with ErrChanged when the name stands for another version by then.
func (h *Handles) Reader(name string, v Version) *Handle {
	return &Handle{pool: h, key: handleKey{name, v}}
}

// Close closes all files. No reader may be in use any more.
func (h *Handles) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, f := range h.files {
		if f.file != nil && !f.lent {
			errs = append(errs, f.file.Close())
		}
	}
	clear(h.files)
	h.lru.Init()
	return errors.Join(errs...)
}

// acquire returns the open file of k; release must be called after the read.
func (h *Handles) acquire(ctx context.Context, k handleKey) (*handle, error) {
	h.mu.Lock()
	f := h.files[k]
	if f != nil {
		f.refs++
		h.lru.MoveToFront(f.elem)
		h.mu.Unlock()
		select {
		case <-f.opened:
		case <-ctx.Done():
			h.release(f)
			return nil, ctx.Err()
		}
		if f.err != nil {
			h.release(f)
			return nil, f.err
		}
		return f, nil
	}
	f = &handle{key: k, opened: make(chan struct{}), refs: 1}
	f.elem = h.lru.PushFront(f)
	h.files[k] = f
	h.mu.Unlock()

	// Not by ctx: others may be waiting for it.
	f.file, f.err = openVersion(context.WithoutCancel(ctx), h.folder, k)
	close(f.opened)
	if f.err != nil {
		h.mu.Lock()
		h.removeLocked(f)
		h.mu.Unlock()
		h.release(f)
		return nil, f.err
	}
	h.mu.Lock()
	h.shrinkLocked()
	h.mu.Unlock()
	return f, nil
}

// openVersion opens a file if it still is in the version wanted.
func openVersion(ctx context.Context, folder Folder, k handleKey) (File, error) {
	file, err := folder.Open(ctx, k.name)
	if errors.Is(err, fs.ErrNotExist) {
		// Not to be taken for a file that was never there.
		return nil, fmt.Errorf("%s: has vanished: %w", k.name, ErrChanged)
	}
	if err != nil {
		return nil, err
	}
	if file.Version() != k.version {
		file.Close()
		return nil, fmt.Errorf("%s: %w", k.name, ErrChanged)
	}
	return file, nil
}

func (h *Handles) release(f *handle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.refs--
	h.closeLocked(f)
}

// shrinkLocked takes the files out of the pool that were used longest ago.
func (h *Handles) shrinkLocked() {
	for h.lru.Len() > h.max {
		f := h.lru.Back().Value.(*handle)
		h.removeLocked(f)
		h.closeLocked(f)
	}
}

func (h *Handles) removeLocked(f *handle) {
	if f.elem != nil {
		h.lru.Remove(f.elem)
		delete(h.files, f.key)
		f.elem = nil
	}
}

// closeLocked closes a file that has left the pool, once nobody reads it. One
// whose host file is known outside is left to the garbage collector, which closes
// it when nobody knows it any more.
func (h *Handles) closeLocked(f *handle) {
	if f.elem != nil || f.refs > 0 || f.file == nil {
		return
	}
	if !f.lent {
		f.file.Close()
	} else if h.lent++; h.lent >= maxLent {
		h.lent = 0
		go runtime.GC()
	}
	f.file = nil
}

// Handle is a file of Handles: a block.Reader with nothing to close, valid until
// the pool is closed.
type Handle struct {
	pool *Handles
	key  handleKey
}

var (
	_ block.ContextReader = (*Handle)(nil)
	_ block.Mapper        = (*Handle)(nil)
)

// Size returns the file's size in the version it was asked for in, bytes.
func (r *Handle) Size() int64 { return r.key.version.Size }

// ReadAt implements block.Reader.
func (r *Handle) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader.
func (r *Handle) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	f, err := r.pool.acquire(ctx, r.key)
	if err != nil {
		return 0, err
	}
	defer r.pool.release(f)
	return block.ReadAt(ctx, f.file, p, off)
}

// Extent implements block.Mapper.
func (r *Handle) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	f, err := r.pool.acquire(ctx, r.key)
	if err != nil {
		return block.Extent{}, err
	}
	defer r.pool.release(f)
	e, err := block.ExtentAt(ctx, f.file, off, n)
	if e.File != nil {
		r.pool.mu.Lock()
		f.lent = true
		r.pool.mu.Unlock()
	}
	return e, err
}
