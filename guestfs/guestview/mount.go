package guestview

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"yester/guestfs"
)

// New puts members together. It fails with ErrNoRoot when none has a root layout
// (and with what is wrong with those that can't be looked at, if any), and when
// ctx is done; whatever else can't be followed is a warning, in the View
// and in log (which may be nil), and leaves a volume out of the view.
//
// The root is the candidate whose own /etc/fstab lists it at "/", then the one on
// the largest filesystem, then the first. Of its /etc/fstab:
//   - swap, pseudo and network filesystems are passed over;
//   - mounts are made from the shallowest to the deepest, whatever their order in
//     the file, then bind mounts in the order of the file;
//   - an entry with "noauto" is followed only if its volume is mounted nowhere
//     else, and last: the guest didn't mount it when it started, but that is where
//     it belongs (/boot/efi is often such a one).
func New(ctx context.Context, members []Member, log *slog.Logger) (*View, error) {
	found, warned, err := candidates(ctx, members)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, ErrNoRoot
	}
	root, others := choose(found)
	n := 1
	for i := range root.entries {
		if root.entries[i].kind() != kindIgnored {
			n++
		}
	}
	b := builder{ctx: ctx, members: members, view: newView(root.mount, n)}
	b.view.mounts[0].Path = "/"
	b.view.Warnings = slices.Concat(warned, others, root.warned)
	if _, err := b.view.outer(0, root.root); err != nil {
		return nil, err
	}
	b.mountAll(root.entries)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if log != nil {
		for _, w := range b.view.Warnings {
			log.Warn("guest view: " + w)
		}
	}
	return b.view, nil
}

type builder struct {
	ctx     context.Context
	members []Member
	view    *View
}

func (b *builder) warn(format string, args ...any) {
	b.view.Warnings = appendWarning(b.view.Warnings, format, args...)
}

// job is an entry that is to be mounted.
type job struct {
	*Entry
	dir    string // cleaned
	linked bool   // dir leads through links of the root filesystem
}

// mountAll mounts what entries ask for.
func (b *builder) mountAll(entries []Entry) {
	var volumes, binds, late []job
	for i := range entries {
		e := &entries[i]
		kind := e.kind()
		if kind == kindIgnored {
			continue
		}
		dir, ok := e.dir()
		if !ok {
			b.warn("/etc/fstab line %d: %q is no mount point", e.Line, e.Dir)
			continue
		}
		if dir == "/" {
			continue // the root itself
		}
		j := job{Entry: e, dir: dir}
		real, _, err := guestfs.RealPath(b.ctx, b.view, dir)
		j.linked = err == nil && real != dir
		switch {
		case e.noauto() && kind == kindBind:
			// What it would show is in the view, where it is.
		case e.noauto():
			late = append(late, j)
		case kind == kindBind:
			binds = append(binds, j)
		default:
			volumes = append(volumes, j)
		}
	}
	// Of two mounts one above the other, the upper comes first. Where a path with
	// links leads is known only once the others are there.
	slices.SortStableFunc(volumes, func(a, b job) int {
		if a.linked != b.linked {
			return cmpBool(a.linked, b.linked)
		}
		return cmp.Compare(strings.Count(a.dir, "/"), strings.Count(b.dir, "/"))
	})
	for _, j := range slices.Concat(volumes, binds, late) {
		if b.ctx.Err() != nil {
			return
		}
		if err := b.mount(j); err != nil {
			b.warn("%s isn't mounted at %s (/etc/fstab line %d): %v", j.Spec, j.dir, j.Line, err)
		}
	}
}

func cmpBool(a, b bool) int {
	if a {
		return 1
	}
	if b {
		return -1
	}
	return 0
}

var errMissing = errors.New("no volume of this restore point has that name")

// unreadable is for an entry that names none of the volumes that can be read: if
// there are others, it is one of them that should be there.
func (b *builder) unreadable(j job) (mount, error) {
	var damage error
	for i := range b.members {
		if m := &b.members[i]; m.Err != nil {
			damage = errors.Join(damage, m.Err)
		}
	}
	if damage == nil || j.noauto() {
		return mount{}, errMissing
	}
	return mount{Mount: Mount{Member: -1}, tree: lost{fmt.Errorf("%s is none of the volumes that can be read: %w", j.Spec, damage)}}, nil
}

// mount mounts what j asks for.
func (b *builder) mount(j job) error {
	var m mount
	var err error
	if j.kind() == kindBind {
		m, err = b.bindSource(j)
	} else {
		m, err = b.volume(j)
	}
	if err != nil || m.tree == nil {
		return err
	}
	path, at, err := guestfs.RealPath(b.ctx, b.view, j.dir)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	attr, err := b.view.Attr(b.ctx, at)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	if !attr.IsDir() {
		return guestfs.ErrNotDir
	}
	if rootAttr, err := m.tree.Attr(b.ctx, m.root); err != nil {
		m.tree, m.Problem = lost{err}, err.Error()
	} else if !rootAttr.IsDir() {
		return guestfs.ErrNotDir
	}
	if path == "/" {
		return errors.New("the mount point leads to the root directory")
	}
	for i := range b.view.mounts {
		// mount(8) passes over what is mounted there already.
		if o := &b.view.mounts[i]; o.Path == path && o.Member == m.Member && o.root == m.root {
			return nil
		}
	}
	m.Path, m.Spec, m.Options = path, j.Spec, j.Options
	b.view.over[at] = len(b.view.mounts)
	b.view.mounts = append(b.view.mounts, m)
	return nil
}

// bindSource returns what a bind mount shows. As for the kernel, that is one
// filesystem, without what is mounted on it, even with rbind: mounts within a
// source that is bound recursively are not repeated.
func (b *builder) bindSource(j job) (mount, error) {
	id, err := guestfs.Resolve(b.ctx, b.view, j.Spec, true)
	if err != nil {
		return mount{}, fmt.Errorf("source: %w", err)
	}
	i, tree, id, err := b.view.inner(id)
	if err != nil {
		return mount{}, err
	}
	o := &b.view.mounts[i]
	return mount{Mount: Mount{Volume: o.Volume, Member: o.Member}, tree: tree, root: id}, nil
}

// volume returns what j mounts; nothing when a noauto entry has no volume or one
// that is mounted already.
func (b *builder) volume(j job) (mount, error) {
	found := find(b.members, j.Spec)
	mounted := func(i int) bool {
		return slices.ContainsFunc(b.view.mounts, func(m mount) bool { return m.Member == i })
	}
	if j.noauto() && (len(found) == 0 || slices.ContainsFunc(found, mounted)) {
		return mount{}, nil
	}
	if len(found) == 0 {
		return b.unreadable(j)
	}
	i := found[0]
	if len(found) > 1 {
		// A copy of a volume, made by the guest or by its owner: the first that is
		// free, since the other is likely to be in use under its own name.
		if k := slices.IndexFunc(found, func(i int) bool { return !mounted(i) }); k >= 0 {
			i = found[k]
		}
		names := make([]string, len(found))
		for k, m := range found {
			names[k] = b.members[m].Name
		}
		b.warn("%s names %s alike; %s is at %s", j.Spec, strings.Join(names, " and "), b.members[i].Name, j.dir)
	}
	m := &b.members[i]
	if m.Err != nil {
		return mount{Mount: Mount{Volume: m.Name, Member: i}, tree: lost{m.Err}}, nil
	}
	root, err := subvolume(b.ctx, m.Tree, j.Entry)
	if err != nil {
		return mount{}, fmt.Errorf("%s: %w", m.Name, err)
	}
	return mount{Mount: Mount{Volume: m.Name, Member: i}, tree: m.Tree, root: root}, nil
}
