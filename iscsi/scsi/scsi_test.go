package scsi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"yester/internal/block"
)

// ram is a medium in memory.
type ram []byte

func (m ram) Size() int64 { return int64(len(m)) }
func (m ram) ReadAt(p []byte, off int64) (int, error) {
	n, err := block.CheckRead(off, len(p), m.Size())
	copy(p[:n], m[off:])
	return n, err
}
func (m ram) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return m.ReadAt(p, off)
}

func fillRandom(n int) ram {
	b := make(ram, n)
	rand.NewChaCha8([32]byte{5}).Read(b)
	return b
}

// TestOverlayModel compares an overlay with a plain copy under random writes,
// discards and reads.
func TestOverlayModel(t *testing.T) {
	const size = 3*overlayChunk + 5*512
	base := fillRandom(size)
	keep := bytes.Clone(base)
	model := bytes.Clone(base)
	o, err := NewOverlay(base, t.TempDir(), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		off := rng.IntN(size/512) * 512
		n := min(size-off, (1+rng.IntN(40))*512)
		if rng.IntN(20) == 0 {
			n = min(size-off, rng.IntN(3*overlayChunk/512)*512)
		}
		switch rng.IntN(3) {
		case 0:
			p := make([]byte, n)
			for j := range p {
				p[j] = byte(i + j)
			}
			if err := o.WriteAt(ctx, p, int64(off)); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], p)
		case 1:
			if err := o.Zero(ctx, int64(off), int64(n)); err != nil {
				t.Fatal(err)
			}
			clear(model[off : off+n])
		default:
			p := make([]byte, n)
			if m, err := o.ReadAt(p, int64(off)); m != n || err != nil && off+n < size {
				t.Fatal(m, err)
			}
			if !bytes.Equal(p, model[off:off+n]) {
				t.Fatalf("step %d: %d bytes at %d differ", i, n, off)
			}
			for at := int64(off); at < int64(off+n); {
				e, err := block.ExtentAt(ctx, o, at, int64(off+n)-at)
				if err != nil {
					t.Fatal(err)
				}
				if e.Zero && !allZero(model[at:at+e.Len]) {
					t.Fatal("an extent that isn't zero is called so")
				}
				at += e.Len
			}
		}
	}
	if !bytes.Equal(base, keep) {
		t.Fatal("the base changed")
	}
	if err := o.Zero(ctx, 0, size); err != nil {
		t.Fatal(err)
	}
	if u := o.Used(); u > overlayPage {
		t.Errorf("%d bytes used after all was discarded", u)
	}
}

func TestOverlayLimit(t *testing.T) {
	o, err := NewOverlay(make(ram, 1<<20), t.TempDir(), 8*overlayPage)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	ctx := context.Background()
	if err := o.WriteAt(ctx, fillRandom(8*overlayPage), 0); err != nil {
		t.Fatal(err)
	}
	if err := o.WriteAt(ctx, make([]byte, 512), 100*overlayPage); !errors.Is(err, ErrOverlayFull) {
		t.Errorf("full: %v", err)
	}
	if err := o.Zero(ctx, 0, overlayPage); err != nil {
		t.Fatal(err)
	}
	if err := o.WriteAt(ctx, make([]byte, 512), 100*overlayPage); err != nil {
		t.Errorf("after a discard: %v", err)
	}
}

// TestOverlayHuge: a discard of many TiB is cheap.
func TestOverlayHuge(t *testing.T) {
	o, err := NewOverlay(hole(64<<40), t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.Zero(context.Background(), 0, 64<<40); err != nil {
		t.Fatal(err)
	}
	if err := o.WriteAt(context.Background(), []byte("x"), 40<<40); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 2)
	if _, err := o.ReadAt(p, 40<<40); err != nil || string(p) != "x\x00" {
		t.Errorf("%q, %v", p, err)
	}
}

type hole int64

func (h hole) Size() int64 { return int64(h) }
func (h hole) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return len(p), nil
}
func (h hole) ReadAtContext(_ context.Context, p []byte, off int64) (int, error) {
	return h.ReadAt(p, off)
}

func TestOverlayParallel(t *testing.T) {
	base := fillRandom(1 << 20)
	o, err := NewOverlay(base, t.TempDir(), 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Add(1)
		go func() { // each owns every eighth block of 512 bytes, all share pages
			defer wg.Done()
			p := bytes.Repeat([]byte{byte(w + 1)}, 512)
			for b := w; b < len(base)/512; b += 8 {
				if err := o.WriteAt(context.Background(), p, int64(b)*512); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	got := make([]byte, len(base))
	o.ReadAt(got, 0)
	for b := range len(base) / 512 {
		if got[b*512] != byte(b%8+1) || got[b*512+511] != byte(b%8+1) {
			t.Fatalf("block %d was lost", b)
		}
	}
}

func device(t testing.TB, c Config) *Nexus {
	t.Helper()
	if c.BlockSize == 0 {
		c.BlockSize = 512
	}
	c.Size = c.Medium.Size()
	u, err := NewUnit(c)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDevice(map[uint16]*Unit{0: u})
	if err != nil {
		t.Fatal(err)
	}
	n, err := d.Attach("iqn.test,i,0x1")
	if err != nil {
		t.Fatal(err)
	}
	n.states[0].takeAttention()
	return n
}

func run(n *Nexus, cdb []byte, out []byte) Job {
	var j Job
	n.Prepare(0, append(bytes.Clone(cdb), make([]byte, 16)...), &j)
	switch {
	case j.Work != nil && int64(len(out)) >= j.OutLen:
		j.Work(context.Background(), &j, out[:j.OutLen])
	case j.Chunk != nil && int64(len(out)) >= j.OutLen:
		j.Chunk(context.Background(), &j, out[:j.OutLen], 0)
	}
	return j
}

func TestCapacity(t *testing.T) {
	for _, c := range []struct {
		size       int64
		block, phy int
		last       uint64
		exponent   byte
	}{
		{1 << 20, 512, 0, 2047, 0}, {1 << 20, 4096, 0, 255, 0}, {1 << 20, 512, 4096, 2047, 3}, {5 << 40, 512, 0, 5<<40/512 - 1, 0},
	} {
		n := device(t, Config{Medium: hole(c.size), BlockSize: c.block, PhysicalSize: c.phy})
		j := run(n, []byte{opServiceIn16, saReadCapacity16, 13: 32}, nil)
		if got := binary.BigEndian.Uint64(j.In); got != c.last || binary.BigEndian.Uint32(j.In[8:]) != uint32(c.block) || j.In[13] != c.exponent {
			t.Errorf("%+v: READ CAPACITY(16) %x", c, j.In)
		}
		j = run(n, []byte{opReadCapacity10, 9: 0}, nil)
		if got := binary.BigEndian.Uint32(j.In); got != uint32(min(c.last, 0xffffffff)) {
			t.Errorf("%+v: READ CAPACITY(10) %x", c, j.In)
		}
	}
	if _, err := NewUnit(Config{Medium: hole(1000), Size: 1000, BlockSize: 512}); err == nil {
		t.Error("a capacity that isn't whole blocks was accepted")
	}
}

// TestDescriptorSense: beyond 2 TiB sense is in descriptor format, as D_SENSE says.
func TestDescriptorSense(t *testing.T) {
	n := device(t, Config{Medium: hole(5 << 40)})
	j := run(n, []byte{opModeSense6, 0x08, pageControl, 0, 255, 0}, nil)
	if j.In[4+2]&0x04 == 0 {
		t.Error("D_SENSE is off")
	}
	j = run(n, []byte{opRead16, 2: 0xff}, nil)
	if j.Sense[0] != 0x72 {
		t.Errorf("sense %x", j.Sense)
	}
}

// TestTruncatedReplies: no reply is longer than its allocation length.
func TestTruncatedReplies(t *testing.T) {
	n := device(t, Config{Medium: fillRandom(1 << 20), Serial: "0123456789"})
	for _, c := range []struct {
		cdb []byte
		at  int // of the low byte of the allocation length
	}{
		{[]byte{opInquiry, 5: 0}, 4}, {[]byte{opInquiry, 1, vpdDeviceID, 5: 0}, 4}, {[]byte{opModeSense6, 0, pageAll, 5: 0}, 4},
		{[]byte{opModeSense10, 0, pageAll, 9: 0}, 8}, {[]byte{opServiceIn16, saReadCapacity16, 15: 0}, 13}, {[]byte{opServiceIn16, saGetLBAStatus, 15: 0}, 13},
		{[]byte{opMaintenanceIn, saReportOpcodes, 11: 0}, 9}, {[]byte{opPersistentIn, saReportCaps, 9: 0}, 8}, {[]byte{opRequestSense, 5: 0}, 4},
	} {
		for alloc := range 256 {
			c.cdb[c.at] = byte(alloc)
			if j := run(n, c.cdb, nil); j.Status != StatusGood || len(j.In) > alloc {
				t.Errorf("%x: status %#x, %d bytes", c.cdb, j.Status, len(j.In))
			}
		}
	}
}

func FuzzCDB(f *testing.F) {
	for i := range commands {
		cdb := bytes.Clone(commands[i].usage)
		f.Add(cdb, make([]byte, 64), true)
		f.Add(append([]byte{commands[i].op, byte(max(commands[i].sa, 0))}, make([]byte, 14)...), []byte{}, false)
	}
	f.Fuzz(func(t *testing.T, cdb, out []byte, overlay bool) {
		base := fillRandom(256 << 10)
		c := Config{Medium: base}
		if overlay {
			c.Overlay = func(string) (*Overlay, error) { return NewOverlay(base, t.TempDir(), 64<<10) }
		}
		n := device(t, c)
		defer func() {
			for _, o := range n.Overlays() {
				o.Close()
			}
		}()
		full := make([]byte, 16)
		copy(full, cdb)
		var j Job
		n.Prepare(0, full, &j)
		if j.ReadLen < 0 || j.ReadOff < 0 || j.ReadOff+j.ReadLen > base.Size() {
			t.Fatalf("reads %d at %d", j.ReadLen, j.ReadOff)
		}
		if j.OutLen < 0 || j.OutLen > maxTransfer {
			t.Fatalf("takes %d bytes", j.OutLen)
		}
		if j.Work != nil && j.OutLen > maxGather {
			t.Fatalf("gathers %d bytes", j.OutLen)
		}
		data := make([]byte, j.OutLen)
		copy(data, out)
		if j.Work != nil {
			j.Work(context.Background(), &j, data)
		} else if j.Chunk != nil {
			j.Chunk(context.Background(), &j, data, 0)
		}
		if (j.Status == StatusCheckCondition) != (j.Sense != nil) {
			t.Fatal("status and sense don't go together")
		}
		if !bytes.Equal(base, fillRandom(256<<10)) {
			t.Fatal("the medium changed")
		}
	})
}
