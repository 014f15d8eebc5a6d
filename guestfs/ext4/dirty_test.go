package ext4

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"yester/guestfs"
	"yester/internal/treetest"
)

// TestDirty copies images while the kernel works on them, and compares what this
// reader's replay shows of each copy with what the kernel's shows.
func TestDirty(t *testing.T) {
	treetest.Need(t, "mkfs.ext4", "mount", "truncate")
	for _, c := range []struct{ name, args, options string }{
		{"default", "-J size=8", ""},
		{"journal-data", "-J size=8", "data=journal"},
		{"small-1k", "-b 1024 -J size=2", ""},
		{"small-no-csum", "-b 1024 -J size=2 -O ^metadata_csum,^64bit", ""},
		{"ext3", "-t ext3 -b 1024 -J size=2", ""},
		{"csum-v1", "-b 1024 -J size=2 -O ^metadata_csum", "journal_checksum"},
		{"async", "-b 1024 -J size=2", "journal_async_commit,data=writeback"},
		{"async-v1", "-t ext3 -b 1024 -J size=2", "journal_async_commit,data=writeback"},
		{"inline", "-O inline_data -J size=4", ""},
		{"bigalloc", "-O bigalloc -J size=4", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkDirty(t, strings.Fields(c.args), c.options, churn, 8, 0)
		})
	}
}

// checkDirty makes a filesystem, lets work change it, and compares copies taken
// in between. ignore are fields that the kernel's recovery settles differently.
func checkDirty(t *testing.T, args []string, options string, work func(*testing.T, string, *rand.Rand, int), copies int, ignore treetest.Field) {
	image := mkfs(t, "96M", append(args, "-N", "4000")...)
	dir, unmount := treetest.Mount(t, image, "ext4", options)
	rng := rand.New(rand.NewPCG(3, 4))
	replayed := 0
	for i := range copies {
		work(t, dir, rng, i)
		snap := filepath.Join(t.TempDir(), "copy")
		treetest.Run(t, "cp", "--sparse=always", image, snap)
		if compareDirty(t, snap, options, ignore) {
			replayed++
		}
		os.Remove(snap)
		if t.Failed() {
			break
		}
	}
	unmount()
	if replayed == 0 {
		t.Error("no copy had anything to replay")
	}
	t.Logf("%d of %d copies were dirty", replayed, copies)
}

// fastSeen counts the trees of compareDirty that had fast commits.
var fastSeen int

// compareDirty compares this reader's view of image with the kernel's after its
// recovery; the kernel gets a copy. It reports whether there was a replay.
func compareDirty(t *testing.T, image, options string, ignore treetest.Field) bool {
	t.Helper()
	tree := openImage(t, image)
	recovered := image + ".rw"
	treetest.Run(t, "cp", "--sparse=always", image, recovered)
	defer os.Remove(recovered)
	_, unmount, err := treetest.TryMount(t, recovered, "ext4", options)
	if err != nil {
		t.Fatalf("the kernel does not recover it: %v", err)
	}
	unmount()
	want := hostManifest(t, recovered, "ro")
	for _, e := range want {
		e.Fields &^= ignore
	}
	treetest.Compare(t, tree, want)
	if tree.(*FS).fast != nil {
		fastSeen++
	}
	state := tree.Info().Journal
	if state != guestfs.JournalReplayed && state != guestfs.JournalClean {
		t.Errorf("journal %q", state)
	}
	return state == guestfs.JournalReplayed
}

// churn creates, renames, rewrites and deletes files and many directories, which
// leaves revoke records in the journal, and forces commits in between.
func churn(t *testing.T, dir string, rng *rand.Rand, round int) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(format string, args ...any) string { return dir + "/" + fmt.Sprintf(format, args...) }
	data := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		// Data that begins with the journal's magic has to be escaped there.
		if n > 4 {
			copy(b, "\xC0\x3B\x39\x98")
		}
		return b
	}
	sync := func(name string) {
		f, err := os.Open(name)
		must(err)
		must(f.Sync())
		must(f.Close())
	}
	for i := range 60 {
		must(os.MkdirAll(path("d%d/sub", i), 0o755))
		must(os.WriteFile(path("d%d/file", i), data(rng.IntN(9000)), 0o644))
		if i%20 == 0 {
			sync(path("d%d/file", i))
		}
	}
	for i := range 60 {
		if rng.IntN(2) == 0 {
			must(os.RemoveAll(path("d%d", i)))
		}
		// The freed blocks become data.
		must(os.WriteFile(path("data%d", rng.IntN(30)), data(4096+rng.IntN(8192)), 0o600))
		if i%15 == 0 {
			sync(dir)
		}
	}
	for range 20 {
		a, b := path("data%d", rng.IntN(30)), path("data%d", rng.IntN(30))
		switch rng.IntN(4) {
		case 0:
			_ = os.Rename(a, b)
		case 1:
			_ = os.Truncate(a, int64(rng.IntN(5000)))
		case 2:
			_ = os.Link(a, path("link%d-%d", round, rng.IntN(1000)))
		case 3:
			_ = os.Symlink("target", path("sym%d-%d", round, rng.IntN(1000)))
		}
	}
	must(os.WriteFile(path("last"), data(100), 0o644))
	sync(path("last"))
}
