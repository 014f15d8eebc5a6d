package main

import (
	"os"
	"path/filepath"
	"strings"

	"yester/cache"
	"yester/internal/exitcode"
	"yester/restorepoint"
)

// guard keeps commands that write from writing to the source they read.
type guard struct {
	source string // on the host, without links
	folder bool   // the source is a folder, all of which is guarded
	files  []os.FileInfo
}

// newGuard guards the source of s, and the files of its point wherever they are.
func newGuard(s *session) (*guard, error) {
	g := &guard{source: s.src.HostPath()}
	if g.source == "" {
		return g, nil // far away
	}
	fi, err := os.Stat(g.source)
	if err != nil {
		return nil, &sourceError{location: s.src.Location(), err: err}
	}
	g.folder = fi.IsDir()
	dir := g.source
	if !g.folder {
		g.files = append(g.files, fi)
		dir = filepath.Dir(dir)
	}
	for _, d := range s.point.Disks {
		for _, name := range d.Files {
			if fi, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name))); err == nil {
				g.files = append(g.files, fi)
			}
		}
	}
	return g, nil
}

// checkOutside refuses a file or folder, named by a flag, that lies in the source:
// nothing is ever written there.
func checkOutside(source, flag, path string) error {
	real := realPath(source)
	if fi, err := os.Stat(real); path == "" || err != nil || !fi.IsDir() || !inside(realPath(path), real) {
		return nil
	}
	return &codedError{msg: flag + " " + path + " lies in the source, and nothing is ever written to a source",
		hint: "choose another place than " + real, code: exitcode.Usage}
}

// cacheOutside is checkOutside for the cache.
func (g *globalFlags) cacheOutside(src *restorepoint.Source) error {
	dir := g.cache.cfg.Dir
	if dir == "" {
		dir, _ = cache.Dir() // without one there is no place for a cache either
	}
	if src.HostPath() == "" || dir == "" {
		return nil
	}
	return checkOutside(src.HostPath(), "--cache-dir", dir)
}

// owns reports whether a file is one that is read.
func (g *guard) owns(fi os.FileInfo) bool {
	for _, own := range g.files {
		if os.SameFile(own, fi) {
			return true
		}
	}
	return false
}

// check refuses to write to path, which need not exist.
func (g *guard) check(path string) error {
	fi, err := os.Stat(path)
	if err == nil && g.owns(fi) || g.folder && inside(realPath(path), g.source) {
		return &codedError{msg: path + " lies in the source, and nothing is ever written to a source",
			hint: "choose another place than " + g.source, code: exitcode.Usage}
	}
	return nil
}

// realPath returns the path without links that path leads to; of what doesn't
// exist, the part that does is looked at.
func realPath(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	rest := ""
	for dir := abs; ; dir = filepath.Dir(dir) {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(real, rest)
		}
		if dir == filepath.Dir(dir) {
			return abs
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}

// inside reports whether path is dir or lies in it.
func inside(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
