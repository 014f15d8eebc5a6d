// Package cache keeps blocks of things that lie far away: it is laid over an
// origin that reads ranges and names its version, fetches what is asked for and
// what is likely to be asked for next, once, and gives its place in a host file.
//
// What is fetched is kept in a directory that processes share (package store).
// Each origin has a Scheduler, by which whoever waits comes first.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"yester/cache/store"
)

// Config says where a Cache lies and how large it may be.
type Config struct {
	// Dir is the directory, made (mode 0700) if it isn't there; empty: yester in
	// $XDG_CACHE_HOME, or in ~/.cache.
	Dir string
	// Budget is how many bytes it may take up; 0: store.DefaultBudget. It is never
	// more than half of what is free on the disk or held by the cache already.
	Budget int64
	// Logger receives warnings; nil discards them.
	Logger *slog.Logger
}

// ErrClosed is a call on a Cache or Reader that was closed.
var ErrClosed = errors.New("cache is closed")

// Cache is an opened cache. It is safe for parallel use.
type Cache struct {
	store *store.Store
	dir   string
	log   *slog.Logger
	total counters
	kept  keeper

	mu       sync.Mutex // guards what follows
	closed   bool
	objects  map[objectID]*object
	lineages map[string]*lineage
	readers  map[*Reader]struct{}

	stop chan struct{}
	done sync.WaitGroup
}

// Dir returns the directory that a Cache without one uses.
func Dir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for a cache: %w", err)
	}
	return filepath.Join(base, "yester"), nil
}

// Open opens the cache. A directory that can't be written to gives a Cache in
// memory, and a warning; one that others could have written to is an error that
// matches store.ErrUnsafe.
func Open(cfg Config) (*Cache, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dir == "" {
		dir, err := Dir()
		if err != nil {
			cfg.Logger.Warn("nothing is kept from one run to the next", "err", err)
		}
		cfg.Dir = dir
	}
	st, err := store.Open(cfg.Dir, store.Options{Budget: cfg.Budget, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	c := &Cache{
		store: st, dir: cfg.Dir, log: cfg.Logger,
		objects: make(map[objectID]*object), lineages: make(map[string]*lineage), readers: make(map[*Reader]struct{}),
		stop: make(chan struct{}),
	}
	_, limit, err := st.Usage()
	if err != nil || st.InMemory() {
		limit = store.DefaultMemory
	}
	c.kept.most = limit / keepShare
	c.done.Add(1)
	go func() { defer c.done.Done(); c.saveLoop() }()
	return c, nil
}

// saveEvery is how often the hot maps that have changed are saved: what a crash
// may lose of one.
const saveEvery = 20 * time.Second

func (c *Cache) saveLoop() {
	t := time.NewTicker(saveEvery)
	defer t.Stop()
	for {
		select {
		case <-c.stop:
			return
		case <-t.C:
			c.saveLineages()
		}
	}
}

func (c *Cache) saveLineages() {
	c.mu.Lock()
	list := make([]*lineage, 0, len(c.lineages))
	for _, l := range c.lineages {
		list = append(list, l)
	}
	c.mu.Unlock()
	for _, l := range list {
		l.save()
	}
}

// Store returns what the cache keeps its blocks in: for what is managed there
// (status, pruning, verifying).
func (c *Cache) Store() *store.Store { return c.store }

// Spool keeps what fill writes under key, which names content and version, or
// gives what was kept under it before. The result lies in a host file, and is
// valid until closed.
func (c *Cache) Spool(ctx context.Context, key string, fill func(io.Writer) error) (*store.Spooled, error) {
	return c.store.Spool(ctx, key, fill)
}

// Blobs are small values that a client of an origin keeps between runs, in the
// cache's directory: they may vanish at any time, and whoever gets one checks it.
// Its methods are safe for parallel use.
type Blobs struct{ c *Cache }

// Blobs returns where an origin's client keeps small values.
func (c *Cache) Blobs() Blobs { return Blobs{c} }

// Get returns the value of key, if there is one.
func (b Blobs) Get(key string) ([]byte, bool) {
	v, err := b.c.store.Blob(key)
	return v, err == nil && v != nil
}

// Set keeps a value. One that can't be kept is as good as vanished.
func (b Blobs) Set(key string, value []byte) {
	if err := b.c.store.SetBlob(key, value); err != nil {
		b.c.log.Info("a value isn't kept", "key", key, "err", err)
	}
}

// Close closes the readers that are still open, saves what is known of what is
// hot, and closes the store.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	open := make([]*Reader, 0, len(c.readers))
	for r := range c.readers {
		open = append(open, r)
	}
	c.mu.Unlock()
	var errs []error
	for _, r := range open {
		errs = append(errs, r.Close())
	}
	close(c.stop)
	c.done.Wait()
	return errors.Join(append(errs, c.store.Close())...)
}
