package cache

import "sync/atomic"

// bitmap is a set of block numbers. Its pages are made as they are needed, so
// that a set of few of many million blocks is small. It is safe for parallel use.
type bitmap struct {
	pages []atomic.Pointer[bitmapPage]
	count atomic.Int64
}

// bitmapPage is 4 KiB.
type bitmapPage [512]atomic.Uint64

const pageBits = 512 * 64

func newBitmap(n int64) *bitmap {
	return &bitmap{pages: make([]atomic.Pointer[bitmapPage], (n+pageBits-1)/pageBits)}
}

func (b *bitmap) has(n int64) bool {
	p := b.pages[n/pageBits].Load()
	return p != nil && p[n%pageBits/64].Load()&(1<<(n%64)) != 0
}

// add reports whether n was not in the set.
func (b *bitmap) add(n int64) bool {
	at := &b.pages[n/pageBits]
	p := at.Load()
	if p == nil {
		at.CompareAndSwap(nil, new(bitmapPage))
		p = at.Load()
	}
	bit := uint64(1) << (n % 64)
	if p[n%pageBits/64].Or(bit)&bit != 0 {
		return false
	}
	b.count.Add(1)
	return true
}

// remove reports whether n was in the set.
func (b *bitmap) remove(n int64) bool {
	p := b.pages[n/pageBits].Load()
	if p == nil {
		return false
	}
	bit := uint64(1) << (n % 64)
	if p[n%pageBits/64].And(^bit)&bit == 0 {
		return false
	}
	b.count.Add(-1)
	return true
}
