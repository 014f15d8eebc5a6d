package treetest

import (
	"context"
	"fmt"

	"yester/guestfs"
)

// Node is one path of a tree.
type Node struct {
	Path   string
	ID     guestfs.ID
	Parent guestfs.ID
	Type   uint32 // of the directory entry; 0 when not recorded
}

// maxNodes bounds a walk, maxDepth its depth: a hostile tree may be endless.
const (
	maxNodes = 2_000_000
	maxDepth = 1_000
)

// Walk calls fn for every path of tree, parents first, until fn returns an error.
// A directory is entered once even if several paths lead to it. Damage met in
// directories is given to damage, and the walk goes on; a nil damage ends the
// walk with it.
func Walk(ctx context.Context, tree guestfs.Tree, fn func(Node) error, damage func(path string, err error)) error {
	type item struct {
		Node
		depth int
	}
	root := Node{Path: "/", ID: tree.Root(), Parent: tree.Root(), Type: guestfs.ModeDir}
	if err := fn(root); err != nil {
		return err
	}
	seen := map[guestfs.ID]bool{root.ID: true}
	stack := []item{{Node: root}}
	nodes := 0
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		prefix := dir.Path + "/"
		if dir.Path == "/" {
			prefix = "/"
		}
		var fnErr error
		err := tree.ReadDir(ctx, dir.ID, 0, func(e guestfs.Dirent) bool {
			if nodes++; nodes > maxNodes {
				fnErr = fmt.Errorf("more than %d entries", maxNodes)
				return false
			}
			n := Node{Path: prefix + e.Name, ID: e.ID, Parent: dir.ID, Type: e.Type}
			if fnErr = fn(n); fnErr != nil {
				return false
			}
			isDir := e.Type == guestfs.ModeDir
			if e.Type == 0 {
				if a, err := tree.Attr(ctx, e.ID); err == nil {
					isDir = a.IsDir()
				}
			}
			if isDir && !seen[e.ID] && dir.depth < maxDepth {
				seen[e.ID] = true
				stack = append(stack, item{n, dir.depth + 1})
			}
			return true
		})
		if fnErr != nil {
			return fnErr
		}
		if err != nil {
			if damage == nil {
				return fmt.Errorf("%s: %w", dir.Path, err)
			}
			damage(dir.Path, err)
		}
	}
	return nil
}

// Collect returns all nodes of a sound tree.
func Collect(ctx context.Context, tree guestfs.Tree) ([]Node, error) {
	var nodes []Node
	err := Walk(ctx, tree, func(n Node) error {
		nodes = append(nodes, n)
		return nil
	}, nil)
	return nodes, err
}
