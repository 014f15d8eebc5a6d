package restorepoint

import (
	"context"
	"sync"
	"sync/atomic"
)

// lazy is a value that is made when it is first asked for, by one caller at a
// time; those who wait leave when their context ends. A failure is not
// remembered: whoever asks next tries again, since an origin may be back by then.
type lazy[T any] struct {
	val  atomic.Pointer[T]
	init sync.Once
	turn chan struct{} // holds a token while nobody makes the value
}

func (l *lazy[T]) get(ctx context.Context, make func(context.Context) (T, error)) (T, error) {
	if v := l.val.Load(); v != nil {
		return *v, nil
	}
	var zero T
	l.init.Do(func() { l.turn = newTurn() })
	select {
	case <-l.turn:
	case <-ctx.Done():
		return zero, ctx.Err()
	}
	defer func() { l.turn <- struct{}{} }()
	if v := l.val.Load(); v != nil {
		return *v, nil
	}
	v, err := make(ctx)
	if err != nil {
		return v, err
	}
	l.val.Store(&v)
	return v, nil
}

// done returns the value if it has been made.
func (l *lazy[T]) done() (v T, ok bool) {
	if p := l.val.Load(); p != nil {
		return *p, true
	}
	return v, false
}

func newTurn() chan struct{} {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	return c
}
