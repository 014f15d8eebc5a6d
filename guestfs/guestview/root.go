package guestview

import (
	"context"
	"errors"
	"fmt"

	"yester/guestfs"
)

// btrfsRoots are the subvolumes that installers put a root filesystem in, below
// the top level: Ubuntu and openSUSE, openSUSE's first snapshot, Fedora, Debian.
var btrfsRoots = []string{"/@", "/@/.snapshots/1/snapshot", "/root", "/@rootfs"}

// topLeveler is a power of a Btrfs tree whose Root isn't the top-level subvolume.
type topLeveler interface {
	// TopLevel returns the root directory of the subvolume 5.
	TopLevel() guestfs.ID
}

// topLevel returns the directory that the option subvol= counts from.
func topLevel(t guestfs.Tree) guestfs.ID {
	if s, ok := t.(topLeveler); ok {
		return s.TopLevel()
	}
	return t.Root()
}

// rooted is a tree as seen from one of its directories.
type rooted struct {
	guestfs.Tree
	root guestfs.ID
}

func (r rooted) Root() guestfs.ID { return r.root }

// candidate is a directory that a system can have as its root.
type candidate struct {
	mount
	entries []Entry // of its /etc/fstab
	warned  []string
	listed  bool // its /etc/fstab says that it is what belongs at "/"
}

// String names c in warnings.
func (c *candidate) String() string {
	if c.Path == "/" {
		return c.Volume
	}
	return c.Volume + " (" + c.Path + ")"
}

// candidates looks for roots in the members. Damage makes a volume no candidate,
// with a warning, and is the error when there are no others; else only ctx ends
// the search.
func candidates(ctx context.Context, members []Member) (found []candidate, warned []string, err error) {
	var damage error
	for i := range members {
		m := &members[i]
		if m.Err != nil {
			warned = appendWarning(warned, "%s can't be read: %v", m.Name, m.Err)
			damage = errors.Join(damage, m.Err)
			continue
		}
		tree := m.Tree
		dirs := []mount{{Mount: Mount{Path: "/"}, root: tree.Root()}}
		if tree.Info().Type == "btrfs" {
			for _, dir := range btrfsRoots {
				id, err := guestfs.Resolve(ctx, rooted{tree, topLevel(tree)}, dir, false)
				if err == nil && id != tree.Root() {
					dirs = append(dirs, mount{Mount: Mount{Path: dir}, root: id})
				}
			}
		}
		for _, d := range dirs {
			ok, err := hasRootLayout(ctx, rooted{tree, d.root})
			if ctx.Err() != nil {
				return nil, nil, context.Cause(ctx)
			}
			if err != nil {
				warned = appendWarning(warned, "%s can't be looked at for a root filesystem: %v", m.Name, err)
				damage = errors.Join(damage, fmt.Errorf("%s: %w", m.Name, err))
			}
			if !ok {
				continue
			}
			c := candidate{mount: d}
			c.tree, c.Volume, c.Member = tree, m.Name, i
			if err := c.readFstab(ctx, members); err != nil {
				return nil, nil, err
			}
			found = append(found, c)
		}
	}
	if len(found) == 0 && damage != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNoRoot, damage)
	}
	return found, warned, nil
}

// hasRootLayout reports whether the root directory of tree looks like a system's:
// it has etc and, beside it, usr, or bin and sbin.
func hasRootLayout(ctx context.Context, tree guestfs.Tree) (bool, error) {
	has := func(name string) (bool, error) {
		id, err := tree.Lookup(ctx, tree.Root(), name)
		if errors.Is(err, guestfs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		// Links count: /bin is usually one, /etc may be.
		attr, err := tree.Attr(ctx, id)
		return err == nil && (attr.IsDir() || attr.IsSymlink()), err
	}
	for _, all := range [][]string{{"etc", "usr"}, {"etc", "bin", "sbin"}} {
		ok := true
		for _, name := range all {
			one, err := has(name)
			if err != nil {
				return false, err
			}
			ok = ok && one
		}
		if ok {
			return true, nil
		}
	}
	return false, nil
}

// readFstab reads c's /etc/fstab. One that isn't there is an empty one.
func (c *candidate) readFstab(ctx context.Context, members []Member) error {
	tree := rooted{c.tree, c.root}
	id, err := guestfs.Resolve(ctx, tree, "/etc/fstab", true)
	var b []byte
	if err == nil {
		b, err = guestfs.ReadFile(ctx, tree, id, maxFstab)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, guestfs.ErrNotExist):
		return nil
	case err != nil:
		c.warned = appendWarning(c.warned, "/etc/fstab can't be read, so nothing is mounted on the root filesystem: %v", err)
		return nil
	}
	c.entries, c.warned = ParseFstab(b)
	for i := range c.entries {
		e := &c.entries[i]
		dir, ok := e.dir()
		if !ok || dir != "/" || e.kind() != kindVolume {
			continue
		}
		for _, m := range find(members, e.Spec) {
			if m != c.Member {
				continue
			}
			root, err := subvolume(ctx, c.tree, e)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err == nil && root == c.root {
				c.listed = true
				c.Spec, c.Options = e.Spec, e.Options
			}
		}
	}
	return nil
}

// subvolume returns the directory of tree that e mounts: the root, or a Btrfs
// subvolume by its path. One that is given by its number alone isn't looked for.
func subvolume(ctx context.Context, tree guestfs.Tree, e *Entry) (guestfs.ID, error) {
	sub, ok := e.option("subvol")
	if !ok {
		if n, ok := e.option("subvolid"); ok {
			if n == "5" || n == "0" {
				return topLevel(tree), nil
			}
			return guestfs.ID{}, fmt.Errorf("subvolid=%s without subvol=: not supported", n)
		}
		return tree.Root(), nil
	}
	return guestfs.Resolve(ctx, rooted{tree, topLevel(tree)}, sub, false)
}

// choose takes the root: one whose own /etc/fstab lists it, before others; then
// the one on the largest filesystem; then the first.
func choose(found []candidate) (*candidate, []string) {
	better := func(a, b *candidate) bool {
		if a.listed != b.listed {
			return a.listed
		}
		return a.tree.Info().Size > b.tree.Info().Size
	}
	best := &found[0]
	for i := range found {
		if better(&found[i], best) {
			best = &found[i]
		}
	}
	var warned []string
	for i := range found {
		c := &found[i]
		if c == best || c.Member == best.Member && !c.listed {
			continue // another snapshot of the same system
		}
		why := "its filesystem is not larger"
		if best.listed && !c.listed {
			why = "its /etc/fstab doesn't list it as /"
		}
		warned = appendWarning(warned, "%s could be a root filesystem too; %s was chosen, since of the other %s", c, best, why)
	}
	return best, warned
}
