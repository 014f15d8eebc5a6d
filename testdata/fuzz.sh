#!/bin/sh
# Runs every fuzz target of the module for FUZZTIME, one after the other.
set -eu
go=${GO:-go} each=${FUZZTIME:-30s}
status=0
# Targets that write files make thousands of them.
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm
for pkg in $($go list ./...); do
	for target in $($go test -list '^Fuzz' "$pkg" | grep '^Fuzz' || true); do
		echo "== $pkg $target"
		# Little time for making inputs smaller: where goroutines and pools make the
		# coverage vary, that takes all there is.
		$go test -run '^$' -fuzz "^$target\$" -fuzztime "$each" -fuzzminimizetime 100x "$pkg" || status=1
	done
done
exit $status
