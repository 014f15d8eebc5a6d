package rdiff

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"yester/imageformats"
	"yester/internal/treetest"
	"yester/origin"
)

// TestBefore11 turns a repository into one of releases before 1.1, which wrote
// whole metadata at each session, and no SHA-1.
func TestBefore11(t *testing.T) {
	tr := readTruth(t, "plain200")
	dir := cloneRepo(t, filepath.Join(fixtures(t), "plain200", "repo"))
	r := openRepo(t, dir, imageformats.RepositoryOptions{})
	whole := make(map[int64][]byte)
	for _, p := range tr.Points {
		whole[p.Time] = writeMetadata(openPoint(t, r, p.Time).x)
	}
	files, err := filepath.Glob(dir + "/" + dataDir + "/" + metaPrefix + ".*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		inc, ok := parseIncrement(filepath.Base(name))
		if !ok {
			t.Fatal(name)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, dataDir, metaPrefix+"."+inc.stamp+".snapshot.gz"), zip(string(whole[inc.time])), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r = openRepo(t, dir, imageformats.RepositoryOptions{})
	for _, p := range tr.Points {
		tree := openPoint(t, r, p.Time)
		treetest.Compare(t, tree, p.manifest(true))
		if known, err := tree.VerifyFile(t.Context(), lookup(t, tree, "medium")); known || err != nil {
			t.Errorf("SHA-1 known %t, error %v", known, err)
		}
	}
}

// writeMetadata writes what an index holds as rdiff-backup does, without digests.
func writeMetadata(x *index) []byte {
	var b bytes.Buffer
	for i := range x.nodes {
		r, t := x.rec(x.nodes[i].rec)
		path := string(t.pathOf(r))
		if path == "" {
			path = "."
		}
		escape := strings.NewReplacer("\\", "\\\\", "\n", "\\n")
		b.WriteString("File " + escape.Replace(path) + "\n")
		line := func(name string, v int64) { b.WriteString("  " + name + " " + strconv.FormatInt(v, 10) + "\n") }
		a := x.attr(uint32(i), &owners{numeric: true})
		kind := map[uint32]string{0o10: "reg", 0o04: "dir", 0o12: "sym", 0o02: "dev", 0o06: "dev", 0o01: "fifo", 0o14: "sock"}[a.Mode>>12]
		b.WriteString("  Type " + kind + "\n")
		switch kind {
		case "reg":
			line("Size", a.Size)
			if r.links != 0 {
				l := t.links.at(r.links - 1)
				line("NumHardLinks", int64(l.n))
				line("Inode", int64(l.inode))
				line("DeviceLoc", int64(l.device))
			}
		case "sym":
			b.WriteString("  SymData " + escape.Replace(string(t.targetOf(r))) + "\n")
		case "dev":
			c := "c"
			if a.Mode>>12 == 0o06 {
				c = "b"
			}
			b.WriteString("  DeviceNum " + c + " " + strconv.Itoa(int(a.Major)) + " " + strconv.Itoa(int(a.Minor)) + "\n")
		}
		if kind != "sym" && kind != "dev" {
			line("ModTime", r.mtime)
		}
		line("Uid", int64(a.UID))
		b.WriteString("  Uname :\n")
		line("Gid", int64(a.GID))
		b.WriteString("  Gname :\n")
		line("Permissions", int64(a.Mode&0o7777))
	}
	return b.Bytes()
}

// TestInFolder opens a repository that lies deeper in a source.
func TestInFolder(t *testing.T) {
	tr := readTruth(t, "long")
	folder, err := origin.OpenDir(fixtures(t))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	for dir, want := range map[string]bool{".": false, "long": false, "long/repo": true, "first/repo": true, "long/repo/rdiff-backup-data": false} {
		if is, err := Format.Probe(t.Context(), folder, dir); is != want || err != nil {
			t.Errorf("%s: %t, %v", dir, is, err)
		}
	}
	repo, err := Format.Open(t.Context(), folder, "long/repo", imageformats.RepositoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	p := tr.Points[1]
	treetest.Compare(t, openPoint(t, repo.(*Repository), p.Time), p.manifest(true))
}

// TestRestore compares whole dates with what rdiff-backup itself restores.
func TestRestore(t *testing.T) {
	tr := readTruth(t, "everything")
	repo := cloneRepo(t, filepath.Join(fixtures(t), "everything", "repo")) // a restore writes to it
	r := openRepo(t, repo, imageformats.RepositoryOptions{})
	for _, i := range []int{0, 2, len(tr.Points) - 1} {
		when := tr.Points[i].Time
		dir := filepath.Join(t.TempDir(), "restored")
		if out, err := exec.Command("rdiff-backup", "--no-fsync", "restore", "--at", strconv.FormatInt(when, 10), repo, dir).CombinedOutput(); err != nil {
			t.Fatalf("restore: %v\n%s", err, out)
		}
		want, err := treetest.Host(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		for path, e := range want {
			e.Fields = treetest.FieldMode | treetest.FieldOwner | treetest.FieldSize | treetest.FieldRdev | treetest.FieldTarget | treetest.FieldXattrs | treetest.FieldContent
			if !e.Attr.IsSymlink() && e.Attr.Mode>>12 != 0o02 && e.Attr.Mode>>12 != 0o06 {
				e.Fields |= treetest.FieldMtime
			}
			e.Attr.Mtime.Nsec = 0
			if path == "/attrs" {
				e.Fields &^= treetest.FieldXattrs // it restores names of attributes as it has escaped them
			}
			if path == "/capable" {
				e.Fields &^= treetest.FieldXattrs // it restores the owner after the attribute, which removes that
			}
		}
		treetest.Compare(t, openPoint(t, r, when), want)
	}
}

// TestMadeUpMetadata makes sure that the benchmarks' metadata are such as are read.
func TestMadeUpMetadata(t *testing.T) {
	z, err := gzip.NewReader(bytes.NewReader(metadata(1000, true)))
	if err != nil {
		t.Fatal(err)
	}
	tab, err := readTable(t.Context(), z, "made up")
	if err != nil || tab.records.n < 1000 {
		t.Fatal(tab, err)
	}
	if _, err := io.Copy(io.Discard, z); err != nil {
		t.Error(err)
	}
}
