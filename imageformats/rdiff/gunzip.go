package rdiff

import (
	"io"

	"github.com/klauspost/compress/gzip"
)

// newGunzip decompresses metadata, which is what opening a point takes most of its
// time for: the package is about twice as fast as the standard library's.
func newGunzip(in io.Reader) (io.ReadCloser, error) { return gzip.NewReader(in) }
