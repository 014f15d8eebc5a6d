package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"yester/restorepoint"
)

// hydration fetches the point that a mount shows, or its newest, in the background
// of the mount. SIGUSR1 holds it, SIGUSR2 lets it go on.
type hydration struct {
	state atomic.Pointer[restorepoint.Hydration]
}

// status is what `yester status` shows; nil when there is none.
func (h *hydration) status() *restorepoint.Hydration { return h.state.Load() }

// run works until all is here or ctx ends.
func (h *hydration) run(ctx context.Context, g *globalFlags, src *restorepoint.Source, bandwidth int64, log *slog.Logger) {
	h.state.Store(&restorepoint.Hydration{})
	err := h.fetch(ctx, g, src, bandwidth, log)
	last := *h.state.Load()
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		last.Error = err.Error()
		log.Error("hydration has ended", "error", err)
	default:
		last.Done = true
		log.Info("hydrated: all of the point is on this host", "bytes", last.Bytes)
	}
	h.state.Store(&last)
}

func (h *hydration) fetch(ctx context.Context, g *globalFlags, src *restorepoint.Source, bandwidth int64, log *slog.Logger) error {
	p, err := g.selectPoint(ctx, src)
	if err != nil {
		return err
	}
	o, err := src.OpenPoint(ctx, p)
	if err != nil {
		return err
	}
	defer o.Close()
	if !o.Far() {
		return errors.New("the disks of the point lie on this host: there is nothing to fetch")
	}
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGUSR1, syscall.SIGUSR2)
	done := make(chan struct{})
	defer func() { signal.Stop(sig); close(done) }()
	go func() {
		for {
			select {
			case s := <-sig:
				o.PauseHydration(s == syscall.SIGUSR1)
				log.Info("hydration", "paused", s == syscall.SIGUSR1)
			case <-done:
				return
			}
		}
	}()
	return o.Hydrate(ctx, restorepoint.HydrateOptions{
		Bandwidth: bandwidth, Progress: func(p restorepoint.Hydration) { h.state.Store(&p) },
	})
}
