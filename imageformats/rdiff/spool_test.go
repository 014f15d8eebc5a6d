package rdiff

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"yester/imageformats"
	"yester/internal/block"
	"yester/internal/readertest"
)

// keeper is a Spooler in memory that counts what it is asked for.
type keeper struct {
	kept  map[string][]byte
	fills int
}

type keptBytes struct{ readertest.Bytes }

func (keptBytes) Close() error { return nil }

func (k *keeper) Spool(_ context.Context, key string, fill func(io.Writer) error) (imageformats.Spooled, error) {
	b, ok := k.kept[key]
	if !ok {
		k.fills++
		var buf bytes.Buffer
		if err := fill(&buf); err != nil {
			return nil, err
		}
		b = buf.Bytes()
		k.kept[key] = b
	}
	return keptBytes{b}, nil
}

// TestSpool reads a large version that only a compressed snapshot has: it is
// decompressed once, and found again by a repository that is opened later.
func TestSpool(t *testing.T) {
	l := newLive(t)
	want := make([]byte, 3<<20)
	for i := range want {
		want[i] = byte(l.rng.Uint32())
	}
	name := filepath.Join(l.src, "big")
	if err := os.WriteFile(name, want, 0o644); err != nil {
		t.Fatal(err)
	}
	first := l.backup()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	l.backup()
	k := &keeper{kept: make(map[string][]byte)}
	for i := range 3 {
		r := openRepo(t, l.repo, imageformats.RepositoryOptions{Spool: k})
		tree := openPoint(t, r, first)
		rd, err := tree.Open(t.Context(), lookup(t, tree, "big"))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, rd.Size())
		if err := block.ReadFull(t.Context(), rd, got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("run %d: wrong bytes (error: %v)", i, err)
		}
	}
	if k.fills != 1 {
		t.Errorf("decompressed %d times", k.fills)
	}
	if tmp, _ := filepath.Glob(filepath.Join(l.repo, "*", "*.tmp*")); len(tmp) > 0 {
		t.Errorf("left in the repository: %q", tmp)
	}
}
