package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	awsebs "github.com/aws/aws-sdk-go-v2/service/ebs"

	"yester/cache"
	"yester/internal/ebsfake"
	"yester/testdata/versus"
)

// share shows how fast so many blocks went, beside what the fake can send at most.
func share(blocks int64) func(time.Duration) string {
	return func(d time.Duration) string {
		rate := float64(blocks) * ebsfake.BlockSize / d.Seconds()
		return fmt.Sprintf("%.0f MiB/s, %.0f %% of 500", rate/(1<<20), 100*rate/allBandwidth)
	}
}

// hydration fetches the whole first day into an empty cache, beside the AWS SDK
// with as many connections that throws away what it gets.
func (b *bench) hydration() error {
	const what = "hydration with nothing else going on"
	if !b.table.Wants(what) {
		return nil
	}
	b.fake.ResetCounts()
	if _, err := b.plainClient(); err != nil {
		return err
	}
	blocks := b.blocks()
	return b.table.Compare(versus.Side{Name: "the SDK alone, 64 at a time, nothing checked or kept", Run: b.plainClient}, share(blocks),
		versus.Contender{What: what, Goal: ">= 90 %", Run: func() (time.Duration, error) {
			o, err := open(day1, b.path("cache"), true)
			if err != nil {
				return 0, err
			}
			b.fake.ResetCounts()
			start := time.Now()
			err = o.Hydrate(context.Background(), cache.HydrateOptions{})
			d := time.Since(start)
			if n := b.blocks(); err == nil && n != blocks {
				err = fmt.Errorf("%d blocks fetched of %d", n, blocks)
			}
			return d, errors.Join(err, o.Close())
		}})
}

// plainClient fetches all blocks of the first day by the SDK itself.
func (b *bench) plainClient() (time.Duration, error) {
	ctx := context.Background()
	conf, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return 0, err
	}
	client := awsebs.NewFromConfig(conf)
	list, err := client.ListSnapshotBlocks(ctx, &awsebs.ListSnapshotBlocksInput{SnapshotId: aws.String(day1.id), MaxResults: aws.Int32(10_000)})
	if err != nil {
		return 0, err
	}
	var next sync.Mutex
	blocks := list.Blocks
	errs := make([]error, 64)
	var wg sync.WaitGroup
	start := time.Now()
	for w := range errs {
		wg.Go(func() {
			for {
				next.Lock()
				if len(blocks) == 0 {
					next.Unlock()
					return
				}
				block := blocks[0]
				blocks = blocks[1:]
				next.Unlock()
				out, err := client.GetSnapshotBlock(ctx, &awsebs.GetSnapshotBlockInput{SnapshotId: aws.String(day1.id), BlockIndex: block.BlockIndex, BlockToken: block.BlockToken})
				if err == nil {
					_, err = io.Copy(io.Discard, out.BlockData)
					err = errors.Join(err, out.BlockData.Close())
				}
				if err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}

// underHydration measures single reads of blocks that aren't there, alone and while
// everything is being fetched.
func (b *bench) underHydration() error {
	const what = "99th percentile of foreground reads under full hydration"
	if !b.table.Wants(what) {
		return nil
	}
	alone, n, err := b.reads(false)
	if err != nil {
		return err
	}
	with, m, err := b.reads(true)
	if err != nil {
		return err
	}
	p := func(d []time.Duration, percent int) time.Duration { return d[len(d)*percent/100] }
	b.table.Row(what, fmt.Sprintf("%s (median %s, %d reads, %d blocks hydrated meanwhile)", versus.Millis(p(with, 99)), versus.Millis(p(with, 50)), len(with), m-int64(len(with))),
		fmt.Sprintf("%s (median %s, %d reads; alone)", versus.Millis(p(alone, 99)), versus.Millis(p(alone, 50)), len(alone)),
		fmt.Sprintf("**%.2f×** as long", float64(p(with, 99))/float64(p(alone, 99))), "<= 1.5×")
	_ = n
	return nil
}

// reads reads 4 KiB of blocks here and there of the first day, until enough of them
// had to be waited for. It returns how long those took, sorted, and how many blocks
// the fake has sent.
func (b *bench) reads(hydrate bool) (taken []time.Duration, blocks int64, err error) {
	const enough = 400
	raw, err := os.Open(b.path(day1.file))
	if err != nil {
		return nil, 0, err
	}
	defer raw.Close()
	o, err := open(day1, b.path("cache"), true)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	// The first read learns which blocks there are.
	if _, err := o.ReadAt(make([]byte, 1), 0); err != nil {
		return nil, 0, err
	}
	b.fake.ResetCounts()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	if hydrate {
		go func() { done <- o.Hydrate(ctx, cache.HydrateOptions{}) }()
		time.Sleep(time.Second)
	}
	rnd := rand.New(rand.NewPCG(4, 4))
	p, q := make([]byte, 4096), make([]byte, 4096)
	for range 20 * enough {
		if len(taken) == enough {
			break
		}
		off := rnd.Int64N(diskSize/4096) * 4096
		before := o.Stats().Misses
		start := time.Now()
		if _, err := o.ReadAt(p, off); err != nil {
			cancel()
			return nil, 0, err
		}
		d := time.Since(start)
		if _, err := raw.ReadAt(q, off); err != nil || string(p) != string(q) {
			cancel()
			return nil, 0, fmt.Errorf("wrong bytes at %d (%w)", off, err)
		}
		if o.Stats().Misses > before {
			taken = append(taken, d)
		}
	}
	blocks = b.blocks()
	cancel()
	if hydrate {
		<-done
	}
	if len(taken) < enough/2 {
		return nil, 0, fmt.Errorf("only %d reads had to wait", len(taken))
	}
	slices.Sort(taken)
	return taken, blocks, nil
}

// copyLarge copies a file of 1 GiB out of the mount.
func (b *bench) copyLarge() error {
	const what = "copy of a file of 1 GiB out of the mount, empty cache"
	if !b.table.Wants(what) {
		return nil
	}
	var peak int64
	d, err := b.table.Measure(func() (d time.Duration, err error) {
		if err := os.RemoveAll(b.path("cache")); err != nil {
			return 0, err
		}
		files, err := b.mount(day1, b.path("cache"))
		if err != nil {
			return 0, err
		}
		if d, err = compared(filepath.Join(files, largeFile), largeFile, largeSize); err == nil {
			peak, err = b.peak()
		}
		return d, errors.Join(err, b.umount())
	})
	if err != nil {
		return err
	}
	b.table.Row(what, versus.Seconds(d)+", "+share(largeSize/ebsfake.BlockSize)(d), "", "", ">= 80 %")
	b.table.Row("memory of the mount after that (VmHWM)", fmt.Sprintf("%d MiB", peak>>20), "", "", "")
	return nil
}

// throttled copies the same file while the fake allows few requests a second.
func (b *bench) throttled() error {
	const what = "the same at 200 requests/s at most: once settled"
	if !b.table.Wants(what) {
		return nil
	}
	set := asAWS()
	set.SnapshotRate = throttledRate
	b.fake.SetSettings(set)
	if err := os.RemoveAll(b.path("cache")); err != nil {
		return err
	}
	files, err := b.mount(day1, b.path("cache"))
	if err != nil {
		return err
	}
	b.fake.ResetCounts()
	done := make(chan error, 1)
	go func() {
		_, err := compared(filepath.Join(files, largeFile), largeFile, largeSize)
		done <- err
	}()
	const settle = 3 * time.Second
	time.Sleep(settle)
	from, start := b.fake.Counts()["Blocks"], time.Now()
	var to int64
	var end time.Time
	for running := true; running; {
		select {
		case err = <-done:
			running = false
		case <-time.After(100 * time.Millisecond):
			if n := b.fake.Counts()["Blocks"]; n != to {
				to, end = n, time.Now()
			}
		}
	}
	if err := errors.Join(err, b.umount()); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	rate := float64(to-from) / end.Sub(start).Seconds()
	refused := b.fake.Counts()["Error:RequestThrottledException"]
	b.table.Row(what, fmt.Sprintf("%.0f blocks/s, %d requests refused, no error", rate, refused), "", fmt.Sprintf("**%.0f %%**", 100*rate/throttledRate), ">= 90 %")
	return nil
}
