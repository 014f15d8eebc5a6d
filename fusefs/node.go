package fusefs

import (
	"sync"

	"yester/guestfs"
)

// A node id, as the kernel keeps it, says by itself where the node is, so that
// the server needs no table of nodes and nothing to forget:
//
//	63      48 47    40 39                        0
//	┌─────────┬────────┬──────────────────────────┐
//	│  slot   │ space  │  inode number            │
//	└─────────┴────────┴──────────────────────────┘
//
// The slot is one restore point under one name (the point's own, or "latest"),
// or 0 for the directories above the points. A directory must not be reachable
// by two names under one id (the kernel would move it back and forth), hence the
// spaces: the guest view and each volume have their own.
const (
	slotShift  = 48
	spaceShift = 40
	inoMask    = 1<<spaceShift - 1
	spaceMask  = 0xff

	// internedBit marks an inode number that is an index into the slot's table,
	// because the tree's own is too large or not enough to name the node.
	internedBit = 1 << (spaceShift - 1)
)

// The spaces of a slot. Volumes beyond the last space are not shown; no machine is
// known that has so many. Mounts of the guest view beyond its last are interned.
const (
	spaceLayout   = 0   // the point's own directories and its disks
	spaceView     = 1   // the guest view: its root volume, then the other mounts
	spaceViewLast = 127 // last mount of the guest view with a space of its own
	spaceVolume   = 128 // volumes/, one space each
	spaceLast     = 255
	maxViewMounts = spaceViewLast - spaceView + 1
	maxVolumes    = spaceLast - spaceVolume + 1
)

// nodeID is a FUSE node id taken apart.
type nodeID uint64

func makeID(slot uint16, space uint8, ino uint64) nodeID {
	return nodeID(uint64(slot)<<slotShift | uint64(space)<<spaceShift | ino)
}

func (n nodeID) slot() uint16 { return uint16(n >> slotShift) }
func (n nodeID) space() uint8 { return uint8(n >> spaceShift & spaceMask) }
func (n nodeID) ino() uint64  { return uint64(n & inoMask) }

// interner gives the nodes of a slot whose guestfs.ID doesn't fit in a node id a
// number. It lives as long as the slot, since the kernel keeps node ids while the
// point is closed and opened again.
type interner struct {
	mu  sync.RWMutex
	ids []internedID
	num map[internedID]uint64
}

// internedID is an ID in the tree that was entered by the space base.
type internedID struct {
	base uint8
	guestfs.ID
}

func (t *interner) number(id internedID) uint64 {
	t.mu.RLock()
	n, ok := t.num[id]
	t.mu.RUnlock()
	if ok {
		return n
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.num[id]; ok {
		return n
	}
	if t.num == nil {
		t.num = make(map[internedID]uint64)
	}
	n = internedBit | uint64(len(t.ids))
	t.ids = append(t.ids, id)
	t.num[id] = n
	return n
}

func (t *interner) id(n uint64) (internedID, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if i := n &^ internedBit; i < uint64(len(t.ids)) {
		return t.ids[i], true
	}
	return internedID{}, false
}
