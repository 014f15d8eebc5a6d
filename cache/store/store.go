// Package store keeps blocks of remote objects, derived bytes and small records
// in a directory that several processes share. Nothing in the directory is
// trusted: a block is verified on its first read, and what fails is dropped.
//
// Locks are the kernel's (open file description locks), so a process that dies
// leaves none behind. Where there is no directory to write to, the same code runs
// over files that lie in memory.
package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of this package, for errors.Is.
var (
	// ErrUnsafe is a cache directory that others can write to, or own.
	ErrUnsafe = errors.New("not a private directory of this user")
	// ErrAbsent is a read of a block that isn't in the store.
	ErrAbsent = errors.New("block not in the cache")
	// ErrFull is derived bytes that neither the disk nor the memory kept for them can hold.
	ErrFull = errors.New("no room in the cache")
	// ErrClosed is a call on a Store that was closed.
	ErrClosed = errors.New("cache is closed")

	errForeign = errors.New("not a file of the cache")
	errBusy    = errors.New("another process evicts that block")
)

const (
	// DefaultBudget is how many bytes the directory may take up when nobody says.
	DefaultBudget = 10 << 30
	// DefaultMemory is how many bytes are kept in memory when the disk can't take them.
	DefaultMemory = 256 << 20
)

// Options tune a Store. The zero value is the default.
type Options struct {
	// Budget is how many bytes the directory may take up on its disk; 0 means
	// DefaultBudget. It is never more than half of what is free or held by the
	// cache already.
	Budget int64
	// Memory bounds what is kept in memory while the disk can't take it, in
	// bytes; 0 means DefaultMemory.
	Memory int64
	// Logger gets one warning when the disk can't be used, and one per bad block;
	// nil discards them.
	Logger *slog.Logger

	hook  func(change) error // sees every change of a file
	boot  string             // instead of the kernel's boot id
	clock func() time.Time   // instead of time.Now
	lease time.Duration      // instead of leaseTime
}

// Store is a cache directory, opened. It is safe for parallel use.
type Store struct {
	dir  *directory // nil: memory only
	lock *file      // the directory's lock file
	opt  Options
	log  *slog.Logger
	boot uint32        // tag of this boot, 24 bits
	now  atomic.Uint32 // Unix seconds, set by the janitor
	// downUntil is when the disk may be tried again after it failed, Unix seconds.
	downUntil atomic.Int64
	warned    atomic.Bool

	mu      sync.Mutex // guards what follows
	closed  bool
	objects map[string]*Object // by file name
	spools  map[string]*spool  // by file name; those open or being made
	blobs   map[string][]byte  // in memory-only mode, by file name
	blobLen int64
	checked map[string][16]byte // spools verified by this process: their id

	commits committer
	room    room
	stop    chan struct{}
	done    sync.WaitGroup
}

// Open opens the cache in dir, which is made (mode 0700) if it isn't there. A
// directory that isn't this user's, or that others can write to, is ErrUnsafe. A
// directory that can't be written to, or "", gives a Store in memory, and a warning.
func Open(dir string, opt Options) (*Store, error) {
	if opt.Budget <= 0 {
		opt.Budget = DefaultBudget
	}
	if opt.Memory <= 0 {
		opt.Memory = DefaultMemory
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.clock == nil {
		opt.clock = time.Now
	}
	if opt.lease == 0 {
		opt.lease = leaseTime
	}
	s := &Store{
		opt: opt, log: opt.Logger, objects: make(map[string]*Object), spools: make(map[string]*spool),
		blobs: make(map[string][]byte), checked: make(map[string][16]byte), stop: make(chan struct{}),
	}
	s.tick()
	s.boot = bootTag(opt.boot)
	s.commits.kick = make(chan struct{}, 1)
	s.room.kick = make(chan struct{}, 1)
	switch err := s.openDir(dir); {
	case errors.Is(err, ErrUnsafe):
		return nil, err
	case err != nil:
		s.closeDir()
		s.warn("the cache is kept in memory only", err)
	}
	for _, run := range []func(){s.janitor, s.commitLoop, s.roomLoop} {
		s.done.Add(1)
		go func() { defer s.done.Done(); run() }()
	}
	return s, nil
}

// openDir opens the directory and finds out whether it can do what is needed.
func (s *Store) openDir(path string) error {
	if path == "" {
		return errors.New("no cache directory")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	s.dir = &directory{File: f, hook: s.opt.hook}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		s.closeDir()
		return fmt.Errorf("cache %s (owner %d, mode %#o): %w", path, st.Uid, st.Mode&0o7777, ErrUnsafe)
	}
	if s.lock, err = s.dir.openOurs(lockName); err != nil {
		return err
	}
	return s.probe()
}

// probe writes, punches and locks a file as the store will: not every filesystem
// (FAT, some network ones) can.
func (s *Store) probe() error {
	f, err := s.dir.temp()
	if err != nil {
		return err
	}
	f.hook = nil // nothing that a crash could matter to
	defer f.Close()
	defer s.dir.remove(f.name)
	if err := f.writeAt(make([]byte, 8192), 0); err != nil {
		return err
	}
	if err := f.punch(0, 4096); err != nil {
		return fmt.Errorf("punch a hole: %w", err)
	}
	if _, err := f.lock(unix.F_WRLCK, leaseBase, 1); err != nil {
		return fmt.Errorf("lock a range: %w", err)
	}
	return nil
}

func (s *Store) closeDir() {
	if s.lock != nil {
		_ = s.lock.Close()
	}
	if s.dir != nil {
		_ = s.dir.Close()
	}
	s.dir, s.lock = nil, nil
}

// InMemory reports whether the store has no directory to write to.
func (s *Store) InMemory() bool { return s.dir == nil }

// Close writes what is still to be written and closes the store. Objects and
// spools are closed with it; no Block may be in use.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	s.done.Wait()
	err := s.commitAll()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.objects {
		o.close()
	}
	for _, sp := range s.spools {
		if sp.file != nil {
			_ = sp.file.Close()
		}
	}
	s.objects, s.spools = map[string]*Object{}, map[string]*spool{}
	s.closeDir()
	return err
}

// diskWorks reports whether the disk is to be written to now.
func (s *Store) diskWorks() bool {
	until := s.downUntil.Load()
	return s.dir != nil && (until == 0 || int64(s.now.Load()) >= until)
}

// diskFailed turns to memory for a while, and says so once.
func (s *Store) diskFailed(err error) {
	s.downUntil.Store(int64(s.now.Load()) + int64(retryDisk/time.Second))
	s.warn("the cache can't be written to; blocks are kept in memory", err)
}

// retryDisk is how long a disk that failed is left alone.
const retryDisk = 30 * time.Second

func (s *Store) warn(what string, err error) {
	if !s.warned.Swap(true) {
		s.log.Warn(what, "err", err)
	}
}

// hashName returns the name, without suffix, of the files of a key.
func hashName(prefix string, parts ...any) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%v\x00", p)
	}
	return prefix + hex.EncodeToString(h.Sum(nil)[:20])
}

// bootTag returns the 24 bits by which entries of this boot are told from others.
func bootTag(id string) uint32 {
	if id == "" {
		// Without it, every start is taken for a boot: blocks that were not known
		// to be on disk are fetched again.
		id = time.Now().String()
		if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
			id = strings.TrimSpace(string(b))
		}
	}
	sum := sha256.Sum256([]byte(id))
	return uint32(sum[0])<<16 | uint32(sum[1])<<8 | uint32(sum[2])
}
