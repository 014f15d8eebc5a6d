package main

import (
	"fmt"
	"sync"
	"time"

	"yester/internal/copyout"
)

// progressEvery is how often progress is shown, and rateOver the time over which
// the rate is taken: long enough to be steady, short enough to notice a stall.
const (
	progressEvery = 250 * time.Millisecond
	rateOver      = 10 * time.Second
)

// meter works out rate and time left.
type meter struct {
	samples []sample // of the last rateOver
}

type sample struct {
	at    time.Time
	bytes int64
}

// add notes how far things are, and returns the rate in bytes per second.
func (m *meter) add(now time.Time, bytes int64) float64 {
	m.samples = append(m.samples, sample{now, bytes})
	for len(m.samples) > 2 && now.Sub(m.samples[0].at) > rateOver {
		m.samples = m.samples[1:]
	}
	first := m.samples[0]
	if s := now.Sub(first.at).Seconds(); s > 0 {
		return float64(bytes-first.bytes) / s
	}
	return 0
}

// line formats progress: total is negative when it isn't known yet.
func (m *meter) line(now time.Time, bytes, total int64, files string) string {
	rate := m.add(now, bytes)
	s := fmt.Sprintf("%s%s  %s/s", files, formatBytes(bytes), formatBytes(int64(rate)))
	if total < 0 {
		return s
	}
	percent := int64(100)
	if total > 0 {
		percent = bytes * 100 / total
	}
	s = fmt.Sprintf("%3d%%  %s%s of %s  %s/s", percent, files, formatBytes(bytes), formatBytes(total), formatBytes(int64(rate)))
	if rate > 1 && bytes < total {
		s += "  " + formatDuration(time.Duration(float64(total-bytes)/rate*float64(time.Second))) + " left"
	}
	return s
}

// show shows what line returns until the function it returns is called: on a
// terminal only.
func (g *globalFlags) show(line func(time.Time) string) (stop func()) {
	if g.json || !terminal(g.stderr) {
		return func() {}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				g.talk.progress(line(now))
			case <-done:
				g.talk.progress("")
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

// showCopy shows the progress of a copy.
func (g *globalFlags) showCopy(p *copyout.Progress) (stop func()) {
	p.WantTotals = !g.json && terminal(g.stderr)
	var m meter
	return g.show(func(now time.Time) string {
		s := p.Snapshot()
		if !s.TotalsKnown {
			return m.line(now, s.Bytes, -1, fmt.Sprintf("%d files  ", s.Files))
		}
		return m.line(now, s.Bytes, s.TotalBytes, fmt.Sprintf("%d of %d files  ", s.Files, s.TotalFiles))
	})
}
