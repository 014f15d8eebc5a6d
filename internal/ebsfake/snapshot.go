package ebsfake

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"regexp"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Image is a raw disk. It must not change while the server has it.
type Image interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Writer is an Image that knows which blocks have been written. Of an Image that
// doesn't, all are read once when it is added, and those of zeros count as never
// written; holes of a File are not read.
type Writer interface {
	Written(block int64) bool
}

// Versioner is an Image whose blocks carry versions: a block has changed between
// two snapshots when its version has. Without it contents are compared.
type Versioner interface {
	Version(block int64) uint64
}

// File is an Image in a host file.
type File struct {
	*os.File
	size int64
	// again are descriptors of the same file with positions of their own, for
	// sendfile, not in use now.
	again chan *os.File
}

// maxAgain is how many such descriptors are kept: as many as blocks are sent at once.
const maxAgain = 128

// OpenFile opens a raw image read-only.
func OpenFile(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &File{f, fi.Size(), make(chan *os.File, maxAgain)}, nil
}

// at returns a descriptor of the file whose position is off; done takes it back.
func (f *File) at(off int64) (*os.File, error) {
	var fd *os.File
	select {
	case fd = <-f.again:
	default:
		var err error
		if fd, err = os.Open("/proc/self/fd/" + strconv.Itoa(int(f.Fd()))); err != nil {
			return nil, err
		}
	}
	if _, err := fd.Seek(off, io.SeekStart); err != nil {
		fd.Close()
		return nil, err
	}
	return fd, nil
}

func (f *File) done(fd *os.File) {
	select {
	case f.again <- fd:
	default:
		fd.Close()
	}
}

// Close closes the file. Nothing is being sent of it any more.
func (f *File) Close() error {
	for {
		select {
		case fd := <-f.again:
			fd.Close()
		default:
			return f.File.Close()
		}
	}
}

// Size implements Image.
func (f *File) Size() int64 { return f.size }

// Snapshot is one snapshot. Fields are EC2's; they must not change after Add.
type Snapshot struct {
	ID          string // "snap-0…"
	VolumeID    string // "vol-0…"; vol-ffffffff for a copy
	Lineage     string // snapshots of one lineage can be compared; VolumeID when empty
	Image       Image  // may be nil when the state allows no reading
	VolumeSize  int32  // GiB; the image's size rounded up when 0
	StartTime   time.Time
	State       string // "completed" when empty; "pending", "error"
	Progress    string // "100%" when empty
	Tier        string // "standard" when empty; "archive"
	Description string
	Tags        map[string]string
	Owner       string   // account; that of the server's first credentials when empty
	SharedWith  []string // accounts that may read it as well
	Public      bool
	KMSKey      string // ARN; encrypted when not empty
	OutpostARN  string // a local snapshot on an Outpost when not empty
	InRecycle   bool   // deleted, and kept by the Recycle Bin

	number  uint32
	blocks  int64
	written []uint64  // bitmap
	sums    *sync.Map // block number to SHA-256
}

// Instance is a machine and what is attached to it.
type Instance struct {
	ID      string
	Owner   string
	Devices map[string]string // device name ("/dev/xvda") to volume id
	Root    string            // device name of the root volume
}

var (
	snapshotID = regexp.MustCompile(`^snap-[0-9a-f]+$`)
	errImage   = errors.New("image")
)

// Add gives the server a snapshot. An Image that is no Writer is read once.
func (s *Server) Add(snap Snapshot) error {
	if !snapshotID.MatchString(snap.ID) || len(snap.ID) > 64 {
		return fmt.Errorf("snapshot id %q: does not match ^snap-[0-9a-f]+$", snap.ID)
	}
	sn := &snap
	if sn.Lineage == "" {
		sn.Lineage = sn.VolumeID
	}
	setDefault(&sn.State, "completed")
	setDefault(&sn.Progress, "100%")
	setDefault(&sn.Tier, "standard")
	setDefault(&sn.Owner, s.defaultAccount())
	if sn.StartTime.IsZero() {
		sn.StartTime = time.Now().UTC().Truncate(time.Millisecond)
	}
	if sn.Image != nil {
		if sn.VolumeSize == 0 {
			sn.VolumeSize = int32((sn.Image.Size() + 1<<30 - 1) >> 30)
		}
		if sn.Image.Size() > int64(sn.VolumeSize)<<30 {
			return fmt.Errorf("%s: image of %d bytes is larger than %d GiB", sn.ID, sn.Image.Size(), sn.VolumeSize)
		}
		if err := sn.scan(); err != nil {
			return fmt.Errorf("%s: %w", sn.ID, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshots[sn.ID] != nil {
		return fmt.Errorf("%s: added twice", sn.ID)
	}
	sn.number = uint32(len(s.numbers) + 1)
	s.snapshots[sn.ID] = sn
	s.numbers[sn.number] = sn
	return nil
}

// Remove deletes a snapshot, as a retention policy does.
func (s *Server) Remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.snapshots, id) // its number stays taken, so that its tokens name nothing else
}

// Replace changes what a snapshot says of itself (state, tier, tags, …); its
// image stays.
func (s *Server) Replace(id string, change func(*Snapshot)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.snapshots[id]
	now := &Snapshot{
		ID: old.ID, VolumeID: old.VolumeID, Lineage: old.Lineage, Image: old.Image, VolumeSize: old.VolumeSize,
		StartTime: old.StartTime, State: old.State, Progress: old.Progress, Tier: old.Tier, Description: old.Description,
		Tags: old.Tags, Owner: old.Owner, SharedWith: old.SharedWith, Public: old.Public, KMSKey: old.KMSKey,
		OutpostARN: old.OutpostARN, InRecycle: old.InRecycle,
		number: old.number, blocks: old.blocks, written: old.written, sums: old.sums,
	}
	change(now)
	s.snapshots[id], s.numbers[now.number] = now, now
}

// AddInstance gives the server a machine.
func (s *Server) AddInstance(i Instance) {
	setDefault(&i.Owner, s.defaultAccount())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[i.ID] = &i
}

// defaultAccount is the account of the credentials that sort first.
func (s *Server) defaultAccount() string {
	var least string
	for key := range s.creds {
		if least == "" || key < least {
			least = key
		}
	}
	return s.creds[least].Account
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

func (s *Server) snapshot(id string) *Snapshot {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.snapshots[id]
}

// scan finds the written blocks.
func (sn *Snapshot) scan() error {
	sn.blocks = (sn.Image.Size() + BlockSize - 1) / BlockSize
	sn.written = make([]uint64, (sn.blocks+63)/64)
	sn.sums = new(sync.Map)
	if w, ok := sn.Image.(Writer); ok {
		for n := range sn.blocks {
			if w.Written(n) {
				sn.written[n/64] |= 1 << (n % 64)
			}
		}
		return nil
	}
	buf := make([]byte, BlockSize)
	for n := int64(0); n < sn.blocks; n++ {
		if f, ok := sn.Image.(*File); ok {
			data, err := unix.Seek(int(f.Fd()), n*BlockSize, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				break // a hole to the end
			}
			if err == nil && data/BlockSize > n {
				n = data / BlockSize
			}
		}
		if err := sn.read(n, buf); err != nil {
			return err
		}
		if !allZero(buf) {
			sn.written[n/64] |= 1 << (n % 64)
		}
	}
	return nil
}

func allZero(p []byte) bool {
	var zero [4096]byte
	for len(p) > 0 {
		n := min(len(p), len(zero))
		if string(p[:n]) != string(zero[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// read fills p with block n; what lies past the end of the image is zeros, as
// the last block of a volume is whole.
func (sn *Snapshot) read(n int64, p []byte) error {
	want := min(int64(len(p)), sn.Image.Size()-n*BlockSize)
	got, err := sn.Image.ReadAt(p[:want], n*BlockSize)
	if int64(got) < want {
		return fmt.Errorf("%w: block %d: %w", errImage, n, err)
	}
	clear(p[want:])
	return nil
}

func (sn *Snapshot) isWritten(n int64) bool {
	return n >= 0 && n < sn.blocks && sn.written[n/64]>>(n%64)&1 == 1
}

// next returns the first written block from n on, or sn.blocks.
func (sn *Snapshot) next(n int64) int64 { return nextBit(sn.written, n, sn.blocks) }

func nextBit(bitmap []uint64, n, end int64) int64 {
	if n >= end {
		return end
	}
	word := bitmap[n/64] >> (n % 64)
	if word != 0 {
		return min(n+int64(bits.TrailingZeros64(word)), end)
	}
	for i := n/64 + 1; i < int64(len(bitmap)); i++ {
		if bitmap[i] != 0 {
			return min(i*64+int64(bits.TrailingZeros64(bitmap[i])), end)
		}
	}
	return end
}

// file returns the file in which block n lies whole, if there is one and the
// block's checksum is known already: then its bytes need not be seen.
func (sn *Snapshot) file(n int64) (f *File, sum [sha256.Size]byte, ok bool) {
	if f, ok = sn.Image.(*File); !ok || (n+1)*BlockSize > f.size {
		return nil, sum, false
	}
	s, ok := sn.sums.Load(n)
	if ok {
		sum = s.([sha256.Size]byte)
	}
	return f, sum, ok
}

// sum returns the SHA-256 of block n, whose bytes are p; it is computed once.
func (sn *Snapshot) sum(n int64, p []byte) [sha256.Size]byte {
	if s, ok := sn.sums.Load(n); ok {
		return s.([sha256.Size]byte)
	}
	s := sha256.Sum256(p)
	sn.sums.Store(n, s)
	return s
}

// diff is what has changed between two snapshots, found chunk by chunk.
type diff struct {
	a, b    *Snapshot
	mu      sync.Mutex
	done    []bool   // per chunk
	changed []uint64 // bitmap
	blocks  int64
}

const diffChunk = 1024 // blocks

func (s *Server) diff(a, b *Snapshot) *diff {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := [2]uint32{a.number, b.number}
	d := s.diffs[key]
	if d == nil {
		n := max(a.blocks, b.blocks)
		d = &diff{a: a, b: b, blocks: n, done: make([]bool, (n+diffChunk-1)/diffChunk), changed: make([]uint64, (n+63)/64)}
		s.diffs[key] = d
	}
	return d
}

// next returns the first changed block from n on, or d.blocks.
func (d *diff) next(n int64) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n < d.blocks {
		chunk := n / diffChunk
		end := min((chunk+1)*diffChunk, d.blocks)
		if !d.done[chunk] {
			if err := d.compare(chunk*diffChunk, end); err != nil {
				return 0, err
			}
			d.done[chunk] = true
		}
		if c := nextBit(d.changed[:(end+63)/64], n, end); c < end {
			return c, nil
		}
		n = end
	}
	return d.blocks, nil
}

func (d *diff) compare(from, to int64) error {
	va, okA := d.a.Image.(Versioner)
	vb, okB := d.b.Image.(Versioner)
	var pa, pb []byte
	for n := from; n < to; n++ {
		wa, wb := d.a.isWritten(n), d.b.isWritten(n)
		changed := wa != wb
		switch {
		case !wa || !wb:
		case okA && okB:
			changed = va.Version(n) != vb.Version(n)
		default:
			if pa == nil {
				pa, pb = make([]byte, BlockSize), make([]byte, BlockSize)
			}
			if err := d.a.read(n, pa); err != nil {
				return err
			}
			if err := d.b.read(n, pb); err != nil {
				return err
			}
			changed = string(pa) != string(pb)
		}
		if changed {
			d.changed[n/64] |= 1 << (n % 64)
		}
	}
	return nil
}
