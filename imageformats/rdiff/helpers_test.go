package rdiff

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"yester/origin"
)

// stampTree sums up names, sizes and times of all that is in dir.
func stampTree(t testing.TB, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Fprintln(h, path, fi.Mode(), fi.Size(), fi.ModTime().UnixNano(), st.Ctim.Nano(), st.Ino)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func versionAt(t time.Time) origin.Version { return origin.Version{Mtime: t.UnixNano()} }
