package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"yester/guestfs"
	"yester/guestfs/ext4/jbd2"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/treetest"
)

func TestReplayOff(t *testing.T) {
	b := readSeed(t, "dirty")
	for replay, want := range map[guestfs.Replay]guestfs.Journal{
		guestfs.ReplayOn: guestfs.JournalReplayed, guestfs.ReplayOff: guestfs.JournalIgnored,
	} {
		tree, err := Open(context.Background(), newMemory(b), guestfs.Options{Replay: replay})
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.Info().Journal; got != want {
			t.Errorf("replay %v: journal %q, want %q", replay, got, want)
		}
		_, err = tree.Lookup(context.Background(), tree.Root(), "fsync3")
		if (err == nil) != (replay == guestfs.ReplayOn) {
			t.Errorf("replay %v: a file that is only in the journal: %v", replay, err)
		}
	}
}

// journalOf returns where the journal of an image lies: the content as bytes and
// a function from its offsets to those of the image.
func journalOf(t *testing.T, image []byte) (content []byte, pos func(int64) int64) {
	t.Helper()
	ctx := context.Background()
	sb, err := readSuper(ctx, newMemory(image))
	if err != nil {
		t.Fatal(err)
	}
	f := newFS(newMemory(image), sb, nil)
	in, err := f.inode(ctx, sb.journalInum)
	if err != nil {
		t.Fatal(err)
	}
	r := &file{fs: f, in: in}
	content = make([]byte, in.size)
	if err := block.ReadFull(ctx, r, content, 0); err != nil {
		t.Fatal(err)
	}
	return content, func(off int64) int64 {
		s, err := r.stretch(ctx, off, 1)
		if err != nil {
			t.Fatal(err)
		}
		return s.pos
	}
}

// TestDamagedJournal changes one byte of each kind of block in a log with
// checksums: the result is an error that tells of --replay=off, never stale data
// without a word, unless the log ends there.
func TestDamagedJournal(t *testing.T) {
	clean := readSeed(t, "fast")
	log, pos := journalOf(t, clean)
	be := binary.BigEndian
	start := int64(be.Uint32(log[0x1C:])) * 1024
	if be.Uint32(log[start:]) != 0xC03B3998 || be.Uint32(log[start+4:]) != 1 {
		t.Fatal("the log does not begin with a descriptor block")
	}
	for _, c := range []struct {
		name string
		off  int64
	}{
		{"superblock", 0x10},
		{"descriptor", start + 20},
		{"data", start + 1024 + 100},
	} {
		b := append([]byte(nil), clean...)
		b[pos(c.off)] ^= 0x40
		_, err := Open(context.Background(), newMemory(b), guestfs.Options{Replay: guestfs.ReplayOn})
		if !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), "--replay=off") {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := Open(context.Background(), newMemory(b), guestfs.Options{Replay: guestfs.ReplayOff}); err != nil {
			t.Errorf("%s: without replay: %v", c.name, err)
		}
	}
}

// TestEscape replays a block that begins with the journal's magic, read whole
// and from its middle.
func TestEscape(t *testing.T) {
	const size = 1024
	be := binary.BigEndian
	log := make([]byte, 16*size)
	header := func(at int, typ, seq uint32) {
		be.PutUint32(log[at*size:], 0xC03B3998)
		be.PutUint32(log[at*size+4:], typ)
		be.PutUint32(log[at*size+8:], seq)
	}
	header(0, 4, 0)
	be.PutUint32(log[0x0C:], size)
	be.PutUint32(log[0x10:], 16)
	be.PutUint32(log[0x14:], 1)
	be.PutUint32(log[0x18:], 7)  // first transaction
	be.PutUint32(log[0x1C:], 14) // wraps around
	header(14, 1, 7)
	tag := log[14*size+12:]
	be.PutUint32(tag, 3)
	be.PutUint16(tag[6:], 1|2) // escaped
	be.PutUint32(tag[8:], 5)
	be.PutUint16(tag[14:], 2|8)
	copy(log[15*size:], "\x00\x00\x00\x00escaped")
	copy(log[1*size:], "plain")
	header(2, 2, 7)
	header(3, 5, 8) // revokes block 5 in the next transaction
	be.PutUint32(log[3*size+12:], 20)
	be.PutUint32(log[3*size+16:], 5)
	header(4, 2, 8)
	j, err := jbd2.Recover(context.Background(), newMemory(log), jbd2.Options{BlockSize: size, Blocks: 10})
	if err != nil {
		t.Fatal(err)
	}
	if j.Transactions != 2 || j.Writes() != 1 {
		t.Fatalf("%v", j)
	}
	o := j.Overlay(newMemory(make([]byte, 10*size)))
	p := make([]byte, 11)
	for off, want := range map[int64]string{0: "\xC0\x3B\x39\x98escaped", 2: "\x39\x98escaped\x00\x00", -2: "\x00\x00\xC0\x3B\x39\x98escap", 5: "scaped\x00\x00\x00\x00\x00"} {
		if n, err := o.ReadAt(p, 3*size+off); n != len(p) || err != nil || string(p) != want {
			t.Errorf("at %d: %q, %v", off, p, err)
		}
	}
	if e, err := o.Extent(context.Background(), 3*size+10, 5000); err != nil || e.Len != size-10 {
		t.Errorf("extent %v, %v", e, err)
	}
	if e, err := o.Extent(context.Background(), 0, 5000); err != nil || e.Len != 3*size {
		t.Errorf("extent %v, %v", e, err)
	}
}

// TestOrphans copies an image while files are open that have no name any more,
// and while one is being cut short.
func TestOrphans(t *testing.T) {
	treetest.Need(t, "mkfs.ext4", "mount", "truncate")
	for _, args := range []string{"-J size=4", "-J size=4 -O orphan_file"} {
		t.Run(args, func(t *testing.T) {
			var open []*os.File
			defer func() {
				for _, f := range open {
					f.Close()
				}
			}()
			checkDirty(t, strings.Fields(args), "", func(t *testing.T, dir string, rng *rand.Rand, round int) {
				for _, f := range open {
					f.Close()
				}
				open = nil
				for i := range 20 {
					f, err := os.Create(fmt.Sprintf("%s/orphan%d", dir, i))
					if err != nil {
						t.Fatal(err)
					}
					_, _ = f.Write(make([]byte, 30_000))
					if i%2 == 0 {
						_ = f.Sync()
					}
					_ = os.Remove(f.Name())
					open = append(open, f)
				}
				large := dir + "/large"
				_ = os.WriteFile(large, make([]byte, 4<<20), 0o644)
				unix.Sync()
				_ = os.Truncate(large, int64(rng.IntN(3<<20)))
				f, _ := os.Create(dir + "/mark")
				_ = f.Sync()
				f.Close()
				if round == 5 { // let go, so that the filesystem can be unmounted
					for _, f := range open {
						f.Close()
					}
				}
			}, 6, 0)
		})
	}
}
