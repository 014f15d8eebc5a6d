package vmdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zlib"
)

// maxPacked bounds the size of compressed grains, bytes: 64 KiB is what all write,
// and a few of this size must fit in the cache of decoded units.
const maxPacked = 8 << 20

// inflater is what decoding a grain needs, kept for the next one.
type inflater struct {
	buf []byte
	src bytes.Reader
	z   io.ReadCloser
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// decode reads and decompresses grain g.
func (s *sparse) decode(ctx context.Context, g int64) ([]byte, error) {
	p, err := s.find(ctx, g)
	if err != nil {
		return nil, err
	}
	if p.kind != packed {
		return nil, s.corrupt(fmt.Sprintf("grain %d", g), -1, "isn't there any more")
	}
	field := func() string { return fmt.Sprintf("compressed grain %d", g) }
	inf := inflaters.Get().(*inflater)
	defer inflaters.Put(inf)

	// What doesn't compress takes a little more than itself, and never twice.
	longest := 2*s.grain + grainMarker
	n := min(longest, s.size-p.at)
	if s.marked {
		n = min(n, s.grain/2) // most are shorter; the marker says how long it is
	}
	if err := inf.fill(ctx, s, p.at, 0, n); err != nil {
		return nil, fmt.Errorf("vmdk: %s%s at %#x: %w", s.prefix(), field(), p.at, err)
	}
	data := inf.buf
	if s.marked {
		if n < grainMarker {
			return nil, s.corrupt(field(), p.at, "its marker is cut off: the file ends at %#x", s.size)
		}
		lba, size := le.Uint64(data[offMarkerLBA:]), int64(le.Uint32(data[offMarkerSize:]))
		if want := uint64(g<<s.grainShift) >> sectorShift; lba != want {
			return nil, s.corrupt(field(), p.at, "its marker is that of sector %#x, not %#x", lba, want)
		}
		if size == 0 || size > longest-grainMarker {
			return nil, s.corrupt(field(), p.at+offMarkerSize, "%#x bytes for a grain of %#x", size, s.grain)
		}
		if size > s.size-p.at-grainMarker {
			return nil, s.corrupt(field(), p.at+offMarkerSize, "%#x bytes lie past the end (%#x)", size, s.size)
		}
		if end := grainMarker + size; end > n {
			if err := inf.fill(ctx, s, p.at, n, end); err != nil {
				return nil, fmt.Errorf("vmdk: %s%s at %#x: %w", s.prefix(), field(), p.at, err)
			}
		}
		data = inf.buf[grainMarker : grainMarker+size]
	}
	// The last grain may be cut short where the disk ends.
	need := min(s.grain, s.capacity-g<<s.grainShift)
	out, err := inf.inflate(data, s.grain)
	switch {
	case err != nil:
		return nil, s.corrupt(field(), p.at, "%v", err)
	case int64(len(out)) < need:
		return nil, s.corrupt(field(), p.at, "%#x bytes decompressed, want %#x", len(out), need)
	}
	return out, nil
}

// fill reads the bytes [from, to) of what begins at at behind those that are there.
func (inf *inflater) fill(ctx context.Context, s *sparse, at, from, to int64) error {
	if int64(cap(inf.buf)) < to {
		inf.buf = append(make([]byte, 0, to), inf.buf[:from]...)
	}
	inf.buf = inf.buf[:to]
	return s.read(ctx, inf.buf[from:], at+from)
}

var errBomb = errors.New("more data than a grain holds")

// inflate decompresses the zlib stream that b begins with, limit bytes at most.
// The stream's checksum is verified.
func (inf *inflater) inflate(b []byte, limit int64) ([]byte, error) {
	inf.src.Reset(b)
	if inf.z == nil {
		z, err := zlib.NewReader(&inf.src)
		if err != nil {
			return nil, err
		}
		inf.z = z
	} else if err := inf.z.(zlib.Resetter).Reset(&inf.src, nil); err != nil {
		return nil, err
	}
	out := make([]byte, limit)
	n, err := io.ReadFull(inf.z, out)
	if err == nil {
		var more [1]byte
		// The reader verifies the checksum when it comes to the end.
		switch _, err = io.ReadFull(inf.z, more[:]); {
		case err == nil:
			return nil, errBomb
		case !errors.Is(err, io.EOF):
			return nil, err
		}
		return out, nil
	}
	if errors.Is(err, io.EOF) {
		return out[:0], nil // an empty stream, with a good checksum
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		// The stream is short, or cut off: what the next read says tells.
		if _, err := inf.z.Read(out[n:]); errors.Is(err, io.EOF) {
			return out[:n], nil
		}
	}
	return nil, err
}

// window is how many grains are decoded before they are asked for: enough to keep
// every processor at work while a reader copies, and few enough for the cache.
var window = min(32, 2*int64(runtime.GOMAXPROCS(0)))

// readPacked fills the parts of p that jobs, all of compressed grains, name; p
// begins at off on the disk. Grains are decoded side by side, and beyond the last
// one where reads come in order.
func readPacked(ctx context.Context, jobs []job, p []byte, off int64) error {
	ext := jobs[0].ext
	first, last := jobs[0].in>>ext.grainShift, jobs[len(jobs)-1].in>>ext.grainShift
	sequential := ext.units.Sequential(first)
	for i, j := range jobs {
		g := j.in >> ext.grainShift
		ext.units.Sequential(g)
		for k := 1; k <= int(window); k++ {
			if i+k < len(jobs) {
				ext.units.Ahead(jobs[i+k].in >> ext.grainShift)
			} else if next := last + int64(i+k-len(jobs)) + 1; sequential && next<<ext.grainShift < ext.capacity {
				if q, err := ext.find(ctx, next); err == nil && q.kind == packed {
					ext.units.Ahead(next)
				}
			}
		}
		data, err := ext.units.Get(ctx, g)
		if err != nil {
			return err
		}
		in := j.in & (ext.grain - 1)
		if int64(len(data)) < in+j.n {
			return ext.corrupt(fmt.Sprintf("compressed grain %d", g), -1, "%#x bytes decompressed", len(data))
		}
		copy(p[j.off-off:][:j.n], data[in:])
	}
	return nil
}
