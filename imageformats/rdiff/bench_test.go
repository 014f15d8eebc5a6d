package rdiff

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"yester/imageformats"
)

// metadata writes a metadata file of n files, 100 in each directory, as rdiff-backup
// writes it.
func metadata(n int, compressed bool) []byte {
	var out bytes.Buffer
	w := &out
	var z *gzip.Writer
	if compressed {
		z = gzip.NewWriter(&out)
		w = new(bytes.Buffer)
	}
	flush := func() {
		if z != nil && w.Len() > 1<<20 {
			z.Write(w.Bytes())
			w.Reset()
		}
	}
	record := func(path, kind, more string) {
		fmt.Fprintf(w, "File %s\n  Type %s\n%s  ModTime %d\n  Uid %d\n  Uname user%d\n  Gid 100\n  Gname users\n  Permissions 420\n",
			path, kind, more, 1_700_000_000+len(path), 1000+len(path)%3, len(path)%3)
		flush()
	}
	record(".", "dir", "")
	for i := range (n + 99) / 100 {
		dir := fmt.Sprintf("home/projects/department-%04d/directory-%06d", i/1000, i)
		if i == 0 {
			record("home", "dir", "")
			record("home/projects", "dir", "")
		}
		if i%1000 == 0 {
			record(fmt.Sprintf("home/projects/department-%04d", i/1000), "dir", "")
		}
		record(dir, "dir", "")
		for j := range min(100, n-i*100) {
			record(fmt.Sprintf("%s/some-file-name-%03d.txt", dir, j), "reg", fmt.Sprintf("  Size %d\n  SHA1Digest %040x\n", i*j, (i*7919+j)*1_000_003))
		}
	}
	if z != nil {
		z.Write(w.Bytes())
		z.Close()
	}
	return out.Bytes()
}

// madeUp makes a repository of metadata alone.
func madeUp(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	data := filepath.Join(dir, dataDir)
	if err := os.MkdirAll(filepath.Join(data, incrementsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-time.Hour)
	for _, d := range []string{data, filepath.Join(data, incrementsDir)} {
		if err := os.Chtimes(d, old, old); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func benchmarkOpen(b *testing.B, n int) {
	meta := metadata(n, true)
	dir := madeUp(b, map[string][]byte{
		"rdiff-backup-data/current_mirror.2023-11-15T22:13:20Z.data":            nil,
		"rdiff-backup-data/mirror_metadata.2023-11-15T22:13:20Z.snapshot.gz":    meta,
		"rdiff-backup-data/extended_attributes.2023-11-15T22:13:20Z.snapshot":   nil,
		"rdiff-backup-data/access_control_lists.2023-11-15T22:13:20Z.snapshot":  nil,
		"rdiff-backup-data/file_statistics.2023-11-15T22:13:20Z.data.gz":        nil,
		"rdiff-backup-data/session_statistics.2023-11-15T22:13:20Z.data":        nil,
		"rdiff-backup-data/increments/home/some-file.2023-11-14T22:13:20Z.diff": nil,
	})
	b.ResetTimer()
	for b.Loop() {
		var before, after runtime.MemStats
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		r := openRepo(b, dir, imageformats.RepositoryOptions{})
		t := openPoint(b, r, 1_700_086_400)
		x, err := t.whole(b.Context())
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if got := len(x.nodes); got < n {
			b.Fatalf("%d nodes", got)
		}
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapSys-after.HeapReleased)/(1<<20), "MiB-heap")
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-held")
		runtime.KeepAlive(t)
		b.StartTimer()
	}
}

func BenchmarkOpen20k(b *testing.B) { benchmarkOpen(b, 20_000) }
func BenchmarkOpen1M(b *testing.B)  { benchmarkOpen(b, 1_000_000) }

// BenchmarkPoints lists a repository of 1,000 points, opened anew each time.
func BenchmarkPoints(b *testing.B) {
	files := map[string][]byte{}
	for i := range 1000 {
		stamp := time.Unix(1_600_000_000+int64(i)*86_400, 0).UTC().Format("2006-01-02T15:04:05Z")
		for _, name := range []string{"mirror_metadata.%s.diff.gz", "extended_attributes.%s.snapshot", "access_control_lists.%s.snapshot",
			"file_statistics.%s.data.gz", "session_statistics.%s.data", "error_log.%s.data", "increments.%s.dir"} {
			files["rdiff-backup-data/"+fmt.Sprintf(name, stamp)] = nil
		}
		if i == 999 {
			files["rdiff-backup-data/current_mirror."+stamp+".data"] = nil
		}
	}
	dir := madeUp(b, files)
	for b.Loop() {
		r := openRepo(b, dir, imageformats.RepositoryOptions{})
		if n := len(points(b, r)); n != 1000 {
			b.Fatalf("%d points", n)
		}
	}
}
