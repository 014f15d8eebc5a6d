package restorepoint

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"yester/imageformats/raw"
	"yester/internal/ondisk"
	"yester/origin"
)

// gather finds the further files that images are made of (Info.Files), among all
// files of the source. What is a part of an image isn't an image of its own, nor
// worth a word among the ignored ones; a file with a header of its own stays what
// it is, whoever names it.
func gather(images []*imageFile, ignored []Ignored, byName map[string]origin.Entry) ([]*imageFile, []Ignored) {
	owner := make(map[string]*imageFile) // by extent
	for _, f := range images {
		for _, name := range f.info.Files {
			e, err := findExtent(f, name, byName)
			if err != nil {
				f.problem = errors.Join(f.problem, err)
				continue
			}
			f.extents = append(f.extents, e)
			owner[e.Name] = f
		}
	}
	if len(owner) == 0 {
		return images, ignored
	}
	images = slices.DeleteFunc(images, func(f *imageFile) bool {
		return f.format.Name == raw.Format.Name && slices.ContainsFunc(f.parts, func(e origin.Entry) bool { return owner[e.Name] != nil })
	})
	ignored = slices.DeleteFunc(ignored, func(i Ignored) bool { return owner[i.Name] != nil && !i.Damaged })
	return images, ignored
}

// findExtent finds the file that f's header names, inside the source only: where
// the name leads to from f's folder, or else by base name beside f.
func findExtent(f *imageFile, name string, byName map[string]origin.Entry) (origin.Entry, error) {
	dir := path.Dir(f.name)
	for _, slashed := range []string{name, strings.ReplaceAll(name, `\`, "/")} {
		for _, try := range []string{path.Join(dir, slashed), path.Join(dir, path.Base(slashed))} {
			if e, ok := byName[try]; ok && !isPart(f, try) {
				return e, nil
			}
		}
	}
	if isPart(f, path.Join(dir, name)) {
		return origin.Entry{}, fmt.Errorf("extent %q named by %s: is that file itself: %w", name, f.name, ondisk.ErrCorrupt)
	}
	return origin.Entry{}, fmt.Errorf("extent %q named by %s: not in the source: %w", name, f.name, ErrNotFound)
}

// isPart reports whether name is one of the files that f's own bytes are.
func isPart(f *imageFile, name string) bool {
	return slices.ContainsFunc(f.parts, func(e origin.Entry) bool { return e.Name == name })
}
