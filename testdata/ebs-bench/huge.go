package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"yester/internal/block"
	"yester/internal/ebsfake"
	"yester/testdata/versus"
)

const (
	hugeBlocks = 32 << 20 // 16 TiB
	// hugeMode is the first argument of the process that reads the map, so that its
	// memory is that of the map alone.
	hugeMode = "read-map"
	// mapRegion is the step in which the map is asked for, bytes: one list's worth.
	mapRegion = 4 << 30
)

// hugeMap has a process of its own learn which blocks of 16 TiB have been written:
// all of them.
func (b *bench) hugeMap() error {
	const what = "the map of a snapshot of 16 TiB, written to the last block (33.5 million)"
	if !b.table.Wants(what) {
		return nil
	}
	b.fake.SetSettings(ebsfake.Settings{})
	b.fake.ResetCounts()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(b.path("cache")); err != nil {
		return err
	}
	var out strings.Builder
	cmd := exec.Command(self, hugeMode, b.path("cache"))
	cmd.Stdout = &out
	d, err := versus.Timed(cmd)
	if err != nil {
		return err
	}
	var heap, peak int64
	if _, err := fmt.Sscan(out.String(), &heap, &peak); err != nil {
		return fmt.Errorf("%q: %w", out.String(), err)
	}
	b.table.Row(what, fmt.Sprintf("%d MiB of heap once read, at most %d MiB in memory (VmHWM); %s, %d lists", heap>>20, peak>>20, versus.Seconds(d), b.lists()), "", "", "< 300 MiB")
	return nil
}

// openHuge asks about a block of every region, and prints what that took of memory.
func openHuge(dir string) error {
	o, err := open(huge, dir, true)
	if err != nil {
		return err
	}
	ctx := context.Background()
	img := o.point.Disks[0].Image
	var wg sync.WaitGroup
	offs := make(chan int64)
	errs := make([]error, 8)
	for w := range errs {
		wg.Go(func() {
			for off := range offs {
				e, err := block.ExtentAt(ctx, img, off, 1)
				if err == nil && e.Zero {
					err = fmt.Errorf("block at %d reads as zeros, and was written", off)
				}
				errs[w] = errors.Join(errs[w], err)
			}
		})
	}
	for off := int64(0); off < o.Size(); off += mapRegion {
		offs <- off
	}
	close(offs)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// What lists in the background has nothing left to do then.
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if c := o.point.Disks[0].MaxCost(); c != nil && c.Blocks == hugeBlocks || time.Now().After(end) {
			break
		}
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	peak, err := versus.Peak(os.Getpid())
	if err != nil {
		return err
	}
	if _, err := fmt.Println(m.HeapAlloc, peak); err != nil {
		return err
	}
	return o.Close()
}
