package store

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// The files of a cache directory; HASH is hashName's answer for the key. All
// formats here are our own, little-endian.
//
//	o-HASH.idx   an object's header and one entry per block
//	o-HASH.dN    its bytes, sparse: part N holds [N*partSize, (N+1)*partSize)
//	s-HASH.rec   a record that says how long a spool is and what its SHA-256 is
//	s-HASH.dat   its bytes
//	b-HASH.rec   a record set by SetBlob
//	t-RANDOM     a file being written, renamed into its place when it is whole
//	lock         never written: its byte ranges are the locks of the directory
const (
	indexSuffix  = ".idx"
	partSuffix   = ".d"
	recordSuffix = ".rec"
	dataSuffix   = ".dat"
	objectPrefix = "o-"
	spoolPrefix  = "s-"
	blobPrefix   = "b-"
	tempPrefix   = "t-"
	lockName     = "lock"
)

const (
	// headerSize is the length of an index's header in bytes: a page, so that the
	// entries begin on one.
	headerSize = 4096
	// entrySize is the length of an entry in bytes. It divides a sector, so that
	// a torn write leaves whole entries.
	entrySize = 16

	indexMagic   = "YSTRIDX\x01"
	indexVersion = 1

	// Fields of the header, by offset.
	hdrMagic     = 0  // 8 bytes
	hdrVersion   = 8  // u32
	hdrBlockSize = 12 // u32, bytes
	hdrSize      = 16 // u64, bytes
	hdrKeyLen    = 24 // u32, bytes
	hdrKey       = 32
	hdrSum       = headerSize - 4 // u32: CRC-32C of all before it

	// maxKey is the longest key in bytes: what fits in the header.
	maxKey = hdrSum - hdrKey

	// maxSize is the largest object, in bytes: 256 TiB, four times the largest
	// EBS volume. It bounds the number of part files.
	maxSize = 1 << 48
	// partSize is how much of an object a data file holds, in bytes. ext4 with
	// its usual 4 KiB blocks ends files just below 16 TiB.
	partSize = 1 << 43

	minBlock = 64 << 10
	maxBlock = 4 << 20
)

// The states of a block, in the low byte of an entry's state. The other three
// bytes are the tag of the boot in which a volatile entry was written.
const (
	stateAbsent   = 0
	stateVolatile = 1 // written, not known to be on disk: void after a reboot
	stateDurable  = 2 // on disk before this entry said so
	stateEvicting = 3 // being punched: absent, its space not yet given back
)

// Ranges of the index file that are locked (open file description locks; nothing
// need exist there). A lease is shared while a process may read a block, and
// exclusive while one evicts it.
const (
	leaseBase = 1 << 60 // + block number
	claimBase = 1 << 61 // + block number: exclusive while one fetches it
	openByte  = 1 << 62 // shared while the object is open
	initByte  = 1<<62 + 1
)

// Ranges of the file "lock".
const (
	evictByte = 0       // exclusive while a process evicts
	spoolBase = 1 << 62 // + hash: exclusive while a process makes that spool
)

// castagnoli is CRC-32C, which amd64 and arm64 compute in hardware.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is what an index file says it is for.
type header struct {
	key       string
	size      int64
	blockSize int
}

// blocks returns how many blocks the object has.
func (h *header) blocks() int64 {
	return h.size/int64(h.blockSize) + min(1, h.size%int64(h.blockSize))
}

// indexSize returns the length of the index file in bytes.
func (h *header) indexSize() int64 { return headerSize + entrySize*h.blocks() }

// encode returns the header's page.
func (h *header) encode() []byte {
	p := make([]byte, headerSize)
	copy(p[hdrMagic:], indexMagic)
	binary.LittleEndian.PutUint32(p[hdrVersion:], indexVersion)
	binary.LittleEndian.PutUint32(p[hdrBlockSize:], uint32(h.blockSize))
	binary.LittleEndian.PutUint64(p[hdrSize:], uint64(h.size))
	binary.LittleEndian.PutUint32(p[hdrKeyLen:], uint32(len(h.key)))
	copy(p[hdrKey:hdrSum], h.key)
	binary.LittleEndian.PutUint32(p[hdrSum:], crc32.Checksum(p[:hdrSum], castagnoli))
	return p
}

// parseHeader decodes a header's page; ok is false for anything but a whole one
// within the limits.
func parseHeader(p []byte) (h header, ok bool) {
	if len(p) != headerSize || !bytes.HasPrefix(p, []byte(indexMagic)) ||
		binary.LittleEndian.Uint32(p[hdrVersion:]) != indexVersion ||
		binary.LittleEndian.Uint32(p[hdrSum:]) != crc32.Checksum(p[:hdrSum], castagnoli) {
		return header{}, false
	}
	size, n := binary.LittleEndian.Uint64(p[hdrSize:]), binary.LittleEndian.Uint32(p[hdrKeyLen:])
	bs := binary.LittleEndian.Uint32(p[hdrBlockSize:])
	if size > maxSize || n == 0 || n > maxKey || bs < minBlock || bs > maxBlock || bs&(bs-1) != 0 {
		return header{}, false
	}
	return header{key: string(p[hdrKey : hdrKey+n]), size: int64(size), blockSize: int(bs)}, true
}

// entry is what the index knows of a block.
type entry struct {
	sum   uint32 // CRC-32C of identity, block number and bytes
	gen   uint32 // random per Put: tells one writing of the block from another
	used  uint32 // last use, Unix seconds
	state uint32
}

// encode puts the entry into p, which is entrySize long.
func (e entry) encode(p []byte) {
	binary.LittleEndian.PutUint32(p[0:], e.sum)
	binary.LittleEndian.PutUint32(p[4:], e.gen)
	binary.LittleEndian.PutUint32(p[usedOff:], e.used)
	binary.LittleEndian.PutUint32(p[stateOff:], e.state)
}

// Offsets of the fields that are written alone.
const (
	usedOff  = 8
	stateOff = 12
)

func parseEntry(p []byte) entry {
	return entry{
		sum:   binary.LittleEndian.Uint32(p[0:]),
		gen:   binary.LittleEndian.Uint32(p[4:]),
		used:  binary.LittleEndian.Uint32(p[usedOff:]),
		state: binary.LittleEndian.Uint32(p[stateOff:]),
	}
}

// volatileState returns the state of a block written in the boot of that tag.
func volatileState(boot uint32) uint32 { return boot<<8 | stateVolatile }

// present reports whether the block can be read; its bytes are still to be verified.
func (e entry) present(boot uint32) bool {
	return e.state == stateDurable || e.state == volatileState(boot)
}

// id tells one writing of a block from every other; never 0.
func (e entry) id() uint64 { return uint64(e.sum)<<32 | uint64(e.gen) | 1 }
