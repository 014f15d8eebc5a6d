package restorepoint

import (
	"path"
	"strings"
	"time"

	"yester/internal/nametime"
)

// splitName takes the path of an image apart: the date in its base name or else
// in the nearest folder above it that has one, the base name without date and
// extension, and the nearest folder's name that is more than a date.
func splitName(name, rootName string, loc *time.Location) (t time.Time, stem, folder string, ok bool) {
	base := path.Base(name)
	if t, stem, ok = nametime.Find(stripExt(base), loc); !ok {
		stem = stripExt(base)
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		ft, rest, found := nametime.Find(path.Base(dir), loc)
		if found && !ok {
			t, ok = ft, true
		}
		if rest = nametime.Trim(rest); folder == "" && rest != "" {
			folder = rest
		}
	}
	if folder == "" {
		folder = rootName
	}
	return t, nametime.Trim(stem), folder, ok
}

// stripExt removes the extensions that say how an image is stored.
func stripExt(base string) string {
	for {
		ext := strings.ToLower(path.Ext(base))
		switch {
		case ext == "" || ext == base:
			return base
		case len(ext) == 4 && strings.Trim(ext[1:], "0123456789") == "": // a part: .001
		default:
			switch ext {
			case ".vhd", ".avhd", ".vhdx", ".avhdx", ".vmdk", ".qcow2", ".raw", ".img", ".dd", ".bin", ".iso", ".e01":
			default:
				return base
			}
		}
		base = base[:len(base)-len(ext)]
	}
}

// idTime formats t as a point's ID.
func idTime(t time.Time) string { return t.UTC().Format("2006-01-02T15-04-05Z") }
