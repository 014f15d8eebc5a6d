// Package exitcode holds yester's exit codes. cmd/yester has the one table that
// maps errors to them; docs/cli.md documents the same numbers.
package exitcode

// The exit codes of every yester command.
const (
	OK          = 0 // everything that was asked for was done
	Partial     = 1 // some of it failed; stderr says what
	Usage       = 2 // wrong arguments
	NotFound    = 3 // no such point, path, volume or disk
	Damaged     = 4 // the source is damaged, or uses something unsupported
	Unreachable = 5 // the source can't be reached or read
)
