package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"yester/cache"
	"yester/internal/block"
	"yester/iscsi"
	"yester/restorepoint"
)

// pointOpener opens a point when its disks are first read, and keeps it open.
type pointOpener struct {
	src    *restorepoint.Source
	point  restorepoint.Point
	counts *iscsiCounts
	opened atomic.Pointer[restorepoint.Opened]

	turn   chan struct{} // of who opens or closes; guards what follows
	err    error         // of the last attempt
	at     time.Time     // and when it was
	closed bool
}

// retryAfter keeps an initiator's retries from reading the headers of a damaged
// chain over and over.
const retryAfter = time.Second

var errPointClosed = errors.New("restore point is no longer served")

// newOpener makes an opener of p; opened is p if it is open already, else nil.
func newOpener(src *restorepoint.Source, p restorepoint.Point, opened *restorepoint.Opened, counts *iscsiCounts) *pointOpener {
	o := &pointOpener{src: src, point: p, counts: counts, turn: make(chan struct{}, 1)}
	o.opened.Store(opened)
	return o
}

// image returns the disk of that number.
func (o *pointOpener) image(ctx context.Context, disk int) (block.Reader, error) {
	p := o.opened.Load()
	if p == nil {
		var err error
		if p, err = o.open(ctx); err != nil {
			return nil, err
		}
	}
	return p.Disks[disk].Image, nil
}

func (o *pointOpener) open(ctx context.Context) (*restorepoint.Opened, error) {
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p := o.opened.Load()
	switch {
	case p != nil:
		return p, nil
	case o.closed:
		return nil, errPointClosed
	case o.err != nil && time.Since(o.at) < retryAfter:
		return nil, o.err
	}
	p, err := o.src.OpenPoint(ctx, o.point)
	if err == nil {
		for i, d := range p.Disks {
			if want := o.point.Disks[i].Info.Size; d.Image.Size() != want {
				p.Close()
				err = fmt.Errorf("restore point %s, disk %s: %d bytes, its header said %d", o.point.ID, d.Name, d.Image.Size(), want)
				break
			}
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			o.err, o.at = err, time.Now()
		}
		return nil, err
	}
	o.opened.Store(p)
	return p, nil
}

// close closes the point for good; none of its disks may be in use.
func (o *pointOpener) close() {
	o.turn <- struct{}{}
	defer func() { <-o.turn }()
	o.closed = true
	if p := o.opened.Swap(nil); p != nil {
		p.Close()
	}
}

// servedDisk is a disk of a point that is opened when it is first read.
type servedDisk struct {
	opener *pointOpener
	disk   int
	size   int64
}

func (d *servedDisk) Size() int64 { return d.size }

func (d *servedDisk) ReadAt(p []byte, off int64) (int, error) {
	return d.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader.
func (d *servedDisk) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	var n int
	img, err := d.opener.image(ctx, d.disk)
	if err == nil {
		n, err = block.ReadAt(ctx, img, p, off)
	}
	if err != nil && err != io.EOF && ctx.Err() == nil {
		d.opener.counts.errors.Add(1)
	}
	return n, err
}

// Extent implements block.Mapper.
func (d *servedDisk) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	img, err := d.opener.image(ctx, d.disk)
	if err != nil {
		return block.Extent{}, err
	}
	return block.ExtentAt(ctx, img, off, n)
}

// iscsiCounts counts what a Server does.
type iscsiCounts struct {
	reads, readBytes, writtenBytes atomic.Int64
	errors                         atomic.Int64 // reads that failed because of the source
	refused                        atomic.Int64 // logins
	last                           atomic.Int64 // login or command, nanoseconds since 1970
}

// Login implements iscsi.Metrics.
func (c *iscsiCounts) Login(status uint16) {
	if status != 0 {
		c.refused.Add(1)
		return
	}
	c.touch()
}

// Command implements iscsi.Metrics. Operation codes are those of SBC-3, table 36.
func (c *iscsiCounts) Command(op, _ byte, bytes int64, _ time.Duration) {
	switch op {
	case 0x00: // TEST UNIT READY: what hosts that want nothing ask every few seconds
		return
	case 0x08, 0x28, 0xa8, 0x88: // READ(6), (10), (12), (16)
		c.reads.Add(1)
		c.readBytes.Add(bytes)
	case 0x0a, 0x2a, 0xaa, 0x8a: // WRITE(6), (10), (12), (16)
		c.writtenBytes.Add(bytes)
	}
	c.touch()
}

func (c *iscsiCounts) touch() { c.last.Store(time.Now().UnixNano()) }

func (c *iscsiCounts) lastUse() time.Time { return time.Unix(0, c.last.Load()).UTC() }

// iscsiStats is what a target answers `yester status` with.
type iscsiStats struct {
	Targets  int                   `json:"targets"`
	Open     int                   `json:"open"` // of them, points whose images are open
	Sessions []iscsi.SessionStatus `json:"sessions"`
	Reads    int64                 `json:"reads"`         // READ commands
	Bytes    int64                 `json:"bytes"`         // they sent
	Written  int64                 `json:"bytes_written"` // into scratch layers
	Errors   int64                 `json:"errors"`        // reads that failed because of the source
	Refused  int64                 `json:"logins_refused"`
	Last     time.Time             `json:"last_request,omitzero"`
	Expires  time.Time             `json:"expires,omitzero"`
	Cache    *cache.Stats          `json:"cache,omitempty"` // nil while nothing has needed it
}

func (t *targetSet) stats(expires time.Time) iscsiStats {
	c := t.counts
	s := iscsiStats{
		Sessions: t.srv.Sessions(), Reads: c.reads.Load(), Bytes: c.readBytes.Load(), Written: c.writtenBytes.Load(),
		Errors: c.errors.Load(), Refused: c.refused.Load(), Expires: expires,
	}
	if s.Sessions == nil {
		s.Sessions = []iscsi.SessionStatus{}
	}
	if c.last.Load() > 0 {
		s.Last = c.lastUse()
	}
	for _, p := range t.served() {
		s.Targets++
		if p.opener.opened.Load() != nil {
			s.Open++
		}
	}
	return s
}
