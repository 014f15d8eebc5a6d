// Command yester opens dated restore points of virtual machines and shows what is
// in them: as a directory tree, and as commands that copy single files out.
//
// Rules of its user interface: data goes to stdout, talk to stderr, each line of
// which says what it is ("yester: error: …", "yester: hint: …"). What a script
// reads has --json. Progress is for terminals only. Exit codes are those of
// internal/exitcode. Nothing is ever written to a source.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"yester/internal/exitcode"
)

func main() { os.Exit(run()) }

// run is main without the exit, so that deferred calls are made.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// The first signal ends the work in order; another one ends the process.
	context.AfterFunc(ctx, stop)
	g := &globalFlags{stdout: os.Stdout, stderr: os.Stderr}
	root := newRootCommand(g)
	args, err := mountHelperArgs(os.Args[0], os.Args[1:])
	if err != nil {
		g.fail(err)
		return exitcode.Usage
	}
	defer func() {
		if err := g.cache.close(); err != nil {
			g.warn("closing the cache: %v", err)
		}
	}()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	g.tellCosts()
	if err == nil {
		return exitcode.OK
	}
	if !g.started { // flags and arguments are checked before anything is started
		err = &codedError{msg: err.Error(), hint: "see `" + cmd.CommandPath() + " --help`", code: exitcode.Usage}
	}
	g.fail(err)
	return code(err)
}
