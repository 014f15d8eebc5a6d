// Package scsi is a read-only direct-access block device as SPC-4 and SBC-3
// describe it: it turns command descriptor blocks into reads of a block.Reader,
// parameter data and sense. It knows nothing of the transport that carries them.
//
// With a scratch overlay per initiator the device takes writes, which the Reader
// beneath never sees.
package scsi

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"yester/internal/block"
)

// Context is the context of a command; it ends when the command is aborted.
type Context = context.Context

// Medium is what the blocks of a logical unit are read from.
type Medium interface {
	block.Reader
	block.ContextReader
}

// Prefetcher is an optional power of a Reader: PRE-FETCH commands are passed on.
type Prefetcher interface {
	// Prefetch asks for the bytes [off, off+n) to be made cheap to read soon. It
	// returns at once.
	Prefetch(off, n int64)
}

// Config describes one logical unit.
type Config struct {
	Medium       Medium // what it shows; read in parallel
	Size         int64  // bytes; a multiple of BlockSize
	BlockSize    int    // bytes per logical block: 512 or 4096
	PhysicalSize int    // bytes per physical block: BlockSize, or 4096 over 512 (512e)
	Serial       string // unit serial number: up to 32 printable ASCII characters
	NAA          [8]byte
	Revision     string // up to four characters
	// Overlay, if not nil, makes a scratch layer for one initiator port; the unit
	// then takes writes.
	Overlay func(port string) (*Overlay, error)
}

// Unit is a logical unit, shared by all nexuses of its target.
type Unit struct {
	Config
	blockSize uint32
	shift     uint   // log2 of blockSize
	blocks    uint64 // capacity in logical blocks
	swp       atomic.Bool

	reserved atomic.Bool // some reservation or registration exists: look closer
	mu       sync.Mutex  // guards what follows
	nexuses  map[*lunState]struct{}
	holder6  *lunState // RESERVE(6)/(10)
	pr       persistent
	atomicMu sync.Mutex // COMPARE AND WRITE, ORWRITE: read and write as one
}

// NewUnit checks c and makes a logical unit of it.
func NewUnit(c Config) (*Unit, error) {
	if c.BlockSize != 512 && c.BlockSize != 4096 {
		return nil, fmt.Errorf("scsi: logical blocks of %d bytes: only 512 and 4096 exist", c.BlockSize)
	}
	if c.PhysicalSize == 0 {
		c.PhysicalSize = c.BlockSize
	}
	if c.PhysicalSize != c.BlockSize && c.PhysicalSize != 4096 {
		return nil, fmt.Errorf("scsi: physical blocks of %d bytes over logical ones of %d", c.PhysicalSize, c.BlockSize)
	}
	if c.Size <= 0 || c.Size%int64(c.BlockSize) != 0 {
		return nil, fmt.Errorf("scsi: %d bytes are not a whole number of %d-byte blocks", c.Size, c.BlockSize)
	}
	if c.Size > c.Medium.Size() {
		return nil, fmt.Errorf("scsi: %d bytes announced, the medium has %d", c.Size, c.Medium.Size())
	}
	if len(c.Serial) > 32 || !printable(c.Serial) {
		return nil, fmt.Errorf("scsi: serial number %q: at most 32 printable characters", c.Serial)
	}
	return &Unit{
		Config: c, blockSize: uint32(c.BlockSize), shift: uint(bits.TrailingZeros(uint(c.BlockSize))),
		blocks: uint64(c.Size) / uint64(c.BlockSize), nexuses: map[*lunState]struct{}{},
	}, nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// descriptors reports whether sense is in descriptor format, as D_SENSE says: on
// units whose addresses don't fit into the four bytes of the fixed one.
func (u *Unit) descriptors() bool { return u.blocks > 1<<32 }

// writable reports whether writes have somewhere to go and aren't switched off.
func (u *Unit) writable() bool { return u.Overlay != nil && !u.swp.Load() }

// Device is the set of logical units behind one target. Its units are fixed.
type Device struct {
	units map[uint16]*Unit
	luns  []uint16 // sorted
}

// NewDevice makes a device of the units; the keys are their numbers, below 16384.
func NewDevice(units map[uint16]*Unit) (*Device, error) {
	d := &Device{units: units}
	for l := range units {
		if l >= 1<<14 {
			return nil, fmt.Errorf("scsi: logical unit number %d: at most 16383", l)
		}
		d.luns = append(d.luns, l)
	}
	sortLUNs(d.luns)
	return d, nil
}

// lunState is what a unit remembers of one nexus.
type lunState struct {
	unit    *Unit
	port    string
	medium  Medium
	overlay *Overlay

	pending atomic.Int32 // unit attentions waiting
	uaMu    sync.Mutex
	ua      []uint16
}

// maxAttentions bounds the queue of a nexus that never collects its attentions;
// a nexus owes an initiator the fact that something happened, not each instance.
const maxAttentions = 8

func (s *lunState) attention(asc uint16) {
	s.uaMu.Lock()
	defer s.uaMu.Unlock()
	for _, a := range s.ua {
		if a == asc {
			return
		}
	}
	if len(s.ua) < maxAttentions {
		s.ua = append(s.ua, asc)
		s.pending.Store(int32(len(s.ua)))
	}
}

func (s *lunState) takeAttention() (uint16, bool) {
	if s.pending.Load() == 0 {
		return 0, false
	}
	s.uaMu.Lock()
	defer s.uaMu.Unlock()
	if len(s.ua) == 0 {
		return 0, false
	}
	a := s.ua[0]
	s.ua = s.ua[1:]
	s.pending.Store(int32(len(s.ua)))
	return a, true
}

// Nexus is one initiator port's view of a Device.
type Nexus struct {
	dev    *Device
	states map[uint16]*lunState
}

// Attach makes the nexus of an initiator port. port is the port's SCSI name
// (for iSCSI "iqn…,i,0x…"); persistent reservations are kept under it.
func (d *Device) Attach(port string) (*Nexus, error) {
	n := &Nexus{dev: d, states: make(map[uint16]*lunState, len(d.units))}
	for l, u := range d.units {
		s := &lunState{unit: u, port: port, medium: u.Medium}
		if u.Overlay != nil {
			o, err := u.Overlay(port)
			if err != nil {
				n.Detach()
				return nil, fmt.Errorf("scsi: overlay of logical unit %d: %w", l, err)
			}
			s.overlay, s.medium = o, o
		}
		s.attention(ascPowerOn)
		n.states[l] = s
		u.mu.Lock()
		u.nexuses[s] = struct{}{}
		u.mu.Unlock()
	}
	return n, nil
}

// Detach ends the nexus: RESERVE(6) reservations go with it, persistent ones
// stay. No command of the nexus may be running.
func (n *Nexus) Detach() {
	for _, s := range n.states {
		u := s.unit
		u.mu.Lock()
		delete(u.nexuses, s)
		if u.holder6 == s {
			u.holder6 = nil
		}
		u.noteReserved()
		u.mu.Unlock()
	}
}

// Overlays returns the scratch layers of the nexus.
func (n *Nexus) Overlays() []*Overlay {
	var out []*Overlay
	for _, s := range n.states {
		if s.overlay != nil {
			out = append(out, s.overlay)
		}
	}
	return out
}

// Reset carries out a logical unit reset of lun, as seen by SAM-5 section 6.3.3:
// RESERVE(6) goes, and every nexus but this one is told. It reports whether the
// unit exists.
func (n *Nexus) Reset(lun uint64) bool {
	s := n.state(lun)
	if s == nil {
		return false
	}
	s.unit.reset(s)
	return true
}

// ResetAll resets every logical unit of the device.
func (n *Nexus) ResetAll() {
	for _, s := range n.states {
		s.unit.reset(s)
	}
}

func (u *Unit) reset(by *lunState) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.holder6 = nil
	u.swp.Store(false)
	u.noteReserved()
	for s := range u.nexuses {
		if s != by {
			s.attention(ascBusDeviceReset)
		}
	}
	by.attention(ascBusDeviceReset)
}

// HasLUN reports whether lun names a logical unit.
func (n *Nexus) HasLUN(lun uint64) bool { return n.state(lun) != nil }

func (n *Nexus) state(lun uint64) *lunState {
	l, ok := decodeLUN(lun)
	if !ok {
		return nil
	}
	return n.states[l]
}
