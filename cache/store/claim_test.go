package store

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// child starts this binary as another process.
func child(t testing.TB, what, dir string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe, append([]string{dir}, args...)...)
	c.Env = append(os.Environ(), "STORE_CHILD="+what)
	c.Stderr = os.Stderr
	return c
}

func TestClaimOnce(t *testing.T) {
	s := open(t, tempDir(t), Options{})
	o := object(t, s, "k", 8*blk, blk)
	var fetched atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range int64(8) {
				c, err := o.Claim(context.Background(), n)
				if err != nil {
					t.Error(err)
				}
				if c != nil {
					fetched.Add(1)
					put(t, o, n)
					c.Release()
				}
				if !check(t, o, n) {
					t.Errorf("block %d", n)
				}
			}
		}()
	}
	wg.Wait()
	if fetched.Load() != 8 {
		t.Errorf("8 blocks were fetched %d times", fetched.Load())
	}
}

func TestClaimWaits(t *testing.T) {
	dir := tempDir(t)
	// Two stores are as two processes: locks are of the open file.
	for name, second := range map[string]func(*Store) *Store{
		"same store": func(s *Store) *Store { return s },
		"another":    func(*Store) *Store { return open(t, dir, Options{}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, dir, Options{})
			a := object(t, s, name, 4*blk, blk)
			b := object(t, second(s), name, 4*blk, blk)
			c, err := a.Claim(t.Context(), 1)
			if c == nil || err != nil {
				t.Fatal(c, err)
			}
			if c, present := b.TryClaim(1); c != nil || present {
				t.Error("claimed twice")
			}
			if c, present := b.TryClaim(2); c == nil || present {
				t.Error("another block is claimed with it")
			} else {
				c.Release()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if c, err := b.Claim(ctx, 1); c != nil || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, %v", c, err)
			}
			got := make(chan error)
			go func() {
				c, err := b.Claim(context.Background(), 1)
				if c != nil {
					err = errors.New("claimed a block that is there")
				}
				got <- err
			}()
			put(t, a, 1)
			c.Release()
			if err := <-got; err != nil {
				t.Error(err)
			}
			// A claim that comes to nothing goes to the next.
			c, _ = a.Claim(t.Context(), 3)
			go func() {
				c, err := b.Claim(context.Background(), 3)
				if c != nil {
					c.Release()
				} else {
					err = errors.New("no block and no claim")
				}
				got <- err
			}()
			c.Release()
			if err := <-got; err != nil {
				t.Error(err)
			}
		})
	}
}

func init() {
	children["claim"] = func(dir string, _ []string) error {
		s, err := Open(dir, Options{})
		if err != nil {
			return err
		}
		o, err := s.Object("k", 4*blk, blk)
		if err != nil {
			return err
		}
		if c, err := o.Claim(context.Background(), 1); c == nil || err != nil {
			return errors.New("no claim")
		}
		os.Stdout.WriteString("claimed\n")
		select {}
	}
}

// TestClaimOfTheDead kills a process that holds a claim.
func TestClaimOfTheDead(t *testing.T) {
	dir := tempDir(t)
	c := child(t, "claim", dir)
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, Options{})
	o := object(t, s, "k", 4*blk, blk)
	if c, present := o.TryClaim(1); c != nil || present {
		t.Error("the living process's claim isn't seen")
	}
	got := make(chan *Claim)
	go func() {
		c, _ := o.Claim(context.Background(), 1)
		got <- c
	}()
	_ = c.Process.Kill()
	_ = c.Wait()
	if c := <-got; c == nil {
		t.Error("no claim")
	} else {
		c.Release()
	}
}
