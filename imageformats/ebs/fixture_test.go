package ebs_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"yester/imageformats/ebs"
	"yester/internal/ebsfake"
)

// fake starts a server and points the environment at it, as a user would.
func fake(t testing.TB, set ebsfake.Settings) *ebsfake.Server {
	t.Helper()
	s := ebsfake.New(ebsfake.Options{Settings: set})
	url, err := s.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for k, v := range map[string]string{
		"AWS_ENDPOINT_URL_EBS": url, "AWS_ENDPOINT_URL_EC2": url, "AWS_REGION": "us-east-1",
		"AWS_ACCESS_KEY_ID": ebsfake.TestCredentials.AccessKey, "AWS_SECRET_ACCESS_KEY": ebsfake.TestCredentials.Secret,
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
	} {
		t.Setenv(k, v)
	}
	return s
}

// client returns a Client with short delays.
func client(t testing.TB, cfg ebs.Config) *ebs.Client {
	t.Helper()
	if cfg.BaseDelay == 0 {
		cfg.BaseDelay = time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	c, err := ebs.New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// testWriter logs while the test runs.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

func add(t testing.TB, s *ebsfake.Server, snaps ...ebsfake.Snapshot) {
	t.Helper()
	for _, snap := range snaps {
		if err := s.Add(snap); err != nil {
			t.Fatal(err)
		}
	}
}

// open finds a snapshot and opens it.
func open(t testing.TB, c *ebs.Client, id string) *ebs.Disk {
	t.Helper()
	found, err := c.Snapshots(context.Background(), ebs.Query{Snapshot: id})
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Open(found[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// blobs is a Blobs in memory.
type blobs struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (b *blobs) Get(key string) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.m[key]
	return p, ok
}

func (b *blobs) Set(key string, p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.m == nil {
		b.m = map[string][]byte{}
	}
	b.m[key] = p
}

// every returns an image of which every step-th block was written.
func every(blocks, step int64) *ebsfake.Generated {
	return &ebsfake.Generated{Blocks: blocks, VersionOf: func(n int64) uint64 {
		if n%step == 0 {
			return 1
		}
		return 0
	}}
}

// inParallel calls f for 0…n-1 from as many goroutines as a bulk reader would.
func inParallel(n int64, f func(i int64) error) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	var next int64
	for range ebs.BulkInFlight {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				mu.Lock()
				i := next
				next++
				stop := first != nil || i >= n
				mu.Unlock()
				if stop {
					return
				}
				if err := f(i); err != nil {
					mu.Lock()
					if first == nil {
						first = fmt.Errorf("block %d: %w", i, err)
					}
					mu.Unlock()
				}
			}
		}()
	}
	wg.Wait()
	return first
}
