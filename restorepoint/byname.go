package restorepoint

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"yester/imageformats"
	"yester/imageformats/raw"
	"yester/internal/ondisk"
)

// names finds the parents of images whose format gives them no id (qcow2), by the
// name that the child has of its parent.
//
// A child that says "raw" is taken at its word, whatever the parent's bytes look
// like: a guest may write the header of any container into its raw disk, and that
// container may name any other file as its own parent.
type names struct {
	files  map[string]*imageFile   // all files of the source
	inside func(abs string) string // turns a path on the host into a name
	// adopted are files that are no image by their content, and raw disks by the
	// word of a child.
	adopted []*imageFile
	views   map[string]*imageFile // files of another format, seen as raw
}

func newNames(images, others []*imageFile, inside func(string) string) *names {
	n := &names{files: make(map[string]*imageFile, len(images)+len(others)), inside: inside, views: make(map[string]*imageFile)}
	for _, f := range others {
		n.files[f.name] = f
	}
	for _, f := range images {
		n.files[f.name] = f
	}
	n.settle(images)
	return n
}

// settle makes raw disks of the files that children say to be raw. What a file
// says counts only once it is known that no child calls that file raw itself.
func (n *names) settle(images []*imageFile) {
	claims := make(map[*imageFile]*imageFile) // child -> parent that it calls raw
	calls := make(map[*imageFile]int)         // how many claims on a file are undecided
	for _, f := range images {
		if p := f.info.Parent; p != nil && p.ID == "" && p.Format == "raw" {
			if target := n.find(f); target != nil {
				claims[f] = target
				calls[target]++
			}
		}
	}
	var ready []*imageFile
	for _, f := range images {
		if claims[f] != nil && calls[f] == 0 {
			ready = append(ready, f)
		}
	}
	for len(ready) > 0 {
		f := ready[0]
		ready = ready[1:]
		target := claims[f]
		if f.info.Parent != nil { // else it has become raw, and its claim was a guest's
			n.makeRaw(target)
		}
		if calls[target]--; calls[target] == 0 && claims[target] != nil {
			ready = append(ready, target)
		}
	}
}

// find returns the file that f's parent name means: relative to f's folder, or
// by its whole path, as far as that is inside the source; else beside f. nil when
// there is none.
func (n *names) find(f *imageFile) *imageFile {
	dir := path.Dir(f.name)
	stored := f.info.Parent.Name
	for _, name := range []string{stored, strings.ReplaceAll(stored, `\`, "/")} {
		whole := path.Join(dir, name)
		if path.IsAbs(name) {
			whole = n.inside(name)
		}
		for _, try := range []string{whole, path.Join(dir, path.Base(name))} {
			if p := n.files[try]; p != nil && p != f {
				return p
			}
		}
	}
	return nil
}

// makeRaw turns f into a raw disk. A file whose name says the format that its
// content has stays what it is: then the child sees a view of it.
func (n *names) makeRaw(f *imageFile) {
	if f.err == nil && f.format.Name == "raw" || n.views[f.name] != nil {
		return
	}
	info := imageformats.Info{Format: "raw", Size: f.bytes()}
	switch {
	case f.err != nil:
		n.adopted = append(n.adopted, f)
	case strings.EqualFold(path.Ext(f.name), "."+f.format.Name):
		n.views[f.name] = &imageFile{name: f.name, parts: f.parts, format: raw.Format, info: info}
		f.info.Warnings = append(f.info.Warnings[:len(f.info.Warnings):len(f.info.Warnings)],
			"another image says that this file is a raw disk")
		return
	default:
		info.Warnings = []string{fmt.Sprintf("it begins like a %s image, but another image says that it is a raw disk", f.format.Name)}
	}
	f.format, f.info, f.err = raw.Format, info, nil
}

// parent returns f's parent, in the format that f says it has.
func (n *names) parent(f *imageFile) (*imageFile, error) {
	want := f.info.Parent
	p := n.find(f)
	switch {
	case p == nil:
		return nil, fmt.Errorf("%s: its parent %s is not in the source: %w", f.name, parentName(want), ErrNotFound)
	case want.Format == "raw" && n.views[p.name] != nil:
		return n.views[p.name], nil
	case p.err != nil && want.Format == "" && errors.Is(p.err, ondisk.ErrFormat):
		// So QEMU takes what it doesn't recognise.
		n.makeRaw(p)
	case p.err != nil:
		return nil, fmt.Errorf("%s: its parent: %s: %w", f.name, p.name, p.err)
	}
	if want.Format != "" && p.format.Name != want.Format {
		return nil, fmt.Errorf("%s: its parent %s is %s by its content, not %.20q: %w", f.name, p.name, p.format.Name, want.Format, ondisk.ErrCorrupt)
	}
	return p, nil
}
