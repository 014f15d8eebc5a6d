package fusefs

import (
	"context"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"yester/guestfs"
	"yester/internal/block"
)

// Reading thousands of small files one after the other costs a round trip between
// the kernel and this process for each, most of it spent in waking up. So when
// somebody reads the small files of a directory, the contents of the next ones
// are pushed into the kernel's page cache (FUSE_NOTIFY_STORE) before they are
// asked for. Only what lies on this host is pushed: nothing is fetched from afar
// on a guess.
const (
	// pushFile is the size in bytes up to which a file counts as small.
	pushFile = 64 << 10
	// pushBytes bounds what one reader's miss may push, in bytes.
	pushBytes = 1 << 20
	// pushFirst and pushMost bound how many files a miss may push: each miss in a
	// directory doubles the number.
	pushFirst, pushMost = 8, 256
	// pushAfter is how many files of a directory must be read before its others
	// are pushed; one is enough right after another directory was read through.
	pushAfter = 3
	// pushMomentum is how long "right after" lasts.
	pushMomentum = time.Second
	// pushLists and pushEntries bound what is remembered: directories, and small
	// files in each.
	pushLists, pushEntries = 16, 8192
)

// pusher decides what to push, and pushes it.
type pusher struct {
	here  bool // the source lies on this host
	f     *rawFS
	offer func(func(*fuse.Server)) bool
	buf   []byte // of the goroutine that pushes

	mu     sync.Mutex
	lists  []*pushList // the most recently listed directories, oldest first
	window int         // files that the last miss pushed
	last   time.Time   // when that was
}

// pushList is a directory's small files in the order in which they were listed.
type pushList struct {
	dir    nodeID
	items  []pushItem
	index  map[nodeID]int
	done   []bool // read or pushed
	misses int
}

type pushItem struct {
	id   nodeID
	size int64
}

// listed notes that a directory's listing, from its beginning or going on, has
// shown the kernel these files.
func (p *pusher) listed(dir nodeID, from uint64, items []pushItem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var l *pushList
	for i, o := range p.lists {
		if o.dir == dir {
			l = o
			p.lists = append(p.lists[:i], p.lists[i+1:]...)
			break
		}
	}
	if l == nil || from == 0 {
		l = &pushList{dir: dir, index: make(map[nodeID]int, len(items))}
	}
	for _, it := range items {
		if _, dup := l.index[it.id]; dup || len(l.items) >= pushEntries {
			continue
		}
		l.index[it.id] = len(l.items)
		l.items = append(l.items, it)
	}
	l.done = append(l.done, make([]bool, len(l.items)-len(l.done))...)
	if len(p.lists) >= pushLists {
		p.lists = p.lists[1:]
	}
	p.lists = append(p.lists, l)
}

// missed notes that the kernel had to ask for a small file, and sets the worker
// on those that are likely to come next.
func (p *pusher) missed(n nodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.lists) - 1; i >= 0; i-- {
		l := p.lists[i]
		at, ok := l.index[n]
		if !ok {
			continue
		}
		l.done[at] = true
		l.misses++
		again := time.Since(p.last) < pushMomentum
		if l.misses < pushAfter && !again {
			return
		}
		if again {
			p.window = min(2*p.window, pushMost)
		} else {
			p.window = pushFirst
		}
		p.last = time.Now()
		batch := l.next(at, p.window)
		if len(batch) > 0 && p.offer(func(server *fuse.Server) { p.pushAll(server, batch) }) {
			for _, it := range batch {
				l.done[l.index[it.id]] = true
			}
		}
		return
	}
}

// next takes the files after the one at index at, around the end, that nobody has
// read yet.
func (l *pushList) next(at, n int) []pushItem {
	var batch []pushItem
	var bytes int64
	for i := 1; i < len(l.items) && len(batch) < n; i++ {
		j := (at + i) % len(l.items)
		if l.done[j] {
			continue
		}
		if bytes += l.items[j].size; bytes > pushBytes {
			break
		}
		batch = append(batch, l.items[j])
	}
	return batch
}

// pushAll pushes a batch.
func (p *pusher) pushAll(server *fuse.Server, batch []pushItem) {
	for _, it := range batch {
		if !p.push(server, it) {
			return
		}
	}
}

// push stores one file in the kernel's page cache, whole. It reports whether the
// rest of the batch is worth trying. A failure is of no account: whoever wants
// the file asks for it, and gets the error if there is one.
func (p *pusher) push(server *fuse.Server, it pushItem) bool {
	ctx := context.Background()
	pl, err := p.f.locate(ctx, it.id)
	if err != nil {
		return false
	}
	defer pl.release()
	r, err := pl.reader(ctx)
	if err != nil || r.Size() != it.size || !p.here && !local(ctx, r) {
		return false
	}
	if block.ReadFull(ctx, r, p.buf[:it.size], 0) != nil {
		return true
	}
	st := server.InodeNotifyStoreCache(uint64(it.id), 0, p.buf[:it.size])
	if st == fuse.OK {
		p.f.stats.pushed.Add(1)
	}
	return st == fuse.OK || st == fuse.ENOENT // ENOENT: the kernel has forgotten the file
}

// local reports whether all of r lies in host files or is known to be zeros.
func local(ctx context.Context, r block.Reader) bool {
	for off := int64(0); off < r.Size(); {
		e, err := block.ExtentAt(ctx, r, off, r.Size()-off)
		if err != nil || e.File == nil && !e.Zero {
			return false
		}
		off += e.Len
	}
	return true
}

// small reports whether a file is worth pushing.
func small(a *guestfs.Attr) bool { return a.IsRegular() && a.Size > 0 && a.Size <= pushFile }
