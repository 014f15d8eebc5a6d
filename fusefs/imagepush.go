package fusefs

import (
	"context"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/fusefs/erofs"
	"yester/internal/block"
)

// imagePusher pushes a point's small files into the kernel's page cache ahead of
// who reads them in the order in which they lie on the device, which is that of a
// walk by names: cp, tar and rsync take them so. pusher has the reasons.
type imagePusher struct {
	mu      sync.Mutex
	last    int       // the last file that was asked for, by its place in the order
	row     int       // how many of them came close behind each other
	when    time.Time // of the last
	window  int       // how far ahead the last one made us go
	next    int       // to be pushed next
	end     int       // where pushing ends
	working int       // goroutines that push
}

const (
	// imagePushMost bounds how many files may be pushed beyond the one that was asked
	// for.
	imagePushMost = 4096
	// imagePushers is how many files are pushed at a time.
	imagePushers = 2
)

// missed notes that the kernel had to ask for the small file i of n, and has those
// pushed that are likely to come next.
func (p *imagePusher) missed(i int, push func(i int, buf []byte) bool, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i > p.last && i-p.last <= imagePushMost && time.Since(p.when) < pushMomentum {
		p.row++
	} else {
		p.row, p.window = 1, 0
	}
	p.last, p.when = i, time.Now()
	if p.row < pushAfter {
		return
	}
	p.window = min(max(2*p.window, pushFirst), imagePushMost)
	if p.next <= i || p.next > i+imagePushMost {
		// Who reads has overtaken us, or is somewhere else.
		p.next = i + 1
	}
	p.end = min(n, i+1+p.window)
	for p.working < imagePushers && p.next+p.working < p.end {
		p.working++
		go p.work(push)
	}
}

// work pushes one file after the other.
func (p *imagePusher) work(push func(i int, buf []byte) bool) {
	buf := make([]byte, pushFile)
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.next < p.end {
		i := p.next
		p.next++
		p.mu.Unlock()
		more := push(i, buf)
		p.mu.Lock()
		if !more {
			p.end = p.next
		}
	}
	p.working--
}

// pushFile pushes one file, if it is small. It reports whether the next is worth
// trying: not once the mount is gone. Any other failure is of no account: whoever
// wants the file asks for it, and gets the error if there is one.
func (im *images) pushFile(t *imageTree, file erofs.File, buf []byte) bool {
	if file.Size > pushFile {
		return true
	}
	ctx := context.Background()
	c := content{im: im, tree: t, file: file}
	r, done, err := c.open(ctx)
	if err != nil {
		return !t.slot.stale()
	}
	defer done()
	n := (file.Size + erofs.BlockSize - 1) &^ (erofs.BlockSize - 1)
	clear(buf[file.Size:n])
	if block.ReadFull(ctx, r, buf[:file.Size], 0) != nil {
		return true
	}
	at := c.cached()
	st := im.server.InodeNotifyStoreCache(at.node, at.base, buf[:n])
	if st == fuse.OK {
		im.fs.stats.pushed.Add(1)
	}
	return st == fuse.OK
}
