package iscsi

import "sync"

// maxChunk is how much of one READ is fetched at a time: as long as the longest
// segment, so that a slow backend sees one request for it.
const maxChunk = maxSend

// zeros is what holes read as; nobody writes to it.
var zeros = make([]byte, maxChunk)

// Size classes of buffers. From 4 KiB on the allocator aligns them to pages.
var bufferSizes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, maxChunk}

// buffer is a piece of memory on loan from a bufferPool.
type buffer struct {
	b     []byte // as long as was asked for
	class int
}

// bufferPool lends buffers. One belongs to each Server.
type bufferPool struct {
	classes [len(bufferSizes)]sync.Pool
}

// get returns a buffer of n bytes, at most maxChunk, with arbitrary content.
func (p *bufferPool) get(n int) *buffer {
	for i, size := range bufferSizes {
		if n <= size {
			if b, ok := p.classes[i].Get().(*buffer); ok {
				b.b = b.b[:n]
				return b
			}
			return &buffer{b: make([]byte, n, size), class: i}
		}
	}
	return &buffer{b: make([]byte, n), class: -1}
}

func (p *bufferPool) put(b *buffer) {
	if b != nil && b.class >= 0 {
		p.classes[b.class].Put(b)
	}
}

// budget bounds the bytes that a session's reads hold.
type budget struct {
	mu     sync.Mutex
	cond   sync.Cond
	free   int64
	closed bool
}

func newBudget(n int64) *budget {
	b := &budget{free: n}
	b.cond.L = &b.mu
	return b
}

// take waits for n bytes; it is false when the session is over.
func (b *budget) take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.free < n && !b.closed {
		b.cond.Wait()
	}
	if b.closed {
		return false
	}
	b.free -= n
	return true
}

func (b *budget) give(n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	b.free += n
	b.mu.Unlock()
	b.cond.Broadcast()
}

func (b *budget) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cond.Broadcast()
}
