package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// kernelCache steers the kernel's page cache of the mount: small files are pushed
// into it ahead of who reads a directory through (pusher), and large files are
// dropped from it behind who reads them through (dropper). Notifications may
// wait for pages that a request holds, so a goroutine of their own sends them.
type kernelCache struct {
	push pusher
	drop dropper
	work chan func(*fuse.Server)
}

func newKernelCache(f *rawFS) *kernelCache {
	c := &kernelCache{work: make(chan func(*fuse.Server), 4)}
	c.push = pusher{f: f, here: f.cat.src.HostPath() != "", offer: c.offer, buf: make([]byte, pushFile)}
	c.drop = dropper{offer: c.offer, streams: map[nodeID]*stream{}}
	return c
}

// offer gives the goroutine something to do, unless it is behind: nothing of this
// is necessary.
func (c *kernelCache) offer(do func(*fuse.Server)) bool {
	select {
	case c.work <- do:
		return true
	default:
		return false
	}
}

// run works until stop is closed.
func (c *kernelCache) run(server *fuse.Server, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case do := <-c.work:
			do(server)
		}
	}
}
