package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	shareBlocks = 96
	shareBudget = 80 * blk // of 2*96 blocks and 4 spools
)

func init() {
	// Reads blocks of two objects at random, fetches those that aren't there, and
	// compares every byte; pins some for a while; spools and prunes in between.
	children["share"] = func(dir string, args []string) error {
		seed, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return err
		}
		s, err := Open(dir, Options{Budget: shareBudget, lease: time.Nanosecond})
		if err != nil {
			return err
		}
		r := rand.New(rand.NewPCG(seed, 2))
		var objects [2]*Object
		for i := range objects {
			if objects[i], err = s.Object(fmt.Sprintf("k%d", i), shareBlocks*blk-99, blk); err != nil {
				return err
			}
		}
		type pin struct {
			b Block
			o *Object
			n int64
		}
		compare := func(p pin) error {
			got := make([]byte, p.b.Len)
			if _, err := p.b.File.ReadAt(got, p.b.Off); err != nil {
				return err
			}
			if !bytes.Equal(got, truth(p.o.key, p.n, len(got))) {
				return fmt.Errorf("wrong bytes in block %d of %s", p.n, p.o.key)
			}
			return nil
		}
		var pins []pin
		fetched := 0
		for i := range 1500 {
			o, n := objects[r.IntN(2)], int64(float64(shareBlocks)*r.Float64()*r.Float64())
			c, err := o.Claim(context.Background(), n)
			if err != nil {
				return err
			}
			if c != nil {
				fetched++
				err = o.Put(n, truth(o.key, n, int(min(blk, o.size-n*blk))))
				c.Release()
			}
			if err != nil {
				return err
			}
			if b, ok := o.Get(n); ok {
				pins = append(pins, pin{b, o, n})
			}
			if len(pins) > r.IntN(12) {
				at := r.IntN(len(pins))
				if err := compare(pins[at]); err != nil {
					return err
				}
				pins[at].b.Release()
				pins = append(pins[:at], pins[at+1:]...)
			}
			switch {
			case i%100 == 50:
				key := fmt.Sprintf("spool%d", r.IntN(4))
				sp, err := s.Spool(context.Background(), key, spoolOf(key))
				if err != nil {
					return err
				}
				got := make([]byte, spoolBytes)
				if _, err := sp.ReadAt(got, 0); err != nil || !bytes.Equal(got, truth(key, 0, spoolBytes)) {
					return fmt.Errorf("wrong bytes in %s, or %w", key, err)
				}
				if err := sp.Close(); err != nil {
					return err
				}
			case i%300 == 99:
				if _, err := s.Prune(context.Background(), Pruning{Keep: shareBudget / 2}); err != nil && !strings.Contains(err.Error(), errBusy.Error()) {
					return err
				}
			case i%200 == 1:
				at := r.IntN(2) // comes back to an object that others may have emptied
				for _, p := range pins {
					if err := compare(p); err != nil {
						return err
					}
					p.b.Release()
				}
				pins = pins[:0]
				key := objects[at].key
				if err := objects[at].Close(); err != nil {
					return err
				}
				if objects[at], err = s.Object(key, shareBlocks*blk-99, blk); err != nil {
					return err
				}
			}
			if i%10 == 0 {
				s.releaseIdle(0)
			}
		}
		fmt.Println(fetched)
		return s.Close()
	}
}

// TestShare has three processes use one directory that is too small for them.
// Each compares all that it reads with the truth, and one dies now and then.
func TestShare(t *testing.T) {
	dir := tempDir(t)
	var running []*exec.Cmd
	var said []*bytes.Buffer
	for i := range 3 {
		c := child(t, "share", dir, strconv.Itoa(i))
		said = append(said, new(bytes.Buffer))
		c.Stdout = said[i]
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		running = append(running, c)
	}
	for i := range 4 {
		c := child(t, "share", dir, strconv.Itoa(100+i))
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(50+rand.IntN(150)) * time.Millisecond)
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	for i, c := range running {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
		t.Logf("fetched %s of 1500", strings.TrimSpace(said[i].String()))
	}
	s := open(t, dir, Options{Budget: shareBudget})
	if blocks := checkAll(t, s); blocks == 0 {
		t.Error("nothing is left")
	}
	// What three may each put before they look again is the slack.
	if used, _, err := s.Usage(); err != nil || used > shareBudget+4*slack(shareBudget)+(1<<20) {
		t.Errorf("%d KiB of a budget of %d: %v", used>>10, shareBudget>>10, err)
	}
}
