package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"yester/internal/inflate"
)

// maxWindow bounds what a frame of zstd may ask a decoder to keep, bytes: what
// RFC 8878, 3.1.1.1.2 recommends that every decoder supports.
const maxWindow = 8 << 20

var errNotPacked = errors.New("not a compressed cluster")

// decode reads and decompresses a compressed cluster.
func (l *layer) decode(ctx context.Context, n int64) ([]byte, error) {
	cluster := uint64(n)
	p, _, err := l.l2Page(ctx, cluster)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, errNotPacked
	}
	i := cluster % l.perPage
	e := p.entry(i * uint64(l.entry) / 8)
	if e&compressed == 0 {
		return nil, errNotPacked
	}
	if l.external {
		return nil, l.l2Corrupt(p, i, "a compressed cluster, which an image with a data file can't have")
	}
	if e&copied != 0 {
		return nil, l.l2Corrupt(p, i, "a compressed cluster with bit 63 set: %#x", e)
	}
	x := packedShift - l.bits
	at := e & (1<<x - 1)
	sectors := e >> x & (1<<(l.bits-8) - 1)
	end := at&^(packedUnit-1) + (sectors+1)*packedUnit
	size := uint64(l.file.Size())
	if at >= size || at < 1<<l.bits {
		return nil, l.l2Corrupt(p, i, "compressed cluster at %#x lies outside the file (%#x bytes) or over its header", at, size)
	}
	// The data may end before their last sector does, and the file with them.
	buf := inputs.Get().(*bytes.Buffer)
	defer inputs.Put(buf)
	buf.Reset()
	buf.Grow(int(min(end, size) - at)) // two clusters at most
	in := buf.AvailableBuffer()[:min(end, size)-at]
	if err := l.read(ctx, in, int64(at)); err != nil {
		return nil, fmt.Errorf("qcow2: %scompressed cluster of disk offset %#x at %#x: %w", l.prefix(), cluster<<l.bits, at, err)
	}
	out := make([]byte, 1<<l.bits)
	if l.meta.compression == compressionZstd {
		err = unzstd(out, in)
	} else {
		err = unzlib(out, in)
	}
	if err != nil {
		return nil, l.corrupt("compressed cluster", int64(at), "of disk offset %#x: %v", cluster<<l.bits, err)
	}
	return out, nil
}

var (
	inputs = sync.Pool{New: func() any { return new(bytes.Buffer) }}
	zstds  = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecodeBuffersBelow(0))
		if err != nil {
			return err
		}
		return d
	}}
)

// unzlib fills out with what in holds by RFC 1951. Nothing is decompressed beyond
// out: the rest of in belongs to others.
func unzlib(out, in []byte) error {
	n, _, _, err := inflate.Raw(out, in)
	if err == nil && n < len(out) {
		err = fmt.Errorf("%d bytes instead of %d", n, len(out))
	}
	return err
}

// unzstd is unzlib by RFC 8878; several frames may follow each other.
func unzstd(out, in []byte) error {
	d, ok := zstds.Get().(*zstd.Decoder)
	if !ok {
		return errors.New("no zstd decoder")
	}
	defer zstds.Put(d)
	if err := d.Reset(bytes.NewReader(in)); err != nil {
		return err
	}
	n, err := io.ReadFull(d, out)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%d bytes instead of %d", n, len(out))
	}
	return err
}
