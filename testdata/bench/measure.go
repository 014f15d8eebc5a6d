package main

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// timed runs cmd, reads all that it prints, and returns how long it took.
func timed(cmd *exec.Cmd) (time.Duration, error) {
	start := time.Now()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, struct{ io.Reader }{out})
	return time.Since(start), errors.Join(err, cmd.Wait())
}

// sequential reads a file of the guest's with 1 MiB per call.
func sequential(name string) func(side) (time.Duration, error) {
	return func(s side) (time.Duration, error) {
		return readAll(filepath.Join(s.files, name), bigSize)
	}
}

func wholeDisk(s side) (time.Duration, error) { return readAll(s.disk, diskSize) }

func readAll(path string, want int64) (time.Duration, error) {
	start := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := f.Read(buf)
		want -= int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	if want != 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return time.Since(start), nil
}

func tarSmall(s side) (time.Duration, error) {
	return timed(exec.Command("tar", "cf", "-", "-C", s.files, "small"))
}

func findSmall(s side) (time.Duration, error) {
	return timed(exec.Command("find", filepath.Join(s.files, "small"), "-ls"))
}

const (
	randomThreads = 16
	randomTotal   = 64000
)

// randomReads reads blocks of 4 KiB all over the big file.
func randomReads(s side) (time.Duration, error) {
	f, err := os.Open(filepath.Join(s.files, "big.bin"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	errs := make([]error, randomThreads)
	var wg sync.WaitGroup
	start := time.Now()
	for w := range randomThreads {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rnd := rand.New(rand.NewPCG(7, uint64(w)))
			buf := make([]byte, 4096)
			for range randomTotal / randomThreads {
				if _, err := f.ReadAt(buf, rnd.Int64N(bigSize/4096)*4096); err != nil {
					errs[w] = err
					return
				}
			}
		}()
	}
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}
