package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"yester/cache"
	"yester/imageformats"
	"yester/internal/block"
	"yester/restorepoint"
	"yester/testdata/versus"
)

// largeFile reads the file of 200 MiB at the oldest date, and looks at what that
// has taken of memory and left on the host.
func (b *bench) largeFile() error {
	const what = "a file of 200 MiB at the oldest of 31 dates"
	cat := func() *exec.Cmd { return b.own("cat", b.large(), "/"+largeName, "--at", oldest) }
	err := b.table.Compare(
		versus.Side{Name: "restore", Run: func() (time.Duration, error) { return b.restore(b.large(), largeName) }},
		versus.Seconds,
		versus.Contender{What: what + ", whole process, empty cache (`yester cat`)", Goal: "< 0.5 s", Run: func() (time.Duration, error) {
			return versus.Timed(cat())
		}},
		versus.Contender{What: "the same with what the run before has left in the cache", Goal: "", Run: func() (time.Duration, error) {
			warm := cat()
			if _, err := versus.Timed(warm); err != nil {
				return 0, err
			}
			again := exec.Command(warm.Path, warm.Args[1:]...)
			again.Env = warm.Env
			return versus.Timed(again)
		}})
	if err != nil || !b.table.Wants("its memory") {
		return err
	}
	before, err := listing(b.large())
	if err != nil {
		return err
	}
	cmd := cat()
	var peak bytes.Buffer
	timed := exec.Command("/usr/bin/time", append([]string{"-f", "%M", cmd.Path}, cmd.Args[1:]...)...)
	timed.Env, timed.Stderr = cmd.Env, &peak
	if _, err := versus.Timed(timed); err != nil {
		return fmt.Errorf("%w: %s", err, peak.String())
	}
	var kib int64
	if _, err := fmt.Sscan(peak.String(), &kib); err != nil {
		return fmt.Errorf("time says %q: %w", peak.String(), err)
	}
	b.table.Row("its memory (ru_maxrss)", fmt.Sprintf("%d MiB", kib>>10), "", "", "< 64 MiB")
	after, err := listing(b.large())
	if err != nil {
		return err
	}
	if before != after {
		return fmt.Errorf("%s has changed", b.large())
	}
	inCache, elsewhere, err := written(b.path("home"))
	if err != nil {
		return err
	}
	b.table.Row("what it has written", fmt.Sprintf("%d KiB in the cache, %d files elsewhere", inCache>>10, elsewhere), "", "", "the cache only")
	return nil
}

// listing returns names, sizes and times of all that is in a folder.
func listing(dir string) (string, error) {
	out, err := exec.Command("find", dir, "-printf", `%p %s %T@ %C@\n`).Output()
	return string(out), err
}

// written returns the bytes allocated to the cache in a home that was empty, and
// how many files lie elsewhere in it.
func written(home string) (inCache int64, elsewhere int, err error) {
	err = filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !strings.HasPrefix(path, filepath.Join(home, "cache")+"/") {
			elsewhere++
			return nil
		}
		out, err := exec.Command("stat", "-c", "%b", path).Output()
		if err != nil {
			return err
		}
		var n int64
		_, err = fmt.Sscan(string(out), &n)
		inCache += n * 512
		return err
	})
	return inCache, elsewhere, err
}

// random reads 4 KiB here and there of the large file, in this process.
func (b *bench) random() error {
	const what = "4 KiB of it at random, in the reader"
	if !b.table.Wants(what) {
		return nil
	}
	_ = os.RemoveAll(b.path("home"))
	c, err := cache.Open(cache.Config{Dir: b.path("home/cache")})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := context.Background()
	src, err := restorepoint.Open(b.large(), restorepoint.Options{Spool: spool{c}})
	if err != nil {
		return err
	}
	defer src.Close()
	list, err := src.List(ctx)
	if err != nil {
		return err
	}
	if len(list.Points) == 0 {
		return fmt.Errorf("%s: no points", b.large())
	}
	point, err := src.OpenPoint(ctx, list.Points[0])
	if err != nil {
		return err
	}
	defer point.Close()
	id, err := point.Tree.Lookup(ctx, point.Tree.Root(), largeName)
	if err != nil {
		return err
	}
	start := time.Now()
	old, err := point.Tree.Open(ctx, id)
	if err != nil {
		return err
	}
	if _, err := old.ReadAt(make([]byte, 1), 0); err != nil {
		return err
	}
	opened := time.Since(start)
	restored, err := os.Open(b.target("large.restored"))
	if err != nil {
		return err
	}
	defer restored.Close()
	if err := same(old, restored); err != nil {
		return err
	}
	const reads = 50_000
	read := func(r io.ReaderAt) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			rnd := rand.New(rand.NewPCG(1, 2))
			p := make([]byte, 4096)
			start := time.Now()
			for range reads {
				if _, err := r.ReadAt(p, rnd.Int64N(largeSize-4096)); err != nil {
					return 0, err
				}
			}
			return time.Since(start), nil
		}
	}
	if err := b.table.Compare(versus.Side{Name: "plain file", Run: read(restored)}, versus.Each(reads),
		versus.Contender{What: what, Goal: "<= 20 µs", Run: read(old)}); err != nil {
		return err
	}
	b.table.Row("its opening, with the first byte", versus.Millis(opened), "", "", "")
	return nil
}

// same compares all bytes of the two.
func same(a block.Reader, b io.ReaderAt) error {
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < largeSize; off += int64(len(p)) {
		if err := block.ReadFull(context.Background(), a, p, off); err != nil {
			return err
		}
		if _, err := b.ReadAt(q, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(p, q) {
			return fmt.Errorf("%s differs from what rdiff-backup restores, near %d", largeName, off)
		}
	}
	if a.Size() != largeSize {
		return fmt.Errorf("%s has %d bytes", largeName, a.Size())
	}
	return nil
}

// spool keeps derived bytes in the cache.
type spool struct{ c *cache.Cache }

// Spool implements imageformats.Spooler.
func (s spool) Spool(ctx context.Context, key string, fill func(io.Writer) error) (imageformats.Spooled, error) {
	kept, err := s.c.Spool(ctx, key, fill)
	if err != nil {
		return nil, err
	}
	return kept, nil
}
