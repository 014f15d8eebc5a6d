package rdiff

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/ondisk"
	"yester/internal/treetest"
)

var seedMeta = rootRec + rec("a", "reg", "  Size 6\n  NumHardLinks 2\n  Inode 5\n  DeviceLoc 6\n  SHA1Digest 0123456789012345678901234567890123456789\n") +
	rec("b", "reg", "  Size 6\n  NumHardLinks 2\n  Inode 5\n  DeviceLoc 6\n") + rec("d", "dir", "") + rec("d/f\\n\\\\", "fifo", "") +
	rec("d-", "dev", "  DeviceNum b 8 1\n") + rec("e", "sym", "  SymData x\\n\n") + rec("f", "sock", "") +
	rec("g", "reg", "  Size 0\n  AlternateIncrementName 3\n  ResourceFork 00ff\n  CarbonFile creator:4d535744|type:5744424e|location:1,2|flags:3\n")

// FuzzMetadata opens two points of made-up metadata, a whole one and a difference.
// What can be opened keeps the contract of trees.
func FuzzMetadata(f *testing.F) {
	f.Add([]byte(seedMeta), []byte("File a\n  Type None\n"))
	f.Add([]byte(seedMeta), []byte(rec("d/x/y", "reg", "  Size 1\n")))
	f.Add([]byte(rootRec), []byte(seedMeta))
	f.Add([]byte(seedMeta)[:200], []byte{})
	f.Add([]byte{}, []byte(rec("a", "reg", "  Size 1\n")+rec("a/b", "reg", "  Size 1\n")))
	f.Fuzz(func(t *testing.T, whole, diff []byte) {
		base, err := readTable(t.Context(), bytes.NewReader(whole), "whole")
		if err != nil {
			mustBeKnown(t, err)
			return
		}
		later, err := readTable(t.Context(), bytes.NewReader(diff), "diff")
		if err != nil {
			mustBeKnown(t, err)
			return
		}
		for _, s := range []*state{newState([]*table{base}), newState([]*table{base, later}), newState([]*table{base, later, base})} {
			x, err := newIndex(s, nil, true)
			if err != nil {
				mustBeKnown(t, err)
				continue
			}
			checkIndex(t, x)
		}
	})
}

func mustBeKnown(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ondisk.ErrCorrupt) && !errors.Is(err, ondisk.ErrUnsupported) {
		t.Fatalf("an error of no class: %v", err)
	}
}

// checkIndex walks a tree that has no repository, and looks its paths up.
func checkIndex(t *testing.T, x *index) {
	t.Helper()
	tree := &Tree{repo: &Repository{}, x: x, xattrs: &xattrSet{}, owners: owners{numeric: true}}
	seen := 0
	err := treetest.Walk(t.Context(), tree, func(n treetest.Node) error {
		seen++
		a, err := tree.Attr(t.Context(), n.ID)
		if err != nil || n.Type != 0 && a.Mode&guestfs.ModeType != n.Type {
			t.Fatalf("%q: %+v, %v", n.Path, a, err)
		}
		if n.Path == "/" {
			return nil
		}
		i, ok := x.node([]byte(n.Path[1:]))
		if !ok || x.leader(i)+1 != uint32(n.ID.Ino) {
			t.Fatalf("%q is node %d, %t, not %d", n.Path, i, ok, n.ID.Ino)
		}
		if _, ok := x.find([]byte(n.Path[1:])); !ok {
			t.Fatalf("%q isn't found", n.Path)
		}
		if a.IsSymlink() {
			if target, err := tree.ReadLink(t.Context(), n.ID); err != nil || int64(len(target)) != a.Size {
				t.Fatalf("%q: %q, %v", n.Path, target, err)
			}
		}
		if _, err := tree.ListXattr(t.Context(), n.ID); err != nil {
			t.Fatalf("%q: %v", n.Path, err)
		}
		return nil
	}, nil)
	if err != nil || seen != len(x.nodes) {
		t.Fatalf("%d of %d nodes: %v", seen, len(x.nodes), err)
	}
}

// FuzzNames reads names of increments, and quotes and unquotes.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"a.2023-11-14T22:13:20Z.diff.gz", "x.2023-11-14T22-13-20-04-30.missing", "a;058b", "aux.txt", "dots. "} {
		f.Add(s, ":A-Z", "escape_trailing_spaces\nescape_dos_devices")
		f.Add(s, `^a-z\x00-\x1f\w`, "")
	}
	f.Fuzz(func(t *testing.T, name, class, escapes string) {
		if inc, ok := parseIncrement(name); ok {
			back := inc.base + "." + inc.stamp + "." + inc.kind.String()
			if inc.gzip {
				back += ".gz"
			}
			if back != name {
				t.Fatalf("%q was read as %q", name, back)
			}
		}
		q, err := parseQuoting(class, escapes)
		if err != nil {
			mustBeKnown(t, err)
			return
		}
		for _, quoted := range []string{q.quote(name), q.quoteBase(name)} {
			if back, ok := q.unquote(quoted); !ok || back != name {
				t.Fatalf("%q was quoted %q, unquoted %q, %t", name, quoted, back, ok)
			}
		}
		if plain, ok := q.unquote(name); ok && q.quote(plain) != name && q.quoteBase(plain) != name {
			t.Fatalf("%q was taken for %q", name, plain)
		}
	})
}

// FuzzAttributes reads files of attributes and ACLs.
func FuzzAttributes(f *testing.F) {
	f.Add([]byte("# file: a\\012b\nuser.f\\012o=0sdg==\nuser.empty\n# file: .\ncom.apple.x=0s\n"))
	f.Add([]byte("# file: sub\nuser::rwx\nuser:daemon:r--\ngroup::r-x\ngroup:4242:---\nmask::rwx\nother::r-x\ndefault:user::rwx\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		names := &aclNames{owners: &owners{numeric: true}, users: map[string]uint32{"daemon": 1}, groups: map[string]uint32{}, lost: make(map[string]bool)}
		names.owners.users = map[string]id{}
		s := blockScanner{scanner: *newScanner(t.Context(), bytes.NewReader(b), "fuzz")}
		for {
			err := s.next()
			if err == io.EOF {
				return
			}
			if err != nil {
				mustBeKnown(t, err)
				return
			}
			if strings.HasPrefix(string(s.filePath), "../") {
				t.Fatalf("path %q", s.filePath)
			}
			if attrs, err := parseEA(s.lines); err == nil {
				for _, a := range attrs {
					if a.name == "" || !strings.Contains(a.name, ".") {
						t.Fatalf("attribute %q", a.name)
					}
				}
			}
			if attrs, err := parseACL(s.lines, names); err == nil {
				for _, a := range attrs {
					if (len(a.value)-aclHeaderSize)%aclEntrySize != 0 {
						t.Fatalf("%s of %d bytes", a.name, len(a.value))
					}
				}
			}
		}
	})
}

// FuzzRepository opens a repository with made-up increments and metadata, and reads
// all of it.
func FuzzRepository(f *testing.F) {
	delta := []byte("rs\x026\x04data\x00")
	f.Add([]byte(seedMeta), delta, zip("whole!"), "a")
	f.Add([]byte(rootRec+rec("a", "reg", "  Size 4\n")), delta, []byte("mirror"), "a")
	f.Fuzz(func(t *testing.T, meta, inc, snapshot []byte, name string) {
		if checkPath([]byte(name)) != nil || strings.Contains(name, "/") || len(name) > 200 || strings.HasPrefix(name, dataDir) {
			return
		}
		dir := madeUp(t, map[string][]byte{
			dataDir + "/current_mirror." + stamp1 + ".data":          nil,
			dataDir + "/mirror_metadata." + stamp1 + ".snapshot":     []byte(seedMeta),
			dataDir + "/mirror_metadata." + stamp0 + ".snapshot":     meta,
			dataDir + "/increments/" + name + "." + stamp0 + ".diff": inc,
			dataDir + "/increments/b." + stamp0 + ".snapshot.gz":     snapshot,
			name: []byte("mirror"),
		})
		r := openRepo(t, dir, imageformats.RepositoryOptions{})
		list, err := r.Points(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Points {
			tree, err := r.OpenPoint(t.Context(), p)
			if err != nil {
				mustBeKnown(t, err)
				continue
			}
			n := 0
			_ = treetest.Walk(t.Context(), tree, func(n2 treetest.Node) error {
				if n++; n2.Type == guestfs.ModeRegular && n < 50 {
					if _, err := tree.(*Tree).VerifyFile(t.Context(), n2.ID); err != nil {
						mustBeKnown(t, err)
					}
				}
				return nil
			}, nil)
			tree.Close()
		}
	})
}
