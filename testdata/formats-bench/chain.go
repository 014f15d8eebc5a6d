package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"yester/imageformats"
	"yester/imageformats/vhd"
	"yester/imageformats/vhdx"
	"yester/internal/block"
	"yester/testdata/versus"
)

const (
	chainSize  = 1 << 40
	chainDepth = 10
	// openChainMode is the first argument of the process that opens a chain, so that
	// its memory is that of the opening alone.
	openChainMode = "open-chain"
)

// chains measures opening chains of ten sparse images of a terabyte.
func (b *bench) chains() error {
	for _, c := range []struct {
		name string
		make func(dir string) error
		peer string
	}{
		{"qcow2", func(dir string) error { return qemuChain(dir, "qcow2") }, "qcow2"},
		{"vmdk", func(dir string) error { return qemuChain(dir, "vmdk") }, "vmdk"},
		{"vhd", vhdChain, "vpc"},
		{"vhdx", vhdxChain, ""},
	} {
		what := fmt.Sprintf("opening a chain of %d %s of 1 TiB, with a read of each", chainDepth, strings.ToUpper(c.name))
		if c.name == "qcow2" {
			what = strings.Replace(what, "QCOW2", "qcow2", 1)
		}
		if !b.table.Wants(what) {
			continue
		}
		dir := b.path("chain-" + c.name)
		if _, err := os.Stat(dir); err != nil {
			fmt.Fprintln(os.Stderr, "making", filepath.Base(dir), "…")
			if err := errors.Join(os.RemoveAll(dir+".part"), os.MkdirAll(dir+".part", 0o755)); err != nil {
				return err
			}
			if err := c.make(dir + ".part"); err != nil {
				return err
			}
			if err := os.Rename(dir+".part", dir); err != nil {
				return err
			}
		}
		if err := b.chain(what, dir, c.peer); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// chain has a process of its own open a chain; QEMU's qemu-io is timed as a whole
// process, and so is ours, beside what the opening itself took.
func (b *bench) chain(what, dir, driver string) error {
	var opens, all, theirs []time.Duration
	var peak int64
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for range b.table.Rounds {
		if driver != "" {
			args := []string{"-r", "-f", driver}
			for i := range chainDepth {
				args = append(args, "-c", fmt.Sprintf("read -q %d %d", patchAt(i), patchSize))
			}
			cmd := exec.Command("qemu-io", append(args, last(dir))...)
			cmd.Dir = dir
			if d, err := versus.Timed(cmd); err == nil {
				theirs = append(theirs, d)
			} else if driver != "vpc" { // whose parents it doesn't read
				return err
			}
		}
		var out strings.Builder
		cmd := exec.Command(self, openChainMode, dir)
		cmd.Stdout = &out
		d, err := versus.Timed(cmd)
		if err != nil {
			return err
		}
		var opened time.Duration
		var p int64
		if _, err := fmt.Sscan(out.String(), (*int64)(&opened), &p); err != nil {
			return fmt.Errorf("%q: %w", out.String(), err)
		}
		opens, all, peak = append(opens, opened), append(all, d), max(peak, p)
	}
	peer, ratio := "", ""
	m := versus.Median(all)
	if len(theirs) > 0 {
		t := versus.Median(theirs)
		peer, ratio = versus.Millis(t)+" (qemu-io, whole process)", fmt.Sprintf("%.2f×", float64(t)/float64(m))
	}
	b.table.Row(what, fmt.Sprintf("%s; whole process %s, %d MiB", versus.Millis(versus.Median(opens)), versus.Millis(m), peak>>20), peer, ratio, "< 20 ms, < 32 MiB")
	return nil
}

// openChain opens the newest disk of a folder, reads what each layer holds, and
// prints the nanoseconds that took, listing the folder included, and its memory.
func openChain(dir string) error {
	start := time.Now()
	img, err := open(dir)
	if err != nil {
		return err
	}
	defer img.Close()
	p := make([]byte, patchSize)
	for i := range chainDepth {
		if err := block.ReadFull(context.Background(), img, p, patchAt(i)); err != nil {
			return err
		}
		if want := patch(i); !slices.Equal(p, want) {
			return fmt.Errorf("layer %d: %x instead of %x at %d", i, p[:8], want[:8], patchAt(i))
		}
	}
	d := time.Since(start)
	peak, err := versus.Peak(os.Getpid())
	if err != nil {
		return err
	}
	_, err = fmt.Println(int64(d), peak)
	runtime.KeepAlive(img)
	return err
}

// Each layer has written 64 KiB of its own, and over some of the one below.
const patchSize = 64 << 10

func patchAt(layer int) int64 { return int64(layer)*(chainSize/chainDepth)&^(1<<20-1) + 1<<20 }

func patch(layer int) []byte {
	p := make([]byte, patchSize)
	for i := range p {
		p[i] = byte(layer + 1)
	}
	return p
}

func last(dir string) string {
	found, _ := filepath.Glob(filepath.Join(dir, fmt.Sprintf("disk-2026-11-%02d.*", chainDepth)))
	if len(found) != 1 {
		return ""
	}
	return found[0]
}

func chainName(layer int, ext string) string {
	return fmt.Sprintf("disk-2026-11-%02d.%s", layer+1, ext)
}

// qemuChain has qemu-img make a chain, and qemu-io write to it.
func qemuChain(dir, driver string) error {
	for i := range chainDepth {
		name := chainName(i, driver)
		args := []string{"create", "-q", "-f", driver}
		if i > 0 {
			args = append(args, "-b", chainName(i-1, driver), "-F", driver, name)
		} else {
			args = append(args, name, fmt.Sprint(chainSize))
		}
		for _, c := range [][]string{
			append([]string{"qemu-img"}, args...),
			{"qemu-io", "-f", driver, "-c", fmt.Sprintf("write -q -P %d %d %d", i+1, patchAt(i), patchSize), name},
		} {
			cmd := exec.Command(c[0], c[1:]...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, out)
			}
		}
	}
	return nil
}

// state is the disk when the first so many layers have been written.
type state int

func (s state) Size() int64 { return chainSize }

func (s state) ReadAt(p []byte, off int64) (int, error) {
	n, err := block.CheckRead(off, len(p), chainSize)
	clear(p[:n])
	for i := range int(s) {
		from, to := max(off, patchAt(i)), min(off+int64(n), patchAt(i)+patchSize)
		if from < to {
			copy(p[from-off:to-off], patch(i)[from-patchAt(i):])
		}
	}
	return n, err
}

// Extent implements block.Mapper.
func (s state) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	end := int64(chainSize)
	for i := range int(s) {
		switch at := patchAt(i); {
		case off < at:
			end = min(end, at)
		case off < at+patchSize:
			return block.Extent{Len: min(n, at+patchSize-off)}, nil
		}
	}
	return block.Extent{Len: min(n, end-off), Zero: true}, nil
}

func vhdChain(dir string) error {
	return writeChain(dir, "vhd", func(ctx context.Context, w io.WriterAt, i int, id, parent [16]byte, created, before time.Time) error {
		opt := vhd.WriteOptions{ID: id, Created: created}
		if i == 0 {
			return vhd.WriteDynamic(ctx, w, state(1), opt)
		}
		name := chainName(i-1, "vhd")
		return vhd.WriteDiff(ctx, w, state(i+1), state(i), vhd.DiffOptions{WriteOptions: opt, ParentID: parent, ParentModified: before, ParentName: name,
			Locators: []imageformats.Locator{{Platform: "W2ru", Path: `.\` + name, Relative: true}}})
	})
}

func vhdxChain(dir string) error {
	return writeChain(dir, "vhdx", func(ctx context.Context, w io.WriterAt, i int, id, parent [16]byte, _, _ time.Time) error {
		opt := vhdx.WriteOptions{ID: id, DiskID: [16]byte{0xd}}
		if i == 0 {
			return vhdx.WriteDynamic(ctx, w, state(1), opt)
		}
		return vhdx.WriteDiff(ctx, w, state(i+1), state(i), vhdx.DiffOptions{WriteOptions: opt, ParentID: parent,
			Locators: vhdx.ParentLocators(`.\`+chainName(i-1, "vhdx"), "")})
	})
}

func writeChain(dir, ext string, write func(ctx context.Context, w io.WriterAt, i int, id, parent [16]byte, created, before time.Time) error) error {
	var parent [16]byte
	var before time.Time
	for i := range chainDepth {
		id, created := [16]byte{1, byte(i)}, time.Date(2026, 11, i+1, 0, 0, 0, 0, time.UTC)
		f, err := os.Create(filepath.Join(dir, chainName(i, ext)))
		if err != nil {
			return err
		}
		if err := errors.Join(write(context.Background(), f, i, id, parent, created, before), f.Close()); err != nil {
			return err
		}
		if err := os.Chtimes(f.Name(), created, created); err != nil {
			return err
		}
		parent, before = id, created
	}
	return nil
}
