// Command mkchain makes a dated chain of VHD images out of raw disk states, as a
// hypervisor's backup leaves it: a dynamic base, then a differencing image for
// each later state.
//
//	go run ./testdata/mkchain -o DIR -name web01 state1.raw@2026-11-18T02:30:00Z state2.raw@2026-11-19T02:30:00Z
//
// writes DIR/web01-20261118T023000Z.vhd and DIR/web01-20261119T023000Z.avhd,
// with footer time stamps and modification times of those dates. Ids follow from
// name and date, so that the same input gives the same files.
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"yester/imageformats"
	"yester/imageformats/vhd"
	"yester/internal/block"
)

func main() {
	dir := flag.String("o", ".", "directory to write to")
	name := flag.String("name", "disk", "start of the files' names")
	folder := flag.String("folder", `C:\Backup`, "directory in the absolute parent locators")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: mkchain [-o DIR] [-name NAME] [-folder DIR] STATE.raw@TIME ...   (TIME by RFC 3339, ascending)")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(context.Background(), *dir, *name, *folder, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkchain:", err)
		os.Exit(1)
	}
}

// link is a written image of the chain.
type link struct {
	raw  *rawFile
	name string // of the image's file
	id   [16]byte
	at   time.Time
}

func run(ctx context.Context, dir, name, folder string, states []string) error {
	var prev *link
	for _, arg := range states {
		i := strings.LastIndexByte(arg, '@')
		if i < 0 {
			return fmt.Errorf("%s: no @TIME", arg)
		}
		at, err := time.Parse(time.RFC3339, arg[i+1:])
		if err != nil {
			return err
		}
		if prev != nil && !at.After(prev.at) {
			return fmt.Errorf("%s is not later than the state before it", arg)
		}
		raw, err := openRaw(arg[:i])
		if err != nil {
			return err
		}
		defer raw.Close()
		next := &link{raw: raw, at: at.UTC()}
		next.name = name + "-" + next.at.Format("20060102T150405Z") + ".vhd"
		if prev != nil {
			next.name = strings.TrimSuffix(next.name, ".vhd") + ".avhd"
		}
		sum := sha256.Sum256([]byte(next.name))
		next.id = [16]byte(sum[:16])
		next.id[6], next.id[8] = next.id[6]&0x0f|0x40, next.id[8]&0x3f|0x80 // the form of a version 4 UUID
		if err := write(ctx, dir, folder, next, prev); err != nil {
			return fmt.Errorf("%s: %w", next.name, err)
		}
		fmt.Println(filepath.Join(dir, next.name))
		prev = next
	}
	return nil
}

// write makes one image of the chain; parent is nil for the base.
func write(ctx context.Context, dir, folder string, l, parent *link) error {
	path := filepath.Join(dir, l.name)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	opt := vhd.WriteOptions{ID: l.id, Created: l.at}
	if parent == nil {
		err = vhd.WriteDynamic(ctx, f, l.raw, opt)
	} else {
		err = vhd.WriteDiff(ctx, f, l.raw, parent.raw, vhd.DiffOptions{
			WriteOptions: opt, ParentID: parent.id, ParentModified: parent.at, ParentName: parent.name,
			Locators: []imageformats.Locator{
				{Platform: "W2ru", Path: `.\` + parent.name},
				{Platform: "W2ku", Path: folder + `\` + parent.name},
			},
		})
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chtimes(path, l.at, l.at)
	}
	return err
}

// rawFile is a raw disk state. A parent that is longer than its child is read
// as far as the child goes.
type rawFile struct {
	*os.File
	size int64
}

var _ block.Reader = (*rawFile)(nil)

func openRaw(path string) (*rawFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &rawFile{f, st.Size()}, nil
}

// Size implements block.Reader.
func (r *rawFile) Size() int64 { return r.size }
