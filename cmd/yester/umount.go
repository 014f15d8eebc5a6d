package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"yester/fusefs"
	"yester/internal/exitcode"
	"yester/internal/running"
)

func newUmountCommand() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:   "umount DIR...",
		Short: "Unmount what `yester mount` mounted",
		Long: `Unmount the yester mounts on DIR, and wait until the processes that served them
are gone. What a crashed process left behind is recognised and cleaned up.`,
		Aliases: []string{"unmount"},
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failed error
			for _, dir := range args {
				failed = errors.Join(failed, unmount(cmd.Context(), dir, lazy))
			}
			return failed
		},
	}
	cmd.Flags().BoolVar(&lazy, "lazy", false, "take the name away at once, and the rest when its last user leaves")
	return cmd
}

// goneAfter is how long umount waits for the serving process to clean up.
const goneAfter = 5 * time.Second

func unmount(ctx context.Context, dir string, lazy bool) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	services, listErr := running.List(ctx)
	err = fusefs.Unmount(dir, lazy)
	switch {
	case errors.Is(err, fusefs.ErrBusy):
		return &codedError{
			msg:  fmt.Sprintf("%s is in use", dir),
			hint: fmt.Sprintf("`fuser -vm %s` shows by whom; --lazy unmounts all the same", dir),
			code: exitcode.Partial,
		}
	case errors.Is(err, fusefs.ErrNotMounted):
		err = &codedError{msg: err.Error(), hint: "`yester status` lists the mounts", code: exitcode.NotFound}
	case err == nil && listErr != nil:
		return listErr
	}
	for _, s := range services {
		if s.Where != abs {
			continue
		}
		if !s.Alive {
			s.Forget()
			continue
		}
		if err == nil && !lazy {
			wctx, cancel := context.WithTimeout(ctx, goneAfter)
			defer cancel()
			if s.WaitGone(wctx) != nil {
				return fmt.Errorf("%s is unmounted, but process %d is still there after %v", dir, s.PID, goneAfter)
			}
		}
	}
	return err
}
