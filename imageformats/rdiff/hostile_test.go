package rdiff

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/ondisk"
	"yester/internal/treetest"
)

const (
	stamp0 = "2023-11-14T22:13:20Z" // 1,700,000,000
	stamp1 = "2023-11-15T22:13:20Z"
	stamp2 = "2023-11-16T22:13:20Z"
)

const tail = "  ModTime 1700000000\n  Uid 0\n  Uname :\n  Gid 0\n  Gname :\n  Permissions 420\n"

func rec(path, kind, more string) string {
	return "File " + path + "\n  Type " + kind + "\n" + more + tail
}

var rootRec = rec(".", "dir", "")

// repository makes a repository of one point with that metadata.
func repository(t testing.TB, meta string, more map[string][]byte) string {
	t.Helper()
	files := map[string][]byte{
		dataDir + "/current_mirror." + stamp0 + ".data":      []byte("PID 1\n"),
		dataDir + "/mirror_metadata." + stamp0 + ".snapshot": []byte(meta),
	}
	for k, v := range more {
		files[k] = v
	}
	return madeUp(t, files)
}

func zip(b string) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write([]byte(b))
	w.Close()
	return out.Bytes()
}

func openOnly(t testing.TB, dir string, opt imageformats.RepositoryOptions) (*Tree, error) {
	t.Helper()
	r := openRepo(t, dir, opt)
	list, err := r.Points(t.Context())
	if err != nil {
		return nil, err
	}
	if len(list.Points) == 0 {
		return nil, errors.New("no points")
	}
	tree, err := r.OpenPoint(t.Context(), list.Points[0])
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { tree.Close() })
	return tree.(*Tree), nil
}

// TestBadMetadata opens metadata that no rdiff-backup writes: each is an error that
// names the file.
func TestBadMetadata(t *testing.T) {
	for name, meta := range map[string]string{
		"path out":         rootRec + rec("..", "reg", "  Size 1\n"),
		"path out below":   rootRec + rec("a/../../b", "reg", "  Size 1\n"),
		"absolute":         rootRec + rec("/etc/passwd", "reg", "  Size 1\n"),
		"NUL":              rootRec + rec("a\x00b", "reg", "  Size 1\n"),
		"empty name":       rootRec + rec("a//b", "reg", "  Size 1\n"),
		"long name":        rootRec + rec(strings.Repeat("n", 2000), "reg", "  Size 1\n"),
		"twice":            rootRec + rec("a", "reg", "  Size 1\n") + rec("a", "reg", "  Size 1\n"),
		"unsorted":         rootRec + rec("b", "reg", "  Size 1\n") + rec("a", "reg", "  Size 1\n"),
		"in a file":        rootRec + rec("a", "reg", "  Size 1\n") + rec("a/b", "reg", "  Size 1\n"),
		"root is a file":   rec(".", "reg", "  Size 1\n"),
		"no size":          rootRec + rec("a", "reg", ""),
		"negative size":    rootRec + rec("a", "reg", "  Size -5\n"),
		"enormous size":    rootRec + rec("a", "reg", "  Size 99999999999999999999\n"),
		"size in hex":      rootRec + rec("a", "reg", "  Size 0x10\n"),
		"no type":          rootRec + "File a\n" + tail,
		"unknown type":     rootRec + rec("a", "door", ""),
		"no target":        rootRec + rec("a", "sym", ""),
		"no device":        rootRec + rec("a", "dev", ""),
		"bad device":       rootRec + rec("a", "dev", "  DeviceNum x 1 3\n"),
		"bad digest":       rootRec + rec("a", "reg", "  Size 1\n  SHA1Digest zz\n"),
		"bad fork":         rootRec + rec("a", "reg", "  Size 1\n  ResourceFork 0g\n"),
		"alternate name":   rootRec + rec("a", "reg", "  Size 1\n  AlternateMirrorName ../../a\n"),
		"alternate inc":    rootRec + rec("a", "reg", "  Size 1\n  AlternateIncrementName /etc/x\n"),
		"no newline":       strings.TrimSuffix(rootRec, "\n"),
		"cut off":          rootRec + "File a\n  Type reg\n  Size 5\n",
		"not a record":     "hello\n",
		"field of nothing": rootRec + "  \n",
		"permissions":      strings.Replace(rootRec, "420", "99999", 1),
		"owner":            strings.Replace(rootRec, "Uid 0", "Uid 4294967296", 1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := openOnly(t, repository(t, meta, nil), imageformats.RepositoryOptions{})
			if !errors.Is(err, ondisk.ErrCorrupt) && !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), "mirror_metadata."+stamp0) {
				t.Errorf("%v", err)
			}
		})
	}
	for name, b := range map[string][]byte{
		"no gzip":     []byte(rootRec),
		"cut":         zip(rootRec)[:60],
		"no checksum": zip(rootRec)[:len(zip(rootRec))-8],
		"checksum":    append(zip(rootRec)[:len(zip(rootRec))-8], 1, 2, 3, 4, 5, 6, 7, 8),
	} {
		dir := madeUp(t, map[string][]byte{
			dataDir + "/current_mirror." + stamp0 + ".data":         nil,
			dataDir + "/mirror_metadata." + stamp0 + ".snapshot.gz": b,
		})
		if _, err := openOnly(t, dir, imageformats.RepositoryOptions{}); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEscapes has links where files and directories should be, that lead out of the
// repository or elsewhere in it: none is followed.
func TestEscapes(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	meta := rootRec + rec("a", "reg", "  Size 6\n") + rec("d", "dir", "") + rec("d/f", "reg", "  Size 6\n") +
		rec("f", "reg", "  Size 6\n") + rec("l", "reg", "  Size 6\n  AlternateMirrorName 7\n") + rec("other", "dir", "") +
		rec("other/f", "reg", "  Size 6\n") + rec("s", "reg", "  Size 6\n")
	dir := repository(t, meta, map[string][]byte{"other/f": []byte("other!"), dataDir + "/" + longNamesDir + "/8": nil})
	for link, to := range map[string]string{
		"a": secret, "d": "other", "f": "other/f",
		dataDir + "/increments/s." + stamp0 + ".snapshot": secret,
		dataDir + "/" + longNamesDir + "/7":               "../../other/f",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := openOnly(t, dir, imageformats.RepositoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"a", "d/f", "f", "l", "s"} {
		if rd, err := tree.Open(t.Context(), lookup(t, tree, path)); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s: %v, %v", path, rd, err)
		}
	}
	rd, err := tree.Open(t.Context(), lookup(t, tree, "other/f"))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if err := block.ReadFull(t.Context(), rd, b, 0); err != nil || string(b) != "other!" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestSpecialIncrements has increments that are no files, and one that contradicts
// the metadata.
func TestSpecialIncrements(t *testing.T) {
	meta := rootRec + rec("dir", "reg", "  Size 6\n") + rec("fifo", "reg", "  Size 6\n") + rec("gone", "reg", "  Size 6\n") + rec("short", "reg", "  Size 6\n")
	dir := madeUp(t, map[string][]byte{
		dataDir + "/current_mirror." + stamp1 + ".data":           nil,
		dataDir + "/mirror_metadata." + stamp1 + ".snapshot":      []byte(rootRec),
		dataDir + "/mirror_metadata." + stamp0 + ".snapshot":      []byte(meta),
		dataDir + "/increments/dir." + stamp0 + ".dir":            nil,
		dataDir + "/increments/gone." + stamp0 + ".missing":       nil,
		dataDir + "/increments/short." + stamp0 + ".snapshot":     []byte("short"),
		dataDir + "/increments/short." + stamp0 + ".diff":         []byte("the snapshot counts"),
		dataDir + "/increments/short." + stamp1 + ".snapshot/sub": nil,
	})
	treetest.Need(t, "mkfifo")
	treetest.Run(t, "mkfifo", filepath.Join(dir, dataDir, incrementsDir, "fifo."+stamp0+".snapshot"))
	tree, err := openOnly(t, dir, imageformats.RepositoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"dir", "fifo", "gone", "short"} {
		if _, err := tree.Open(t.Context(), lookup(t, tree, path)); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestImplied shows files whose directories have no record.
func TestImplied(t *testing.T) {
	tree, err := openOnly(t, repository(t, rec("a/b/c/f", "reg", "  Size 0\n")+rec("a/b/d", "dir", "")+rec("z/y", "sym", "  SymData t\n"), nil), imageformats.RepositoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]uint32{"": guestfs.ModeDir, "a": guestfs.ModeDir, "a/b/c": guestfs.ModeDir, "a/b/c/f": guestfs.ModeRegular, "a/b/d": guestfs.ModeDir, "z/y": guestfs.ModeSymlink} {
		if a, err := tree.Attr(t.Context(), lookup(t, tree, path)); err != nil || a.Mode&guestfs.ModeType != mode {
			t.Errorf("%s: %+v, %v", path, a, err)
		}
	}
	if tree.x.implied != 5 {
		t.Errorf("%d directories made up", tree.x.implied)
	}
}

// TestSessionFiles is about which files of dataDir count.
func TestSessionFiles(t *testing.T) {
	at := func(name, stamp, kind string) string { return dataDir + "/" + name + "." + stamp + "." + kind }
	full := []byte(rootRec + rec("f", "reg", "  Size 3\n"))
	for _, c := range []struct {
		name     string
		files    map[string][]byte
		points   int
		warnings int
		problem  bool
	}{
		{"none", map[string][]byte{at("mirror_metadata", stamp0, "snapshot"): full}, 0, 1, false},
		{"one", map[string][]byte{at("current_mirror", stamp0, "data"): nil, at("mirror_metadata", stamp0, "snapshot"): full}, 1, 0, false},
		{"interrupted", map[string][]byte{at("current_mirror", stamp0, "data"): nil, at("current_mirror", stamp1, "data"): nil,
			at("mirror_metadata", stamp0, "snapshot"): full, at("mirror_metadata", stamp1, "snapshot"): []byte("cut o")}, 1, 1, false},
		{"interrupted, difference alone", map[string][]byte{at("current_mirror", stamp0, "data"): nil, at("current_mirror", stamp1, "data"): nil,
			at("mirror_metadata", stamp0, "diff"): nil, at("mirror_metadata", stamp1, "snapshot"): full}, 1, 1, false},
		{"three markers", map[string][]byte{at("current_mirror", stamp0, "data"): nil, at("current_mirror", stamp1, "data"): nil, at("current_mirror", stamp2, "data"): nil,
			at("mirror_metadata", stamp0, "snapshot"): full}, 1, 1, false},
		{"twice", map[string][]byte{at("current_mirror", stamp0, "data"): nil, at("mirror_metadata", stamp0, "snapshot"): full,
			at("mirror_metadata", stamp0, "snapshot.gz"): zip(string(full))}, 1, 0, true},
		{"whole and difference", map[string][]byte{at("current_mirror", stamp1, "data"): nil, at("mirror_metadata", stamp0, "snapshot"): full,
			at("mirror_metadata", stamp0, "diff"): []byte("cut o"), at("mirror_metadata", stamp1, "snapshot"): full}, 2, 0, false},
		{"a gap", map[string][]byte{at("current_mirror", stamp2, "data"): nil, at("mirror_metadata", stamp0, "diff"): nil,
			at("increments", stamp1, "dir"): nil, at("mirror_metadata", stamp2, "snapshot"): full}, 3, 1, false},
		{"attributes lost", map[string][]byte{at("current_mirror", stamp1, "data"): nil, at("mirror_metadata", stamp0, "snapshot"): full,
			at("mirror_metadata", stamp1, "snapshot"): full, at("extended_attributes", stamp0, "snapshot"): nil, at("access_control_lists", stamp0, "snapshot"): nil}, 2, 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := openRepo(t, madeUp(t, c.files), imageformats.RepositoryOptions{})
			list, err := r.Points(t.Context())
			if err != nil || len(list.Points) != c.points || len(list.Warnings) != c.warnings {
				t.Fatalf("%d points, warnings %q (error: %v)", len(list.Points), list.Warnings, err)
			}
			if c.points == 0 {
				return
			}
			if (list.Points[0].Problem != "") != c.problem {
				t.Errorf("problem %q", list.Points[0].Problem)
			}
			tree, err := r.OpenPoint(t.Context(), list.Points[0])
			if (err != nil) != c.problem {
				t.Fatalf("%v", err)
			}
			if c.problem {
				return
			}
			_, err = find(tree, "f")
			if lost := tree.(*Tree).lost; (err != nil) != lost || lost != (c.name == "a gap") {
				t.Errorf("lost %t, f: %v", lost, err)
			}
		})
	}
}

// TestOwnersAndACLs maps names as rdiff-backup does, or takes the numbers.
func TestOwnersAndACLs(t *testing.T) {
	own := func(path, uid, uname string) string {
		return rec(path, "reg", "  Size 0\n") // the owner is replaced below
	}
	fix := func(s, uid, uname string) string {
		return strings.NewReplacer("Uid 0", "Uid "+uid, "Uname :", "Uname "+uname, "Gid 0", "Gid "+uid, "Gname :", "Gname "+uname).Replace(s)
	}
	meta := rootRec + fix(own("a", "", ""), "4711", "daemon") + fix(own("b", "", ""), "4712", "nosuchname") + fix(own("c", "", ""), "4713", ":")
	acl := "# file: a\nuser::rw-\nuser:daemon:r--\nuser:nosuchname:rwx\nuser:55:--x\ngroup::r--\nmask::rwx\nother::---\ndefault:user::rwx\ndefault:group::---\ndefault:other::---\n"
	dir := repository(t, meta, map[string][]byte{dataDir + "/access_control_lists." + stamp0 + ".snapshot": []byte(acl)})
	for _, numeric := range []bool{false, true} {
		tree, err := openOnly(t, dir, imageformats.RepositoryOptions{NumericIDs: numeric})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]uint32{"a": 1, "b": 4712, "c": 4713}
		named := [][3]uint32{{aclUser, 4, 1}, {aclUser, 1, 55}}
		if numeric {
			want["a"] = 4711
			named = [][3]uint32{{aclUser, 1, 55}, {aclUser, 4, 4711}, {aclUser, 7, 4712}}
		}
		for path, uid := range want {
			if a, err := tree.Attr(t.Context(), lookup(t, tree, path)); err != nil || a.UID != uid || a.GID != uid {
				t.Errorf("numeric %t: %s: %d:%d, want %d (error: %v)", numeric, path, a.UID, a.GID, uid, err)
			}
		}
		entries := [][3]uint32{{aclUserObj, 6, aclUndefinedID}}
		entries = append(entries, named...)
		entries = append(entries, [3]uint32{aclGroupObj, 4, aclUndefinedID}, [3]uint32{aclMask, 7, aclUndefinedID}, [3]uint32{aclOther, 0, aclUndefinedID})
		b := []byte{2, 0, 0, 0}
		for _, e := range entries {
			b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
			b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
			b = binary.LittleEndian.AppendUint32(b, e[2])
		}
		got, err := tree.Xattr(t.Context(), lookup(t, tree, "a"), xattrACLAccess)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("numeric %t: ACL %x, want %x (error: %v)", numeric, got, b, err)
		}
		if got, err := tree.Xattr(t.Context(), lookup(t, tree, "a"), xattrACLDefault); err != nil || len(got) != 4+3*8 {
			t.Errorf("default ACL %x (error: %v)", got, err)
		}
	}
}

// TestApple shows what a Macintosh keeps beside a file's data as attributes.
func TestApple(t *testing.T) {
	fork := strings.Repeat("00ff", 100_000)
	meta := rootRec + rec("a", "reg", "  Size 0\n  ResourceFork "+fork+"\n  CarbonFile creator:4d535744|type:5744424e|location:-2,300|flags:256|createDate:1\n") +
		rec("b", "reg", "  Size 0\n  ResourceFork None\n  CarbonFile creator:b'4d535744'|type:b'5744424e'|location:0,0|flags:0\n") +
		rec("c", "reg", "  Size 0\n  CarbonFile None\n")
	ea := "# file: a\ncom.apple.quarantine=0sdg==\nuser.empty\nuser.a\\075b=0sdg==\n"
	tree, err := openOnly(t, repository(t, meta, map[string][]byte{dataDir + "/extended_attributes." + stamp0 + ".snapshot": []byte(ea)}), imageformats.RepositoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info := func(s string) string { return s + strings.Repeat("\x00", finderInfoSize-len(s)) }
	for path, want := range map[string]map[string]string{
		"a": {"user.com.apple.quarantine": "v", "user.empty": "", "user.a=b": "v", xattrResourceFork: strings.Repeat("\x00\xff", 100_000),
			xattrFinderInfo: info("WDBNMSWD\x01\x00\x01\x2c\xff\xfe")},
		"b": {xattrResourceFork: "", xattrFinderInfo: info("WDBNMSWD")},
		"c": {},
	} {
		got := make(map[string]string)
		names, err := tree.ListXattr(t.Context(), lookup(t, tree, path))
		for _, n := range names {
			v, verr := tree.Xattr(t.Context(), lookup(t, tree, path), n)
			got[n] = string(v)
			err = errors.Join(err, verr)
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %.200q, want %.200q (error: %v)", path, fmt.Sprint(got), fmt.Sprint(want), err)
		}
	}
}

// TestBadAttributes opens files of attributes and ACLs that no rdiff-backup writes.
func TestBadAttributes(t *testing.T) {
	for name, files := range map[string]map[string][]byte{
		"no record": {"extended_attributes": []byte("user.a=0sdg==\n")},
		"base64":    {"extended_attributes": []byte("# file: .\nuser.a=0s!!\n")},
		"path":      {"extended_attributes": []byte("# file: ../x\nuser.a=0sdg==\n")},
		"large":     {"extended_attributes": []byte("# file: .\nuser.a=0s" + strings.Repeat("AAAA", 30_000) + "\n")},
		"cut":       {"extended_attributes": []byte("# file: .\nuser.a")},
		"tag":       {"access_control_lists": []byte("# file: .\nnobody::rwx\n")},
		"perm":      {"access_control_lists": []byte("# file: .\nuser::rwt\n")},
		"entry":     {"access_control_lists": []byte("# file: .\nuser:rwx\n")},
		"mask name": {"access_control_lists": []byte("# file: .\nmask:x:rwx\n")},
	} {
		more := make(map[string][]byte)
		for k, v := range files {
			more[dataDir+"/"+k+"."+stamp0+".snapshot"] = v
		}
		tree, err := openOnly(t, repository(t, rootRec, more), imageformats.RepositoryOptions{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := tree.ListXattr(t.Context(), tree.Root()); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
