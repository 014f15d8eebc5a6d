package ebs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"yester/imageformats/ebs"
	"yester/internal/ebsfake"
	"yester/internal/treetest"
)

// TestRead reads a filesystem's image through the SDK, block by block: the same
// bytes, and not a request for what was never written.
func TestRead(t *testing.T) {
	treetest.Need(t, "mkfs.ext4")
	path := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command("mkfs.ext4", "-q", "-d", "../../guestfs", path, "256M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	img, err := ebsfake.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	s := fake(t, ebsfake.Settings{})
	add(t, s, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: img})
	c := client(t, ebs.Config{})
	d := open(t, c, "snap-0a")
	ctx := context.Background()
	if d.Size() != 1<<30 || d.Blocks() != 2048 {
		t.Fatalf("%d bytes, %d blocks", d.Size(), d.Blocks())
	}
	want, got := sha256.New(), sha256.New()
	const blocks = 256 << 20 / ebs.BlockSize // the rest of the volume's GiB was never written
	if _, err := io.Copy(want, io.NewSectionReader(img, 0, img.Size())); err != nil {
		t.Fatal(err)
	}
	p, raw := make([]byte, ebs.BlockSize), make([]byte, ebs.BlockSize)
	var written int64
	for n := range int64(blocks) {
		if err := d.Fetch(ctx, n, p); err != nil {
			t.Fatal(err)
		}
		got.Write(p)
		if _, err := img.ReadAt(raw, n*ebs.BlockSize); err != nil {
			t.Fatal(err)
		}
		empty := bytes.Count(raw, []byte{0}) == len(raw)
		if zero, err := d.Zero(ctx, n); err != nil || zero != empty {
			t.Fatalf("block %d: Zero %v, %v; want %v", n, zero, err, empty)
		}
		if !empty {
			written++
		}
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("the disk is not the image")
	}
	if err := d.Fetch(ctx, blocks, p); err != nil || bytes.Count(p, []byte{0}) != len(p) {
		t.Errorf("past the image: %v, or no zeros", err)
	}
	n, ok, err := d.Next(ctx, 0)
	var next int64
	for ; ok && err == nil; n, ok, err = d.Next(ctx, n+1) {
		next++
	}
	if err != nil || next != written {
		t.Errorf("Next finds %d blocks (%v), want %d", next, err, written)
	}
	cost := d.Cost()
	if cost.Blocks != written || cost.Lists != 1 || cost.RetriedBlocks != 0 {
		t.Errorf("cost %v, want %d blocks and one list", cost, written)
	}
	if counts := s.Counts(); counts["Blocks"] != written || counts["ListSnapshotBlocks"] != 1 {
		t.Errorf("the server counts %v", counts)
	}
	if max := d.MaxCost(); max.Blocks != written {
		t.Errorf("at most %v, want %d blocks", max, written)
	}
	if err := d.Fetch(ctx, d.Blocks(), p); !errors.Is(err, io.EOF) {
		t.Errorf("fetch past the end: %v", err)
	}
}

// TestFaults reads a whole image while ten thousand things go wrong.
func TestFaults(t *testing.T) {
	const blocks, faults = 1024, 10000
	img := every(blocks, 1)
	// Most faults cost no body, so that the test isn't about bandwidth.
	s := fake(t, ebsfake.Settings{PageSize: 500, EmptyPages: 0.3, Faults: ebsfake.Faults{
		Seed: 7, InternalError: 0.3, Throttle: 0.25, Reset: 0.2, ExpiredToken: 0.03,
		Truncate: 0.05, BadChecksum: 0.03, BadData: 0.03, MaxRow: 6,
	}})
	add(t, s, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: img})
	var throttles sync.Map
	c := client(t, ebs.Config{Throttled: func(id string) { throttles.Store(id, true) }})
	d := open(t, c, "snap-0a")
	ctx := context.Background()
	rounds := 0
	for s.Counts()["Fault"] < faults {
		rounds++
		sums := make([][32]byte, blocks)
		if err := inParallel(blocks, func(n int64) error {
			p := buffers.Get().(*[ebs.BlockSize]byte)
			defer buffers.Put(p)
			if err := d.Fetch(ctx, n, p[:]); err != nil {
				return err
			}
			sums[n] = sha256.Sum256(p[:])
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, ebs.BlockSize)
		for n := range sums {
			if img.Block(int64(n), p); sums[n] != sha256.Sum256(p) {
				t.Fatalf("block %d is wrong", n)
			}
		}
	}
	counts := s.Counts()
	for _, kind := range []string{"InternalError", "Throttle", "Reset", "ExpiredToken", "Truncate", "BadChecksum", "BadData"} {
		if counts["Fault:"+kind] < 100 {
			t.Errorf("only %d faults %s", counts["Fault:"+kind], kind)
		}
	}
	if _, ok := throttles.Load("snap-0a"); !ok {
		t.Error("nobody was told of the throttling")
	}
	cost := c.Cost()
	if cost.Blocks != int64(rounds*blocks) || cost.RetriedBlocks == 0 || cost.Discarded == 0 || cost.Discarded >= cost.RetriedBlocks {
		t.Errorf("%v: %+v", cost, cost)
	}
	t.Logf("%d faults, %d rounds: %v", counts["Fault"], rounds, cost)
}

var buffers = sync.Pool{New: func() any { return new([ebs.BlockSize]byte) }}

// TestPaging lists by tiny and by empty pages, from anywhere.
func TestPaging(t *testing.T) {
	for name, set := range map[string]ebsfake.Settings{
		"whole":        {},
		"small":        {PageSize: 7},
		"empty":        {PageSize: 100, EmptyPages: 0.9},
		"expiring":     {PageSize: 50, PageTokenLife: 1},
		"tokens short": {PageSize: 50, BlockTokenLife: 1},
	} {
		t.Run(name, func(t *testing.T) {
			img := every(40000, 13)
			s := fake(t, set)
			add(t, s, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: img, VolumeSize: 20})
			d := open(t, client(t, ebs.Config{}), "snap-0a")
			ctx := context.Background()
			for _, n := range []int64{30000, 39999, 26, 40959, 0, 8191, 8192, 13 * 1000} {
				if zero, err := d.Zero(ctx, n); err != nil || zero != (n%13 != 0 || n >= 40000) {
					t.Fatalf("block %d: Zero %v, %v", n, zero, err)
				}
			}
			var found int64
			n, ok, err := d.Next(ctx, 0)
			for ; ok; n, ok, err = d.Next(ctx, n+1) {
				if n != found*13 {
					t.Fatalf("Next gives %d, want %d", n, found*13)
				}
				found++
			}
			if err != nil || found != (40000+12)/13 {
				t.Errorf("%d blocks, %v", found, err)
			}
		})
	}
}

// TestFirstTouch: the first look at the far end of a large disk lists there.
func TestFirstTouch(t *testing.T) {
	s := fake(t, ebsfake.Settings{Latency: ebsfake.Duration(2 * time.Millisecond)})
	add(t, s, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: every(2<<20, 1)}) // 1 TiB
	d := open(t, client(t, ebs.Config{}), "snap-0a")
	p := make([]byte, ebs.BlockSize)
	if err := d.Fetch(context.Background(), 2_000_000, p); err != nil {
		t.Fatal(err)
	}
	if lists := s.Counts()["ListSnapshotBlocks"]; lists > 3 { // one for the block, and what the background has begun
		t.Errorf("%d lists before the first block", lists)
	}
}

// TestTokens: tokens that expire while in memory, in a blob, and by surprise.
func TestTokens(t *testing.T) {
	const blocks = 3000
	s := fake(t, ebsfake.Settings{})
	img := every(blocks, 1)
	add(t, s, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: img, VolumeSize: 2})
	var kept blobs
	ctx := context.Background()
	p, want := make([]byte, ebs.BlockSize), make([]byte, ebs.BlockSize)
	fetch := func(d *ebs.Disk, n int64) {
		t.Helper()
		if err := d.Fetch(ctx, n, p); err != nil {
			t.Fatal(err)
		}
		if img.Block(n, want); !bytes.Equal(p, want) {
			t.Fatalf("block %d is wrong", n)
		}
	}
	lists := func() int64 { return s.Counts()["ListSnapshotBlocks"] }

	c := client(t, ebs.Config{Blobs: &kept})
	d := open(t, c, "snap-0a")
	fetch(d, 1)
	d.Close()
	c.Close()
	if lists() != 1 {
		t.Fatalf("%d lists", lists())
	}
	// Another run needs no list at all: map and tokens were kept.
	c = client(t, ebs.Config{Blobs: &kept})
	d = open(t, c, "snap-0a")
	fetch(d, 2)
	if lists() != 1 || c.Cost().Lists != 0 {
		t.Errorf("%d lists; the second run's cost is %v", lists(), c.Cost())
	}
	c.Close()
	// A server that has forgotten its tokens: listed again, without a word.
	again := fake(t, ebsfake.Settings{})
	add(t, again, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: img, VolumeSize: 2})
	moved := blobs{m: map[string][]byte{}}
	c = client(t, ebs.Config{Blobs: &moved})
	for k, v := range kept.m { // keys carry the endpoint, which has changed
		_, rest, _ := strings.Cut(strings.TrimPrefix(k, "ebs/"), "/")
		own := c.Key("")
		moved.m[own+rest] = v
	}
	d = open(t, c, "snap-0a")
	if err := inParallel(50, func(i int64) error { return d.Fetch(ctx, i, make([]byte, ebs.BlockSize)) }); err != nil {
		t.Fatal(err)
	}
	if n := again.Counts()["ListSnapshotBlocks"]; n != 1 {
		t.Errorf("%d lists for tokens that were refused, want 1", n)
	}
	if n := again.Counts()["Error:ValidationException"]; n == 0 {
		t.Error("no token was refused: the test tests nothing")
	}
	// Tokens that live a second: those in memory are listed again in time.
	set := again.Settings()
	set.BlockTokenLife = ebsfake.Duration(2 * time.Second)
	again.SetSettings(set)
	c = client(t, ebs.Config{})
	d = open(t, c, "snap-0a")
	fetch(d, 5)
	before := again.Counts()
	time.Sleep(2100 * time.Millisecond)
	fetch(d, 5)
	after := again.Counts()
	if after["ListSnapshotBlocks"] != before["ListSnapshotBlocks"]+1 || after["Error:ValidationException"] != before["Error:ValidationException"] {
		t.Errorf("before %v, after %v", before, after)
	}
}

// TestHuge: a sparse volume of 16 TiB, of which 131,072 blocks were written.
func TestHuge(t *testing.T) {
	const blocks = 32 << 20
	s := fake(t, ebsfake.Settings{})
	add(t, s, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: every(blocks, 256), VolumeSize: 16 << 10})
	d := open(t, client(t, ebs.Config{}), "snap-0a")
	ctx := context.Background()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var found int64
	n, ok, err := d.Next(ctx, 0)
	for ; ok; n, ok, err = d.Next(ctx, n+256*100) {
		found++
	}
	if err != nil || found != blocks/256/100+1 {
		t.Fatalf("%d found, %v", found, err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	// The server's own memory is in this as well.
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 100<<20 {
		t.Errorf("the map takes %d MiB", grown>>20)
	}
	if _, err := os.Stat("/proc/self/status"); err == nil {
		t.Logf("heap grew by %d KiB; %v", (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>10, d.Cost())
	}
}

// TestCancel: whoever gives up leaves at once, wherever it waits.
func TestCancel(t *testing.T) {
	s := fake(t, ebsfake.Settings{})
	add(t, s, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: every(4096, 1)})
	d := open(t, client(t, ebs.Config{Stall: time.Hour, GiveUp: time.Hour, BaseDelay: time.Hour}), "snap-0a")
	p := make([]byte, ebs.BlockSize)
	leave := func(what string, do func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- do(ctx) }()
		time.Sleep(20 * time.Millisecond)
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: still there after ten seconds", what)
		}
	}
	hang := ebsfake.Settings{Faults: ebsfake.Faults{Hang: 1}}
	s.SetSettings(hang)
	leave("a list", func(ctx context.Context) error { _, err := d.Zero(ctx, 0); return err })
	s.SetSettings(ebsfake.Settings{})
	s.Close() // ends the list that hangs

	s = fake(t, ebsfake.Settings{})
	add(t, s, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: every(4096, 1)})
	d = open(t, client(t, ebs.Config{Stall: time.Hour, GiveUp: time.Hour, BaseDelay: time.Hour}), "snap-0a")
	if err := d.Fetch(context.Background(), 0, p); err != nil {
		t.Fatal(err)
	}
	s.SetSettings(hang)
	leave("a fetch", func(ctx context.Context) error { return d.Fetch(ctx, 1, p) })
	s.SetSettings(ebsfake.Settings{ConnBandwidth: 64 << 10})
	leave("a body", func(ctx context.Context) error { return d.Fetch(ctx, 2, p) })
	s.SetSettings(ebsfake.Settings{Faults: ebsfake.Faults{InternalError: 1}})
	leave("a delay", func(ctx context.Context) error { return d.Fetch(ctx, 3, p) })
}

// TestGone: an origin that goes away is an error in time, and back when it is back.
func TestGone(t *testing.T) {
	s := fake(t, ebsfake.Settings{})
	add(t, s, ebsfake.Snapshot{ID: "snap-0a", VolumeID: "vol-0a", Image: every(4096, 1)})
	d := open(t, client(t, ebs.Config{Stall: 100 * time.Millisecond, Attempts: 3}), "snap-0a")
	ctx := context.Background()
	p := make([]byte, ebs.BlockSize)
	if err := d.Fetch(ctx, 0, p); err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string]ebsfake.Settings{
		"gone":  {Gone: true},
		"hangs": {Faults: ebsfake.Faults{Hang: 1}},
		"500":   {Faults: ebsfake.Faults{InternalError: 1}},
	} {
		s.SetSettings(set)
		err := d.Fetch(ctx, 1, p)
		if !errors.Is(err, ebs.ErrUnreachable) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "blockToken") {
			t.Errorf("%s: the error shows a token: %v", name, err)
		}
		s.SetSettings(ebsfake.Settings{})
		if err := d.Fetch(ctx, 1, p); err != nil {
			t.Errorf("%s, and back: %v", name, err)
		}
	}
}
