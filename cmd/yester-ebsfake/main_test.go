package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"yester/imageformats/ebs"
)

// TestRun serves two images and reads them by what is printed.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"a.img", "b.raw"} {
		img := make([]byte, 2<<20)
		copy(img[1<<20:], strings.Repeat("x", i+1))
		if err := os.WriteFile(filepath.Join(dir, name), img, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one := filepath.Join(t.TempDir(), "one")
	if err := os.WriteFile(one, bytes.Repeat([]byte("y"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, w := io.Pipe()
	stop := make(chan os.Signal, 1)
	done := make(chan error, 1)
	go func() {
		done <- run([]string{"-latency", "1ms", "-instance", "i-0a=/dev/xvda:vol-0d,/dev/xvdb:vol-00000000000000001",
			dir, one + ",volume=vol-0d,time=2026-11-01T03:00:00Z,tag:Name=web01"}, w, io.Discard, stop)
		w.Close()
	}()
	lines := bufio.NewScanner(stdout)
	for range 5 {
		if !lines.Scan() {
			t.Fatal(<-done)
		}
		k, v, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		t.Setenv(k, v)
	}
	ctx := context.Background()
	c, err := ebs.New(ctx, ebs.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	found, err := c.Snapshots(ctx, ebs.Query{Instance: "i-0a"})
	if err != nil || len(found) != 3 {
		t.Fatalf("%+v, %v", found, err)
	}
	if s := found[0]; s.Volume != "vol-0d" || s.Tags["Name"] != "web01" || !s.Start.Equal(time.Date(2026, 11, 1, 3, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v", s)
	}
	d, err := c.Open(found[2])
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, ebs.BlockSize)
	if err := d.Fetch(ctx, 2, p); err != nil || !bytes.HasPrefix(p, []byte("xx\x00")) {
		t.Errorf("%.4q, %v", p, err)
	}
	stop <- os.Interrupt
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestUsage: what can't be understood is refused.
func TestUsage(t *testing.T) {
	img := filepath.Join(t.TempDir(), "a.img")
	if err := os.WriteFile(img, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{}, {"-no-such-flag"}, {"/nonexistent"}, {img + ",id=web01"}, {img + ",time=yesterday"}, {img + ",colour=red"}, {img + ",id"},
		{"-instance", "i-0a", img}, {"-settings", "/nonexistent", img}, {"-settings", img, img}, {img + ",id=snap-01", img + ",id=snap-01"}, {"-listen", "nowhere:x", img},
	} {
		if err := run(args, io.Discard, io.Discard, nil); err == nil {
			t.Errorf("%q is accepted", args)
		} else if errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
