package decoded

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestReadAt reads what units make up at random, in parallel, under a budget that
// holds few of them.
func TestReadAt(t *testing.T) {
	old := shared
	shared = newCache(10 * 1000)
	defer func() { shared = old }()
	const unitSize, size = 1000, 123456
	whole := make([]byte, size)
	for i := range whole {
		whole[i] = byte(rand.Uint32())
	}
	u := New(func(_ context.Context, n int64) ([]byte, error) {
		return whole[n*unitSize : min(size, (n+1)*unitSize)], nil
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				off := rand.Int64N(size)
				p := make([]byte, 1+rand.Int64N(min(5000, size-off)))
				if err := u.ReadAt(t.Context(), p, off, unitSize); err != nil || !bytes.Equal(p, whole[off:off+int64(len(p))]) {
					t.Errorf("read of %d at %d: %v", len(p), off, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for range cap(ahead) { // until nothing is decoded ahead any more
		ahead <- struct{}{}
	}
	for range cap(ahead) {
		<-ahead
	}
	if shared.bytes > shared.max {
		t.Errorf("%d bytes kept, budget %d", shared.bytes, shared.max)
	}
	u.Close()
	if shared.bytes != 0 || len(shared.at) != 0 || shared.lru.Len() != 0 {
		t.Errorf("after Close: %d bytes, %d units", shared.bytes, len(shared.at))
	}
}

// TestOnce lets many ask for one unit: it is decoded once, a failure is told to
// all of them and not kept, and an interrupted decoder is no failure of others.
func TestOnce(t *testing.T) {
	var calls atomic.Int64
	started, cancelled := make(chan struct{}), make(chan struct{})
	fail := errors.New("bad unit")
	u := New(func(ctx context.Context, n int64) ([]byte, error) {
		switch c := calls.Add(1); {
		case n == 1 && c == 1:
			close(started)
			<-ctx.Done()
			close(cancelled)
			return nil, ctx.Err()
		case n == 2:
			return nil, fail
		}
		return []byte{byte(n)}, nil
	})
	defer u.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go u.Get(ctx, 1)
	<-started
	got := make(chan error)
	go func() {
		data, err := u.Get(t.Context(), 1)
		if err == nil && data[0] != 1 {
			err = errors.New("wrong bytes")
		}
		got <- err
	}()
	cancel()
	<-cancelled
	if err := <-got; err != nil {
		t.Errorf("after another's interruption: %v", err)
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("decoded %d times, want 2", n)
	}
	for range 2 {
		if _, err := u.Get(t.Context(), 2); !errors.Is(err, fail) {
			t.Errorf("%v, want %v", err, fail)
		}
	}
	if n := calls.Load(); n != 4 {
		t.Errorf("decoded %d times, want 4: a failure is not kept", n)
	}
}
