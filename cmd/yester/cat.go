package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/exitcode"
)

func newCatCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "cat SOURCE PATH...",
		Short: "Print the content of files",
		Long: `Print the content of files to stdout, byte for byte. Symbolic links are followed,
within the machine. PATH may be a pattern with *, ?, [] and **.

A file that can't be read to its end is an error: what was printed of it until
then is right, but not all.`,
		Example: `  yester cat /backups/web01 /etc/fstab
  yester cat /backups/web01 /var/log/syslog --at 3h | grep -i oom`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			s, err := g.openTree(ctx, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			return g.eachMatch(ctx, s.tree, args[1:], true, func(m found) error {
				return catFile(ctx, g.stdout, s.tree, m.id)
			})
		},
	}
}

const (
	// catChunk is how much is read at a time, in bytes, and catAhead how many
	// chunks are read while others are written.
	catChunk = 1 << 20
	catAhead = 3
)

// writeError is about the output, not about what is read.
type writeError struct{ *codedError }

func (e *writeError) Unwrap() error { return e.codedError }

func newWriteError(err error) error {
	return &writeError{&codedError{msg: "writing the output", err: err, code: exitcode.Partial}}
}

// catFile writes the content of one file to w.
func catFile(ctx context.Context, w io.Writer, tree guestfs.Tree, id guestfs.ID) error {
	r, err := tree.Open(ctx, id)
	if err != nil {
		return err
	}
	size := r.Size()
	if size <= catChunk { // most files
		buf := make([]byte, size)
		if err := block.ReadFull(ctx, r, buf, 0); err != nil {
			return err
		}
		if _, err := w.Write(buf); err != nil {
			return newWriteError(err)
		}
		return nil
	}
	return catLarge(ctx, w, r)
}

// catLarge reads ahead of what it writes.
func catLarge(ctx context.Context, w io.Writer, r block.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	type chunk struct {
		buf []byte
		err error
	}
	chunks := make(chan chunk, catAhead)
	free := make(chan []byte, catAhead+2)
	for range cap(free) {
		free <- make([]byte, catChunk)
	}
	go func() {
		defer close(chunks)
		for off := int64(0); off < r.Size(); off += catChunk {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return
			}
			buf = buf[:min(catChunk, r.Size()-off)]
			err := block.ReadFull(ctx, r, buf, off)
			if err != nil {
				err = fmt.Errorf("read at %d: %w", off, err)
			}
			select {
			case chunks <- chunk{buf, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() { // the reader must not be in use any more when its tree is closed
		cancel()
		for range chunks {
		}
	}()
	for written := int64(0); written < r.Size(); {
		c, ok := <-chunks
		if !ok {
			return ctx.Err()
		}
		if c.err != nil {
			return c.err
		}
		n, err := w.Write(c.buf)
		if err != nil {
			return newWriteError(err)
		}
		written += int64(n)
		free <- c.buf[:catChunk]
	}
	return nil
}
