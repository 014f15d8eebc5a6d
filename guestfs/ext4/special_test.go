package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/treetest"
)

// TestHash compares the hash functions with debugfs's.
func TestHash(t *testing.T) {
	treetest.Need(t, "debugfs")
	const uuid = "12345678-9abc-def0-1234-56789abcdef0"
	seed := [4]uint32{
		binary.LittleEndian.Uint32([]byte{0x12, 0x34, 0x56, 0x78}), binary.LittleEndian.Uint32([]byte{0x9a, 0xbc, 0xde, 0xf0}),
		binary.LittleEndian.Uint32([]byte{0x12, 0x34, 0x56, 0x78}), binary.LittleEndian.Uint32([]byte{0x9a, 0xbc, 0xde, 0xf0}),
	}
	image := mkfs(t, "8M")
	for version, alg := range []string{"legacy", "half_md4", "tea"} {
		var script strings.Builder
		var want strings.Builder
		for n := 1; n <= 255; n += 1 + n/40 {
			name := strings.Repeat("abcXYZ0189_-", 22)[:n]
			fmt.Fprintf(&script, "dx_hash -h %s -s %s %s\n", alg, uuid, name)
			major, minor := nameHash(name, uint8(version), &seed, false)
			fmt.Fprintf(&want, "Hash of %s is 0x%0x (minor 0x%0x)\n", name, major, minor)
		}
		file := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		out := treetest.Run(t, "debugfs", "-f", file, image)
		var got strings.Builder
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "Hash of") {
				got.WriteString(line)
			}
		}
		if got.String() != want.String() {
			t.Errorf("%s: got from debugfs\n%.600s\nwant\n%.600s", alg, got.String(), want.String())
		}
	}
}

// TestHashCollisions looks up names whose hashes are equal and whose entries
// spread over several leaves.
func TestHashCollisions(t *testing.T) {
	treetest.Need(t, "mkfs.ext4", "mount", "truncate")
	image := mkfs(t, "64M", "-b", "1024", "-N", "2000")
	sb, err := readSuper(context.Background(), openHost(t, image))
	if err != nil {
		t.Fatal(err)
	}
	byHash := make(map[uint32]string)
	var names []string
	prefix := strings.Repeat("n", 180)
	for i := range 900_000 {
		name := fmt.Sprintf("%s%d", prefix, i)
		h, _ := nameHash(name, sb.defHash, &sb.hashSeed, false)
		if other, ok := byHash[h]; ok {
			names = append(names, other, name)
		}
		byHash[h] = name
	}
	dir, unmount := treetest.Mount(t, image, "ext4", "")
	if err := os.WriteFile(dir+"/target", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/hashed", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Link(dir+"/target", dir+"/hashed/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	unmount()
	tree := openImage(t, image)
	treetest.Compare(t, tree, hostManifest(t, image, "ro"))
	treetest.Check(t, tree, treetest.Options{})

	// The test is worth nothing unless some leaf begins in the middle of a hash.
	f := tree.(*FS)
	id, err := f.Lookup(context.Background(), f.Root(), "hashed")
	if err != nil {
		t.Fatal(err)
	}
	in, err := f.inode(context.Background(), uint32(id.Ino))
	if err != nil {
		t.Fatal(err)
	}
	c := dirCursor{f: f, in: in}
	split := 0
	blocks, _ := c.blocks()
	for lblk := range blocks {
		m, _, err := c.block(context.Background(), lblk)
		if err != nil || !f.isIndexBlock(m.data, lblk) {
			continue
		}
		off := dxNodeEntries
		if lblk == 0 {
			off = dxRootEntries
		}
		list, err := f.dxList(in, m.data, off)
		if err != nil {
			continue
		}
		for i := dxEntrySize; i < len(list); i += dxEntrySize {
			split += int(list[i] & 1)
		}
	}
	t.Logf("%d names, %d leaves that continue a hash", len(names), split)
	if split == 0 {
		t.Error("no collision spans two leaves")
	}
}

// TestLargeDir reads a directory whose index has a level of nodes.
func TestLargeDir(t *testing.T) {
	treetest.Need(t, "mkfs.ext4", "mount", "truncate")
	image := mkfs(t, "128M", "-b", "1024", "-O", "large_dir", "-N", "200")
	dir, unmount := treetest.Mount(t, image, "ext4", "")
	if err := os.WriteFile(dir+"/target", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// 65,000 links to a file is the limit; leaves hold four of these names, and
	// two levels of nodes about 15,000 leaves.
	if err := os.Mkdir(dir+"/d", 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 62_000 {
		if err := os.Link(dir+"/target", fmt.Sprintf("%s/d/%0240d", dir, i)); err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	tree := openImage(t, image)
	nodes, err := treetest.Collect(context.Background(), tree)
	if err != nil || len(nodes) < 62_000 {
		t.Fatalf("%d nodes, %v", len(nodes), err)
	}
	for _, n := range nodes[1:] {
		name := n.Path[strings.LastIndexByte(n.Path, '/')+1:]
		if id, err := tree.Lookup(context.Background(), n.Parent, name); err != nil || id != n.ID {
			t.Fatalf("%q: %v, %v", n.Path, id, err)
		}
	}
	f := tree.(*FS)
	id, _ := f.Lookup(context.Background(), f.Root(), "d")
	in, _ := f.inode(context.Background(), uint32(id.Ino))
	c := dirCursor{f: f, in: in}
	root, err := c.index(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d levels", root[dxRootLevels])
	if root[dxRootLevels] < 2 {
		t.Error("the index has fewer than three levels")
	}
}

// TestCasefold looks up names in a directory with the casefold flag; debugfs
// makes it, because few kernels are built to.
func TestCasefold(t *testing.T) {
	treetest.Need(t, "mkfs.ext4", "debugfs", "truncate")
	image := mkfs(t, "8M", "-O", "casefold", "-E", "encoding=utf8,nodiscard")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("mkdir dir\nset_inode_field dir flags 0x40080000\nwrite /etc/hostname dir/MixedCase\nwrite /etc/hostname dir/straße\nmkdir plain\nwrite /etc/hostname plain/MixedCase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	treetest.Run(t, "debugfs", "-w", "-f", script, image)
	tree := openImage(t, image)
	ctx := context.Background()
	dir, err := tree.Lookup(ctx, tree.Root(), "dir")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := tree.Lookup(ctx, tree.Root(), "plain")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"MixedCase", "mixedcase", "MIXEDCASE", "straße", "STRAßE"} {
		if _, err := tree.Lookup(ctx, dir, name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := tree.Lookup(ctx, plain, "mixedcase"); !errors.Is(err, guestfs.ErrNotExist) {
		t.Errorf("a directory without the flag folds case: %v", err)
	}
}

// encryptPy gives a directory an encryption policy with a fixed key, fills it,
// and forgets the key.
const encryptPy = `
import fcntl, os, struct, sys
d, mnt = sys.argv[1], sys.argv[2]
key = bytes(range(64))
arg = struct.pack("<II32s", 2, 0, b"") + struct.pack("<II", len(key), 0) + b"\0" * 32 + key
buf = bytearray(arg)
fd = os.open(mnt, os.O_RDONLY)
fcntl.ioctl(fd, 0xC0506617, buf)            # FS_IOC_ADD_ENCRYPTION_KEY
ident = bytes(buf[8:24])
dd = os.open(d, os.O_RDONLY)
fcntl.ioctl(dd, 0x800C6613, struct.pack("<BBBB4s16s", 2, 1, 4, 3, b"", ident))  # FS_IOC_SET_ENCRYPTION_POLICY
for n in list(range(1, 40)) + [100, 140, 149, 150, 160, 200, 255]:
    with open(os.path.join(d, ("n" * 300)[:n]), "w") as f: f.write("secret")
os.mkdir(os.path.join(d, "many"))
for i in range(600):
    with open(os.path.join(d, "many", "a file with number %d" % i), "w") as f: pass
os.symlink("secret target", os.path.join(d, "link"))
`

// TestEncrypted compares what the kernel shows of an encrypted directory without
// its key.
func TestEncrypted(t *testing.T) {
	treetest.Need(t, "mkfs.ext4", "mount", "truncate", "python3")
	for _, bs := range []string{"1024", "4096"} {
		t.Run(bs, func(t *testing.T) {
			image := mkfs(t, "64M", "-O", "encrypt", "-b", bs)
			dir, unmount := treetest.Mount(t, image, "ext4", "")
			if err := os.Mkdir(dir+"/enc", 0o755); err != nil {
				t.Fatal(err)
			}
			treetest.Run(t, "python3", "-c", encryptPy, dir+"/enc", dir)
			unmount()

			dir, unmount = treetest.Mount(t, image, "ext4", "ro")
			want := make(map[string]bool)
			for _, sub := range []string{"/enc"} {
				list, err := os.ReadDir(dir + sub)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range list {
					want[e.Name()] = true
					if e.IsDir() {
						more, err := os.ReadDir(dir + sub + "/" + e.Name())
						if err != nil {
							t.Fatal(err)
						}
						for _, e := range more {
							want[e.Name()] = true
						}
					}
				}
			}
			unmount()
			tree := openImage(t, image)
			ctx := context.Background()
			got := 0
			err := treetest.Walk(ctx, tree, func(n treetest.Node) error {
				if !strings.HasPrefix(n.Path, "/enc/") {
					return nil
				}
				got++
				name := n.Path[strings.LastIndexByte(n.Path, '/')+1:]
				if !want[name] {
					t.Errorf("the kernel does not show %q", name)
				}
				if id, err := tree.Lookup(ctx, n.Parent, name); err != nil || id != n.ID {
					t.Errorf("look-up of %q: %v", name, err)
				}
				a, err := tree.Attr(ctx, n.ID)
				if err != nil {
					t.Fatal(err)
				}
				switch {
				case a.IsRegular():
					if _, err := tree.Open(ctx, n.ID); !errors.Is(err, guestfs.ErrEncrypted) {
						t.Errorf("open: %v", err)
					}
				case a.IsSymlink():
					if _, err := tree.ReadLink(ctx, n.ID); !errors.Is(err, guestfs.ErrEncrypted) {
						t.Errorf("read link: %v", err)
					}
				}
				return nil
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got != len(want) || got < 600 {
				t.Errorf("%d names, the kernel shows %d", got, len(want))
			}
		})
	}
}

// TestUnknownFeature names the features that it refuses.
func TestUnknownFeature(t *testing.T) {
	b := readSeed(t, "extents")
	for bit, want := range map[uint]string{0: "compression", 12: "dirdata", 31: "FEATURE_I31", 3: "journal_dev"} {
		c := append([]byte(nil), b...)
		binary.LittleEndian.PutUint32(c[superOffset+sbFeatureIncompat:], 1<<bit|incompatExtents)
		_, err := Open(context.Background(), newMemory(c), guestfs.Options{})
		if !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("bit %d: %v", bit, err)
		}
	}
}

// TestDamagedDirectory loses a block of a directory and still lists the others.
func TestDamagedDirectory(t *testing.T) {
	b := readSeed(t, "csum")
	tree, err := Open(context.Background(), newMemory(b), guestfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	id, err := tree.Lookup(ctx, tree.Root(), "hashed")
	if err != nil {
		t.Fatal(err)
	}
	in, err := tree.inode(ctx, uint32(id.Ino))
	if err != nil {
		t.Fatal(err)
	}
	r, err := tree.mapBlock(ctx, in, 2)
	if err != nil {
		t.Fatal(err)
	}
	b[r.phys<<tree.sb.blockBits+20] ^= 1
	tree, err = Open(ctx, newMemory(b), guestfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = tree.ReadDir(ctx, id, 0, func(guestfs.Dirent) bool { n++; return true })
	if !errors.Is(err, ondisk.ErrCorrupt) || n < 20 || n >= 60 {
		t.Errorf("%d entries, %v", n, err)
	}
	if _, err := tree.Lookup(ctx, id, "no such name"); err == nil {
		t.Error("found what isn't there")
	}
}

// TestTruncatedDevice reads what lies before the end, and nothing made up after it.
func TestTruncatedDevice(t *testing.T) {
	treetest.Need(t, "mkfs.ext4", "mount", "truncate")
	image := mkfs(t, "32M", "-O", "^has_journal")
	dir, unmount := treetest.Mount(t, image, "ext4", "")
	if err := os.WriteFile(dir+"/file", []byte(strings.Repeat("data", 5<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	unmount()
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	tree := openImage(t, image)
	ctx := context.Background()
	id, err := tree.Lookup(ctx, tree.Root(), "file")
	if err != nil {
		t.Fatal(err)
	}
	r, err := tree.Open(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, r.Size())
	n, err := r.ReadAt(whole, 0)
	if !errors.Is(err, ondisk.ErrCorrupt) || n == len(whole) {
		t.Errorf("read %d of %d bytes, %v", n, len(whole), err)
	}
	if err := block.ReadFull(ctx, r, whole[:1<<20], 0); err != nil {
		t.Errorf("the start: %v", err)
	}
}
