package restorepoint

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"yester/imageformats"
	"yester/internal/ondisk"
)

// link finds the parent of every differencing image among images, and marks
// those whose parent is missing, or whose chain is a loop. others are the files
// that are no image by their content; inside turns a path on the host into the name
// of a file that may be among these, or nothing. allowChanged takes a parent by its
// name where its id has changed. It returns images together with those of others
// that an image says to be its raw parent.
func link(images, others []*imageFile, inside func(string) string, allowChanged bool) []*imageFile {
	byName := make(map[string]*imageFile, len(images))
	byID := make(map[string][]*imageFile)
	for _, f := range images {
		byName[f.name] = f
		if f.info.ID != "" {
			byID[f.info.ID] = append(byID[f.info.ID], f)
		}
	}
	n := newNames(images, others, inside)
	for _, f := range images {
		switch want := f.info.Parent; {
		case want == nil || f.problem != nil:
		case want.ID == "":
			f.parent, f.problem = n.parent(f)
		default:
			f.parent, f.problem = findParent(f, byName, byID, allowChanged)
		}
	}
	images = append(images, n.adopted...)
	for _, f := range images {
		seen := map[*imageFile]bool{}
		for a := f; a != nil; a = a.parent {
			if seen[a] {
				f.problem = fmt.Errorf("%s: its chain of parents comes back to %s: %w", f.name, a.name, ondisk.ErrCorrupt)
				break
			}
			seen[a] = true
			if a != f && a.problem != nil && a.parent == nil {
				f.problem = fmt.Errorf("its ancestor %w", a.problem)
			}
		}
	}
	for _, f := range images {
		if f.problem != nil {
			f.parent = nil
		}
	}
	return images
}

// findParent looks for f's parent: where its locators point, as far as that is
// inside the source; by file name beside f; anywhere in the source by unique id.
// Only an image with the right id is taken. Where ids are shared by clones, a name
// that leads to an image settles it: then it has the right id, or the parent has
// changed.
func findParent(f *imageFile, byName map[string]*imageFile, byID map[string][]*imageFile, allowChanged bool) (*imageFile, error) {
	want := f.info.Parent
	dir := path.Dir(f.name)
	ids := []string{want.ID}
	if want.AltID != "" {
		ids = append(ids, want.AltID)
	}
	var wrong *imageFile
	try := func(name string) *imageFile {
		p := byName[name]
		if p == nil || p == f {
			return nil
		}
		if slices.Contains(ids, p.info.ID) {
			return p
		}
		if wrong == nil {
			wrong = p
		}
		return nil
	}
	for _, l := range want.Locators {
		slashed := strings.ReplaceAll(l.Path, `\`, "/")
		if l.Relative {
			if name := path.Join(dir, slashed); !strings.HasPrefix(name, "../") {
				if p := try(name); p != nil {
					return p, nil
				}
			}
		}
		if p := try(path.Join(dir, path.Base(slashed))); p != nil {
			return p, nil
		}
	}
	if want.Name != "" {
		if p := try(path.Join(dir, path.Base(strings.ReplaceAll(want.Name, `\`, "/")))); p != nil {
			return p, nil
		}
	}
	var same []*imageFile
	for _, id := range ids {
		same = append(same, byID[id]...)
	}
	same = slices.DeleteFunc(same, func(p *imageFile) bool { return p == f })
	if want.IDShared {
		if wrong != nil && allowChanged {
			return wrong, nil // whoever opens it warns
		}
		if wrong != nil {
			same = nil
		}
		if named := withName(same, want.Name); len(named) > 0 {
			same = named
		}
	}
	switch {
	case len(same) == 1:
		return same[0], nil
	case len(same) > 1:
		return nil, fmt.Errorf("%s: its parent %s (id %s) is in the source more than once (%s, %s): %w",
			f.name, parentName(want), same[0].info.ID, same[0].name, same[1].name, ondisk.ErrCorrupt)
	}
	if wrong != nil {
		return nil, fmt.Errorf("%s: its parent has id %s, but %s has id %s: %w",
			f.name, want.ID, wrong.name, wrong.info.ID, ondisk.ErrCorrupt)
	}
	return nil, fmt.Errorf("%s: its parent %s (id %s) is not in the source: %w",
		f.name, parentName(want), want.ID, ErrNotFound)
}

// withName returns the images whose file has the name, in whatever folder.
func withName(images []*imageFile, name string) (named []*imageFile) {
	for _, f := range images {
		if path.Base(f.name) == name {
			named = append(named, f)
		}
	}
	return named
}

// parentName returns the name by which messages speak of a missing parent.
func parentName(p *imageformats.Parent) string {
	if p.Name != "" {
		return fmt.Sprintf("%q", p.Name)
	}
	for _, l := range p.Locators {
		return fmt.Sprintf("%q", l.Path)
	}
	return "(unnamed)"
}
