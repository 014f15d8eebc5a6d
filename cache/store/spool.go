package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"yester/internal/block"
)

// The data of a spool's record.
const (
	spoolSize   = 0  // u64, bytes
	spoolSum    = 8  // 32 bytes: SHA-256 of the bytes
	spoolID     = 40 // 16 random bytes: tells one making from another
	spoolRecord = 56
)

// spool is derived bytes that are open in this process, or being opened.
type spool struct {
	s    *Store
	name string
	refs int           // under s.mu
	made chan struct{} // closed once file or err is set
	file *file         // with a shared lock on byte 0, which keeps it from being evicted
	size int64
	mem  bool
	err  error
}

// Spooled is derived bytes in a host file. It is a block.Reader and a
// block.Mapper, and the bytes stay until Close.
type Spooled struct {
	sp   *spool
	once sync.Once
}

// Spool returns the bytes that key names, and calls fill to make them when the
// store doesn't have them. One process makes them at a time and the others wait
// for it; a waiter whose ctx ends leaves. The same key must always mean the same
// bytes. They are verified when a process first opens them, and made again if
// they are damaged. ErrFull: neither the disk nor Options.Memory can hold them.
// An error of fill is returned as it is.
func (s *Store) Spool(ctx context.Context, key string, fill func(io.Writer) error) (*Spooled, error) {
	if key == "" || len(key) > maxKey {
		return nil, fmt.Errorf("spool: key of %d bytes, not 1..%d: %w", len(key), maxKey, os.ErrInvalid)
	}
	name := hashName(spoolPrefix, key)
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		sp := s.spools[name]
		if sp == nil {
			sp = &spool{s: s, name: name, refs: 1, made: make(chan struct{})}
			s.spools[name] = sp
			s.mu.Unlock()
			sp.err = sp.open(ctx, key, fill)
			if sp.err != nil {
				s.mu.Lock()
				delete(s.spools, name)
				s.mu.Unlock()
			}
			close(sp.made)
			if sp.err != nil {
				return nil, sp.err
			}
			return &Spooled{sp: sp}, nil
		}
		sp.refs++
		s.mu.Unlock()
		select {
		case <-sp.made:
			if sp.err == nil {
				return &Spooled{sp: sp}, nil
			}
			// Its maker failed, perhaps because its own ctx ended: it is our turn.
		case <-ctx.Done():
			sp.release()
			return nil, ctx.Err()
		}
	}
}

// release gives one use back.
func (sp *spool) release() {
	s := sp.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if sp.refs--; sp.refs > 0 || s.closed || s.spools[sp.name] != sp {
		return
	}
	delete(s.spools, sp.name)
	sp.touch()
	_ = sp.file.Close()
	if sp.mem {
		s.room.spooled.Add(-sp.size)
	}
}

// touch notes the use: the file's time is a spool's last use.
func (sp *spool) touch() {
	if !sp.mem {
		now := unix.NsecToTimeval(sp.s.opt.clock().UnixNano())
		// A hint for the choice of what to evict: a failure is no loss.
		_ = unix.Futimes(int(sp.file.Fd()), []unix.Timeval{now, now})
	}
}

// open finds the spool in the directory, or makes it.
func (sp *spool) open(ctx context.Context, key string, fill func(io.Writer) error) error {
	s := sp.s
	if s.dir == nil {
		return sp.fill(ctx, key, fill)
	}
	if ok, err := sp.find(ctx, key); ok || err != nil {
		return err
	}
	lock, err := s.dir.open(lockName, unix.O_RDWR)
	if err != nil {
		s.diskFailed(err)
		return sp.fill(ctx, key, fill)
	}
	defer lock.Close()
	// Two keys of one byte wait for each other, and that is all.
	sum := sha256.Sum256([]byte(key))
	at := spoolBase + int64(binary.LittleEndian.Uint64(sum[:])>>4)
	for pause := time.Millisecond; ; pause = min(2*pause, claimPoll) {
		if ok, err := lock.lock(unix.F_WRLCK, at, 1); ok || err != nil {
			break // without locks it is made twice
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if ok, err := sp.find(ctx, key); ok || err != nil {
		return err
	}
	return sp.fill(ctx, key, fill)
}

// find opens the spool if it is in the directory and its bytes are right.
func (sp *spool) find(ctx context.Context, key string) (bool, error) {
	s := sp.s
	k, rec, ok := s.readRecord(sp.name + recordSuffix)
	if !ok || k != key || len(rec) != spoolRecord {
		return false, nil
	}
	f, err := s.dir.open(sp.name+dataSuffix, unix.O_RDWR)
	if err != nil {
		return false, nil
	}
	if ok, err := f.lock(unix.F_RDLCK, 0, 1); !ok || err != nil || !s.dir.is(f.name, f) {
		_ = f.Close() // it is being evicted
		return false, nil
	}
	size, id := int64(binary.LittleEndian.Uint64(rec[spoolSize:])), [16]byte(rec[spoolID:])
	s.mu.Lock()
	known := s.checked[sp.name] == id
	s.mu.Unlock()
	if st, err := f.Stat(); err != nil || st.Size() != size {
		_ = f.Close()
		return false, nil
	}
	if !known {
		sum, err := sumFile(ctx, f, size)
		if ctx.Err() != nil {
			_ = f.Close()
			return false, ctx.Err()
		}
		if err != nil || !bytes.Equal(sum, rec[spoolSum:spoolID]) {
			s.log.Warn("cached bytes are damaged, and will be made again", "key", key)
			_ = f.Close()
			return false, nil
		}
		s.know(sp.name, id)
	}
	sp.file, sp.size = f, size
	sp.touch()
	return true, nil
}

// maxChecked bounds how many spools are known to be verified: 64 KiB of memory.
const maxChecked = 1024

func (s *Store) know(name string, id [16]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.checked) >= maxChecked {
		clear(s.checked) // verified again when they are opened again
	}
	s.checked[name] = id
}

// sumBuffer is how much is read at once for that, in bytes.
const sumBuffer = 256 << 10

// sumFile returns the SHA-256 of a file's first bytes.
func sumFile(ctx context.Context, f io.ReaderAt, size int64) ([]byte, error) {
	h, b := sha256.New(), make([]byte, min(size, sumBuffer))
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p := b[:min(sumBuffer, size-off)]
		if _, err := f.ReadAt(p, off); err != nil {
			return nil, err
		}
		h.Write(p)
		off += int64(len(p))
	}
	return h.Sum(nil), nil
}

// fill makes the spool: in the directory, or in memory where that can't be.
func (sp *spool) fill(ctx context.Context, key string, fill func(io.Writer) error) error {
	s := sp.s
	w := &spoolWriter{ctx: ctx, s: s, hash: sha256.New()}
	var err error
	if s.diskWorks() {
		if w.f, err = s.dir.temp(); err != nil {
			s.diskFailed(err)
		}
	}
	if w.f == nil {
		err = w.toMemory()
	}
	if err == nil {
		err = fill(w)
	}
	if err == nil {
		err = w.err // fill may have swallowed it
	}
	if err == nil && !w.mem {
		if err = sp.install(key, w); err != nil {
			s.diskFailed(err)
			err = w.toMemory()
		}
	}
	if err != nil {
		w.discard()
		return err
	}
	sp.file, sp.size, sp.mem = w.f, w.n, w.mem
	return nil
}

// install puts what was written into its place. The record is last: without it
// the bytes don't count.
func (sp *spool) install(key string, w *spoolWriter) error {
	s := sp.s
	rec := make([]byte, spoolRecord)
	binary.LittleEndian.PutUint64(rec[spoolSize:], uint64(w.n))
	copy(rec[spoolSum:], w.hash.Sum(nil))
	_, _ = rand.Read(rec[spoolID:]) // crypto/rand.Read never fails
	if err := w.f.sync(); err != nil {
		return err
	}
	if err := s.dir.remove(sp.name + recordSuffix); err != nil {
		return err
	}
	if err := s.dir.rename(w.f.name, sp.name+dataSuffix); err != nil {
		return err
	}
	w.f.name = sp.name + dataSuffix
	if err := s.writeRecord(sp.name+recordSuffix, key, rec); err != nil {
		return err
	}
	s.know(sp.name, [16]byte(rec[spoolID:]))
	return nil
}

// spoolWriter writes a spool to a temporary file, and turns to memory when the
// disk fails.
type spoolWriter struct {
	ctx  context.Context
	s    *Store
	f    *file
	mem  bool
	n    int64
	kept int64 // bytes of it counted as kept in memory
	hash hash.Hash
	err  error
}

func (w *spoolWriter) Write(p []byte) (int, error) {
	if w.err == nil {
		w.err = w.ctx.Err()
	}
	if w.err == nil {
		w.err = w.write(p)
	}
	if w.err != nil {
		return 0, w.err
	}
	w.hash.Write(p)
	w.n += int64(len(p))
	return len(p), nil
}

func (w *spoolWriter) write(p []byte) error {
	if !w.mem {
		err := ErrFull
		if w.s.makeRoom(int64(len(p))) {
			err = w.f.writeAt(p, w.n)
		}
		if errors.Is(err, unix.ENOSPC) && w.s.emergency() {
			err = w.f.writeAt(p, w.n)
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrFull) {
			w.s.diskFailed(err)
		}
		if err := w.toMemory(); err != nil {
			return err
		}
	}
	if !w.s.makeMemory(int64(len(p))) {
		return fmt.Errorf("%d bytes in memory: %w", w.n+int64(len(p)), ErrFull)
	}
	w.s.room.spooled.Add(int64(len(p)))
	w.kept += int64(len(p))
	return w.f.writeAt(p, w.n)
}

// toMemory goes on in memory, with what was written so far.
func (w *spoolWriter) toMemory() error {
	m, err := memory("spool")
	if err != nil {
		return err
	}
	if w.n > 0 && !w.s.makeMemory(w.n) {
		_ = m.Close()
		return fmt.Errorf("%d bytes in memory: %w", w.n, ErrFull)
	}
	if w.f != nil {
		if _, err := io.Copy(m, io.NewSectionReader(w.f, 0, w.n)); err != nil {
			_ = m.Close()
			return err
		}
		w.discard()
	}
	w.f, w.mem, w.kept = m, true, w.n
	w.s.room.spooled.Add(w.n)
	return nil
}

// discard closes and removes what was written.
func (w *spoolWriter) discard() {
	if w.f == nil {
		return
	}
	if !w.mem {
		_ = w.s.dir.remove(w.f.name) // or the next sweep does
	}
	_ = w.f.Close()
	w.s.room.spooled.Add(-w.kept)
	w.f, w.kept = nil, 0
}

// surveySpool adds a spool to the candidates.
func (s *Store) surveySpool(c *candidates, name string) {
	var st unix.Stat_t
	if unix.Fstatat(int(s.dir.Fd()), name+dataSuffix, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	key, _, ok := s.readRecord(name + recordSuffix)
	if !ok && s.opt.clock().Sub(time.Unix(st.Mtim.Unix())) < time.Minute {
		return // its record comes next
	}
	if bytes.HasPrefix([]byte(key), []byte(c.prefix)) {
		c.add(victim{name: name, used: uint32(st.Mtim.Sec), bytes: st.Blocks * 512})
	}
}

// removeSpool removes a spool that nobody has open, and reports whether it did.
func (s *Store) removeSpool(name string) bool {
	f, err := s.dir.open(name+dataSuffix, unix.O_RDWR)
	if err != nil {
		return errors.Is(err, errForeign) && s.dir.remove(name+dataSuffix) == nil
	}
	defer f.Close()
	if ok, err := f.lock(unix.F_WRLCK, 0, 1); !ok || err != nil || !s.dir.is(f.name, f) {
		return false
	}
	return s.dir.remove(name+recordSuffix) == nil && s.dir.remove(name+dataSuffix) == nil
}

// touchSpools notes that the open spools are in use.
func (s *Store) touchSpools() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range s.spools {
		select {
		case <-sp.made:
			if sp.err == nil {
				sp.touch()
			}
		default:
		}
	}
}

// Size returns the length in bytes.
func (r *Spooled) Size() int64 { return r.sp.size }

// ReadAt implements block.Reader.
func (r *Spooled) ReadAt(p []byte, off int64) (int, error) {
	n, end := block.CheckRead(off, len(p), r.sp.size)
	if n == 0 {
		return 0, end
	}
	if got, err := r.sp.file.ReadAt(p[:n], off); got < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF // its size was checked
		}
		return got, err
	}
	return n, end
}

// Extent implements block.Mapper: all lies in one file.
func (r *Spooled) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	n = min(n, r.sp.size-off)
	if off < 0 || n < 1 {
		return block.Extent{}, fmt.Errorf("extent at %#x of %#x: %w", off, r.sp.size, io.EOF)
	}
	return block.Extent{Len: n, File: r.sp.file.File, Off: off}, nil
}

// Close gives the bytes back to be evicted when they are the least used. Further
// calls do nothing.
func (r *Spooled) Close() error {
	r.once.Do(r.sp.release)
	return nil
}
