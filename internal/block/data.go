package block

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// DataAt is ExtentAt that also finds the holes of the host file an extent lies
// in, so that what is sparse there can stay sparse in a copy.
func DataAt(ctx context.Context, r Reader, off, n int64) (Extent, error) {
	e, err := ExtentAt(ctx, r, off, n)
	if err != nil || e.Zero || e.File == nil || e.Stamp != 0 {
		return e, err // a hole in a cache's file is what has just been evicted
	}
	data, err := unix.Seek(int(e.File.Fd()), e.Off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data from here to the end of the file
		var st unix.Stat_t
		if err := unix.Fstat(int(e.File.Fd()), &st); err != nil || st.Size < e.Off+e.Len {
			return e, nil // cut off since it was opened: the read will say so
		}
		return Extent{Len: e.Len, Zero: true}, nil
	case err != nil: // the host's filesystem can't say
		return e, nil
	case data > e.Off:
		return Extent{Len: min(e.Len, data-e.Off), Zero: true}, nil
	}
	hole, err := unix.Seek(int(e.File.Fd()), e.Off, unix.SEEK_HOLE)
	if err == nil && hole > e.Off {
		e.Len = min(e.Len, hole-e.Off)
	}
	return e, nil
}
