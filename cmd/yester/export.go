package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"yester/imageformats/qcow2"
	"yester/imageformats/raw"
	"yester/imageformats/vhd"
	"yester/internal/block"
	"yester/internal/exitcode"
	"yester/restorepoint"
)

// exportFlags are the flags of `yester export`.
type exportFlags struct {
	disk, format string
	force        bool
}

// exportFormats are what a disk can be written as, by --format, and exportExts
// the formats by a file's extension.
var (
	exportFormats = "raw, vhd, vhd-fixed, qcow2"
	exportExts    = map[string]string{".raw": "raw", ".img": "raw", ".dd": "raw", ".vhd": "vhd", ".qcow2": "qcow2"}
)

func newExportCommand(g *globalFlags) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export SOURCE OUT",
		Short: "Write a whole disk to an image file",
		Long: `Write a disk of a restore point, or with --volume one volume of it, to the new file
OUT: as a raw image (.raw, .img, .dd), a VHD (.vhd; dynamic, or fixed with --format
vhd-fixed) or a qcow2 image (.qcow2). Zeros take no room in any of them.

The disk is the guest's as it was: a journal that is replayed to show files isn't
replayed in what is exported. OUT appears under its name when it is whole.`,
		Example: `  yester export /backups/web01 web01.qcow2 --at 2006-07-28
  yester export /backups/web01 /tmp/data.raw --disk data
  yester export /backups/web01 root.img --volume p1`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.export(cmd.Context(), &f, args[0], args[1])
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.disk, "disk", "", "the disk called `NAME`, where the machine has several")
	fl.StringVar(&f.format, "format", "", "`FORMAT` of OUT where its extension doesn't say: "+exportFormats)
	fl.BoolVar(&f.force, "force", false, "replace OUT if it exists")
	fl.SortFlags = false
	return cmd
}

// exported is what --json prints.
type exported struct {
	Out     string  `json:"out"`
	Format  string  `json:"format"`
	Point   string  `json:"point"`
	Machine string  `json:"machine"`
	Disk    string  `json:"disk"`
	Volume  string  `json:"volume,omitempty"`
	Size    int64   `json:"size"`   // of the disk, bytes
	Stored  int64   `json:"stored"` // bytes that OUT takes on its filesystem
	Seconds float64 `json:"seconds"`
}

func (g *globalFlags) export(ctx context.Context, f *exportFlags, source, out string) error {
	format := f.format
	if format == "" {
		format = exportExts[strings.ToLower(filepath.Ext(out))]
	}
	switch format {
	case "raw", "vhd", "vhd-fixed", "qcow2":
	case "":
		return &codedError{msg: out + ": its extension names no format", hint: "--format is one of " + exportFormats, code: exitcode.Usage}
	default:
		return &codedError{msg: fmt.Sprintf("--format %q is none of %s", format, exportFormats), code: exitcode.Usage}
	}
	s, err := g.openPoint(ctx, source)
	if err != nil {
		return err
	}
	defer s.Close()
	e := exported{Out: out, Format: format, Point: s.point.Point.ID, Machine: s.point.Point.Machine, Volume: g.volume}
	if s.point.Tree != nil {
		return errNoDisks(&s.point.Point)
	}
	var r block.Reader
	if g.volume != "" {
		v, err := s.point.Volume(ctx, g.volume)
		if err != nil {
			return err
		}
		if v.Err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, v.Err)
		}
		if r = v.Reader; v.Disk != nil {
			e.Disk = v.Disk.Name
		}
	} else {
		d, err := s.point.Disk(f.disk)
		if err != nil {
			return err
		}
		r, e.Disk = d.Image, d.Name
	}
	e.Size = r.Size()
	if err := checkOut(s, out, f.force); err != nil {
		return err
	}
	start := time.Now()
	var done atomic.Int64
	var m meter
	stop := g.show(func(now time.Time) string { return m.line(now, done.Load(), e.Size, "") })
	e.Stored, err = writeOut(out, f.force, func(file *os.File) error {
		return writeImage(ctx, file, r, format, exportID(s.point, &e), s.point.Point.Time, done.Store)
	})
	stop()
	if err != nil {
		return err
	}
	e.Seconds = time.Since(start).Seconds()
	if g.json {
		return printJSON(g.stdout, e)
	}
	if g.verbose || terminal(g.stderr) {
		fmt.Fprintf(g.stderr, "yester: wrote %s: a disk of %s, stored in %s, in %.1f s\n",
			out, formatBytes(e.Size), formatBytes(e.Stored), e.Seconds)
	}
	return nil
}

// writeImage writes r to file in the given format.
func writeImage(ctx context.Context, file *os.File, r block.Reader, format string, id [16]byte, created time.Time, progress func(int64)) error {
	// What the headers of a VHD can hold.
	first, last := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2136, 1, 1, 0, 0, 0, 0, time.UTC)
	if created.Before(first) || created.After(last) {
		created = first
	}
	opt := vhd.WriteOptions{ID: id, Created: created, Progress: progress}
	switch format {
	case "vhd":
		return vhd.WriteDynamic(ctx, file, r, opt)
	case "vhd-fixed":
		return vhd.WriteFixed(ctx, file, r, opt)
	case "qcow2":
		return qcow2.Write(ctx, file, r, qcow2.WriteOptions{Progress: progress})
	}
	return raw.Write(ctx, file, r, raw.WriteOptions{Progress: progress})
}

// exportID returns an id for a VHD: one that follows from what is written, and
// isn't that of any other image.
func exportID(p *restorepoint.Opened, e *exported) (id [16]byte) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%q\n%q\n%q", p.Point.Key(), p.Point.Machine, e.Disk, e.Volume))
	copy(id[:], sum[:])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562, version 8: made by the application's own rule
	return id
}

// checkOut refuses what must not be written to.
func checkOut(s *session, out string, force bool) error {
	guard, err := newGuard(s)
	if err == nil {
		err = guard.check(out)
	}
	if err != nil {
		return err
	}
	fi, err := os.Lstat(out)
	switch {
	case err == nil && !fi.Mode().IsRegular():
		return &codedError{msg: out + " exists and is not a regular file", code: exitcode.Partial}
	case err == nil && !force:
		return &codedError{msg: out + " exists", hint: "--force replaces it", code: exitcode.Partial}
	}
	return nil
}

// writeOut makes the file at path by write: under a temporary name beside it
// until it is whole and on disk. It returns the bytes that it takes there.
func writeOut(path string, replace bool, write func(*os.File) error) (stored int64, err error) {
	fail := func(err error) (int64, error) { // what the host says isn't about the source
		return 0, &codedError{err: err, code: exitcode.Partial}
	}
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return fail(err)
	}
	defer root.Close()
	name := filepath.Base(path)
	tmp := fmt.Sprintf(".yester-%08x.part", rand.Uint32())
	f, err := root.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fail(err)
	}
	defer func() {
		f.Close()
		if err != nil {
			root.Remove(tmp)
		}
	}()
	if err = write(f); err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) && pe.Path == f.Name() {
			return fail(err)
		}
		return 0, err
	}
	if err = f.Sync(); err != nil {
		return fail(err)
	}
	stored = storedBytes(f)
	if err = f.Close(); err != nil {
		return fail(err)
	}
	if replace {
		err = root.Rename(tmp, name)
	} else if err = root.Link(tmp, name); err == nil { // which replaces nothing
		root.Remove(tmp)
	} else if !errors.Is(err, fs.ErrExist) { // a filesystem without links
		err = root.Rename(tmp, name)
	}
	if err != nil {
		return fail(err)
	}
	if dir, err := root.Open("."); err == nil {
		dir.Sync()
		dir.Close()
	}
	return stored, nil
}
