#!/bin/sh
# Runs the readers over the foreign images in CORPUS (see the README there), which
# are unpacked once into a folder of their own.
set -eu
corpus=$(realpath "${CORPUS:?}") go=${GO:-go}
[ -f "$corpus/index.jsonl" ] || { echo "$corpus: no index.jsonl, so no corpus" >&2; exit 1; }
dest=${CORPUS_UNPACKED:-${TMPDIR:-/tmp}/yester-corpus}
python3 "$corpus/unpack.py" "$dest"
YESTER_CORPUS=$corpus YESTER_CORPUS_UNPACKED=$dest \
	$go test -count=1 -run Corpus ./...
