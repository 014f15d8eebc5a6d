package main

import (
	"context"
	"io"
	"log/slog"
	"sync"

	"yester/cache"
	"yester/imageformats"
)

// lazyCache is the cache of this process, opened when something needs it: most
// commands read local images and leave no trace on the host.
type lazyCache struct {
	mu     sync.Mutex // guards what follows
	cfg    cache.Config
	opened *cache.Cache
}

// get returns the cache.
func (l *lazyCache) get() (*cache.Cache, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened != nil {
		return l.opened, nil
	}
	c, err := cache.Open(l.cfg)
	if err == nil {
		l.opened = c
	}
	return c, err
}

// use says where warnings go; it counts before the cache is opened.
func (l *lazyCache) use(logger *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cfg.Logger = logger
}

// Spool implements imageformats.Spooler.
func (l *lazyCache) Spool(ctx context.Context, key string, fill func(w io.Writer) error) (imageformats.Spooled, error) {
	c, err := l.get()
	if err != nil {
		return nil, err
	}
	s, err := c.Spool(ctx, key, fill)
	if err != nil {
		return nil, err // not s: a nil *store.Spooled in a Spooled is not nil
	}
	return s, nil
}

// stats returns the cache's figures; nil when nothing has needed it.
func (l *lazyCache) stats() *cache.Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened == nil {
		return nil
	}
	s := l.opened.Stats()
	return &s
}

// close closes the cache if it was opened.
func (l *lazyCache) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened == nil {
		return nil
	}
	err := l.opened.Close()
	l.opened = nil
	return err
}
