package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"yester/internal/block"
)

// Object is the blocks of one version of one thing. It is safe for parallel use,
// and shared by all in the process who opened the same.
type Object struct {
	header
	s     *Store
	name  string
	count int64 // blocks
	refs  int   // under s.mu

	disk *layer // nil when the directory can't be used for it
	mem  atomic.Pointer[layer]

	mu     sync.Mutex              // guards claims and the making of mem
	claims map[int64]chan struct{} // blocks claimed in this process; closed at the end
}

// Object opens the blocks of the thing that key names: content and version, so
// that the same key always means the same bytes. size is in bytes; blockSize is
// a power of two from 64 KiB to 4 MiB. Each call is paired with one Close.
func (s *Store) Object(key string, size int64, blockSize int) (*Object, error) {
	h := header{key: key, size: size, blockSize: blockSize}
	switch {
	case key == "" || len(key) > maxKey:
		return nil, fmt.Errorf("cache object: key of %d bytes, not 1..%d: %w", len(key), maxKey, os.ErrInvalid)
	case size < 0 || size > maxSize:
		return nil, fmt.Errorf("cache object %s: size %d outside 0..%d: %w", key, size, int64(maxSize), os.ErrInvalid)
	case blockSize < minBlock || blockSize > maxBlock || blockSize&(blockSize-1) != 0:
		return nil, fmt.Errorf("cache object %s: block size %d is no power of two from %d to %d: %w", key, blockSize, minBlock, maxBlock, os.ErrInvalid)
	}
	return s.object(h)
}

func (h *header) fileName() string { return hashName(objectPrefix, h.key, h.size, h.blockSize) }

func (s *Store) object(h header) (*Object, error) {
	name := h.fileName()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if o := s.objects[name]; o != nil {
		if o.header != h {
			return nil, fmt.Errorf("cache object %s: its file name is that of %s", h.key, o.key)
		}
		o.refs++
		return o, nil
	}
	o := &Object{header: h, s: s, name: name, count: h.blocks(), refs: 1, claims: make(map[int64]chan struct{})}
	if s.dir != nil {
		l, err := s.openLayer(h, name)
		if err != nil {
			// Not for all objects: the next may fare better.
			s.log.Warn("this object is kept in memory only", "object", h.key, "err", err)
		}
		o.disk = l
	}
	s.objects[name] = o
	return o, nil
}

// openLayer opens the files of an object, and makes them anew where they are not
// what they should be.
func (s *Store) openLayer(h header, name string) (*layer, error) {
	for range 16 {
		l, err := s.openLayerOnce(h, name)
		if !errors.Is(err, errRemoved) {
			return l, err
		}
	}
	return nil, errRemoved
}

var errRemoved = errors.New("removed by another process")

func (s *Store) openLayerOnce(h header, name string) (_ *layer, err error) {
	files := make([]*file, 0, 2)
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
		}
	}()
	open := func(suffix string) (*file, error) {
		f, err := s.dir.openOurs(name + suffix)
		if err == nil {
			files = append(files, f)
		}
		return f, err
	}
	index, err := open(indexSuffix)
	if err != nil {
		return nil, err
	}
	// Who removes or makes an object has all of it locked; who opens it, the init
	// byte, so that one of two who find nothing makes it.
	if ok, err := index.lockWithin(5*time.Second, unix.F_WRLCK, initByte, 1); !ok {
		return nil, errors.Join(errBusy, err)
	}
	defer index.unlock(initByte, 1)
	if !s.dir.is(name+indexSuffix, index) {
		return nil, errRemoved
	}
	var parts []*file
	for off := int64(0); off == 0 || off < h.size; off += partSize {
		f, err := open(partSuffix + strconv.FormatInt(off/partSize, 10))
		if err != nil {
			return nil, err
		}
		parts = append(parts, f)
	}
	if !h.describes(index) {
		if ok, err := index.lock(unix.F_WRLCK, openByte, 1); !ok {
			return nil, errors.Join(errBusy, err)
		}
		if err := h.initialise(index, parts); err != nil {
			return nil, err
		}
	}
	if err := sizeParts(parts, h.size); err != nil {
		return nil, err
	}
	if ok, err := index.lock(unix.F_RDLCK, openByte, 1); !ok {
		return nil, errors.Join(errBusy, err)
	}
	return newLayer(s, h, index, parts, false), nil
}

// describes reports whether the index is whole and of this object.
func (h *header) describes(index *file) bool {
	st, err := index.Stat()
	if err != nil || st.Size() != h.indexSize() {
		return false
	}
	got, ok := readHeader(index)
	return ok && got == *h
}

func readHeader(f io.ReaderAt) (header, bool) {
	p := make([]byte, headerSize)
	if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
		return header{}, false
	}
	return parseHeader(p)
}

// initialise makes an index without blocks. The header is last: without it,
// whatever else there is doesn't count.
func (h *header) initialise(index *file, parts []*file) error {
	for _, f := range append([]*file{index}, parts...) {
		if err := f.truncate(0); err != nil {
			return err
		}
	}
	if err := index.truncate(h.indexSize()); err != nil {
		return err
	}
	return index.writeAt(h.encode(), 0)
}

// sizeParts gives the data files their lengths, as holes.
func sizeParts(parts []*file, size int64) error {
	for i, f := range parts {
		want := min(size-int64(i)*partSize, partSize)
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if st.Size() != want {
			if err := f.truncate(want); err != nil {
				return err
			}
		}
	}
	return nil
}

// memLayer returns the layer in memory, made if need be.
func (o *Object) memLayer() (*layer, error) {
	if l := o.mem.Load(); l != nil {
		return l, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.mem.Load(); l != nil {
		return l, nil
	}
	index, err := memory(o.name + indexSuffix)
	if err != nil {
		return nil, err
	}
	parts := []*file{}
	for off := int64(0); off == 0 || off < o.size; off += partSize {
		var f *file
		if f, err = memory(o.name + partSuffix); err != nil {
			break
		}
		parts = append(parts, f)
	}
	if err == nil {
		err = o.initialise(index, parts)
	}
	if err == nil {
		err = sizeParts(parts, o.size)
	}
	l := newLayer(o.s, o.header, index, parts, true)
	if err != nil {
		l.close()
		return nil, err
	}
	o.mem.Store(l)
	return l, nil
}

// Close ends one use of the object; no Block of this use may be pinned.
func (o *Object) Close() error {
	for {
		o.s.mu.Lock()
		o.refs--
		if o.refs > 0 || o.s.closed {
			o.s.mu.Unlock()
			return nil
		}
		if o.disk == nil || o.disk.pending.Load() == 0 {
			delete(o.s.objects, o.name)
			o.close()
			o.s.mu.Unlock()
			return nil
		}
		o.refs++ // until its blocks are on disk
		o.s.mu.Unlock()
		_ = o.s.commitAll() // said by diskFailed
	}
}

func (o *Object) close() {
	if o.disk != nil {
		o.disk.close()
	}
	if l := o.mem.Load(); l != nil {
		l.close()
	}
}

// Key returns the key the object was opened with.
func (o *Object) Key() string { return o.key }

// Size returns the object's size in bytes.
func (o *Object) Size() int64 { return o.size }

// BlockSize returns the length of every block but the last, in bytes.
func (o *Object) BlockSize() int { return o.blockSize }

// Blocks returns how many blocks the object has.
func (o *Object) Blocks() int64 { return o.count }

// Get pins block n if it is present. Its bytes have been verified by this
// process; one whose bytes fail is dropped, and absent. The caller calls Release.
func (o *Object) Get(n int64) (Block, bool) {
	if n < 0 || n >= o.count {
		return Block{}, false
	}
	if o.disk != nil {
		if b, ok := o.disk.get(n); ok {
			return b, true
		}
	}
	if l := o.mem.Load(); l != nil {
		return l.get(n)
	}
	return Block{}, false
}

// Put stores block n, whose length is the block size, or for the last block what
// is left of the object. A disk that fails is no error: the block is kept in
// memory then, or not at all when that is full.
func (o *Object) Put(n int64, data []byte) error {
	if n < 0 || n >= o.count {
		return fmt.Errorf("put block %d of %s, which has %d: %w", n, o.key, o.count, os.ErrInvalid)
	}
	if want := min(int64(o.blockSize), o.size-n*int64(o.blockSize)); int64(len(data)) != want {
		return fmt.Errorf("put block %d of %s: %d bytes, not %d: %w", n, o.key, len(data), want, os.ErrInvalid)
	}
	if o.disk != nil && o.s.diskWorks() {
		for again := true; ; again = false {
			if !o.s.makeRoom(int64(len(data))) {
				o.s.warn("the cache has no room; blocks are kept in memory", ErrFull)
				break // the disk is full, or all that is held is in use
			}
			err := o.disk.put(n, data)
			if err == nil {
				return nil
			}
			if errors.Is(err, errBusy) {
				break
			}
			if again && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && o.s.emergency() {
				continue
			}
			o.s.diskFailed(err)
			break
		}
	}
	l, err := o.memLayer()
	if err != nil || !o.s.makeMemory(int64(len(data))) {
		return nil // fetched again when it is asked for
	}
	if err := l.put(n, data); err != nil {
		o.s.log.Debug("a block can't be kept in memory", "err", err)
	}
	return nil
}

// ReadAt reads bytes of present blocks, as io.ReaderAt. At the first block that
// isn't present it stops with ErrAbsent.
func (o *Object) ReadAt(p []byte, off int64) (int, error) {
	want, end := block.CheckRead(off, len(p), o.size)
	for done := 0; done < want; {
		at := off + int64(done)
		n, in := at/int64(o.blockSize), at%int64(o.blockSize)
		b, ok := o.Get(n)
		if !ok {
			return done, fmt.Errorf("block %d of %s: %w", n, o.key, ErrAbsent)
		}
		part := min(int64(want-done), b.Len-in)
		got, err := b.File.ReadAt(p[done:done+int(part)], b.Off+in)
		b.Release()
		done += got
		if err != nil {
			return done, fmt.Errorf("block %d of %s: %w", n, o.key, err)
		}
	}
	return want, end
}

// All yields the numbers of the blocks that the index has: in order for those on
// disk, then those in memory. Their bytes may still prove bad when they are got.
func (o *Object) All() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		mem := o.mem.Load()
		if o.disk != nil {
			for n, e := range o.disk.entries() {
				if e.present(o.s.boot) && !yield(n) {
					return
				}
			}
		}
		if mem == nil {
			return
		}
		for n, e := range mem.entries() {
			if !e.present(o.s.boot) {
				continue
			}
			if o.disk != nil {
				if d, err := o.disk.entry(n); err == nil && d.present(o.s.boot) {
					continue
				}
			}
			if !yield(n) {
				return
			}
		}
	}
}

// Present counts the blocks that the index has, and their bytes.
func (o *Object) Present() (blocks, bytes int64) {
	for n := range o.All() {
		blocks++
		bytes += min(int64(o.blockSize), o.size-n*int64(o.blockSize))
	}
	return blocks, bytes
}

// Complete reports whether the index has all blocks.
func (o *Object) Complete() bool {
	blocks, _ := o.Present()
	return blocks == o.count
}

// Whole is a whole object in one host file, which stays as it is until Release.
type Whole struct {
	File *os.File // [0, Size) are the object's bytes
	pin  *file
}

// Release lets the object be evicted again. It is called once.
func (w *Whole) Release() { _ = w.pin.Close() }

// File gives the host file of an object of which all blocks are present, after
// verifying those that this process hasn't seen yet. ErrAbsent: some block isn't,
// or the object lies in several files.
func (o *Object) File(ctx context.Context) (*Whole, error) {
	absent := fmt.Errorf("all of %s in one file: %w", o.key, ErrAbsent)
	for _, l := range []*layer{o.disk, o.mem.Load()} {
		if l == nil || len(l.parts) != 1 {
			continue
		}
		// A lock of an owner of its own, so that the leases of single blocks come
		// and go under it.
		f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(l.index.Fd())), os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		w := &Whole{File: l.parts[0].File, pin: &file{File: f}}
		if ok, err := w.pin.lockWithin(leaseWait, unix.F_RDLCK, leaseBase, max(1, l.blocks())); !ok {
			w.Release()
			return nil, errors.Join(errBusy, err)
		}
		ok := true
		for n := int64(0); n < l.blocks() && ok; n++ {
			if err := ctx.Err(); err != nil {
				w.Release()
				return nil, err
			}
			var b Block
			if b, ok = l.get(n); ok {
				b.Release()
			}
		}
		if ok {
			return w, nil
		}
		w.Release()
	}
	return nil, absent
}
