package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"

	"yester/guestfs"
	"yester/guestfs/ext4/jbd2"
	"yester/internal/block"
	"yester/internal/treetest"
)

// memory is an image in memory.
type memory struct{ *bytes.Reader }

func newMemory(b []byte) memory { return memory{bytes.NewReader(b)} }

// lines returns the offsets of the parts of an image that aren't zero, of 64
// bytes each: changing the others is a waste.
func lines(b []byte) []int {
	var list []int
	for at := 0; at+64 <= len(b); at += 64 {
		if !bytes.Equal(b[at:at+64], zeroLine[:]) && !bytes.Contains(b[at:at+64], []byte("6789abcde\n0123")) {
			list = append(list, at)
		}
	}
	return list
}

var zeroLine [64]byte

// patch changes a copy of an image: each 8 bytes of edits say which line, which
// word of it, how, and the new value.
func patch(base []byte, where []int, edits []byte) []byte {
	b := bytes.Clone(base)
	le := binary.LittleEndian
	for ; len(edits) >= 8; edits = edits[8:] {
		at := where[int(le.Uint16(edits))%len(where)] + int(edits[2]&63)
		switch edits[3] & 3 {
		case 0:
			b[at] = edits[4]
		case 1:
			if at+2 <= len(b) {
				le.PutUint16(b[at:], le.Uint16(edits[4:]))
			}
		case 2:
			if at+4 <= len(b) {
				le.PutUint32(b[at:], le.Uint32(edits[4:]))
			}
		case 3: // another line's content
			from := where[int(le.Uint16(edits[4:]))%len(where)]
			copy(b[at&^63:at&^63+64], base[from:from+64])
		}
	}
	return b
}

func FuzzExt4(f *testing.F) {
	var bases [][]byte
	var where [][]int
	for i, s := range seeds {
		bases = append(bases, readSeed(f, s.name))
		where = append(where, lines(bases[i]))
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{1, 0, 40, 2, 255, 255, 255, 255, 9, 0, 3, 0, 7, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, base uint8, edits []byte) {
		i := int(base) % len(bases)
		if len(edits) > 800 {
			return
		}
		b := patch(bases[i], where[i], edits)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for _, replay := range []guestfs.Replay{guestfs.ReplayOn, guestfs.ReplayOff} {
			tree, err := guestfs.Open(ctx, newMemory(b), guestfs.Options{Replay: replay}, Format)
			if err == nil {
				fuzzWalk(t, ctx, tree)
			}
		}
		if ctx.Err() != nil {
			t.Error("took too long")
		}
	})
}

// fuzzWalk touches everything, and verifies that what is read in pieces is what
// is read whole.
func fuzzWalk(t *testing.T, ctx context.Context, tree guestfs.Tree) {
	budget := int64(8 << 20) // bytes of content
	nodes := 0
	stop := errors.New("enough")
	_ = treetest.Walk(ctx, tree, func(n treetest.Node) error {
		if nodes++; nodes > 3000 {
			return stop
		}
		a, err := tree.Attr(ctx, n.ID)
		if err != nil {
			return nil
		}
		_, _ = tree.Lookup(ctx, n.Parent, n.Path[bytes.LastIndexByte([]byte(n.Path), '/')+1:])
		_, _ = tree.ReadLink(ctx, n.ID)
		names, _ := tree.ListXattr(ctx, n.ID)
		for _, name := range names {
			_, _ = tree.Xattr(ctx, n.ID, name)
		}
		r, err := tree.Open(ctx, n.ID)
		if err != nil || !a.IsRegular() {
			return nil
		}
		size := min(r.Size(), 200_000, budget)
		if size <= 0 {
			return nil
		}
		budget -= size
		whole := make([]byte, size)
		if got, err := r.ReadAt(whole, 0); int64(got) < size && (err == nil || err == io.EOF) {
			t.Fatalf("%q: %d of %d bytes: %v", n.Path, got, size, err)
		} else if int64(got) < size {
			return nil
		}
		piece := make([]byte, 777)
		for off := int64(0); off+777 <= size; off += size/5 + 1 {
			if got, err := r.ReadAt(piece, off); got != 777 || !bytes.Equal(piece, whole[off:off+777]) {
				t.Fatalf("%q: piece at %d differs from the whole (%d, %v)", n.Path, off, got, err)
			}
		}
		for off, k := int64(0), 0; off < size && k < 50; k++ {
			e, err := block.ExtentAt(ctx, r, off, size-off)
			if err != nil {
				t.Fatalf("%q: extent at %d of what could be read: %v", n.Path, off, err)
			}
			if e.Zero && len(bytes.Trim(whole[off:off+e.Len], "\x00")) > 0 {
				t.Fatalf("%q: zero extent at %d holds data", n.Path, off)
			}
			off += e.Len
		}
		// The far end of what may be a forged size.
		_, _ = r.ReadAt(piece, r.Size()-5)
		_, _ = block.ExtentAt(ctx, r, r.Size()/2, r.Size())
		return nil
	}, func(string, error) {})
}

func FuzzJBD2(f *testing.F) {
	type log struct {
		b     []byte
		where []int
		opt   jbd2.Options
	}
	var logs []log
	for _, name := range []string{"dirty", "fast"} {
		img := newMemory(readSeed(f, name))
		sb, err := readSuper(context.Background(), img)
		if err != nil {
			f.Fatal(err)
		}
		fs := newFS(img, sb, nil)
		in, err := fs.inode(context.Background(), sb.journalInum)
		if err != nil {
			f.Fatal(err)
		}
		b := make([]byte, in.size)
		if err := block.ReadFull(context.Background(), &file{fs: fs, in: in}, b, 0); err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(len(logs)), []byte{})
		f.Add(uint8(len(logs)), []byte{0, 0, 0x1C, 0, 2, 0, 0, 0})
		logs = append(logs, log{b, lines(b), jbd2.Options{BlockSize: sb.blockSize(), Blocks: sb.blocks}})
	}
	f.Fuzz(func(t *testing.T, which uint8, edits []byte) {
		l := logs[int(which)%len(logs)]
		if len(edits) > 800 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		j, err := jbd2.Recover(ctx, newMemory(patch(l.b, l.where, edits)), l.opt)
		if err != nil {
			if ctx.Err() != nil {
				t.Error("took too long")
			}
			return
		}
		dev := newMemory(make([]byte, l.opt.Blocks*uint64(l.opt.BlockSize)))
		o := j.Overlay(dev)
		whole := make([]byte, o.Size())
		if err := block.ReadFull(ctx, o, whole, 0); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 1500)
		for off := int64(0); off+1500 < o.Size(); off += 9_001 {
			if n, err := o.ReadAt(p, off); n != len(p) || !bytes.Equal(p, whole[off:off+1500]) {
				t.Fatalf("piece at %d differs from the whole (%v)", off, err)
			}
			if e, err := o.Extent(ctx, off, 5000); err != nil || e.Len < 1 {
				t.Fatalf("extent at %d: %v, %v", off, e, err)
			}
		}
		for i := uint32(0); i < 4; i++ {
			_, _ = j.ReadFast(ctx, i)
		}
	})
}
