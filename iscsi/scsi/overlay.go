package scsi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"yester/internal/block"
)

// ErrOverlayFull is the error of a write for which the scratch file has no room.
var ErrOverlayFull = errors.New("overlay is full")

// Geometry of an Overlay. Pages are the unit of copy-on-write, the size of a
// guest's own blocks; regions and chunks make the map of a mostly untouched
// disk of many TiB small, and a discarded disk as small.
const (
	overlayPage   = 4096
	chunkPages    = 256  // 1 MiB
	regionChunks  = 1024 // 1 GiB
	overlayChunk  = overlayPage * chunkPages
	overlayRegion = overlayChunk * regionChunks
)

// Where a page is: in the base, nowhere (it reads as zeros), or in a slot of the
// scratch file, numbered from slotFirst on.
const (
	slotBase  = 0
	slotZero  = 1
	slotFirst = 2
)

type (
	overlayPages  [chunkPages]uint32
	overlayChunks [regionChunks]*overlayPages
)

// Overlay is a copy-on-write layer over a medium, in a scratch file that never
// outlives it. The medium beneath is only read. It is safe for parallel use.
type Overlay struct {
	base  Medium
	file  *os.File
	limit int64 // pages the scratch file may have

	mu      sync.RWMutex // guards what follows; held for reading while pages are read
	regions map[int64]*overlayChunks
	free    []uint32 // slots given back
	next    uint32   // first slot never used
	used    int64    // slots in use

	// Shared by all that is discarded as a whole; never written to.
	zeroPages  *overlayPages
	zeroChunks *overlayChunks
}

// NewOverlay makes an empty overlay of base, whose scratch file lies in dir (""
// for the system's place) and grows to at most limit bytes. The file is unlinked
// at once: it goes with the process.
func NewOverlay(base Medium, dir string, limit int64) (*Overlay, error) {
	f, err := os.CreateTemp(dir, "yester-overlay-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	o := &Overlay{base: base, file: f, limit: min(limit/overlayPage, 1<<32-slotFirst-1), regions: map[int64]*overlayChunks{}}
	o.zeroPages, o.zeroChunks = new(overlayPages), new(overlayChunks)
	for i := range o.zeroPages {
		o.zeroPages[i] = slotZero
	}
	for i := range o.zeroChunks {
		o.zeroChunks[i] = o.zeroPages
	}
	return o, nil
}

// Close throws the overlay away.
func (o *Overlay) Close() error { return o.file.Close() }

// Used returns how many bytes the scratch file holds.
func (o *Overlay) Used() int64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.used * overlayPage
}

// Size returns the base's size in bytes.
func (o *Overlay) Size() int64 { return o.base.Size() }

// lookup returns the slot of the page that holds off.
func (o *Overlay) lookup(off int64) uint32 {
	r := o.regions[off/overlayRegion]
	if r == nil {
		return slotBase
	}
	c := r[off/overlayChunk%regionChunks]
	if c == nil {
		return slotBase
	}
	return c[off/overlayPage%chunkPages]
}

// pages returns the chunk that holds off, for changing.
func (o *Overlay) pages(off int64) *overlayPages {
	r := o.region(off)
	i := off / overlayChunk % regionChunks
	switch c := r[i]; c {
	case nil:
		r[i] = new(overlayPages)
	case o.zeroPages:
		p := *c
		r[i] = &p
	}
	return r[i]
}

func (o *Overlay) region(off int64) *overlayChunks {
	i := off / overlayRegion
	r := o.regions[i]
	switch r {
	case nil:
		r = new(overlayChunks)
	case o.zeroChunks:
		c := *r
		r = &c
	default:
		return r
	}
	o.regions[i] = r
	return r
}

// run returns how many bytes from off on (at most n) share a kind, and in a slot
// also lie side by side in the file; and the slot of the first.
func (o *Overlay) run(off, n int64) (slot uint32, length int64) {
	slot = o.lookup(off)
	length = min(n, overlayPage-off%overlayPage)
	for k := uint32(1); length < n; k++ {
		next := o.lookup(off + length)
		if slot < slotFirst && next != slot || slot >= slotFirst && next != slot+k {
			break
		}
		length += min(n-length, overlayPage)
	}
	return slot, length
}

func slotOff(slot uint32) int64 { return int64(slot-slotFirst) * overlayPage }

// ReadAt implements block.Reader.
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	return o.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext implements block.ContextReader. The base is read without the
// lock: a slow base must not hold up the writes of others, and pages that a
// parallel write moves away from it may read as either.
func (o *Overlay) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, eof := block.CheckRead(off, len(p), o.Size())
	done := 0
	for done < n {
		at := off + int64(done)
		o.mu.RLock()
		slot, length := o.run(at, int64(n-done))
		part := p[done : done+int(length)]
		var got int
		var err error
		switch {
		case slot == slotZero:
			clear(part)
			got = len(part)
		case slot >= slotFirst:
			got, err = o.file.ReadAt(part, slotOff(slot)+at%overlayPage)
		}
		o.mu.RUnlock()
		if slot == slotBase {
			got, err = o.base.ReadAtContext(ctx, part, at)
		}
		done += got
		if got < len(part) {
			return done, fmt.Errorf("overlay: read at %#x: %w", at, shortRead(err))
		}
	}
	return n, eof
}

func shortRead(err error) error {
	if err == nil {
		return errors.New("short read")
	}
	return err
}

// Extent implements block.Mapper: what was discarded, and what the base calls a
// hole, reads as zeros.
func (o *Overlay) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	o.mu.RLock()
	slot, length := o.run(off, min(n, overlayRegion))
	o.mu.RUnlock()
	switch slot {
	case slotBase:
		e, err := block.ExtentAt(ctx, o.base, off, length)
		return block.Extent{Len: e.Len, Zero: e.Zero}, err // a file extent wouldn't stay true
	case slotZero:
		return block.Extent{Len: length, Zero: true}, nil
	}
	return block.Extent{Len: length}, nil
}

// readError is a failure of the base while a write needed the rest of a page.
type readError struct {
	off int64
	err error
}

func (e *readError) Error() string { return fmt.Sprintf("read base at %#x: %v", e.off, e.err) }
func (e *readError) Unwrap() error { return e.err }

// WriteAt stores p at off, which lies with p inside the overlay. What was stored
// before an error stays.
func (o *Overlay) WriteAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		in := off % overlayPage
		if in != 0 || len(p) < overlayPage {
			k := min(int64(len(p)), overlayPage-in)
			if err := o.writePart(ctx, p[:k], off); err != nil {
				return err
			}
			p, off = p[k:], off+k
			continue
		}
		k := int64(len(p)) / overlayPage * overlayPage
		if err := o.writePages(p[:k], off); err != nil {
			return err
		}
		p, off = p[k:], off+k
	}
	return nil
}

// writePart stores less than a page. The page's other bytes come from the base
// the first time.
func (o *Overlay) writePart(ctx context.Context, p []byte, off int64) error {
	start := off - off%overlayPage
	var page [overlayPage]byte
	have := false
	for {
		o.mu.Lock()
		switch slot := o.lookup(off); {
		case slot >= slotFirst:
			_, err := o.file.WriteAt(p, slotOff(slot)+off%overlayPage)
			o.mu.Unlock()
			return err
		case slot == slotZero:
			clear(page[:])
			have = true
		}
		if have {
			copy(page[off%overlayPage:], p)
			err := o.storePages(page[:], start)
			o.mu.Unlock()
			return err
		}
		// Read the base without the lock, then look again.
		o.mu.Unlock()
		n := min(overlayPage, o.Size()-start)
		if bad, err := ReadMedium(ctx, o.base, page[:n], start); err != nil {
			return &readError{bad, err}
		}
		have = true
	}
}

func (o *Overlay) writePages(p []byte, off int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.storePages(p, off)
}

// storePages stores whole pages; the lock is held.
func (o *Overlay) storePages(p []byte, off int64) error {
	for len(p) > 0 {
		pages := o.pages(off)
		i := off / overlayPage % chunkPages
		n := min(int64(len(p))/overlayPage, chunkPages-i)
		for k := int64(0); k < n; {
			// Gather slots that lie side by side into one write.
			first, err := o.slotFor(pages, i+k)
			if err != nil {
				return err
			}
			m := int64(1)
			for ; k+m < n; m++ {
				if s := pages[i+k+m]; s >= slotFirst && s != first+uint32(m) || s < slotFirst && (len(o.free) > 0 || o.next != first+uint32(m)-slotFirst) {
					break
				}
				if _, err := o.slotFor(pages, i+k+m); err != nil {
					break // the next round reports it
				}
			}
			if _, err := o.file.WriteAt(p[:m*overlayPage], slotOff(first)); err != nil {
				return err
			}
			p, off, k = p[m*overlayPage:], off+m*overlayPage, k+m
		}
	}
	return nil
}

// slotFor gives page i of a chunk a slot if it has none. A page that had none and
// whose write then fails holds what the slot held: the command has failed, and
// its blocks are undefined until written again.
func (o *Overlay) slotFor(pages *overlayPages, i int64) (uint32, error) {
	if s := pages[i]; s >= slotFirst {
		return s, nil
	}
	if o.used >= o.limit {
		return 0, ErrOverlayFull
	}
	var s uint32
	if n := len(o.free); n > 0 {
		s = o.free[n-1]
		o.free = o.free[:n-1]
	} else {
		s = o.next + slotFirst
		o.next++
	}
	o.used++
	pages[i] = s
	return s, nil
}

// Zero makes n bytes from off on read as zeros and gives their slots back.
func (o *Overlay) Zero(ctx context.Context, off, n int64) error {
	var zeros [overlayPage]byte
	for n > 0 {
		if in := off % overlayPage; in != 0 || n < overlayPage && off+n < o.Size() {
			k := min(n, overlayPage-in)
			if err := o.writePart(ctx, zeros[:k], off); err != nil {
				return err
			}
			off, n = off+k, n-k
			continue
		}
		k := o.zeroRun(off, n)
		off, n = off+k, n-k
	}
	return nil
}

// zeroRun discards from a page's start: a region, a chunk, or the pages of one.
func (o *Overlay) zeroRun(off, n int64) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if off%overlayRegion == 0 && n >= overlayRegion {
		if r := o.regions[off/overlayRegion]; r != nil && r != o.zeroChunks {
			for _, c := range r {
				o.giveBack(c)
			}
		}
		o.regions[off/overlayRegion] = o.zeroChunks
		return overlayRegion
	}
	if off%overlayChunk == 0 && n >= overlayChunk {
		r := o.region(off)
		i := off / overlayChunk % regionChunks
		o.giveBack(r[i])
		r[i] = o.zeroPages
		return overlayChunk
	}
	pages := o.pages(off)
	i := off / overlayPage % chunkPages
	done := int64(0)
	for ; i < chunkPages && done < n && (n-done >= overlayPage || off+n == o.Size()); i++ {
		if s := pages[i]; s >= slotFirst {
			o.free = append(o.free, s)
			o.used--
		}
		pages[i] = slotZero
		done += min(overlayPage, n-done)
	}
	return done
}

func (o *Overlay) giveBack(c *overlayPages) {
	if c == nil || c == o.zeroPages {
		return
	}
	for _, s := range c {
		if s >= slotFirst {
			o.free = append(o.free, s)
			o.used--
		}
	}
}

// fill stores copies of one over n bytes from off on.
func (o *Overlay) fill(ctx context.Context, one []byte, off, n int64) error {
	buf := make([]byte, min(n, verifyStep))
	for i := 0; i < len(buf); i += copy(buf[i:], one) {
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(buf)))
		if err := o.WriteAt(ctx, buf[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}
