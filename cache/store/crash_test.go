package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

const crashBlocks = 400

func init() {
	// Writes blocks of two objects, spools and records as fast as it can, under a
	// budget that makes it evict, until it is killed.
	children["crash"] = func(dir string, args []string) error {
		s, err := Open(dir, Options{Budget: 150 * blk})
		if err != nil {
			return err
		}
		r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
		for i := 0; ; i++ {
			key := fmt.Sprintf("k%d", r.IntN(2))
			o, err := s.Object(key, crashBlocks*blk-77, blk)
			if err != nil {
				return err
			}
			for range 1 + r.IntN(100) {
				n := r.Int64N(crashBlocks)
				if b, ok := o.Get(n); !ok {
					if err := o.Put(n, truth(key, n, int(min(blk, o.size-n*blk)))); err != nil {
						return err
					}
				} else if n%50 != 0 { // some stay pinned
					b.Release()
				}
				if n%7 == 0 {
					s.releaseIdle(0)
				}
			}
			if args[0] == "1" { // blocks alone, so that most kills hit one
				continue
			}
			if i%5 == 0 {
				key := fmt.Sprintf("spool%d", r.IntN(3))
				sp, err := s.Spool(context.Background(), key, spoolOf(key))
				if err != nil {
					return err
				}
				if err := sp.Close(); err != nil {
					return err
				}
			}
			if err := s.SetBlob("blob", truth("blob", int64(i%10), 1000)); err != nil {
				return err
			}
			if i%3 == 0 {
				if err := o.Close(); err != nil {
					return err
				}
			}
		}
	}
}

// checkAll compares all that a directory holds with the truth.
func checkAll(t *testing.T, s *Store) (blocks int64) {
	t.Helper()
	infos, err := s.Objects()
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		switch info.Kind {
		case "object":
			o := object(t, s, info.Key, info.Size, info.BlockSize)
			for n := range o.All() {
				if check(t, o, n) {
					blocks++
				}
			}
			o.Close()
		case "spool":
			sp, err := s.Spool(t.Context(), info.Key, spoolOf(info.Key))
			if err != nil {
				t.Fatal(err)
			}
			checkSpool(t, sp, info.Key)
			sp.Close()
		case "record":
			p, err := s.Blob(info.Key)
			if err != nil {
				t.Error(err)
			}
			good := false
			for i := range int64(10) {
				good = good || string(p) == string(truth(info.Key, i, 1000))
			}
			if !good {
				t.Error("wrong record")
			}
		}
	}
	return blocks
}

// TestKill kills a process that writes, at any moment, again and again. Nothing
// that was in the page cache is lost by that: all blocks that are there are good.
func TestKill(t *testing.T) {
	dir := tempDir(t)
	var blocks int64
	for i := range 16 {
		c := child(t, "crash", dir, itoa(i%2))
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		died := make(chan error, 1)
		go func() { died <- c.Wait() }()
		select {
		case err := <-died:
			t.Fatalf("it ended by itself: %v", err)
		case <-time.After(time.Duration(20+rand.IntN(130)) * time.Millisecond):
		}
		_ = c.Process.Kill()
		<-died
		var said logs
		s := open(t, dir, Options{Logger: said.logger(), Budget: 150 * blk})
		blocks += checkAll(t, s)
		if said.count("damaged") > 0 {
			t.Errorf("run %d: a kill damaged what is cached:\n%s", i, said.text.String())
		}
		if s.InMemory() {
			t.Fatal("not on disk")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if blocks == 0 {
		t.Error("nothing was ever there to check")
	}
	t.Logf("%d blocks checked", blocks)
}

var errFill = errors.New("fill failed")
