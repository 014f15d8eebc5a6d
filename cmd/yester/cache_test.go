package main

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"yester/cache/store"
)

// fillCache makes a cache with two blocks of an object and a spool:
//
//	fillcache DIR
func fillCache(ts *testscript.TestScript, _ bool, args []string) {
	s, err := store.Open(ts.MkAbs(args[0]), store.Options{})
	ts.Check(err)
	o, err := s.Object("snap-1", 1<<20, 64<<10)
	ts.Check(err)
	p := make([]byte, 64<<10)
	for i := range p {
		p[i] = byte(i*7) | 1
	}
	ts.Check(o.Put(3, p))
	ts.Check(o.Put(9, p))
	sp, err := s.Spool(context.Background(), "document", func(w io.Writer) error {
		for range 48 {
			if _, err := w.Write(p); err != nil {
				return err
			}
		}
		return nil
	})
	ts.Check(err)
	ts.Check(sp.Close())
	ts.Check(o.Close())
	ts.Check(s.Close())
}

// damageCache changes a byte of block 9:
//
//	damagecache DIR
func damageCache(ts *testscript.TestScript, _ bool, args []string) {
	files, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "o-*.d0"))
	ts.Check(err)
	for _, name := range files {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		ts.Check(err)
		_, err = f.WriteAt([]byte{0}, 9<<16+100)
		ts.Check(err)
		ts.Check(f.Close())
	}
}

// openCache lets everybody write to a directory:
//
//	opencache DIR
func openCache(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.Chmod(ts.MkAbs(args[0]), 0o777))
}
