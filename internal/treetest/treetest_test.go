package treetest

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/internal/block"
)

// fake is a tree of one directory with one file, and can be made to lie.
type fake struct {
	guestfs.Tree
	content string
	mode    uint32
	hidden  bool
}

type fakeFile struct{ *bytes.Reader }

func (f *fake) Root() guestfs.ID { return guestfs.ID{Ino: 1} }
func (f *fake) Attr(_ context.Context, id guestfs.ID) (guestfs.Attr, error) {
	if id.Ino == 1 {
		return guestfs.Attr{Mode: guestfs.ModeDir | 0o755, Nlink: 2}, nil
	}
	return guestfs.Attr{Mode: f.mode, Nlink: 1, Size: int64(len(f.content))}, nil
}
func (f *fake) ReadDir(_ context.Context, _ guestfs.ID, from uint64, emit func(guestfs.Dirent) bool) error {
	if from == 0 && !f.hidden {
		emit(guestfs.Dirent{Name: "file", ID: guestfs.ID{Ino: 2}, Next: 1})
	}
	return nil
}
func (f *fake) ListXattr(context.Context, guestfs.ID) ([]string, error) { return nil, nil }
func (f *fake) Open(context.Context, guestfs.ID) (block.Reader, error) {
	return fakeFile{bytes.NewReader([]byte(f.content))}, nil
}

// TestDiff makes sure that a comparison with the host can fail.
func TestDiff(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	want, err := Host(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range want {
		e.Fields &= FieldMode | FieldNlink | FieldSize | FieldContent | FieldXattrs
		e.Xattrs = nil
	}
	want["/"].Fields = 0 // depends on the host's filesystem
	for _, c := range []struct {
		name string
		tree fake
		want string
	}{
		{"equal", fake{content: "content", mode: guestfs.ModeRegular | 0o644}, ""},
		{"content", fake{content: "Content", mode: guestfs.ModeRegular | 0o644}, "sha256"},
		{"size", fake{content: "content+", mode: guestfs.ModeRegular | 0o644}, "size"},
		{"mode", fake{content: "content", mode: guestfs.ModeRegular | 0o600}, "mode"},
		{"missing", fake{hidden: true}, "missing"},
	} {
		diffs, err := Diff(context.Background(), &c.tree, want)
		if err != nil {
			t.Fatal(err)
		}
		all := strings.Join(diffs, "; ")
		if (c.want == "") != (all == "") || !strings.Contains(all, c.want) {
			t.Errorf("%s: %q", c.name, all)
		}
	}
	want["/file"].Path = "/other"
	want["/other"] = want["/file"]
	delete(want, "/file")
	diffs, _ := Diff(context.Background(), &fake{content: "content", mode: guestfs.ModeRegular | 0o644}, want)
	if len(diffs) != 2 {
		t.Errorf("a renamed file: %q", diffs)
	}
}
