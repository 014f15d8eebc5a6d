package fusefs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A large file that is read from its beginning to its end passes through the
// page cache twice: as part of the image on the host, and as a file of the mount.
// The second copy is dropped behind the reader. The host keeps its memory for what
// is worth keeping, and the pages that the kernel reuses at once are still in the
// processor's caches, which makes reading faster than filling memory.
const (
	// dropFrom is how many bytes must have been read in a row before any is
	// dropped: smaller files stay for the next look.
	dropFrom = 32 << 20
	// dropBehind is how far behind the reader is dropped, in bytes: more than the
	// kernel reads ahead.
	dropBehind = 4 << 20
	// dropChunk is how much is dropped at once, in bytes.
	dropChunk = 2 << 20
	// dropJitter is by how much requests of one reader may arrive out of order.
	dropJitter = 4 << 20
	// maxStreams bounds the files that are followed.
	maxStreams = 64
)

// dropper follows who reads large files through.
type dropper struct {
	offer func(func(*fuse.Server)) bool

	mu      sync.Mutex
	streams map[nodeID]*stream
}

// stream is a run of requests for one file. Two readers at different places break
// each other's runs, and nothing is dropped then.
type stream struct {
	start, end, dropped int64 // byte offsets
}

// cachePlace is where the kernel's page cache has a file's content.
type cachePlace struct {
	node uint64
	base int64 // of the content, in the node's bytes
}

// read notes a request for n bytes at off of the file id, which are cached at.
func (d *dropper) read(id nodeID, at cachePlace, off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.streams[id]
	if s == nil || off > s.end+dropJitter || off < s.end-dropJitter {
		if s == nil && len(d.streams) >= maxStreams {
			clear(d.streams)
		}
		d.streams[id] = &stream{start: off, end: off + n, dropped: off}
		return
	}
	s.end = max(s.end, off+n)
	if s.end-s.start < dropFrom || s.end-dropBehind-s.dropped < dropChunk {
		return
	}
	from, to := s.dropped, s.end-dropBehind
	if d.offer(func(server *fuse.Server) { server.InodeNotify(at.node, at.base+from, to-from) }) {
		s.dropped = to
	}
}
