package ebsfake

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Generated is an Image of any size that takes no room: what a block holds
// follows from its number and its version.
type Generated struct {
	Blocks int64
	// VersionOf returns a block's version; 0 means that it was never written.
	VersionOf func(block int64) uint64
}

// Size implements Image.
func (g *Generated) Size() int64 { return g.Blocks * BlockSize }

// Written implements Writer.
func (g *Generated) Written(n int64) bool { return g.VersionOf(n) != 0 }

// Version implements Versioner.
func (g *Generated) Version(n int64) uint64 { return g.VersionOf(n) }

// ReadAt implements Image for whole blocks.
func (g *Generated) ReadAt(p []byte, off int64) (int, error) {
	if off%BlockSize != 0 || len(p)%BlockSize != 0 || off+int64(len(p)) > g.Size() {
		return 0, fmt.Errorf("generated image: %d bytes at %d: %w", len(p), off, io.ErrUnexpectedEOF)
	}
	total := len(p)
	for n := off / BlockSize; len(p) > 0; n++ {
		g.Block(n, p[:BlockSize])
		p = p[BlockSize:]
	}
	return total, nil
}

// Block fills p with block n.
func (g *Generated) Block(n int64, p []byte) {
	v := g.VersionOf(n)
	if v == 0 {
		clear(p)
		return
	}
	x := uint64(n)*0x9e3779b97f4a7c15 ^ v*0xd1342543de82ef95 | 1
	for len(p) >= 8 {
		x ^= x << 13 // xorshift64, Marsaglia 2003
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p, x)
		p = p[8:]
	}
}
