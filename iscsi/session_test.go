package iscsi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"yester/internal/block"
	"yester/iscsi/pdu"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1, 2, 3}).Read(b)
	return b
}

// pieces is a Reader whose extents are of all kinds: plain, in a file, holes.
type pieces struct {
	data []byte
	file *os.File // holds data, shifted by shift
	size int64
}

const (
	pieceLen = 96 << 10
	shift    = 512
)

func (p *pieces) Size() int64 { return p.size }

func (p *pieces) kind(off int64) int { return int(off/pieceLen) % 4 }

func (p *pieces) ReadAt(b []byte, off int64) (int, error) {
	n, err := block.CheckRead(off, len(b), p.size)
	copy(b[:n], p.data[off:])
	return n, err
}

func (p *pieces) Extent(_ context.Context, off, n int64) (block.Extent, error) {
	n = min(n, pieceLen-off%pieceLen)
	switch p.kind(off) {
	case 0:
		return block.Extent{Len: n, Zero: true}, nil
	case 1:
		return block.Extent{Len: n}, nil
	}
	return block.Extent{Len: n, File: p.file, Off: off + shift}, nil
}

func newPieces(t testing.TB, size int) *pieces {
	p := &pieces{data: randomBytes(size), size: int64(size)}
	for off := int64(0); off < p.size; off++ {
		if p.kind(off) == 0 {
			p.data[off] = 0
		}
	}
	name := filepath.Join(t.TempDir(), "pieces")
	if err := os.WriteFile(name, append(make([]byte, shift), p.data...), 0o600); err != nil {
		t.Fatal(err)
	}
	p.file = openFile(t, name).f
	return p
}

// TestReads compares whole and random reads over every way a byte can take.
func TestReads(t *testing.T) {
	const size = 9<<20 + 512
	data := randomBytes(size)
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	mixed := newPieces(t, size)
	readers := map[string]struct {
		r    block.Reader
		want []byte
	}{
		"plain": {memory(data), data}, "file": {openFile(t, name), data}, "mixed": {mixed, mixed.data},
	}
	for kind, rd := range readers {
		for _, splice := range []bool{false, true} {
			for _, digests := range []string{"", "CRC32C"} {
				for _, segment := range []string{"262144", "8192", "1048576", "513"} {
					t.Run(fmt.Sprintf("%s/splice=%v/%s/%s", kind, splice, digests, segment), func(t *testing.T) {
						s := New(Options{})
						s.spliceLocal = splice
						if err := s.AddTarget(testTarget, LUN{ID: 1, Reader: rd.r}); err != nil {
							t.Fatal(err)
						}
						c := connect(t, serve(t, s), loginSpec{digests: digests, keys: [][2]string{{"MaxRecvDataSegmentLength", segment}, {"MaxBurstLength", "262144"}}})
						h := sha256.New()
						const step = 4096
						for lba := uint64(0); lba < size/512; lba += step {
							n := min(step, size/512-lba)
							r := c.read(lba, uint32(n))
							if r.status != 0 || r.flags&6 != 0 {
								t.Fatalf("LBA %d: status %#x, flags %#x", lba, r.status, r.flags)
							}
							h.Write(r.data)
						}
						if want := sha256.Sum256(rd.want); !bytes.Equal(h.Sum(nil), want[:]) {
							t.Fatal("whole read differs")
						}
						for range 30 {
							lba := rand.Uint64N(size / 512)
							n := 1 + rand.Uint64N(min(600, size/512-lba))
							if r := c.read(lba, uint32(n)); !bytes.Equal(r.data, rd.want[lba*512:(lba+n)*512]) {
								t.Fatalf("%d blocks at %d differ", n, lba)
							}
						}
						// Shorter and longer buffers than the command's transfer.
						r := c.do(1, rw16(0x88, 3, 4), 1001, nil)
						if !bytes.Equal(r.data, rd.want[3*512:3*512+1001]) || r.flags&pdu.FlagOverflow == 0 || r.residual != 4*512-1001 {
							t.Errorf("overflow: %d bytes, flags %#x, residual %d", len(r.data), r.flags, r.residual)
						}
						r = c.do(1, rw16(0x88, 3, 4), 10000, nil)
						if !bytes.Equal(r.data, rd.want[3*512:7*512]) || r.flags&pdu.FlagUnderflow == 0 || r.residual != 10000-4*512 {
							t.Errorf("underflow: %d bytes, flags %#x, residual %d", len(r.data), r.flags, r.residual)
						}
					})
				}
			}
		}
	}
}

// TestWritesAreRefused: every opcode of the write class answers 07/2700, stays in
// step, and nothing changes.
func TestWritesAreRefused(t *testing.T) {
	data := randomBytes(1 << 20)
	_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: memory(data)})
	c := connect(t, addr, loginSpec{})
	want := sha256.Sum256(data)
	for _, op := range []byte{0x04, 0x07, 0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e, 0x41, 0x93, 0x42, 0x89, 0x8b, 0x9c, 0x3b, 0x3f, 0x48, 0x50, 0x51} {
		for _, out := range [][]byte{nil, make([]byte, 4096)} {
			cdb := make([]byte, 16)
			cdb[0] = op
			for i := 2; i < 9; i++ {
				cdb[i] = 0xff // far beyond the end: the refusal comes first
			}
			r := c.do(1, cdb, 0, out)
			if k, a := r.key(); k != 7 || a != 0x2700 {
				t.Errorf("%#x: sense %#x/%#x", op, k, a)
			}
			if out != nil && (r.flags&pdu.FlagUnderflow == 0 || r.residual != 4096) {
				t.Errorf("%#x: flags %#x, residual %d", op, r.flags, r.residual)
			}
		}
	}
	for _, sa := range []byte{0x0b, 0x0c, 0x0d, 0x0e} {
		cdb := make([]byte, 16)
		cdb[0], cdb[9] = 0x7f, sa
		if k, a := c.do(1, cdb, 0, nil).key(); k != 7 || a != 0x2700 {
			t.Errorf("0x7f/%#x: sense %#x/%#x", sa, k, a)
		}
	}
	if sha256.Sum256(data) != want {
		t.Error("the medium changed")
	}
}

// TestOverlay: writes are seen by the session, survive a lost connection, and are
// gone after a logout; the medium doesn't change.
func TestOverlay(t *testing.T) {
	data := randomBytes(1 << 20)
	want := sha256.Sum256(data)
	s, addr := newTest(t, Options{}, LUN{ID: 1, Reader: memory(data), Overlay: &Overlay{Dir: t.TempDir(), Size: 256 << 10}})
	c := connect(t, addr, loginSpec{digests: "CRC32C"})
	block := bytes.Repeat([]byte("written!"), 3*512/8)
	if r := c.do(1, rw16(0x8a, 7, 3), 0, block); r.status != 0 {
		t.Fatalf("write: %+v", r)
	}
	model := bytes.Clone(data)
	copy(model[7*512:], block)
	if r := c.read(0, 64); !bytes.Equal(r.data, model[:64*512]) {
		t.Error("the write isn't seen")
	}
	if r := connect(t, addr, loginSpec{isid: 5}).read(7, 3); !bytes.Equal(r.data, data[7*512:10*512]) {
		t.Error("another session sees it")
	}
	if st := s.Sessions(); len(st) == 0 || st[0].OverlayBytes+st[len(st)-1].OverlayBytes == 0 {
		t.Errorf("status: %+v", st)
	}
	c.nc.Close()
	c = connect(t, addr, loginSpec{})
	if r := c.read(0, 64); !bytes.Equal(r.data, model[:64*512]) {
		t.Error("the write was lost with the connection")
	}
	// More than fits.
	big := make([]byte, 512<<10)
	if k, a := c.do(1, rw16(0x8a, 0, uint32(len(big)/512)), 0, randomBytes(len(big))).key(); k != 7 || a != 0x2707 {
		t.Errorf("full: sense %#x/%#x", k, a)
	}
	if err := c.logout(); err != nil {
		t.Fatal(err)
	}
	c = connect(t, addr, loginSpec{})
	if r := c.read(0, 2048); !bytes.Equal(r.data, data) {
		t.Error("scratch outlived a logout")
	}
	if sha256.Sum256(data) != want {
		t.Error("the medium changed")
	}
}

// TestImmediateData: data that came with the command, and the rest by R2T.
func TestImmediateData(t *testing.T) {
	_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: make(memory, 1<<20), Overlay: &Overlay{Size: 1 << 20}})
	c := connect(t, addr, loginSpec{})
	out := randomBytes(300 << 10)
	c.itt++
	var h pdu.Header
	h.SetOp(pdu.OpCommand)
	h.SetFlags(pdu.FlagFinal | pdu.CommandWrite)
	h.SetLUN(1 << 48)
	h.SetITT(c.itt)
	h.SetEDTL(uint32(len(out)))
	h.SetCmdSN(c.cmdSN)
	c.cmdSN++
	copy(h.CDB(), rw16(0x8a, 16, uint32(len(out)/512)))
	c.write(&h, out[:4100])
	if r, err := c.finish(c.itt, out); err != nil || r.status != 0 {
		t.Fatal(r, err)
	}
	if r := c.read(16, uint32(len(out)/512)); !bytes.Equal(r.data, out) {
		t.Error("what was written isn't read")
	}
}

// TestCommandOrder: numbers wrap, what comes early waits, what lies outside the
// window is ignored.
func TestCommandOrder(t *testing.T) {
	data := randomBytes(1 << 20)
	_, addr := newTest(t, Options{Limits: Limits{Commands: 8}}, LUN{ID: 1, Reader: memory(data)})
	c := connect(t, addr, loginSpec{cmdSN: 0xfffffff0})
	for i := range uint64(40) { // over the wrap
		if r := c.read(i, 1); !bytes.Equal(r.data, data[i*512:(i+1)*512]) {
			t.Fatalf("read %d", i)
		}
	}
	first := c.cmdSN
	c.cmdSN = first + 1
	late := c.start(1, rw16(0x88, 1, 1), 512, nil)
	c.cmdSN = first + 100 // beyond the window
	c.start(1, rw16(0x88, 2, 1), 512, nil)
	c.cmdSN = first - 1 // before it
	c.start(1, rw16(0x88, 3, 1), 512, nil)
	c.cmdSN = first
	now := c.start(1, rw16(0x88, 4, 1), 512, nil)
	// Both run now; a worker may finish one after the other, the tags tell.
	got := map[uint32][]byte{}
	for range 2 {
		h, d, err := c.next()
		if err != nil || h.Op() != pdu.OpDataIn {
			t.Fatal(err, h.Op())
		}
		c.statSN++
		got[h.ITT()] = d
	}
	if !bytes.Equal(got[now], data[4*512:5*512]) || !bytes.Equal(got[late], data[512:1024]) {
		t.Error("wrong data for a command out of order")
	}
	c.cmdSN = first + 2
	if r := c.read(5, 1); !bytes.Equal(r.data, data[5*512:6*512]) {
		t.Error("out of step afterwards")
	}
}

// TestLUNs: addressing, wrong units, REPORT LUNS without a LUN 0.
func TestLUNs(t *testing.T) {
	_, addr := newTest(t, Options{}, LUN{ID: 3, Reader: make(memory, 8192)}, LUN{ID: 300, Reader: make(memory, 4096), BlockSize: 4096})
	c := connect(t, addr, loginSpec{})
	report := []byte{0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
	for _, lun := range []uint16{0, 3, 77} {
		r := c.do(lun, report, 256, nil)
		if len(r.data) != 24 || binary.BigEndian.Uint32(r.data) != 16 || r.data[9] != 3 || binary.BigEndian.Uint16(r.data[16:]) != 0x4000|300 {
			t.Errorf("REPORT LUNS at %d: %x", lun, r.data)
		}
	}
	inquiry := []byte{0x12, 0, 0, 0, 96, 0}
	if r := c.do(77, inquiry, 96, nil); r.status != 0 || r.data[0] != 0x7f {
		t.Errorf("INQUIRY of no unit: %x", r.data)
	}
	if r := c.do(0, inquiry, 96, nil); r.status != 0 || r.data[0]>>5 != 1 {
		t.Errorf("INQUIRY of LUN 0: %x", r.data)
	}
	if k, a := c.do(77, []byte{0}, 0, nil).key(); k != 5 || a != 0x2500 {
		t.Errorf("TEST UNIT READY of no unit: %#x/%#x", k, a)
	}
	c.do(0x4000|300, []byte{0}, 0, nil) // its attention
	if r := c.do(0x4000|300, []byte{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, 32, nil); r.status != 0 || binary.BigEndian.Uint32(r.data[8:]) != 4096 {
		t.Errorf("READ CAPACITY(16) in flat space: %+v", r)
	}
}

// TestMapped: GET LBA STATUS shows the holes.
func TestMapped(t *testing.T) {
	p := newPieces(t, 1<<20)
	_, addr := newTest(t, Options{}, LUN{ID: 1, Reader: p})
	c := connect(t, addr, loginSpec{})
	cdb := make([]byte, 16)
	cdb[0], cdb[1] = 0x9e, 0x12
	binary.BigEndian.PutUint32(cdb[10:], 4096)
	r := c.do(1, cdb, 4096, nil)
	at := uint64(0)
	for d := r.data[8:]; len(d) >= 16; d = d[16:] {
		lba, n, kind := binary.BigEndian.Uint64(d), uint64(binary.BigEndian.Uint32(d[8:])), d[12]
		if lba != at {
			t.Fatalf("descriptor at %d, want %d", lba, at)
		}
		for b := lba; b < lba+n; b++ {
			if hole := p.kind(int64(b*512)) == 0; hole != (kind == 1) {
				t.Fatalf("block %d: kind %d", b, kind)
			}
		}
		at += n
	}
	if at != 2048 {
		t.Errorf("descriptors end at %d", at)
	}
}
